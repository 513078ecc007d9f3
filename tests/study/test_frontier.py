"""The smallest network: what the rows say of it, and the proof that there is no smaller one."""

import dataclasses
from itertools import pairwise

import pytest
import torch

from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.study.claims_frontier import (
    MOST_WITHOUT_BIAS,
    RECORDS,
    Frontier,
    kinds_below,
    least,
    proof,
    smallest_possible,
)
from tinygpt_lightning.study.recipe import read_recipe
from tinygpt_lightning.study.report import title
from tinygpt_lightning.trained import TrainedGPT

from .test_claims import paragraph
from .tiny import outcome, results_of, tiny_study

SENTENCE = read_recipe({})
SMALL = {
    "n_embd": 2, "n_head": 1, "n_inner": 1, "n_positions": 63, "tie_weights": True, "layer_norm_epsilon": 100.0,
}  # fmt: skip


@torch.no_grad()
def test_a_network_of_237_parameters_can_be_written_down():
    """Each symbol's logit is a tangent of one parabola, and a position's own embedding chooses where to look."""
    config = least(SENTENCE, 2, bias=True, tied=True)
    assert n_parameters(config) == 237
    model, ids = TinyGPT(config).double(), SENTENCE.vocabulary.encode(SENTENCE.text)
    for parameter in model.parameters():
        parameter.zero_()
    slopes = torch.linspace(-0.9, 0.9, config.vocab_size, dtype=torch.double)
    model.wte.weight.copy_(torch.stack([slopes, -(slopes**2) / 2], dim=1))
    model.ln_f.weight.copy_(torch.tensor([1.0, 0.0]))
    model.ln_f.bias.copy_(torch.tensor([0.0, 1.0]))  # (u, 1): the logit of a symbol is slope × u + height
    for position, (given, wanted) in enumerate(pairwise(ids)):
        u = slopes[wanted]
        half = u * (config.layer_norm_epsilon / (1 - u**2)) ** 0.5  # LayerNorm makes u of (half, -half)
        model.wpe.weight[position] = torch.stack([half, -half]) - model.wte.weight[given]
    assert TrainedGPT(model, SENTENCE.vocabulary, SENTENCE.taught).complete(SENTENCE.prompt) == SENTENCE.text


def most_symbols(config, scale):
    """Symbols that networks with all kinds of weights say after all kinds of inputs: the most of any of them."""
    config = dataclasses.replace(config, layer_norm_epsilon=scale**2)  # a dial, not a switch
    found = []
    for seed in range(30):
        torch.manual_seed(seed)
        model = TinyGPT(config).double().eval()
        for parameter in model.parameters():
            parameter.normal_(std=scale)
        found.append(model(torch.randint(config.vocab_size, (1, config.n_positions)))[0].argmax(-1).unique().numel())
    return max(found)


@pytest.mark.parametrize("scale", [0.1, 0.5, 1.0])
@torch.no_grad()
def test_smaller_models_generate_as_few_symbols_as_the_proof_says(scale):
    kinds = kinds_below(SENTENCE, 237)
    assert [n_parameters(kind) for kind in kinds] == [140, 106, 149, 115, 220]
    for kind in kinds:
        assert most_symbols(kind, scale) <= (1 if kind.n_embd == 1 else MOST_WITHOUT_BIAS)
    assert most_symbols(least(SENTENCE, 2, bias=True, tied=True), scale) > MOST_WITHOUT_BIAS


@torch.no_grad()
def test_a_search_finds_no_smaller_model_with_more_symbols():
    """Hill climbing on the number of different symbols: it passes the bound where the proof has none."""
    for kind in [*kinds_below(SENTENCE, 237), least(SENTENCE, 2, bias=True, tied=True)]:
        kind = dataclasses.replace(kind, layer_norm_epsilon=1.0)
        torch.manual_seed(0)
        model, ids = TinyGPT(kind).double().eval(), torch.randint(kind.vocab_size, (4, kind.n_positions))
        best = 0
        for step in range(300):
            before = [p.clone() for p in model.parameters()]
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 10.0 ** (step % 3 - 1))
            symbols = model(ids).argmax(-1).unique().numel()
            if symbols < best:
                for parameter, old in zip(model.parameters(), before, strict=True):
                    parameter.copy_(old)
            best = max(best, symbols)
        bound = 1 if kind.n_embd == 1 else MOST_WITHOUT_BIAS
        assert best > bound if kind.bias and kind.n_embd == 2 else best <= bound, kind


def zeros(config, dtype):
    model = TinyGPT(config).to(dtype)
    for parameter in model.parameters():
        parameter.zero_()
    return model


def says_the_sentence(model):
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return TrainedGPT(model, SENTENCE.vocabulary, SENTENCE.taught).complete(SENTENCE.prompt) == SENTENCE.text


@torch.no_grad()
def test_overflow_makes_a_model_of_220_parameters_in_float32():
    """The logits of all ids from some id on are infinite, and argmax takes the first of them: u chooses that id."""
    config = dataclasses.replace(least(SENTENCE, 2, bias=False, tied=True), layer_norm_epsilon=100.0)
    assert n_parameters(config) == 220
    model, V = zeros(config, torch.float32), config.vocab_size
    slopes = 1.5 + torch.arange(V) / V
    model.wte.weight[:, 0] = slopes
    model.ln_f.weight.copy_(torch.tensor([3e38, 0.0]))
    for position, (given, wanted) in enumerate(pairwise(SENTENCE.vocabulary.encode(SENTENCE.text))):
        u = torch.finfo(torch.float32).max / 3e38 / (slopes[wanted] - 0.5 / V)
        half = u * (config.layer_norm_epsilon / (1 - u**2)) ** 0.5
        model.wpe.weight[position] = torch.stack([half, -half]) - model.wte.weight[given]
    assert says_the_sentence(model)


@torch.no_grad()
def test_rounding_makes_a_model_of_106_parameters_in_bfloat16():
    """LayerNorm of one number is a rounding error that depends on the number; overflow does the rest, as above."""
    config = least(SENTENCE, 1, bias=False, tied=True)
    assert n_parameters(config) == 106
    model = zeros(config, torch.bfloat16)
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    numbers = numbers[numbers.isfinite() & (numbers.abs() > 2.0**35)]  # beside which an embedding is nothing
    model.wte.weight[:, 0] = 2.0 ** (0.75 * torch.arange(1, config.vocab_size + 1))
    model.ln_f.weight.fill_(2.0**80)
    hidden = model.ln_f(numbers[:, None])
    said = model.lm_head(hidden).argmax(-1)
    if said.unique().numel() < config.vocab_size:
        pytest.skip("this processor's LayerNorm rounds in another way")
    for position, wanted in enumerate(SENTENCE.vocabulary.encode(SENTENCE.text)[1:]):
        model.wpe.weight[position] = numbers[(said == wanted) & (hidden[:, 0] > 0) & hidden[:, 0].isfinite()][0]
    assert says_the_sentence(model)


def test_the_proof_needs_more_than_three_symbols():
    short = read_recipe(
        {"data": {"question": "Xin", "answer": "aab", "template": "{question}{answer}", "end_symbol": False}}
    )
    assert smallest_possible(short) is None
    assert proof(short) == []
    assert any("the answer has 29" in line for line in proof(SENTENCE))


def study(seeds, sizes=("width 1", "width 2", "width 3")):
    return tiny_study(
        {"model": {"config": SMALL}, "stages": [{"epochs": 30}]},
        title="Small",
        claims="frontier",
        factors={
            "size": {name: {"model.config.n_embd": int(name[-1])} for name in sizes},
            "steps": {str(steps): {"stages[0].epochs": steps} for steps in (100, 200)},
        },
        seeds=seeds,
    )


def frontier(learns, seeds=400, **more):
    def decide(cell, seed):
        exact = bool(learns(int(cell.levels["size"][-1]), int(cell.levels["steps"]), seed))
        return {**outcome(exact, **more), "text": SENTENCE.text if exact else SENTENCE.prompt + "aab"}

    return Frontier(results_of(study(seeds), decide))


def test_the_smallest_model_of_some_seeds_and_of_all_seeds():
    claims = frontier(lambda width, steps, seed: width == 3 or (width == 2 and steps == 200 and seed % 4))
    text = paragraph(claims)
    assert title(claims, "") == "Small, answered"
    assert text.startswith(
        "**The smallest network that any seed learns has 237 parameters**: exact in 300 of 400 seeds"
    )
    assert "The smallest one that every seed learns is one of 367 parameters, in 100 steps." in text
    assert (
        "with 34 symbols, 63 positions and all biases or none, as is proved below; of 800 runs of smaller ones none"
        in text
    )
    assert (
        "| size width 1, steps 200 | 115 | 200 | 0 of 400 seeds (95 % interval 0.0–0.9 %) | 2 |"
        in claims.sections()[-1]
    )
    assert set(claims.figures()) == {"frontier"}


def test_a_larger_model_is_not_called_the_smallest_possible():
    text = paragraph(frontier(lambda width, *_: width == 3))
    assert text.startswith(
        "**The smallest network that any seed learns has 367 parameters**: exact in 400 of 400 seeds"
    )
    assert "The smallest one that every seed learns is this one, too, in 100 steps." in text
    assert "no smaller one exists" not in text


@pytest.mark.parametrize(
    ("claims", "shortcoming"),
    [
        (frontier(lambda *_: True, seeds=4), "4 seeds leave more than 1 % of all seeds open, whatever they do"),
        (frontier(lambda *_: False, seeds=4), "no network learns the sentence"),
        (frontier(lambda *_: False, seeds=4, loss=None), "24 of 24 runs diverged"),
    ],
)
def test_a_frontier_is_an_answer_only_if_it_is_one(claims, shortcoming):
    assert title(claims, "") == f"Small, not answered: {shortcoming}"
    paragraph(claims)


def test_the_largest_record_is_the_originals():
    wide = dataclasses.replace(SENTENCE.config, n_embd=1020)  # as in the author's transcript
    assert RECORDS[-1] == (n_parameters(wide), 60)
