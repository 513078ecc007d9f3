"""A setting is chosen for each cell on seeds that are not reported."""

import pytest

from tinygpt_lightning.study.command import parse

from .test_study_command import main
from .tiny import read_rows, write_config

FACTORS = {"head": {"one": {"model.config.n_head": 1}, "two": {"model.config.n_head": 2}}}
TUNE = {"setting": "model.optimizer.lr", "choices": [1e-9, 0.01], "seeds": [7, 8]}
CHANGES = {"factors": FACTORS, "claims": None, "stages": [{"epochs": 20}], "seeds": 2, "tune": TUNE}


def test_the_better_rate_is_taken_and_said(tmp_path, capsys):
    assert main(["--config", str(write_config(tmp_path, **CHANGES))]) == 0
    assert capsys.readouterr().out.count("**") == 2  # one report; the tuning has none
    rows = read_rows(tmp_path / "out")
    assert {(row.seed, row.common.settings["model"]["optimizer"]["init_args"]["lr"]) for row in rows} == {
        (0, 0.01), (1, 0.01),
    }  # fmt: skip
    for number, rate in enumerate(TUNE["choices"]):
        tried = read_rows(tmp_path / "out" / "tuning" / str(number))
        assert {(row.seed, row.common.settings["model"]["optimizer"]["init_args"]["lr"]) for row in tried} == {
            (7, rate), (8, rate),
        }  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "best one of [1e-09, 0.01] by the median of the final loss on seeds [7, 8]" in report
    assert "| head one | 0.01 |" in report


def test_the_best_value_is_the_best_for_the_question(tmp_path):
    """At the smaller rate the text is exact sooner, and the loss ends higher."""
    found = {}
    for asked in ("loss", "epochs_of_run"):
        changes = {"factors": {}, "tune": {**TUNE, "choices": [0.1, 0.2]}, "stages": [{"epochs": 60}], "seeds": 1}
        config = write_config(tmp_path, **{**CHANGES, **changes, "outcome": asked, "output": str(tmp_path / asked)})
        assert main(["--config", str(config)]) == 0
        found[asked] = read_rows(tmp_path / asked)[0].common.settings["model"]["optimizer"]["init_args"]["lr"]
    assert found == {"loss": 0.2, "epochs_of_run": 0.1}


def test_a_tuned_study_continues(tmp_path):
    config = str(write_config(tmp_path, **CHANGES))
    assert main(["--config", config]) == 0
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert main(["--config", config]) == 0
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == before


def test_seeds_of_the_tuning_are_not_reported(tmp_path, capsys):
    config = str(write_config(tmp_path, **{**CHANGES, "seeds": 8}))
    assert main(["--config", config]) == 2
    assert "tune.seeds: expected other seeds than those of the plan, got [7] in both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"), [({"setting": "stages[3].epochs"}, "stages"), ({"choices": []}, "choices")]
)
def test_a_tuning_that_cannot_be_is_refused(tmp_path, capsys, changes, named):
    config = str(write_config(tmp_path, **{**CHANGES, "tune": {**TUNE, **changes}}))
    assert main(["--config", config]) == 2
    assert named in capsys.readouterr().err


def test_without_a_tuning_there_is_none():
    assert parse([])[0].tuning() == []
