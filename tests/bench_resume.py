"""What exact resume costs: ``python tests/bench_resume.py``. Each ratio is of one run, measured in turns."""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins import TorchCheckpointIO

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.gpt.checkpoint import read_checkpoint

PARAMETERS = 7_928_064  # the default model's; with AdamW's two moments, 95 MB


def milliseconds(function, *arguments):
    start = time.perf_counter()
    function(*arguments)
    return 1e3 * (time.perf_counter() - start)


def fence(steps=2000):
    """Milliseconds that the callback adds to a step: its hooks alone, within a fit."""
    times = []

    class Timed(ExactResume):
        def on_train_batch_start(self, *arguments):
            times.append(milliseconds(super().on_train_batch_start, *arguments))

        def on_train_batch_end(self, *arguments):
            times[-1] += milliseconds(super().on_train_batch_end, *arguments)

    Trainer(
        max_steps=steps, max_epochs=-1, callbacks=[Timed()], accelerator="cpu", logger=False, limit_val_batches=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(BoringModel())  # fmt: skip
    return statistics.median(times)


def saves(repeats=15):
    """Milliseconds of a save by Lightning, of a safe one, and of a safe read; the median ratio of the saves."""
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.rand(PARAMETERS // 12)) for _ in range(12))
    optimizer = torch.optim.AdamW(model.parameters())
    model.requires_grad_().zero_grad()
    sum(parameter.sum() for parameter in model).backward()
    optimizer.step()
    checkpoint = {
        "pytorch-lightning_version": "2.6.6", "global_step": 1, "state_dict": model.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
    }  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        plain, safe = Path(folder, "plain.ckpt"), Path(folder, "safe.ckpt")
        for _ in range(repeats):
            one = milliseconds(TorchCheckpointIO().save_checkpoint, checkpoint, plain)
            other = milliseconds(SafeCheckpointIO().save_checkpoint, checkpoint, safe)
            rows.append((one, other, milliseconds(read_checkpoint, safe), other / one))
    return [statistics.median(column) for column in zip(*rows, strict=True)]


if __name__ == "__main__":
    plain_ms, safe_ms, read_ms, ratio = saves()
    print(f"random numbers: {fence():.3f} ms a step")
    print(f"save: Lightning {plain_ms:.0f} ms, safe {safe_ms:.0f} ms, ratio {ratio:.2f}; safe read {read_ms:.0f} ms")
