"""Shared beginnings change no result, and a failure stays in its cell."""

import pytest
import torch

from tinygpt_lightning.study import chunks
from tinygpt_lightning.study.ensemble import Ensemble

from .tiny import RESET, TWO_STAGES, cell_of, schedule, tiny_study

CPU = torch.device("cpu")


def outcomes(study, cells=None):
    """The outcomes by cell, the errors by cell, and the epochs that were trained."""
    results, failures, epochs = {}, {}, []
    train_epoch = Ensemble.train_epoch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ensemble, "train_epoch", lambda self: epochs.append(0) or train_epoch(self))
        for cell, found in chunks.train(cells or study.cells, study.plan.seed_list, study.plan, CPU):
            (failures if isinstance(found, Exception) else results)[cell.name] = found
    for by_seed in results.values():
        for outcome in by_seed.values():
            del outcome["seconds"]
    return results, failures, len(epochs)


@pytest.fixture(scope="module")
def shared():
    return outcomes(tiny_study(seeds=2))


def test_sharing_changes_no_bit_and_saves_epochs(shared):
    results, failures, epochs = shared
    assert not failures
    # 5 in the first trunk; 8 branches of 3 after epoch 3; 8 of 2 after epoch 2, and 8 of 2 after those.
    assert epochs == 5 + 8 * 3 + 8 * 2 + 8 * 2
    study = tiny_study(seeds=2)
    assert set(results) == {cell.name for cell in study.cells}
    for cell in study.cells:
        alone, _, epochs = outcomes(study, [cell])
        assert alone[cell.name] == results[cell.name]
        assert epochs == sum(stage.epochs for stage in cell.recipe.stages)


def test_runs_that_differ_from_the_start_share_nothing():
    study = tiny_study(factors={"model.config.n_head": [1, 2], "model.optimizer.lr": [0.1, 0.01]}, seeds=1)
    assert outcomes(study)[2] == 4 * 30


def test_the_parts_of_a_state_share_the_first_stage():
    study = tiny_study(TWO_STAGES, **RESET, seeds=2)
    results, _, epochs = outcomes(study)
    assert epochs == 3 + 9 * 3
    for cell in study.cells:
        assert outcomes(study, [cell])[0][cell.name] == results[cell.name]


def test_a_failed_cell_costs_no_other(shared, monkeypatch):
    begin_stage = Ensemble.begin_stage

    def fail(self, recipe, stage):
        if recipe.stages[stage].weights == "redrawn" and not recipe.stages[stage].reset_optimizer:
            raise RuntimeError("no memory left")
        begin_stage(self, recipe, stage)

    monkeypatch.setattr(Ensemble, "begin_stage", fail)
    study = tiny_study(seeds=2)
    results, failures, _ = outcomes(study)
    assert set(failures) == {
        c.name for c in study.cells if (c.levels.get("optimizer"), c.levels.get("weights")) == ("kept", "redrawn")
    }
    assert results == {name: outcome for name, outcome in shared[0].items() if name not in failures}
    assert {str(error) for error in failures.values()} == {"no memory left"}


def test_a_failed_outcome_costs_no_other(monkeypatch):
    study = tiny_study(factors=schedule("1×3", "1×5"))
    read = chunks.outcomes

    def fail_at_one(branch, recipe, points):
        if recipe.stages[0].epochs == 3:
            raise ValueError("cannot read")
        return read(branch, recipe, points)

    monkeypatch.setattr(chunks, "outcomes", fail_at_one)
    results, failures, _ = outcomes(study)
    short, long = (
        [cell_of(study, vocabulary=vocabulary, schedule=each).name for vocabulary in ("stable", "resorted")]
        for each in ("1×3", "1×5")
    )
    assert (list(failures), list(results)) == (short, long)
