"""Shared beginnings change no result, and a failure stays in its cell."""

import math

import pytest
import torch

from tinygpt_lightning.study import sharing
from tinygpt_lightning.study.design.study import Cell, Study
from tinygpt_lightning.study.engine.ensemble import Ensemble
from tinygpt_lightning.study.engine.sharing import ChunkRunner, epochs_needed

from .tiny import tiny_study

CPU = torch.device("cpu")


def outcomes(study, cells=None):
    results, failures, ticks = {}, [], []
    runner = ChunkRunner(
        study,
        CPU,
        study.seed_list,
        lambda cell, by_seed: results.update({cell: by_seed}),
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
    assert shared == alone
    assert set(shared) == set(tiny_study().cells)
    cells = tiny_study().cells
    # 5 in the first trunk; 8 branches of 3 after epoch 3; 8 of 2 after epoch 2, and 8 of 2 after those.
    assert sum(few) == 4 * (5 + 8 * 3 + 8 * 2 + 8 * 2) == 4 * epochs_needed(cells, share=True)
    assert sum(many) == 4 * sum(sum(cell.schedule) for cell in cells) == 4 * epochs_needed(cells, share=False)


def test_a_cell_alone_is_the_cell_in_company():
    study = tiny_study()
    cell = study.cells[-1]
    assert outcomes(study, [cell])[0][cell] == outcomes(study)[0][cell]


def test_a_failed_cell_costs_no_other(monkeypatch):
    study = tiny_study()
    begin_stage = Ensemble.begin_stage

    def fail(self, stage, *, reset_optimizer, redraw_weights):
        if redraw_weights and not reset_optimizer:
            raise RuntimeError("no memory left")
        begin_stage(self, stage, reset_optimizer=reset_optimizer, redraw_weights=redraw_weights)

    expected, _, _ = outcomes(study)
    monkeypatch.setattr(Ensemble, "begin_stage", fail)
    results, failures, _ = outcomes(study)
    failed = {cell for cell, _, _ in failures}
    assert failed == {c for c in study.cells if (c.optimizer, c.weights) == ("kept", "redrawn")}
    assert results == {cell: outcome for cell, outcome in expected.items() if cell not in failed}
    assert all(seeds == study.seed_list and str(error) == "no memory left" for _, seeds, error in failures)


def test_a_reading_that_fails_costs_no_other(monkeypatch):
    study = tiny_study(schedules=[[1], [2]], vocabulary=["stable"])
    read = ChunkRunner.read

    def fail_at_one(self, branch, cell):
        if cell.schedule == (1,):
            raise ValueError("cannot read")
        return read(self, branch, cell)

    monkeypatch.setattr(ChunkRunner, "read", fail_at_one)
    results, failures, _ = outcomes(study)
    assert [cell.schedule for cell, _, _ in failures] == [(1,)]
    assert [cell.schedule for cell in results] == [(2,)]


def test_losses_that_are_no_numbers_are_null():
    study = tiny_study(learning_rate=1e30, schedules=[[4]], vocabulary=["stable"], seeds=1)
    outcome = outcomes(study)[0][Cell("stable", (4,))][0]
    assert outcome["loss"][0] == pytest.approx(math.log(len(set(study.text)) + 2), abs=1.5)
    assert outcome["loss"][-1] is None
    assert outcome["final_loss_dropout_off"] is None
    assert outcome["exact"] is False
    assert outcome["epochs_to_exact"] is None


def test_outcomes_say_what_was_measured():
    study = tiny_study(
        schedules=[[40], [20, 20]], learning_rate=0.03, seeds=2, model={"n_positions": 32, "n_embd": 32, "n_head": 4}
    )
    results = outcomes(study)[0]
    cell = Cell("resorted", (20, 20), "new", "carried")
    for outcome in results[cell].values():
        assert outcome["first_loss_of_stage"] == [outcome["loss"][0], outcome["loss"][20]]
        assert len(outcome["loss"]) == 40
        assert outcome["final_loss_dropout_on"] > outcome["final_loss_dropout_off"]
    misread = results[Cell("resorted", (40,))]
    stable = results[Cell("stable", (40,))]
    for seed in study.seed_list:
        assert stable[seed]["exact"]
        assert stable[seed]["char_error_rate"] == 0
        assert not misread[seed]["exact"]
        assert misread[seed]["char_error_rate"] > 0.3
        # The same weights: only the reading differs.
        assert misread[seed]["loss"] == stable[seed]["loss"]
        assert misread[seed]["text_in_training_vocabulary"] == study.text


def test_the_text_is_that_of_generate(monkeypatch):
    """Greedy decoding is `generate` itself, asked for as many characters as the sentence has."""
    lengths = []
    generate = sharing.generate
    monkeypatch.setattr(
        sharing, "generate", lambda model, ids, config: lengths.append(config) or generate(model, ids, config)
    )
    study = Study(**{**vars(tiny_study(schedules=[[1]], seeds=1)), "model": tiny_study().model})
    outcomes(study)
    assert {(config.max_length, config.temperature) for config in lengths} == {(len(study.text), 0.0)}
