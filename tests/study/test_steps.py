"""What of the optimizer's state is kept at a boundary, and how far each step goes, against AdamW by hand."""

import math
from itertools import product

import pytest
import torch

from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.recipe import ADAMS_STATE

from .test_ensemble import CPU, recipe, train

LR, BETAS, EPS, DECAY = 0.01, (0.9, 0.999), 1e-8, 0.01


def flat(together, index):
    return torch.cat([p.detach()[index].flatten() for p in together.parameters.values()]).double()


def gradients(together, index):
    return torch.cat([p.grad[index].flatten() for p in together.parameters.values()]).double()


def adamw_step(weights, gradient, exp_avg, exp_avg_sq, step):
    """Loshchilov and Hutter 2019, algorithm 2: how far the weights move."""
    exp_avg = BETAS[0] * exp_avg + (1 - BETAS[0]) * gradient
    exp_avg_sq = BETAS[1] * exp_avg_sq + (1 - BETAS[1]) * gradient**2
    step += 1
    corrected = exp_avg / (1 - BETAS[0] ** step)
    root = (exp_avg_sq / (1 - BETAS[1] ** step)).sqrt()
    return -LR * (DECAY * weights + corrected / (root + EPS))


@pytest.mark.parametrize("kept", list(product([False, True], repeat=3)))
def test_each_entry_of_the_state_is_kept_or_reset_by_itself(kept):
    keep = dict(zip(ADAMS_STATE, kept, strict=True))
    asked = recipe(stage={"keep": keep})
    together = train(Ensemble(asked, [0, 1], CPU, measure_updates=True), 5)
    state = together.steps.optimizer.state
    parts = {
        name: torch.cat([state[p][name].expand_as(p)[1].flatten() for p in together.steps.parameters]).double()
        for name in ADAMS_STATE
    }
    before = flat(together, 1)
    together.begin_stage(asked, 1)
    train(together, 1)
    old = {name: value if keep[name] else torch.zeros_like(value) for name, value in parts.items()}
    expected = adamw_step(before, gradients(together, 1), **old)
    torch.testing.assert_close(flat(together, 1) - before, expected, atol=1e-6, rtol=1e-3)
    assert together.steps.norms[-1][1].item() == pytest.approx(expected.norm().item(), rel=1e-3)


def test_the_first_update_can_be_as_large_as_a_new_optimizers():
    stages = {
        "new": {},
        "kept": {"reset_optimizer": False},
        "larger": {"reset_optimizer": False, "first_update": "as_new"},
    }
    norms, moved, factors = {}, {}, {}
    for name, stage in stages.items():
        asked = recipe(stage=stage)
        together = train(Ensemble(asked, [0, 1], CPU, measure_updates=True), 5)
        together.begin_stage(asked, 1)
        before = flat(together, 1)
        train(together, 1)
        moved[name] = flat(together, 1) - before
        train(together, 2)
        norms[name] = torch.stack(together.steps.norms)[:, 1].tolist()
        factors[name] = together.steps.rate_factor
    assert norms["larger"][:5] == norms["kept"][:5] == norms["new"][:5]
    assert norms["larger"][5] == pytest.approx(norms["new"][5], rel=1e-4)
    # It goes where the kept optimizer goes, only further; and so do the steps that follow.
    torch.testing.assert_close(moved["larger"], factors["larger"][1] * moved["kept"], atol=1e-6, rtol=1e-3)
    assert (factors["new"], factors["kept"]) == (None, None)
    assert norms["larger"][6] > norms["kept"][6]


def test_the_learning_rate_factor_equals_an_optimizer_with_this_rate():
    asked = recipe(stage={"reset_optimizer": False, "first_update": "as_new"})
    together = train(Ensemble(asked, [0], CPU, measure_updates=False), 5)
    twin = together.fork()
    together.begin_stage(asked, 1)
    train(together, 1)
    factor = together.steps.rate_factor.item()
    assert not math.isclose(factor, 1, rel_tol=0.01)
    twin.steps.optimizer.param_groups[0]["lr"] *= factor
    train(twin, 3), train(together, 2)
    torch.testing.assert_close(torch.stack(together.losses), torch.stack(twin.losses), atol=1e-4, rtol=0)


def test_without_measuring_there_are_no_norms():
    assert train(Ensemble(recipe(), [0], CPU, measure_updates=False), 2).steps.norms == []


def test_measuring_changes_no_bit():
    losses = [torch.stack(train(Ensemble(recipe(), [0], CPU, measured), 5).losses) for measured in (False, True)]
    assert torch.equal(*losses)
