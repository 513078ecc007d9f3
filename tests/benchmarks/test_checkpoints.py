"""What whole files and exact resume cost: a save, a read, and the random numbers of each step."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from beside import Row, Versus, seconds, spread
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import TorchCheckpointIO

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT


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


def test_the_random_numbers_of_a_step(table: list[Row]) -> None:
    times: list[float] = []

    class Timed(ExactResume):
        def on_train_batch_start(self, *arguments: Any) -> None:
            times.append(seconds(lambda: super(Timed, self).on_train_batch_start(*arguments)))

        def on_train_batch_end(self, *arguments: Any) -> None:
            times[-1] += seconds(lambda: super(Timed, self).on_train_batch_end(*arguments))

    Trainer(
        max_steps=1000, max_epochs=-1, callbacks=[Timed()], accelerator="cpu", logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(BoringModel())  # fmt: skip
    row = Row("ExactResume in a step", spread(times), "nothing", "–", f"{1e3 * statistics.median(times):+.2f} ms", "–")
    table.append(row)
