"""An epoch that is resumed in its middle: what is fetched again, and which hooks are called."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import Anyones, Drawn, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from tinygpt_lightning import ExactResume

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Counted(Drawn):
    fetched = 0

    def __getitem__(self, index: int) -> Tensor:
        self.fetched += 1
        return super().__getitem__(index)


class Counts(Anyones):
    workers = 0

    def train_dataloader(self) -> Any:
        self.data = Counted()
        return DataLoader(self.data, batch_size=2, shuffle=True, num_workers=self.workers)


class InWorkers(Counts):
    workers = 1


def fit(folder: Path, module: Anyones, *callbacks: Callback, ckpt_path: Path | None = None) -> Anyones:
    trainer = quiet_trainer(folder, *callbacks, ExactResume(), max_epochs=2, limit_val_batches=0)
    trainer.fit(module, ckpt_path=ckpt_path)
    return module


def steps(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)


@pytest.mark.parametrize("kind", [Counts, InWorkers])
def test_only_samples_that_depend_on_others_are_fetched_again(
    tmp_path: Path, kind: type[Counts], caplog: pytest.LogCaptureFixture
) -> None:
    whole = fit(tmp_path, kind(), steps(tmp_path))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        resumed = fit(tmp_path, kind(), ckpt_path=tmp_path / "step=8.ckpt")
    assert torch.equal(resumed.body.weight, whole.body.weight)
    if kind is Counts:
        assert resumed.data.fetched == 4  # the last two batches
    assert ("fetches the 3 batches" in caplog.text) is (kind is InWorkers)


class SaysNo(Callback):
    repeat_epoch_start = False
    starts = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.starts += 1


class SaysNothing(SaysNo):
    repeat_epoch_start = True


def test_hooks_of_an_epochs_start_are_called_again_unless_their_owner_says_no(tmp_path: Path) -> None:
    fit(tmp_path, Anyones(), steps(tmp_path))
    silent, stubborn = SaysNothing(), SaysNo()
    fit(tmp_path, Anyones(), silent, stubborn, ckpt_path=tmp_path / "step=3.ckpt")
    assert (silent.starts, stubborn.starts) == (2, 1)
