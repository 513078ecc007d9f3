"""The numbered folders."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tinygpt_lightning.app.run import Run, list_runs, new_run


def test_runs_are_numbered_and_listed_in_order(tmp_path: Path) -> None:
    for number in range(12):
        assert new_run(tmp_path / "staged").path.name == f"version_{number}"
    assert [run.path.name for run in list_runs(tmp_path / "staged")] == [f"version_{n}" for n in range(12)]


def test_a_number_is_not_used_twice(tmp_path: Path) -> None:
    (tmp_path / "version_4").mkdir()
    assert new_run(tmp_path).path.name == "version_5"


def test_other_files_are_no_runs(tmp_path: Path) -> None:
    (tmp_path / "version_x").mkdir()
    (tmp_path / "version_3").touch()
    assert list_runs(tmp_path) == []
    assert list_runs(tmp_path / "none") == []


def test_two_that_ask_at_once_get_two(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: new_run(tmp_path), range(64)))
    assert len({run.path for run in runs}) == 64


def test_a_run_is_finished_when_its_last_stage_is(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert not run.is_finished()
    run.config.write_text("stages: [{epochs: 1}, {epochs: 1}]", encoding="utf-8")
    run.stage(1).touch()
    assert not run.is_finished()
    assert run.is_finished(1)
    run.stage(2).touch()
    assert run.is_finished()
