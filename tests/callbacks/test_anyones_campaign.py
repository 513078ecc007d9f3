"""Other people's runs, killed wherever that leaves something else to go on from, are the runs that were never killed.

What a killed process leaves behind is its folder. So one run is copied at each instant instead of being killed there:
when a checkpoint is about to get its name, and when it has it. From each copy another process's run goes on.

python -m pytest tests/callbacks/test_anyones_campaign.py -m slow
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from anyones import SETUPS, Setup
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from tinygpt_lightning import ExactResume, SafeCheckpointIO, read_checkpoint
from tinygpt_lightning.callbacks.generators import seed_all

pytestmark = [
    # Lightning's advice; that a resume in mid-epoch is not exact is what these tests disprove.
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # PyTorch's advice, where a resumed epoch has no step left.
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

QUICK = {  # each so manieth instant
    "frozen layer": 11, "accumulated": 11, "metrics": 13, "persistent workers": 60, "replayed": 29, "cut epochs": 9,
    "stateful loader": 29,
}  # fmt: skip


class Lines(Logger):
    """Appends what is logged to a file, at once."""

    name = version = "lines"

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.file.open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")


class Everywhere(Checkpoint):
    """Leaves a checkpoint at each hook's boundary."""

    def __init__(self, folder: Path, hooks: Sequence[str]) -> None:
        self.folder = folder
        self.count = 0
        for hook in hooks:
            setattr(self, hook, lambda trainer, *_, hook=hook: self.save(trainer, hook))

    def save(self, trainer: Trainer, hook: str) -> None:
        if not trainer.sanity_checking:
            self.count += 1
            trainer.save_checkpoint(self.folder / f"{self.count:03}-{hook}.ckpt")


def fit(setup: Setup, folder: Path, ckpt_path: Path | None = None) -> Path:
    seed_everything(1, verbose=False)
    if ckpt_path is not None:
        seed_all("another process")
    best = ModelCheckpoint(folder, "best-{epoch}", monitor="train/loss", enable_version_counter=False)
    trainer = Trainer(
        callbacks=[
            *setup.callbacks(),
            setup.staged(setup.stages, folder),
            ExactResume(),
            best,
            *([Everywhere(folder, setup.hooks)] if ckpt_path is None else []),
        ],
        plugins=[SafeCheckpointIO()],
        logger=Lines(folder / "lines.jsonl"),
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=-1,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        **setup.trainer,
    )
    trainer.fit(setup.module(), ckpt_path=ckpt_path)
    return Path(best.best_model_path)


@contextmanager
def copied(folder: Path, copies: Path, every: int) -> Iterator[None]:
    """Copy ``folder`` as a process that is killed leaves it: while a checkpoint is written, and after it."""
    replace, instants = Path.replace, count(1)

    def keep(file: Path, moment: str) -> None:
        if (instant := next(instants)) % every == 0:
            shutil.copytree(folder, copies / f"{instant:03}, {moment} {file.stem}")

    def replace_and_keep(source: Path, target: Path) -> Path:
        if not target.stem[0].isdigit():  # of those that `Everywhere` leaves, that would be as after the one before
            keep(target, "within")
        replaced = replace(source, target)
        keep(target, "after")
        return replaced

    copies.mkdir()
    # A process that is killed takes nothing from the disk, so nobody need wait for it.
    with mock.patch.object(Path, "replace", replace_and_keep), mock.patch.object(os, "fsync"):
        yield


def end(folder: Path, best: Path) -> dict[str, Any]:
    """All that a run comes to: its stages' checkpoints, the best one, and what was logged at which step."""
    left: dict[str, Any] = {}
    for file in [*sorted(folder.glob("stage-*.ckpt")), best]:
        left[file.name] = read_checkpoint(file)
        # How the loops were interrupted, and `ModelCheckpoint.current_score`, which Lightning saves but never reads.
        for other in ("loops", "epoch"):
            del left[file.name][other]
        for state in left[file.name]["callbacks"].values():
            for other in ("current_score", "progress", "processes"):
                state.pop(other, None)
    for line in (folder / "lines.jsonl").read_text().splitlines():
        step, metrics = json.loads(line)
        for name, value in metrics.items():
            assert left.setdefault(f"{name} at {step}", value) == value, (step, name)
    return left


def differences(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    if type(ours) is not type(theirs):
        yield f"{where}: {ours!r} and {theirs!r}"
    elif isinstance(ours, torch.Tensor):
        if not torch.equal(ours, theirs):
            yield f"{where}: {ours} and {theirs}"
    elif isinstance(ours, dict):
        for key in {**ours, **theirs}:
            yield from differences(ours.get(key), theirs.get(key), f"{where}.{key}")
    elif isinstance(ours, list | tuple):
        yield from differences(dict(enumerate(ours)), dict(enumerate(theirs)), where)
    elif ours != theirs:
        yield f"{where}: {ours!r} and {theirs!r}"


@pytest.mark.parametrize(
    ("name", "every"),
    [
        *QUICK.items(),
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in SETUPS),
    ],
)
def test_a_killed_and_resumed_run_equals_the_run_that_was_not_killed(name: str, every: int, tmp_path: Path) -> None:
    setup, folder, copies = SETUPS[name], tmp_path / "run", tmp_path / "copies"
    folder.mkdir()
    with copied(folder, copies, every):
        best = fit(setup, folder)
    expected = end(folder, best)
    stages = [file for file in expected if file.startswith("stage-")]
    assert len(stages) == len(setup.stages)
    wrong: dict[str, str] = {}
    instants = sorted(copies.iterdir())
    assert len(instants) >= 50 // every
    for instant in instants:
        shutil.rmtree(folder)
        shutil.copytree(instant, folder)
        newest = max(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime_ns, default=None)
        if newest is not None:  # there is none before the first is whole
            with mock.patch.object(os, "fsync"):
                best = fit(setup, folder, newest)
            if found := next(differences(end(folder, best), expected), None):
                wrong[instant.name] = found
    assert not wrong
