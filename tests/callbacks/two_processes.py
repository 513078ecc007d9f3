"""Runs the function of this file that is named first, in two processes which Lightning takes for its own."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from anyones import Anyones, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import ModelParallelStrategy
from test_anyones_campaign import Everywhere, differences
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tinygpt_lightning import ExactResume, Stage, StagedTraining


class Sharded(Anyones):
    """Each layer is sharded by itself, as large models are."""

    def configure_model(self) -> None:
        for layer in self.body, self.head:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])


class Freezes(StagedTraining):
    def on_stage_start(self, trainer: Trainer, pl_module: Any, index: int) -> None:
        pl_module.body.requires_grad_(index != 1)


class End(Callback):
    """What the run comes to in this process."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        state = [pl_module.state_dict(), *(optimizer.state_dict() for optimizer in trainer.optimizers)]
        self.left = [local(state), dict(trainer.callback_metrics), trainer.global_step, trainer.current_epoch]


def local(value: Any) -> Any:
    if isinstance(value, DTensor):
        return value.to_local().clone()
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: local(inner) for key, inner in value.items()}
    return [local(inner) for inner in value] if isinstance(value, list) else value


def fit(folder: Path, stages: Sequence[Stage], ckpt_path: Path | None = None, distributed: bool = True, save: Sequence[str] = (), staged=Freezes, module=Sharded, **settings: Any) -> list[Any]:
    seed_everything(1, verbose=False)
    torch.manual_seed(1 if ckpt_path is None else 2)
    end = End()
    callbacks = [staged(stages, folder), ExactResume(), end, *([Everywhere(folder / "every", save)] if save else [])]
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=distributed)
    trainer = quiet_trainer(folder, *callbacks, strategy=strategy, devices=2, **settings)
    trainer.fit(module(), ckpt_path=ckpt_path)
    return end.left


def in_process(rank: int, port: int, name: str, args: Sequence[str]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", LOCAL_RANK=str(rank), NODE_RANK="0")
    warnings.simplefilter("ignore")
    globals()[name](rank, *map(Path, args))
    torch.distributed.destroy_process_group()


def try1(rank, folder):
    import time
    stages = [Stage(2), Stage(steps=3, reset_optimizer=False), Stage(1)]
    for distributed in (True, False):
        t = time.time()
        here = folder / str(distributed)
        expected = fit(here, stages, None, distributed, ("on_train_start","on_train_epoch_start","on_train_batch_start", "on_train_batch_end","on_validation_end", "on_train_epoch_end"), accumulate_grad_batches=2)
        print("first", rank, time.time()-t, expected[1:], flush=True)
        torch.distributed.barrier()
        for file in sorted((here / "every").iterdir()):
            t = time.time()
            got = fit(here / "again", stages, file, distributed, accumulate_grad_batches=2)
            print(rank, file.name, round(time.time()-t,2), list(differences(got, expected))[:2], flush=True)


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=in_process, args=(rank, port, sys.argv[1], sys.argv[2:])) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
