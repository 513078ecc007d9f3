import math

import pytest
import torch

from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.outcome import as_trained, kept_epochs, number
from tinygpt_lightning.trained import TrainedGPT

from .test_chunks import outcomes
from .tiny import RESET, RUN, TEXT, TWO_STAGES, cell_of, tiny_study

STAGED = {"1×40": {"stages": [{"epochs": 40}]}, "2×20": {"stages": [{"epochs": 20}, {"epochs": 20}]}}
LEARNING = {
    **RUN,
    "model": {
        "config": {"n_positions": 32, "n_embd": 32, "n_head": 4},
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 0.03}},
    },
}
FACTORS = {"vocabulary": {"stable": {"renumber": False}, "resorted": {"renumber": True}}, "schedule": STAGED}


def test_outcomes_of_staged_and_misread_runs():
    study = tiny_study(LEARNING, factors=FACTORS, seeds=2)
    results = outcomes(study)[0]
    for outcome in results[cell_of(study, vocabulary="resorted", schedule="2×20").name].values():
        assert outcome["first_loss_of_stage"] == [outcome["loss"][0], outcome["loss"][20]]
        assert len(outcome["loss"]) == 40
        assert outcome["epochs"] == list(range(1, 41))
        assert outcome["final_loss_dropout_on"] > outcome["final_loss_dropout_off"]
    misread = results[cell_of(study, vocabulary="resorted", schedule="1×40").name]
    stable = results[cell_of(study, vocabulary="stable", schedule="1×40").name]
    for seed in study.plan.seed_list:
        assert stable[seed]["exact"]
        assert stable[seed]["text"] == TEXT
        assert stable[seed]["generated_char_error_rate"] == 0
        assert "exact_in_training_vocabulary" not in stable[seed]
        assert not misread[seed]["exact"]
        assert misread[seed]["generated_char_error_rate"] > 0.3
        # The same weights: only the reading differs.
        assert misread[seed]["loss"] == stable[seed]["loss"]
        assert (as_trained(misread[seed], "exact"), as_trained(misread[seed], "text")) == (True, TEXT)
        assert as_trained(stable[seed], "text") == TEXT


def test_diverged_losses_become_none():
    study = tiny_study({**RUN, "stages": [{"epochs": 4}]}, factors={"model.optimizer.lr": [1e30]}, seeds=1)
    [outcome] = outcomes(study)[0][study.cells[0].name].values()
    symbols = study.cells[0].recipe.config.vocab_size
    assert outcome["loss"][0] == pytest.approx(math.log(symbols), abs=1.5)
    assert outcome["loss"][-1] is None
    assert outcome["final_loss_dropout_off"] is None
    assert outcome["exact"] is False
    assert outcome["epochs_to_exact"] is None


def test_long_curves_are_thinned_and_keep_their_epochs():
    run = {**RUN, "stages": [{"epochs": 30}, {"epochs": 20}]}
    whole, thin = (
        outcomes(tiny_study(run, factors={}, seeds=1, measure_updates=True, curve_points=points))[0]["base"][0]
        for points in (50, 6)
    )
    assert thin["epochs"] == [1, 11, 21, 30, 31, 40, 50]
    for curve in ("loss", "update_norm"):
        assert thin[curve] == [whole[curve][epoch - 1] for epoch in thin["epochs"]]
    assert thin["first_loss_of_stage"] == whole["first_loss_of_stage"] == [whole["loss"][0], whole["loss"][30]]
    assert thin["first_update_norm"] == whole["update_norm"][30]


@pytest.mark.parametrize(("total", "starts", "points"), [(7, [0], 3), (100, [0, 33, 66], 5), (1000, [0], 2)])
def test_kept_epochs_begin_end_and_cross_every_boundary(total, starts, points):
    kept = kept_epochs(total, starts, points)
    assert {0, total - 1} <= set(kept)
    assert kept == sorted(set(kept))
    assert all({start - 1, start} & set(range(total)) <= set(kept) for start in starts)
    assert len(kept) <= points + 2 * len(starts)


def test_numbers_keep_every_bit():
    values = torch.randn(1000) * 10.0 ** torch.randint(-30, 30, (1000,))
    assert torch.equal(torch.tensor([number(value) for value in values.tolist()]), values)
    assert number(math.nan) is number(math.inf) is None


def test_the_outcome_holds_the_learning_rate_factor():
    study = tiny_study(TWO_STAGES, **{**RESET, "seeds": 2})
    results = outcomes(study)[0]
    new = results[cell_of(study, exp_avg="new", exp_avg_sq="new", step="new").name]
    kept = results[cell_of(study, exp_avg="kept", exp_avg_sq="kept", step="kept").name]
    for seed, outcome in results["larger steps"].items():
        assert outcome["first_update_norm"] == pytest.approx(new[seed]["first_update_norm"], rel=1e-4)
        factor = new[seed]["first_update_norm"] / kept[seed]["first_update_norm"]
        assert outcome["learning_rate_factor"] == pytest.approx(factor, rel=1e-4)
        assert "learning_rate_factor" not in kept[seed]


def test_the_text_is_generated_from_the_prompt_alone(monkeypatch):
    """Greedy decoding is what `predict` does, with nothing but the beginning given."""
    asked = []
    complete = TrainedGPT.complete
    monkeypatch.setattr(TrainedGPT, "complete", lambda self, prompt: asked.append(prompt) or complete(self, prompt))
    study = tiny_study({**RUN, "stages": [{"epochs": 1}]}, factors={}, seeds=1)
    [outcome] = outcomes(study)[0]["base"].values()
    assert asked == ["Question: Xin"]
    assert outcome["text"].startswith("Question: Xin")
    assert outcome["text"] != TEXT


def test_the_outcome_is_measured_after_the_last_update():
    study = tiny_study(LEARNING, factors={}, seeds=1)
    [cell] = study.cells
    together = Ensemble(cell.recipe, [0], torch.device("cpu"), measure_updates=False)
    for _ in range(30):
        together.train_epoch()
    [outcome] = outcomes(study)[0]["base"].values()
    assert outcome["final_loss_dropout_off"] == number(together.evaluate()[0].item())
