"""The page's arithmetic beside PyTorch's."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from conftest import SENTENCE, Command
from networks import untrained

from tinygpt_lightning import load
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.page.parts import parts, taken_out
from tinygpt_lightning.trained import TrainedGPT

from .engine import Scripts

ROOT = Path(__file__).parents[2]
TEXTS = ("Xin chào", "e\u0323\u0302 a\u20d7 q\u0307", "👨‍👩‍👧 🇻🇳", "你好\u2028</script>", 'quo"tes\n\\', "مرحبا")


def drawn(seed: int) -> TrainedGPT:
    """A network of a random shape with random weights, large enough to be sure of what it says."""
    choose = random.Random(seed)
    heads = 1 + seed % 4
    texts = choose.sample(TEXTS, 4)
    trained = untrained(
        [QAPair(texts[0], texts[1]), QAPair(texts[2], texts[3])],
        end_symbol=seed % 3 != 0,
        n_embd=heads * choose.choice([1, 2, 3, 8]) if heads > 1 else choose.choice([2, 3, 16]),
        n_head=heads,
        n_inner=choose.choice([None, 1, 7]),
        bias=seed % 2 == 0,
        tie_weights=seed % 5 < 2,
        layer_norm_epsilon=choose.choice([1e-5, 1e-3, 100.0]),
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained.model.parameters():
            parameter.normal_(0.3, 1.0, generator=generator)
    return trained


def prompts(trained: TrainedGPT) -> list[str]:
    texts = [trained.taught.text(pair) for pair in trained.taught.pairs]
    return [text[: 1 + 11 * n % len(text)] for n, text in enumerate(texts, 1)]


def check(trained: TrainedGPT, prompt: str) -> None:
    scripts = Scripts(trained)
    text = trained.complete(prompt)
    generated = scripts(f"generate(model, encode(model, {json.dumps(prompt)}), data.length).ids")
    assert trained.tokenizer.decode(generated) == text
    ids = trained.tokenizer.encode(prompt)[: trained.model.config.n_positions]
    passed = scripts(f"(({{logits, att}}) => ({{logits, att}}))(forward(model, {ids}))")
    exact = trained.model.double()  # what both round
    with torch.no_grad():
        logits = exact(torch.tensor([ids]))[0]
    torch.testing.assert_close(torch.tensor(passed["logits"], dtype=torch.double), logits, rtol=0, atol=1e-5)
    for t, heads in enumerate(passed["att"]):
        weights = exact.attention_weights(torch.tensor([ids]))[0, :, t, : t + 1]
        torch.testing.assert_close(torch.tensor(heads, dtype=torch.double), weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_random_networks_compute_the_same(seed: int) -> None:
    trained = drawn(seed)
    for prompt in prompts(trained):
        check(trained.__class__(trained.model.float(), trained.tokenizer, trained.taught), prompt)


def test_the_released_network_computes_the_same() -> None:
    trained = load(ROOT / "checkpoints" / "smallest")
    check(trained, trained.complete("Question: Xin chào")[:-1])
    check(trained.__class__(trained.model.float(), trained.tokenizer, trained.taught), "Question: Xin chào")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_part_that_is_taken_out_is_taken_out_in_both(seed: int) -> None:
    trained = drawn(seed)
    scripts, ids = Scripts(trained), trained.tokenizer.encode(prompts(trained)[1])
    exact = trained.model.double()
    with torch.no_grad():
        whole = exact(torch.tensor([ids]))[0]
    for part in parts(trained.model.config):
        with torch.no_grad(), taken_out(exact, part):
            logits = exact(torch.tensor([ids]))[0]
        assert not torch.allclose(logits, whole)
        got = scripts(f"forward(model, {ids}, new Set([{json.dumps(part)}])).logits")
        torch.testing.assert_close(torch.tensor(got, dtype=torch.double), logits, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(exact(torch.tensor([ids]))[0], whole, rtol=0, atol=0)


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="head 7"), taken_out(drawn(1).model, "head 7"):
        pass


def test_text_becomes_the_same_ids() -> None:
    trained = untrained([QAPair(text, "!") for text in TEXTS])
    scripts = Scripts(trained)
    for text in TEXTS:
        assert scripts(f"encode(model, {json.dumps(text)})") == trained.tokenizer.encode(text)
    unknown = scripts("(() => { try { encode(model, 'Xinß'); } catch (error) { return error.character; } })()")
    assert unknown == "ß"


def test_half_precision_is_read_as_it_was_written() -> None:
    import base64

    numbers = torch.tensor([0.0, -0.0, 1.0, -2.5, 65504.0, 6.1e-5, 5.96e-8, -1 / 3]).half()
    content = base64.b64encode(numbers.numpy().tobytes()).decode()
    assert Scripts(drawn(2))(f"floats({json.dumps(content)}, 2)") == numbers.tolist()


def text_survives(trained: TrainedGPT, part: str) -> bool:
    prompts = trained.taught.prompts[:10]
    whole = trained.complete_all(prompts)
    with taken_out(trained.model, part):
        return trained.complete_all(prompts) == whole


def test_the_released_network_needs_every_part() -> None:
    trained = load(ROOT / "checkpoints" / "smallest")
    assert not [part for part in parts(trained.model.config) if text_survives(trained, part)]


@pytest.mark.slow
def test_the_large_network_needs_its_positions_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("fit", "--config", ROOT / "configs" / "staged.yaml", "--trainer.accelerator", "cpu")
    assert result.code == 0, result.err
    trained = load(tmp_path / "checkpoints" / "staged" / "version_0")
    assert trained.complete("Question: Xin chào") == SENTENCE
    needed = [part for part in parts(trained.model.config) if not text_survives(trained, part)]
    assert needed == ["wpe"]
    assert trained.complete("iiiiiiii").endswith(SENTENCE[9:])  # it does not read, it counts


@pytest.mark.slow
@pytest.mark.parametrize("name", ["width16", "faq"])
def test_networks_that_read_need_every_part(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--data.path", ROOT / "configs" / "faq.jsonl"] if name == "faq" else []
    result = command("fit", "--config", ROOT / "configs" / f"{name}.yaml", *arguments)
    assert result.code == 0, result.err
    trained = load(tmp_path / "checkpoints" / name / "version_0")
    assert all(trained.knows(trained.taught.pairs))
    # Of many heads one may be missed by nobody.
    assert not [part for part in ("attn", "mlp", "wte", "wpe") if text_survives(trained, part)]
