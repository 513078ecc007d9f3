"""A foreign project that shards its model over two processes: killed or stopped, and resumed.

``python two_processes.py FUNCTION FOLDER`` calls a function of this file in two processes, which Lightning takes for
those that a launcher has started.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from anyones import TRAINING, WITHIN_VALIDATION, Anyones, quiet_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from test_anyones_campaign import Everywhere, differences
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import SGD

from tinygpt_lightning import ExactResume, Stage, StagedTraining, Until
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.stage_weights import weights


class Sharded(Anyones):
    """Each layer is sharded by itself, as those of a large model are."""

    def configure_model(self) -> None:
        for layer in self.body, self.head:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Freezes(StagedTraining):
    """Freezes a layer in the second stage and adds one in the third; a forward pass leaves the parameters whole."""

    def on_stage_start(self, trainer: Trainer, pl_module: Any, index: int) -> None:
        pl_module.body.requires_grad_(index != 1)
        pl_module(torch.zeros(1, 4))
        if index == 2:
            layer = fully_shard(nn.Linear(8, 8), mesh=pl_module.device_mesh["data_parallel"])
            pl_module.dropout = nn.Sequential(layer, nn.Dropout(0.3))


class AddsWhole(StagedTraining):
    def on_stage_start(self, trainer: Trainer, pl_module: Any, index: int) -> None:
        pl_module.added = nn.Linear(1, 1)


class StopsOne(Callback):
    """The signal comes to one process, in the middle of an epoch."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4 and trainer.global_rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)


class Notes(Callback):
    """The weights at the start and at the end of each epoch."""

    def __init__(self) -> None:
        self.starts: list[Any] = []
        self.ends: list[Any] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.starts.append(weights(pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.ends.append(weights(pl_module))


STAGES = [
    Stage(2),
    Stage(steps=3, reset_optimizer=False),
    Stage(1),
    Stage(1, optimizer=partial(SGD, lr=0.1, momentum=0.9)),
]


def fit(
    folder: Path,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    distributed: bool = True,
    devices: int = 2,
    staged: type[StagedTraining] = Freezes,
    stages: Sequence[Stage] = STAGES,
    **settings: Any,
) -> list[Any]:
    """All that a run comes to in this process."""
    seed_everything(1, verbose=False)  # Lightning's DistributedSampler takes this one
    torch.manual_seed(1 if ckpt_path is None else 2)
    strategy = ModelParallelStrategy(devices, 1, save_distributed_checkpoint=distributed)
    settings = {"accumulate_grad_batches": 2, **settings}
    callbacks = staged(stages, folder), ExactResume(), *callbacks
    trainer = quiet_trainer(folder, *callbacks, strategy=strategy, devices=devices, **settings)
    model = Sharded()
    trainer.fit(model, ckpt_path=ckpt_path)
    states = [model.state_dict(), *(optimizer.state_dict() for optimizer in trainer.optimizers)]
    return [local(states), dict(trainer.callback_metrics), trainer.global_step, trainer.current_epoch]


def local(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (value.to_local() if isinstance(value, DTensor) else value).clone()
    if isinstance(value, dict):
        return {key: local(inner) for key, inner in value.items()}
    return [local(inner) for inner in value] if isinstance(value, list) else value


def campaign(
    folder: Path, distributed: bool, hooks: Sequence[str], every: int, *callbacks: Callback, **settings: Any
) -> None:
    """Resume from checkpoints that a run leaves, and from that of a run which was stopped."""
    settings["distributed"] = distributed
    save = Everywhere(folder / "every", hooks)
    expected = fit(folder, save, *callbacks, **settings)
    stop = GracefulStop(), StopsOne(), Everywhere(folder / "stopped", ["on_train_end"])
    assert fit(folder / "a", *stop, **settings)[3] < expected[3]
    torch.distributed.barrier()
    files = [*sorted((folder / "every").iterdir())[::every], *(folder / "stopped").iterdir()]
    files += sorted(folder.glob("stage-*.ckpt"))
    wrong = {}
    for file in files:
        assert file.is_dir() == distributed
        if found := next(differences(fit(folder / "b", ckpt_path=file, **settings), expected), None):
            wrong[file.name] = found
    assert not wrong, wrong


def quick(folder: Path) -> None:
    campaign(folder, True, ["on_train_batch_start"], 6)
    notes, best = Notes(), Until("train/loss", "max", patience=1)  # it falls, so the first epoch is best
    stages = [Stage(5, freeze="body.*", until=best, restore_best=True), Stage(1)]
    campaign(folder / "best", True, ["on_train_epoch_start"], 1, notes, staged=StagedTraining, stages=stages)
    (before, _, after), ends = notes.starts, notes.ends
    frozen = [name for name in before if torch.equal(before[name], ends[0][name])]
    assert frozen == ["body.weight", "body.bias"]
    assert not list(differences(after, ends[0]))
    assert not any(torch.equal(weight, ends[2][name]) for name, weight in after.items())
    with suppress(MisconfigurationException):
        fit(folder, stages=STAGES[:2], staged=AddsWhole)
        raise AssertionError("each process would have trained the new layer by itself")


def sharded(folder: Path) -> None:
    campaign(folder, True, TRAINING + WITHIN_VALIDATION, 5)


def consolidated(folder: Path) -> None:
    campaign(folder, False, TRAINING + WITHIN_VALIDATION, 5)


def _in_process(rank: int, port: int, function: str, folder: str) -> None:
    # As torchrun does.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    globals()[function](Path(folder))
    torch.distributed.destroy_process_group()


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")  # Lightning is imported once
    processes = [context.Process(target=_in_process, args=(rank, port, *sys.argv[1:])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))


if __name__ == "__main__":
    main()
