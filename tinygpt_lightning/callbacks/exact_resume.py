"""Exact resume: the random numbers of a step depend on the run and the step, not on what came before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torchmetrics import Metric
from typing_extensions import override

from tinygpt_lightning.callbacks import unfinished_epoch
from tinygpt_lightning.callbacks._lightning import (
    generator_states,
    reload_epochs,
    restart_persistent_workers,
    set_generator_states,
    train_loaders,
    validation_loaders,
)
from tinygpt_lightning.callbacks.generators import find_generators, seed_all, seed_each
from tinygpt_lightning.callbacks.safe_checkpoint_io import try_saving
from tinygpt_lightning.callbacks.sharded import adopt
from tinygpt_lightning.callbacks.trainers import before_savers, check_package, replaced, then

GLOBAL_SEED = "PL_GLOBAL_SEED"  # the variable in which Lightning's `seed_everything` keeps its seed


class ExactResume(Callback):
    """Makes a run that is stopped and resumed bit-for-bit equal to the run that was never stopped, dropout included.

    Lightning's checkpoints hold no state of the random number generators. Storing it would not be enough: an
    interrupted run makes its loaders, and draws their seeds, at other moments than an uninterrupted one. With this
    callback neither matters. Each run draws one seed (per process), which its checkpoints keep, and the generators are
    seeded from it and a count: at each epoch's start with the epoch, before each training step and after it, where data
    is fetched, with the number of the batch. This also covers loaders that shuffle. On resume in mid-epoch, the batches
    that the interrupted epoch has used are fetched and dropped (or skipped, where samples depend on nothing but the
    batch's number), ``on_train_epoch_start`` of module and callbacks is called again (``repeat_epoch_start = False`` in
    one of them says no), and the rest that Lightning leaves out of a checkpoint is restored: gradients that are still
    to be used, torchmetrics and logged values that are still to be averaged, how many batches a step accumulates, and
    whether a validation comes next.

    **Covered**, bit-for-bit, in any Trainer and with any LightningModule: weights, optimizers, schedulers, logged
    values and the states of callbacks, from any checkpoint that is not saved inside a training step (saved at an
    epoch's start or end, every n steps, before, within and after a validation, after an exception that came before the
    backward pass); dropout and all else that draws from torch, numpy or ``random``; loaders that shuffle, draw, weigh,
    stream, use workers, persistent or not, and several at once, and generators in the attributes of a loader, its
    sampler, dataset or transforms, which are seeded with the rest; manual optimization and several optimizers; DDP and
    FSDP2. On the same machine, with the same versions, threads and number of processes, and, where Lightning adds a
    ``DistributedSampler``, the same ``seed_everything``. Persistent workers are restarted in each epoch, since their
    generators hold what earlier epochs left there. A loader with ``state_dict`` and ``load_state_dict`` finds its own
    place, and so does torchdata's ``StatefulDataLoader`` if its dataset has them; else it is brought there like any
    ``DataLoader``. An epoch whose length is known is finished before ``trainer.should_stop`` or ``max_time`` ends the
    run, since Lightning would count the broken off epoch as done.

    **Refused** when the fit starts: see Raises.

    Another ``seed_everything`` than the run began with is warned of: what is drawn before the fit (``random_split``)
    would be another. What the module does in ``on_train_batch_end`` and ``on_validation_end`` comes before subclasses
    of ``Checkpoint`` save there, as at an epoch's end; Lightning would call it after them.

    **Not covered**, and not visible from outside: generators elsewhere, and other state in a dataset or a sampler (no
    checkpoint holds them); gradients in a checkpoint from an exception within the backward pass or later in its step
    (half a step cannot be resumed); under DDP, gradients and averages in a checkpoint from an exception (the other
    processes may have ended); a checkpoint from within a validation for which a callback has exchanged the weights
    (Lightning's ``WeightAveraging`` would not change them back); `BackboneFinetuning`, `ModelPruning` and
    `StochasticWeightAveraging` in the middle of an epoch, with a warning.

    Raises:
        MisconfigurationException: With FSDP, DeepSpeed or tensor parallelism, which are not proven to be exact; with
            ``training_step(dataloader_iter)``, whose batches nobody else counts; with another number of processes than
            wrote the checkpoint.

    Source: Lightning issues #6891, #8502, #9130, #17543, #19617; seeding by counter as in Salmon et al. 2011,
    "Parallel Random Numbers: As Easy as 1, 2, 3".
    """

    repeat_epoch_start = False  # of its own

    def __init__(self) -> None:
        self._replaced = ExitStack()
        self._begin()

    def _begin(self) -> None:
        self._replaced.close()
        self._generators: list[Any] = []  # those of the loaders
        self._seeds: list[int] = []  # one per process
        self._validated = 0  # batches done when the last validation ended
        self._ended = 0  # batches that are over, with their validation
        self._metrics: dict[str, Metric] = {}  # those in use when the validation began
        self._resumed: dict[str, Any] | None = None  # what this process saved in the checkpoint
        self._pending: unfinished_epoch.Pending | None = None
        self._reloaded: list[float] | None = None  # the epochs in which the loaders were made
        self._has_started = self._repeats = False  # whether training has, and whether this epoch's start is repeated

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"seeds": self._seeds}

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            metrics = self._metrics if trainer.validating else unfinished_epoch.metrics_in_use(pl_module)
            checkpoint["callbacks"][self.state_key] |= {
                "global_seed": os.environ.get(GLOBAL_SEED),
                "progress": unfinished_epoch.note_progress(trainer, self._validated, self._ended),
                "reloaded": reload_epochs(trainer),
                "processes": unfinished_epoch.note_state(trainer, pl_module, metrics),
            }

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["callbacks"].get(self.state_key)
        if state is None and "loops" in checkpoint:  # Lightning alone wrote it
            unfinished_epoch.repair_progress(checkpoint["loops"]["fit_loop"], {})
        # Lightning's tuner saves a checkpoint before any seed is drawn.
        if trainer.state.fn != TrainerFn.FITTING or state is None or not state["seeds"]:
            return
        self._seeds = state["seeds"]
        _check_processes(self._seeds, trainer)
        if (before := state.get("global_seed")) != (now := os.environ.get(GLOBAL_SEED)) and "global_seed" in state:
            rank_zero_warn(
                f"ExactResume: expected seed_everything({before}), as the run began, got {now}; what is drawn before "
                "the fit (random_split), and the order of a DistributedSampler, may be others"
            )
        self._pending = unfinished_epoch.repair_progress(checkpoint["loops"]["fit_loop"], state["progress"])
        self._reloaded = state.get("reloaded")  # earlier versions had none
        if None not in state["processes"]:  # all of them or none, for they compute together
            self._resumed = state["processes"][trainer.global_rank]

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        check_package(trainer, self)
        adopt(trainer)
        if stage == "fit" and trainer.strategy.restore_checkpoint_after_setup:
            raise MisconfigurationException(
                "ExactResume: expected a single device, ddp or ModelParallelStrategy, which restore checkpoints in an "
                f"order that is proven to be exact, got {type(trainer.strategy).__name__}"
            )
        if stage == "fit" and is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise MisconfigurationException(
                "ExactResume: expected training_step(batch), got training_step(dataloader_iter), which fetches batches"
                " that no callback can count"
            )
        self._begin()  # the same object in a second fit
        if stage == "fit":
            loop: Any = trainer.fit_loop
            self._replaced.enter_context(replaced(loop, "min_epochs", loop.min_epochs))
            self._min_epochs = loop.min_epochs or 0
            for i, loader_loop in enumerate((loop, loop.epoch_loop.val_loop)):
                set_up = partial(self._set_up_data, trainer, i, loader_loop.setup_data)
                self._replaced.enter_context(replaced(loader_loop, "setup_data", set_up))
            begin = partial(self._begin_epoch, trainer, pl_module)
            self._replaced.enter_context(then(trainer, self, loop, "on_advance_start", begin))
            for hook in "on_train_batch_end", "on_validation_end":
                self._replaced.enter_context(before_savers(trainer, pl_module, hook))
                self._replaced.enter_context(then(trainer, self, pl_module, hook, lambda _: self._seed_fetch(trainer)))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._seeds:
            if trainer.ckpt_path:
                rank_zero_warn(f"ExactResume: {trainer.ckpt_path} was written without it, so this resume is not exact.")
            # The seeds of all processes, since one process may write a checkpoint after the others have ended.
            self._seeds = trainer.strategy.broadcast(torch.randint(2**63 - 1, (trainer.world_size,)).tolist())

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try_saving(trainer)
        self.restore(trainer, pl_module)
        self._prepare_epoch(trainer)
        self._has_started = True
        self._repeats = trainer.fit_loop.restarted_mid_epoch
        if self._repeats:
            _warn_of_callbacks(trainer)

    def _set_up_data(self, trainer: Trainer, loop: int, set_up: Callable[[], None]) -> None:
        """Let a resumed run make the loaders of the epoch in which they were made, and draw the same there."""
        made_in = self._reloaded[loop] if self._reloaded else -1
        counts = trainer.fit_loop.epoch_progress.current
        seeds = bool(self._seeds) and loop == 0 and self in trainer.callbacks  # type: ignore[attr-defined]
        with replaced(counts, "completed", made_in) if made_in >= 0 else nullcontext():  # trainer.current_epoch
            if seeds:
                self._seed(trainer, "loaders", trainer.current_epoch)
            set_up()
        if seeds:
            self._seed(trainer, *(("epoch start", trainer.current_epoch) if self._has_started else ("start", 0)))

    def _begin_epoch(self, trainer: Trainer, pl_module: LightningModule, _: None) -> None:
        """Begin an epoch behind all hooks, or what is left of it, which is when the loaders start."""
        if trainer.fit_loop.restarted_mid_epoch:
            self.repeat_hooks(trainer, pl_module)
            unfinished_epoch.fetch_again(trainer, partial(self._seed, trainer), _batches(trainer))
        elif not trainer.fit_loop.restarted_on_epoch_end:
            self._prepare_epoch(trainer)
            self._seed(trainer, "epoch", trainer.current_epoch)
            unfinished_epoch.begin_epoch(trainer)

    def repeat_hooks(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Call the hooks that Lightning skips when it resumes within an epoch, once."""
        if self._repeats:
            self._repeats = False
            unfinished_epoch.repeat_epoch_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._seed(trainer, "step", _batches(trainer))

    def _seed_fetch(self, trainer: Trainer) -> None:
        """Seed the generators for the next batch, behind all hooks, which may draw in one run alone."""
        self._seed(trainer, "fetch", _batches(trainer))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics = unfinished_epoch.metrics_in_use(pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._validated = _batches(trainer)
            restart_persistent_workers(validation_loaders(trainer))

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.restore(trainer, pl_module)  # where there was nothing left to train
            self._replaced.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._replaced.close()

    def end_batch(self, trainer: Trainer) -> None:
        """Note that the last batch is over, for a checkpoint that is saved before the next one begins."""
        self._ended = _batches(trainer)

    def restore(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore gradients and averages, and do what is pending, once, when training starts."""
        if self._resumed is not None:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, GradientAccumulationScheduler):
                    # It refuses a run that accumulates when it starts, as this one is about to.
                    self._replaced.enter_context(replaced(callback, "on_train_start", lambda *_: None))
            unfinished_epoch.restore_state(trainer, pl_module, self._resumed)
        if self._pending is not None:
            unfinished_epoch.do_pending(trainer, self._pending)
        self._resumed = self._pending = self._reloaded = None

    @contextmanager
    def seeded(self, trainer: Trainer, moment: str, count: int) -> Iterator[None]:
        """Seed all generators for a moment of the run and its number, and restore them afterwards."""
        states = generator_states()
        self._seed(trainer, moment, count)
        yield
        set_generator_states(states)

    def _seed(self, trainer: Trainer, moment: str, count: int) -> None:
        seed_all(self._seeds[trainer.global_rank], moment, count)
        if moment in ("epoch", "fetch"):
            seed_each(self._generators, self._seeds[trainer.global_rank], moment, count)

    def _prepare_epoch(self, trainer: Trainer) -> None:
        self._generators = find_generators([*train_loaders(trainer), *validation_loaders(trainer)])
        if trainer.num_training_batches != float("inf"):
            # Lightning breaks off an epoch, and counts it as done, unless it is one of the `min_epochs`.
            trainer.fit_loop.min_epochs = max(self._min_epochs, trainer.current_epoch + 1)


def _batches(trainer: Trainer) -> int:
    """Training batches since the start of the run; ``global_step`` counts optimizer steps."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


def _warn_of_callbacks(trainer: Trainer) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BaseFinetuning | ModelPruning | StochasticWeightAveraging):
            rank_zero_warn(
                f"ExactResume: {type(callback).__name__} acts at an epoch's start, which Lightning does not repeat in "
                "the middle of an epoch, so this resume is not exact; resume from an epoch's end"
            )


def _check_processes(seeds: list[int], trainer: Trainer) -> None:
    if len(seeds) != trainer.world_size:
        raise MisconfigurationException(
            f"ExactResume: expected {len(seeds)} processes, which wrote the checkpoint,"
            f" got {trainer.world_size}; set devices and num_nodes to the former values"
        )
