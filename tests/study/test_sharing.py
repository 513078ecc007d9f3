"""Shared beginnings change no result, and a failure stays in its cell."""

import torch

from tinygpt_lightning.study import chunks
from tinygpt_lightning.study.chunks import ChunkRunner, epochs_needed
from tinygpt_lightning.study.ensemble import Ensemble

from .tiny import RESET, TWO_STAGES, cell_of, schedule, tiny_study

CPU = torch.device("cpu")


def outcomes(study, cells=None):
    results, failures, ticks = {}, [], []
    runner = ChunkRunner(
        study.plan,
        CPU,
        study.plan.seed_list,
        lambda cell, by_seed: results.update({cell.name: by_seed}),
        lambda cell, seeds, error: failures.append((cell, seeds, error)),
        ticks.append,
    )
    runner.run(study.cells if cells is None else cells)
    for by_seed in results.values():
        for outcome in by_seed.values():
            del outcome["seconds"]
    return results, failures, ticks


def test_sharing_changes_no_bit_and_saves_the_promised_epochs():
    shared, _, few = outcomes(tiny_study())
    alone, _, many = outcomes(tiny_study(share=False))
    cells = tiny_study().cells
    assert shared == alone
    assert set(shared) == {cell.name for cell in cells}
    # 5 in the first trunk; 8 branches of 3 after epoch 3; 8 of 2 after epoch 2, and 8 of 2 after those.
    assert sum(few) == 4 * (5 + 8 * 3 + 8 * 2 + 8 * 2) == 4 * epochs_needed(cells, share=True)
    epochs = sum(stage.epochs for cell in cells for stage in cell.recipe.stages)
    assert sum(many) == 4 * epochs == 4 * epochs_needed(cells, share=False)


def test_runs_that_differ_from_the_start_share_nothing():
    study = tiny_study(factors={"model.config.n_head": [1, 2], "model.optimizer.lr": [0.1, 0.01]})
    assert epochs_needed(study.cells, share=True) == 4 * 30


def test_the_parts_of_a_state_share_the_first_stage():
    study = tiny_study(TWO_STAGES, **RESET)
    assert epochs_needed(study.cells, share=True) == 3 + 9 * 3
    shared, alone = (outcomes(tiny_study(TWO_STAGES, **{**RESET, "share": share}))[0] for share in (True, False))
    assert shared == alone


def test_a_cell_alone_has_the_outcomes_of_a_full_study():
    study = tiny_study()
    cell = study.cells[-1]
    assert outcomes(study, [cell])[0][cell.name] == outcomes(study)[0][cell.name]


def test_a_failed_cell_costs_no_other(monkeypatch):
    study = tiny_study()
    begin_stage = Ensemble.begin_stage

    def fail(self, recipe, stage):
        if recipe.stages[stage].weights == "redrawn" and not recipe.stages[stage].reset_optimizer:
            raise RuntimeError("no memory left")
        begin_stage(self, recipe, stage)

    expected, _, _ = outcomes(study)
    monkeypatch.setattr(Ensemble, "begin_stage", fail)
    results, failures, _ = outcomes(study)
    failed = {cell.name for cell, _, _ in failures}
    assert failed == {
        c.name for c in study.cells if (c.levels.get("optimizer"), c.levels.get("weights")) == ("kept", "redrawn")
    }
    assert results == {name: outcome for name, outcome in expected.items() if name not in failed}
    assert all(seeds == study.plan.seed_list and str(error) == "no memory left" for _, seeds, error in failures)


def test_a_failed_outcome_costs_no_other(monkeypatch):
    study = tiny_study(factors=schedule("1×3", "1×5"))
    read = chunks.outcomes

    def fail_at_one(branch, recipe, points):
        if recipe.stages[0].epochs == 3:
            raise ValueError("cannot read")
        return read(branch, recipe, points)

    monkeypatch.setattr(chunks, "outcomes", fail_at_one)
    results, failures, _ = outcomes(study)
    assert {cell.name for cell, _, _ in failures} == {
        cell_of(study, vocabulary=vocabulary, schedule="1×3").name for vocabulary in ("stable", "resorted")
    }
    assert list(results) == [
        cell_of(study, vocabulary=vocabulary, schedule="1×5").name for vocabulary in ("stable", "resorted")
    ]
