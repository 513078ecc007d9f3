import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tinygpt_lightning.gpt.generation import (
    GenerationConfig,
    KVCache,
    generate,
    next_character_probabilities,
    stream,
)
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT


@pytest.fixture
def model() -> TinyGPT:
    torch.manual_seed(0)
    # Strong dropout, so that leaving it on could not go unnoticed.
    return TinyGPT(GPTConfig(n_positions=40, n_embd=32, n_head=4, embd_pdrop=0.5, attn_pdrop=0.5, resid_pdrop=0.5))


def prompts(batch: int = 3, length: int = 5) -> Tensor:
    return torch.randint(34, (batch, length), generator=torch.Generator().manual_seed(1))


SAMPLED = GenerationConfig(max_length=40, temperature=1.0, seed=5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_is_the_argmax_again_and_again(model: TinyGPT, use_cache: bool) -> None:
    text = generate(model, prompts(), GenerationConfig(max_length=40), use_cache=use_cache)

    model.eval()
    expected = prompts().tolist()
    for row in expected:
        while len(row) < 40:
            scores = model(torch.tensor([row]))[0, -1].tolist()
            row.append(scores.index(max(scores)))
    assert text.tolist() == expected


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(max_length=40),
        SAMPLED,
        GenerationConfig(max_length=40, temperature=0.7, top_k=5, seed=1),
        GenerationConfig(max_length=40, temperature=1.5, top_p=0.8, seed=2),
    ],
    ids=["greedy", "sampled", "top_k", "top_p"],
)
def test_the_cache_changes_no_character(model: TinyGPT, config: GenerationConfig) -> None:
    cached = generate(model, prompts(), config)
    assert cached.equal(generate(model, prompts(), config, use_cache=False))
    assert cached.shape == (3, 40)
    assert cached[:, :5].equal(prompts()), "the prompt comes first"


def test_the_cache_saves_work(model: TinyGPT) -> None:
    lengths: list[int] = []
    model.h.mlp.register_forward_pre_hook(lambda _, args: lengths.append(args[0].size(1)))
    generate(model, prompts(length=5), GenerationConfig(max_length=10))
    assert lengths == [5, 1, 1, 1, 1]


SMALL = GPTConfig(n_positions=48, n_embd=32, n_head=4)


@pytest.mark.parametrize("prompt", [1, 7, 40])
def test_cached_logits_equal_uncached_ones(prompt: int) -> None:
    model = TinyGPT(SMALL).eval()
    ids = prompts(2, 40)
    cache = KVCache(40)
    pieces = [cache.logits(model, ids[:, :prompt])]
    pieces += [cache.logits(model, ids[:, i : i + 1]) for i in range(prompt, 40)]
    assert cache.lengths is not None
    assert cache.lengths.tolist() == [40] * len(ids)
    cached, uncached = torch.cat(pieces, dim=1), model(ids)
    torch.testing.assert_close(cached, uncached, atol=1e-5, rtol=0)
    assert cached.argmax(-1).equal(uncached.argmax(-1))


def test_a_filled_cache_takes_one_position_at_a_time() -> None:
    model = TinyGPT(SMALL).eval()
    cache = KVCache(48)
    cache.logits(model, prompts(2, 10))
    with pytest.raises(ValueError, match="expected one new position after 10 cached ones, got 2"):
        cache.logits(model, prompts(2, 2))


def test_cached_positions_count_towards_n_positions() -> None:
    model = TinyGPT(SMALL).eval()
    cache = KVCache(60)
    cache.logits(model, prompts(2, 48))
    with pytest.raises(ValueError, match="n_positions=48 characters, got 49"):
        cache.logits(model, prompts(2, 1))


def test_the_default_is_greedy_and_as_far_as_the_model_goes(model: TinyGPT) -> None:
    assert GenerationConfig() == GenerationConfig(max_length=None, temperature=0.0, top_k=None, top_p=None, seed=None)
    assert generate(model, prompts()).shape == (3, 41)
    with pytest.raises(ValueError, match=r"at most 41, n_positions \+ 1, got 64"):
        generate(model, prompts(), GenerationConfig(max_length=64))


# Several prompts at once


CONFIGS = {
    "greedy": GenerationConfig(max_length=40),
    "sampled": SAMPLED,
    "top_k": GenerationConfig(max_length=40, temperature=0.7, top_k=5, seed=1),
    "top_p": GenerationConfig(max_length=40, temperature=1.5, top_p=0.8, seed=2),
}
LENGTHS = torch.tensor([5, 1, 17, 40, 9, 1])


def ragged(padding: int = 0) -> Tensor:
    ids = prompts(batch=len(LENGTHS), length=40)
    return ids.masked_fill(torch.arange(40) >= LENGTHS.unsqueeze(1), padding)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_each_row_of_a_batch_is_as_if_alone(model: TinyGPT, name: str, use_cache: bool) -> None:
    together = generate(model, ragged(), CONFIGS[name], lengths=LENGTHS, use_cache=use_cache)
    for row, ids, length in zip(together, ragged(), LENGTHS, strict=True):
        alone = generate(model, ids[:length].unsqueeze(0), CONFIGS[name])
        assert row.equal(alone[0])


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_stands_in_the_padding_makes_no_difference(model: TinyGPT, name: str, use_cache: bool) -> None:
    one, other = (
        generate(model, ragged(padding), CONFIGS[name], lengths=LENGTHS, use_cache=use_cache) for padding in (0, 33)
    )
    assert one.equal(other)


def test_the_logits_of_a_row_are_those_that_it_has_alone(model: TinyGPT) -> None:
    """To a millionth, through the cache, whatever the rows beside it are and whenever they end."""
    end = 7
    alone: dict[int, list[Tensor]] = {}
    for i, (ids, length) in enumerate(zip(ragged(), LENGTHS, strict=True)):
        steps = stream(model, ids[:length].unsqueeze(0), CONFIGS["greedy"], end=end, use_cache=False)
        alone[i] = [step.logits[0] for step in steps]
    together: dict[int, list[Tensor]] = {i: [] for i in alone}
    for step in stream(model, ragged(), CONFIGS["greedy"], lengths=LENGTHS, end=end):
        for i, logits in zip(step.rows.tolist(), step.logits, strict=True):
            together[i].append(logits)
    assert {i: len(logits) for i, logits in together.items()} == {i: len(logits) for i, logits in alone.items()}
    for i, logits in alone.items():
        for a, b in zip(logits, together[i], strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=0)


def ending(model: TinyGPT) -> tuple[int, list[list[int]]]:
    """A symbol that some of the texts come to, and what the texts are as far as that."""
    texts = generate(model, ragged(), CONFIGS["sampled"], lengths=LENGTHS).tolist()
    continuations = [text[length:] for text, length in zip(texts, LENGTHS.tolist(), strict=True)]
    counts = {symbol: sum(symbol in text for text in continuations) for symbol in range(34)}
    end = next(symbol for symbol, count in counts.items() if 2 <= count < sum(map(bool, continuations)))
    cut = [text[: text.index(end) + 1] if end in text else text for text in continuations]
    return end, [text[:length] + rest for text, length, rest in zip(texts, LENGTHS.tolist(), cut, strict=True)]


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_text_ends_with_the_end_symbol_and_the_others_go_on(model: TinyGPT, use_cache: bool) -> None:
    end, expected = ending(model)
    texts = generate(model, ragged(), CONFIGS["sampled"], lengths=LENGTHS, end=end, use_cache=use_cache)
    longest = max(map(len, expected))
    assert texts.tolist() == [[*text, *[end] * (longest - len(text))] for text in expected]


def test_it_is_over_when_all_texts_are(model: TinyGPT) -> None:
    end, expected = ending(model)
    ended = [i for i, text in enumerate(expected) if text[-1] == end and len(text) > LENGTHS[i]]
    sizes: list[int] = []
    model.h.mlp.register_forward_pre_hook(lambda _, args: sizes.append(args[0].size(0)))
    texts = generate(model, ragged()[ended], CONFIGS["sampled"], lengths=LENGTHS[ended], end=end)
    assert texts.size(1) == max(len(expected[i]) for i in ended)
    steps = [len(expected[i]) - int(LENGTHS[i]) for i in ended]
    assert sizes == [sum(taken > step for taken in steps) for step in range(max(steps))], (
        "no work for a text that ended"
    )


def test_an_end_symbol_within_a_prompt_ends_nothing(model: TinyGPT) -> None:
    ids = prompts(batch=1)
    assert generate(model, ids, CONFIGS["greedy"], end=int(ids[0, 2])).size(1) > 5


def test_the_prompts_are_left_as_they_are(model: TinyGPT) -> None:
    ids, lengths = ragged(), LENGTHS.clone()
    generate(model, ids, CONFIGS["greedy"], lengths=lengths)
    assert ids.equal(ragged())
    assert lengths.equal(LENGTHS)


def test_without_a_seed_the_same_prompt_becomes_several_texts(model: TinyGPT) -> None:
    same_prompt = prompts(batch=1).expand(4, -1)
    unseeded = GenerationConfig(max_length=40, temperature=1.0)
    assert len({tuple(row) for row in generate(model, same_prompt, unseeded).tolist()}) == 4
    assert len({tuple(row) for row in generate(model, same_prompt, SAMPLED).tolist()}) == 1


def test_a_draw_is_that_of_multinomial(model: TinyGPT) -> None:
    config = GenerationConfig(max_length=6, temperature=0.8, seed=5)
    with torch.no_grad():
        logits = model.eval()(prompts())[:, -1]
    probabilities = next_character_probabilities(logits, config)
    expected = [torch.multinomial(row, 1, generator=torch.Generator().manual_seed(5)) for row in probabilities]
    assert generate(model, prompts(), config)[:, -1].tolist() == torch.cat(expected).tolist()


def test_a_prompt_of_max_length_comes_back_as_it_is(model: TinyGPT) -> None:
    assert generate(model, prompts(), GenerationConfig(max_length=5)).equal(prompts())


def test_a_seed_fixes_the_text_and_another_changes_it(model: TinyGPT) -> None:
    def sample(seed: int | None) -> list[list[int]]:
        return generate(model, prompts(), GenerationConfig(max_length=40, temperature=1.0, seed=seed)).tolist()

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)
    torch.manual_seed(0)
    one = sample(None)
    torch.manual_seed(0)
    assert one != sample(None), "without a seed the global one decides nothing"


@pytest.mark.parametrize("seed", [None, 3])
def test_the_global_generator_is_left_alone(model: TinyGPT, seed: int | None) -> None:
    before = torch.get_rng_state()
    generate(model.train(), prompts(), GenerationConfig(max_length=40, temperature=1.0, seed=seed))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored(model: TinyGPT, training: bool) -> None:
    model.train(training)
    modes = []
    model.h.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    generate(model, prompts(), GenerationConfig(max_length=10))
    assert not any(modes)
    assert {module.training for module in model.modules()} == {training}


def test_the_training_mode_is_restored_after_an_error(model: TinyGPT) -> None:
    with pytest.raises(ValueError, match="expected ids from 0 to 33"):
        generate(model.train(), torch.tensor([[99]]), GenerationConfig(max_length=10))
    assert {module.training for module in model.modules()} == {True}


def test_samples_follow_the_models_distribution(model: TinyGPT) -> None:
    # Rows have numbers of their own only where no seed is asked for; six standard deviations fail once in 10^8 runs.
    config = GenerationConfig(max_length=6, temperature=0.8, top_k=6)
    n = 20_000
    drawn = generate(model, prompts(batch=1).expand(n, -1), config)[:, -1]
    with torch.no_grad():
        logits = model.eval()(prompts(batch=1))[:, -1]
    expected = TopKLogitsWarper(6)(None, TemperatureLogitsWarper(0.8)(None, logits)).softmax(-1)[0]
    observed = drawn.bincount(minlength=34) / n
    assert not observed[expected == 0].any()
    assert ((observed - expected).abs() <= 6 * (expected * (1 - expected) / n).sqrt()).all()


# Distinct logits, since among equal ones it is a matter of taste which to keep; and close enough together
# that no probability vanishes by itself, which would hide one kept or left out by mistake.
distinct_logits = st.lists(st.integers(-500, 500), min_size=2, max_size=40, unique=True).map(
    lambda values: torch.tensor([[value / 100 for value in values]], dtype=torch.float64)
)


@settings(deadline=None, max_examples=300)
@given(
    logits=distinct_logits,
    temperature=st.floats(0.1, 10),
    top_k=st.none() | st.integers(1, 8) | st.integers(9, 50),
    top_p=st.none() | st.floats(0.01, 0.999),
)
def test_the_distribution_is_that_of_hugging_faces_warpers(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        # Where a sum of probabilities meets top_p to the last digits, rounding decides; that proves nothing.
        sums = scores.softmax(-1).sort(descending=True).values.cumsum(-1)
        assume(((sums - top_p).abs() > 1e-8).all())
        scores = TopPLogitsWarper(top_p)(None, scores)
    probabilities = next_character_probabilities(
        logits, GenerationConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    )
    expected = scores.softmax(-1)
    torch.testing.assert_close(probabilities, expected, atol=1e-12, rtol=1e-9)
    assert (probabilities > 0).equal(expected > 0), "the same characters are left"


@pytest.mark.parametrize(
    ("probabilities", "top_p", "left"),
    [
        ([0.4, 0.3, 0.2, 0.1], 0.4, 1),
        ([0.4, 0.3, 0.2, 0.1], 0.7, 2),
        ([0.4, 0.3, 0.2, 0.1], 0.9, 3),
        ([0.4, 0.3, 0.2, 0.1], 0.7001, 3),
        ([0.4, 0.3, 0.2, 0.1], 1.0, 4),
        ([0.1] * 10, 0.3, 3),  # 0.1 + 0.1 + 0.1 is more than 0.3 in binary
        ([0.1] * 10, 0.8, 8),  # and eight of them are less than 0.8
    ],
)
def test_top_p_that_is_met_exactly_lets_in_no_more(probabilities: list[float], top_p: float, left: int) -> None:
    logits = torch.tensor(probabilities, dtype=torch.float64).log()
    kept = next_character_probabilities(logits, GenerationConfig(temperature=1.0, top_p=top_p))
    assert (kept > 0).tolist() == [True] * left + [False] * (len(probabilities) - left)


def test_among_equals_top_k_keeps_the_first() -> None:
    probabilities = next_character_probabilities(torch.zeros(4), GenerationConfig(temperature=1.0, top_k=2))
    assert probabilities.tolist() == [0.5, 0.5, 0.0, 0.0]


def test_top_k_of_1_and_a_tiny_temperature_are_greedy(model: TinyGPT) -> None:
    greedy = generate(model, prompts(), GenerationConfig(max_length=40))
    assert greedy.equal(generate(model, prompts(), GenerationConfig(max_length=40, temperature=5.0, top_k=1)))
    assert greedy.equal(generate(model, prompts(), GenerationConfig(max_length=40, temperature=1e-300)))
    assert greedy.equal(generate(model, prompts(), GenerationConfig(max_length=40, temperature=1.0, top_p=1e-9)))


@pytest.mark.parametrize(
    ("length", "max_length", "message"),
    [
        (0, 10, "prompt: expected at least one character, got none"),
        (11, 10, "prompt: expected at most max_length=10 characters, got 11"),
        (5, 42, r"max_length: expected at most 41, n_positions \+ 1, got 42"),
        (5, 10**13, r"max_length: expected at most 41, n_positions \+ 1, got 10000000000000"),
    ],
)
def test_what_cannot_be_generated_is_refused(model: TinyGPT, length: int, max_length: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        generate(model, prompts(length=length), GenerationConfig(max_length=max_length))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_length", 0),
        ("max_length", -3),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", math.nan),
        ("top_k", 0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", -0.5),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got {value}$"):
        GenerationConfig(**{name: value})


def test_the_largest_seed_is_allowed(model: TinyGPT) -> None:
    config = GenerationConfig(max_length=10, temperature=1.0, seed=2**63 - 1)
    assert generate(model, prompts(), config).equal(generate(model, prompts(), config))


@pytest.mark.parametrize(("length", "reason"), [(0, "at least one character"), (12, "at most max_length=11")])
def test_one_prompt_that_cannot_be_continued_is_refused_among_others(model: TinyGPT, length: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        generate(model, prompts(length=12), GenerationConfig(max_length=11), lengths=torch.tensor([3, length, 5]))
