"""Exact resume: the random numbers of a step depend on the run and the step, not on what came before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torchmetrics import Metric
from typing_extensions import override

from tinygpt_lightning.callbacks import loaders, loop_progress, unfinished_epoch
from tinygpt_lightning.callbacks.safe_checkpoint_io import try_saving


def seed_all(*key: int | str) -> None:
    """Seed torch (CPU and the accelerators in use), numpy and Python from ``key``.

    Unlike :func:`torch.manual_seed`, fast enough for every step: that one formats a stack trace wherever
    CUDA is not in use.

    >>> seed_all("step", 7)
    >>> first = torch.rand(2), random.random()
    >>> seed_all("step", 7)
    >>> (torch.rand(2), random.random())[1] == first[1]
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:8], "little")
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(np.frombuffer(digest, dtype="<u4"))
    random.seed(digest)


class ExactResume(Callback):
    """Makes a run that is stopped and resumed the very run that was never stopped, dropout and all.

    Lightning's checkpoints hold no state of the random number generators. Storing it is not enough either:
    an interrupted run makes its loaders, and draws their seeds, at other moments than an uninterrupted one.
    Here nothing of the kind can matter. Each run draws one seed (per process), which its checkpoints keep,
    and the generators are seeded anew from it and a count: at each epoch's start with the epoch, before each
    training step and after it, where data is fetched, with the number of the batch. This also covers loaders
    that shuffle, and, as the batches that an interrupted epoch has used are fetched and dropped on resume, a
    checkpoint in mid-epoch. What else Lightning leaves out of one is kept: gradients that are still to be used,
    torchmetrics and logged values that are still to be averaged, how many batches the step has accumulated, and
    whether a validation comes next.

    **Covered**, to the bit, in any Trainer and with any LightningModule: weights, optimizers, schedulers, what is
    logged and what callbacks keep, from a checkpoint of any moment between two hooks but within a step (at an epoch's
    start or end, every n steps, before, within and after a validation, after an exception that came before the
    backward pass); dropout and all else that draws from torch, numpy or ``random``; loaders that shuffle, draw, weigh,
    stream, use workers, persistent or not, and several at once; manual optimization and several optimizers; DDP. On
    the same machine, with the same versions, threads and number of processes, and, where Lightning puts a
    ``DistributedSampler``, the same ``seed_everything``. Persistent workers are started anew in each epoch, for the
    generators in them hold what earlier epochs have left there. A loader with ``state_dict`` and ``load_state_dict``
    is left to find its own place.

    **Refused** when the fit starts: see below.

    **Not covered**, and nobody can see it from outside: generators of one's own, and state in a dataset or a sampler
    (they are in no checkpoint); random draws in another ``on_train_epoch_start`` before a loader that shuffles; what
    the module does in ``on_train_batch_end`` or ``on_validation_end`` (Lightning calls it after the callbacks that
    save there); gradients in a checkpoint from an exception within the backward pass or later in its step (half a
    step is no state to go on from); under DDP, gradients and averages in a checkpoint from an exception (the other
    processes may be gone); a checkpoint from within a validation for which a callback has exchanged the weights
    (Lightning's ``WeightAveraging`` would not change them back).

    Raises:
        MisconfigurationException: With FSDP, DeepSpeed or ModelParallel, which restore optimizers and
            callbacks in an order not proven to be exact; with ReduceLROnPlateau, which steps after the
            checkpoint is written; with ``training_step(dataloader_iter)``, whose batches nobody else counts; with
            another number of processes than the checkpoint was written by.

    Source: Lightning issues #6891, #8502, #9130, #17543, #19617; seeding by counter as in Salmon et al. 2011,
    "Parallel Random Numbers: As Easy as 1, 2, 3".
    """

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._seeds: list[int] = []  # one per process
        self._validated = 0  # batches done when the last validation ended
        self._metrics: dict[str, Metric] = {}  # those in use when it began
        self._resumed: dict[str, Any] | None = None  # where this process stood when the checkpoint was written
        self._pending: loop_progress.Pending | None = None  # what comes first

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seeds": self._seeds}

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            metrics = self._metrics if trainer.validating else unfinished_epoch.metrics_in_use(pl_module)
            checkpoint["callbacks"][self.state_key] |= {
                "progress": loop_progress.note(trainer, self._validated),
                "processes": unfinished_epoch.note(trainer, pl_module, metrics),
            }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["callbacks"].get(self.state_key)
        if trainer.state.fn != TrainerFn.FITTING or state is None:
            return
        self._seeds = state["seeds"]
        _check_processes(self._seeds, trainer)
        self._pending = loop_progress.mend(checkpoint["loops"]["fit_loop"], state["progress"])
        if None not in state["processes"]:  # all of them or none, for they compute together
            self._resumed = state["processes"][trainer.global_rank]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.strategy.restore_checkpoint_after_setup:
            raise MisconfigurationException(
                f"ExactResume: expected a single device or ddp, got {type(trainer.strategy).__name__},"
                " which restores checkpoints in an order that is not proven to be exact"
            )
        if stage == "fit" and is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise MisconfigurationException(
                "ExactResume: expected training_step(batch), got training_step(dataloader_iter), which fetches batches"
                " that nobody else can count"
            )
        self._begin()  # a callback that is used again starts another run

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._seeds:
            if trainer.ckpt_path:
                rank_zero_warn(f"ExactResume: {trainer.ckpt_path} was written without it, so this resume is not exact.")
            # For all processes, once: a checkpoint may be written by one whose fellows are gone.
            self._seeds = trainer.strategy.broadcast(torch.randint(2**63 - 1, (trainer.world_size,)).tolist())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _refuse_plateau(trainer)
        try_saving(trainer)
        self._go_on(trainer, pl_module)
        # Lightning skips on_train_epoch_start when it resumes within an epoch.
        if trainer.fit_loop.restarted_mid_epoch:
            loaders.go_on(trainer, partial(self._seed, trainer), _batches(trainer))

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _refuse_plateau(trainer)  # again, for a schedule may have been made anew
        self._seed(trainer, "epoch", trainer.current_epoch)
        loaders.begin_epoch(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed(trainer, "step", _batches(trainer))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._seed(trainer, "fetch", _batches(trainer))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics = unfinished_epoch.metrics_in_use(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated = _batches(trainer)
            loaders.start_workers_anew(trainer.fit_loop.epoch_loop.val_loop._combined_loader)
            # It draws between a step and the next fetch, but not if the run is resumed after it.
            self._seed(trainer, "fetch", self._validated)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._go_on(trainer, pl_module)  # here, where there was nothing left to train

    def _go_on(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring gradients and averages to where they were, and do what is pending, once."""
        if self._resumed is not None:
            unfinished_epoch.go_on(trainer, pl_module, self._resumed)
        if self._pending is not None:
            loop_progress.go_on(trainer, self._pending)
        self._resumed = self._pending = None

    @contextmanager
    def seeded(self, trainer: Trainer, moment: str, count: int) -> Iterator[None]:
        """Seed all generators for a moment of the run and its number, and bring them back to where they were."""
        states = _collect_rng_states()
        self._seed(trainer, moment, count)
        yield
        _set_rng_states(states)

    def _seed(self, trainer: Trainer, moment: str, count: int) -> None:
        seed_all(self._seeds[trainer.global_rank], moment, count)


def _batches(trainer: Trainer) -> int:
    """Training batches since the start of the run; unlike ``global_step``, it counts each."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


def _check_processes(seeds: list[int], trainer: Trainer) -> None:
    if len(seeds) != trainer.world_size:
        raise MisconfigurationException(
            f"ExactResume: expected {len(seeds)} processes, as when the checkpoint was written,"
            f" got {trainer.world_size}; set devices and num_nodes as they were"
        )


def _refuse_plateau(trainer: Trainer) -> None:
    if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
        raise MisconfigurationException(
            "ExactResume: expected a scheduler that can be resumed exactly, got ReduceLROnPlateau,"
            " which steps after the checkpoint is written"
        )
