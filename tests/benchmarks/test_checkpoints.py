"""What whole files and exact resume cost: a save, a read, and the callbacks in each step."""

from __future__ import annotations

import statistics
from itertools import pairwise
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch
from beside import Row, Versus, spread
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import TorchCheckpointIO
from torch.utils.data import DataLoader

from tinygpt_lightning import ExactResume, SafeCheckpointIO, Stage, StagedTraining
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.module import next_token_loss


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    """One of the default model with AdamW's state, 95 MB."""
    model = TinyGPT(GPTConfig())
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 63, dtype=torch.long)).sum().backward()
    optimizer.step()
    states = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    return {"pytorch-lightning_version": "2.6.6", "global_step": 1, **states}


def test_a_save(versus: Versus, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    versus(
        "save 95 MB: whole, with a digest, on the disk",
        lambda: SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "safe.ckpt"),
        {"Lightning's": lambda: TorchCheckpointIO().save_checkpoint(checkpoint, tmp_path / "plain.ckpt")},
    )


def test_a_read(versus: Versus, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    SafeCheckpointIO().save_checkpoint(checkpoint, tmp_path / "safe.ckpt")
    versus(
        "read 95 MB, checked",
        lambda: read_checkpoint(tmp_path / "safe.ckpt"),
        {"torch.load": lambda: torch.load(tmp_path / "safe.ckpt", weights_only=True)},
    )


class Steps(LightningModule):
    """A step of the model at width 4."""

    def __init__(self) -> None:
        super().__init__()
        self.model = TinyGPT(GPTConfig(n_embd=4, n_head=1))

    def training_step(self, ids: torch.Tensor) -> torch.Tensor:
        return next_token_loss(self.model(ids[:, :-1]), ids[:, 1:])

    def train_dataloader(self) -> Any:
        return DataLoader(torch.randint(34, (1000, 64)), batch_size=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters())


class Clock(Callback):
    """The processor's time of each step, from one batch's start to the next one's."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.times.append(process_time())


def test_the_callbacks_in_a_step(table: list[Row], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    every: dict[bool, list[float]] = {False: [], True: []}
    for is_ours in [False, True] * 5:
        ours = [StagedTraining([Stage(1)], tmp_path), ExactResume(), GracefulStop()] if is_ours else []
        clock = Clock()
        Trainer(
            max_epochs=1, callbacks=[*ours, clock], accelerator="cpu", logger=False, limit_val_batches=0,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            plugins=[SafeCheckpointIO()] if is_ours else [],
        ).fit(Steps())  # fmt: skip
        every[is_ours] += [after - before for before, after in pairwise(clock.times[100:])]
    alone, with_ours = (statistics.median(times) for times in every.values())
    difference = f"{1e3 * (with_ours - alone):+.2f} ms"
    work = "a step at width 4 with the three callbacks"
    table.append(Row(work, spread(every[True]), "Lightning alone", spread(every[False]), difference, "≤ +0.5 ms"))
