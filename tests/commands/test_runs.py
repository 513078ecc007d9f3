"""The numbered folders."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tinygpt_lightning import Stage, StagedTraining
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.stages import Position
from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.resume import RunFiles
from tinygpt_lightning.commands.runs import Run, configured_root, list_runs, new_run, newest_of_all, runs_folder


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
    run.config.write_text("{model: {}, data: {}, trainer: {}, stages: [{epochs: 1}, {epochs: 1}]}", encoding="utf-8")
    run.stage(1).touch()
    assert not run.is_finished()
    assert run.is_finished(1)
    run.stage(2).touch()
    assert run.is_finished()


def finished(folder: Path) -> Run:
    run = new_run(folder)
    run.config.write_text("{model: {}, data: {}, trainer: {}, stages: [{epochs: 1}]}", encoding="utf-8")
    run.stage(1).touch()
    return run


def test_the_newest_run_of_all_is_the_one_finished_last(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished run in"):
        newest_of_all(tmp_path)
    first, second = finished(tmp_path / "b"), finished(tmp_path / "a")
    new_run(tmp_path / "c")  # not finished
    new_run(tmp_path / "d").config.write_text("somebody: else's", encoding="utf-8")
    for age, run in enumerate((second, first)):
        os.utime(run.stage(1), (1000 - age, 1000 - age))
    assert newest_of_all(tmp_path) == second.stage(1)
    os.utime(first.stage(1), (2000, 2000))
    assert newest_of_all(tmp_path) == first.stage(1)


def test_the_last_configuration_says_where_runs_lie(tmp_path: Path) -> None:
    files = []
    for number, text in enumerate(("stages: []", "trainer: {default_root_dir: a}", "trainer: {max_epochs: 1}", "")):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(text, encoding="utf-8")
    assert configured_root(files) == "a"
    assert configured_root(files[:1]) == "checkpoints"
    assert runs_folder(files[:2], configured_root(files)) == Path("a/0-1")


class Saves:
    """What `RunFiles` sees of a trainer, with a clock of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.now, self.saved = Run(folder), 0.0, list[tuple[int, str]]()
        self.trainer: Any = SimpleNamespace(
            strategy=SimpleNamespace(broadcast=lambda value: value), loggers=[], is_global_zero=True,
            callbacks=[StagedTraining([Stage(epochs=4), Stage(epochs=4)])], global_step=8,
            should_stop=False, current_epoch=0, max_epochs=8, save_checkpoint=self.save,
        )  # fmt: skip
        monkeypatch.setattr("time.monotonic", lambda: self.now)

    def save(self, path: Path, weights_only: bool | None = None) -> None:
        path.touch()
        self.saved.append((self.trainer.current_epoch, path.name))

    def fit(self, seconds: float, *, epoch: float) -> list[tuple[int, str]]:
        """Two stages of four epochs of ``epoch`` seconds each."""
        files, module = RunFiles(self.run, "stages: []", seconds, GracefulStop()), Any
        files.on_train_start(self.trainer, module)
        for self.trainer.current_epoch in range(8):
            files.on_train_epoch_start(self.trainer, module)
            self.now += epoch
            index, rest = divmod(self.trainer.current_epoch, 4)
            if ends_stage := rest == 3:
                files.on_stage_end(self.trainer, module, index)
            files.on_train_epoch_end(self.trainer, module)
            if ends_stage:
                self.save(self.run.stage(index + 1))
        self.trainer.callbacks[0].position = Position(1, 4, 4, is_over=True)
        files.on_train_end(self.trainer, module)
        return self.saved


def test_so_many_seconds_of_work_are_lost_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saves(tmp_path, monkeypatch).fit(20, epoch=15)
    # 30 s after the first epoch began, and 30 s after the first stage ended.
    assert saved == [(1, "last.ckpt"), (3, "stage-1.ckpt"), (5, "last.ckpt"), (7, "stage-2.ckpt")]


def test_zero_seconds_mean_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = Saves(tmp_path, monkeypatch).fit(0, epoch=0.001)
    assert [epoch for epoch, _ in saved] == list(range(8))


def test_at_a_stages_end_both_are_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saves = Saves(tmp_path, monkeypatch)
    assert saves.fit(1e9, epoch=1) == [(3, "stage-1.ckpt"), (7, "stage-2.ckpt")]
    assert saves.run.last.samefile(saves.run.stage(2))
