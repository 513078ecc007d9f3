"""The engine that trains one fit at a time: settings that the stacked one cannot do, and the same outcome in both."""

import json

import pytest
import torch

from tinygpt_lightning.study import runner
from tinygpt_lightning.study.command import parse
from tinygpt_lightning.study.fits import fit_outcome
from tinygpt_lightning.study.recipe import read_recipe

from .test_study_command import main
from .tiny import RUN, read_rows, write_config

CPU = torch.device("cpu")
DRY = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
PAIRS = [{"question": "a", "answer": "bc"}, {"question": "b", "answer": "ca"}, {"question": "c", "answer": "ab"}]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    return str(path)


def config_of(tmp_path, **changes):
    model = {**RUN["model"], "config": {**RUN["model"]["config"], **DRY}}
    return str(
        write_config(tmp_path, claims=None, factors={}, model=model, stages=[{"epochs": 12}, {"epochs": 8}], **changes)
    )


def test_both_engines_give_the_same_outcome(tmp_path):
    config = config_of(tmp_path, seeds=2)
    for engine in ("auto", "fit"):
        assert main(["--config", config, "--engine", engine, "--output", str(tmp_path / engine)]) == 0
    for row, other in zip(*(read_rows(tmp_path / engine) for engine in ("auto", "fit")), strict=True):
        assert row.key == other.key
        assert row.common.made_with["engine"] != other.common.made_with["engine"]
        for name in (
            "exact", "text", "epochs", "epochs_to_exact", "epochs_of_run_to_exact", "generated_char_error_rate",
        ):  # fmt: skip
            assert row.outcome[name] == other.outcome[name], name
        for name in ("loss", "first_loss_of_stage", "final_loss_dropout_off"):
            assert row.outcome[name] == pytest.approx(other.outcome[name], rel=1e-5), name


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, None),
        ({"trainer": {"precision": "bf16-mixed"}}, "trainer.precision"),
        ({"trainer": {"gradient_clip_val": 0.5}}, "trainer.gradient_clip_val"),
        (
            {"model": {"optimizer": {"class_path": "torch.optim.Adafactor", "init_args": {"lr": 0.01}}}},
            "the optimizer Adafactor",
        ),
        ({"stages": [{"epochs": 9, "until": {"monitor": "train/loss", "stopping_threshold": 3.0}}]}, "until"),
        ({"stages": [{"epochs": 3}, {"epochs": 3, "freeze": "model.wte.*"}]}, "freeze"),
        ({"stages": [{"epochs": 3}, {"epochs": 3, "reload_dataloaders": True}]}, "reload_dataloaders"),
    ],
)
def test_a_setting_of_fit_chooses_its_engine(settings, reason):
    merged = {**RUN, "stages": [{"epochs": 3}], **settings}
    merged["model"] = {**RUN["model"], **settings.get("model", {})}
    recipe = read_recipe(merged)
    assert (recipe.alone or "").startswith(reason or "")
    assert (recipe.alone is None) == (reason is None)
    if reason:
        outcome = fit_outcome(recipe, 0, CPU, 100)
        assert len(outcome["loss"]) <= sum(stage.epochs for stage in recipe.stages)
        assert outcome["first_loss_of_stage"][0] == outcome["loss"][0]


def test_a_study_of_many_pairs(tmp_path, pairs):
    changes = {"data": {"path": pairs}, "seeds": 2, "outcome": "epochs"}
    config = write_config(
        tmp_path, claims=None, factors={"data.batch_size": [1, 3]}, stages=[{"epochs": 25}], **changes
    )
    assert main(["--config", str(config)]) == 0
    rows = read_rows(tmp_path / "out")
    assert len(rows) == 2 * 2
    for row in rows:
        assert row.outcome["exact"] == (row.outcome["exact_pairs"] == 1)
        assert row.common.made_with["engine"]["one fit at a time"]
    assert "one fit at a time True" in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_a_callback_ends_each_run_of_several_stages(tmp_path, pairs):
    stop = {"monitor": "val/exact_match", "mode": "max", "stopping_threshold": 0.99, "patience": 99}
    recipe = read_recipe(
        {
            **RUN,
            "data": {"path": pairs},
            "model": {**RUN["model"], "config": {**RUN["model"]["config"], **DRY}},
            "stages": [{"epochs": 10}] * 20,
            "trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": stop}]},
        }
    )
    # The second run of a seed is the first one again: what the callback has seen is not carried over.
    first, again = (fit_outcome(recipe, 0, CPU, 400) for _ in range(2))
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    ended = len(first["loss"])
    assert first["exact"]
    assert 10 < ended == first["epochs_of_run_to_exact"] < 200
    assert len(first["first_loss_of_stage"]) == -(-ended // 10)
    assert first["epochs_to_exact"] == (ended - 1) % 10 + 1


def test_what_only_the_stack_can_do_is_refused_with_its_reason(tmp_path, pairs, capsys):
    arguments = ["--config", config_of(tmp_path, data={"path": pairs}), "--renumber", "true"]
    assert main(arguments) == 2
    assert "data.path (3 pairs) needs one fit at a time" in capsys.readouterr().err


def test_a_failed_fit_is_reported(tmp_path, pairs, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(runner, "fit_outcome", fail)
    assert main(["--config", config_of(tmp_path, data={"path": pairs}, seeds=1)]) == 1
    assert "failed: base, seeds [0]: RuntimeError: no memory" in capsys.readouterr().err


def test_rows_of_one_pair_keep_their_key():
    assert set(read_recipe({}).settings) == {"model", "data", "stages", "renumber"}
    assert set(read_recipe({}).settings["data"]) == {"question", "answer", "template", "end_symbol"}
    assert parse([])[0].plan.engine == "auto"
