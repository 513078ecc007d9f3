"""Each number of the page with its formula."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from networks import untrained

from .engine import Scripts

IDS = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module", params=[True, False], ids=["bias", "no bias"])
def scripts(request: pytest.FixtureRequest) -> Scripts:
    scripts = Scripts(untrained(n_embd=4, n_head=2, n_inner=3, bias=request.param))
    scripts.engine.eval(f"const passed = forward(model, {IDS});")
    return scripts


def explained(scripts: Scripts, **ref: Any) -> dict[str, Any]:
    written = ", ".join(f"{key}: {value!r}" for key, value in ref.items())
    return dict(scripts(f"explain(model, passed, {{{written}}})"))


@pytest.mark.parametrize(
    "array", ["wte", "wpe", "x", "x_attn", "x_mlp", "q", "k", "v", "attn", "c_fc", "mlp", "logits"]
)
def test_a_formula_comes_to_its_number(scripts: Scripts, array: str) -> None:
    found = explained(scripts, array=array, t=3, i=1)
    assert found["value"] == scripts(f"passed.{array}[3][1]")
    assert found["sources"]
    if array in ("wte", "wpe"):
        assert found["sources"][0]["value"] == found["value"]
        return
    filled = found["formula"].rpartition(" = ")[2].replace("−", "-").replace("·", "*")
    assert re.fullmatch(r"[-\d.e*+() ]+", filled)
    assert math.isclose(eval(filled), found["value"], abs_tol=0.02)  # noqa: S307  # digits alone: three are shown


@pytest.mark.parametrize("array", ["ln_1", "ln_2", "ln_f"])
def test_layer_norm_is_filled_in(scripts: Scripts, array: str) -> None:
    found = explained(scripts, array=array, t=2, i=3)
    filled = found["formula"].rpartition(" = ")[2].replace("−", "-").replace("·", "*")
    assert math.isclose(eval(filled), found["value"], abs_tol=0.02)  # noqa: S307


def test_attention_is_a_softmax_of_scores(scripts: Scripts) -> None:
    found = explained(scripts, array="att", h=1, t=3, i=2)
    scores = [
        float(explained(scripts, array="att", h=1, t=3, i=s)["formula"].rpartition(" = ")[2].replace("−", "-"))
        for s in range(4)
    ]
    assert math.isclose(torch.tensor(scores).softmax(0)[2].item(), found["value"], abs_tol=2e-3)
    assert {(source["array"], source["t"], source["i"]) for source in found["sources"]} == {
        ("q", 3, 2), ("q", 3, 3), ("k", 2, 2), ("k", 2, 3)
    }  # fmt: skip


def test_the_rest_names_its_sources(scripts: Scripts) -> None:
    assert {source["array"] for source in explained(scripts, array="y", t=3, i=0)["sources"]} == {"att", "v"}
    assert explained(scripts, array="gelu", t=3, i=2)["sources"][0]["array"] == "c_fc"
    assert explained(scripts, array="probs", t=3, i=2)["sources"][0]["array"] == "logits"
    weight = explained(scripts, array="w:h.mlp.c_fc.weight", t=2, i=1)
    assert (weight["name"], weight["value"]) == ("h.mlp.c_fc.weight[2, 1]", scripts("model.w['h.mlp.c_fc.weight'][9]"))
