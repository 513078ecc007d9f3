"""Other people's runs, killed wherever that leaves something else to go on from, are the runs that were never killed.

python -m pytest tests/callbacks/test_anyones_campaign.py -m slow
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from anyones import Setup
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from tinygpt_lightning import ExactResume, SafeCheckpointIO, read_checkpoint

pytestmark = pytest.mark.slow

# Those at whose boundaries a checkpoint is left, after all other callbacks had their turn.
HOOKS = [name for name in dir(Callback) if name.startswith(("on_train", "on_validation", "on_before", "on_after"))]


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

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, trainer: Trainer, hook: str) -> None:
        if not trainer.sanity_checking:
            trainer.save_checkpoint(self.folder / f"{len(list(self.folder.glob('*.ckpt'))):03}-{hook}.ckpt")


for hook in HOOKS:
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_start",
    "on_validation_batch_end",
    "on_validation_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_train_start",
    "on_train_end",
):
    setattr(Everywhere, hook, lambda self, trainer, *_, hook=hook: self.save(trainer, hook))


def fit(setup: Setup, folder: Path, ckpt_path: Path | None = None) -> None:
    seed_everything(1 if ckpt_path is None else 2, verbose=False)
    trainer = Trainer(
        callbacks=[
            *setup.callbacks(),
            setup.staged(setup.stages, folder),
            ExactResume(),
            ModelCheckpoint(folder, "best", monitor="train/loss", enable_version_counter=False),
            *([Everywhere(folder)] if ckpt_path is None else []),
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


@contextmanager
def copied(folder: Path, copies: Path) -> Iterator[list[Path]]:
    """Copies of ``folder`` as each checkpoint leaves it: that is what a process finds that goes on from it."""
    kept: list[Path] = []
    save = Trainer.save_checkpoint

    def save_and_copy(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        kept.append(copies / str(len(kept)))
        shutil.copytree(folder, kept[-1])

    with mock.patch.object(Trainer, "save_checkpoint", save_and_copy):
        yield kept


def end(folder: Path) -> dict[str, Any]:
    """All that a run comes to: its stages' checkpoints, and what was logged at which step."""
    left: dict[str, Any] = {}
    for file in sorted(folder.glob("stage-*.ckpt")):
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
