"""Stages: optimizers and schedulers made anew in the middle of a fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer


class StageError(ValueError):
    """Stages that cannot be trained as asked."""


@dataclass(frozen=True)
class Stage:
    """A part of a training run with optimizers of its own.

    Args:
        epochs: Length of the stage, in epochs.
        reset_optimizer: Whether the stage starts with empty optimizers; if not, their state (momentum and
            the like) is carried over from the stage before.
        optimizer: Makes the stage's optimizer from the parameters; null means what the module configures.
        lr_scheduler: Makes the stage's learning rate scheduler from its optimizer; null means what the
            module configures, or none if the stage has an optimizer of its own.

    Raises:
        ValueError: If ``epochs`` is below 1.
    """

    epochs: int
    reset_optimizer: bool = True
    optimizer: OptimizerCallable | None = None
    lr_scheduler: LRSchedulerCallable | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: expected 1 or more, got {self.epochs}")


def check_stages(stages: Sequence[Stage]) -> None:
    """Raise a `StageError` if there is no stage."""
    if not stages:
        raise StageError("stages: expected at least one stage, got none")


def stage_ends(stages: Sequence[Stage]) -> list[int]:
    """Epochs completed by the end of each stage.

    >>> stage_ends([Stage(epochs=30), Stage(epochs=20)])
    [30, 50]
    """
    return list(accumulate(stage.epochs for stage in stages))


def stage_at(stages: Sequence[Stage], epoch: int) -> int:
    """Index of the stage that ``epoch`` (from 0) belongs to; after the end, the last one.

    >>> stages = [Stage(epochs=30), Stage(epochs=20)]
    >>> [stage_at(stages, epoch) for epoch in (0, 29, 30, 49, 50)]
    [0, 0, 1, 1, 1]
    """
    return min(sum(epoch >= end for end in stage_ends(stages)), len(stages) - 1)


class StagedTraining(Callback):
    """Trains in stages: at each boundary, in the middle of one fit, optimizers and schedulers are made anew.

    It works with any LightningModule: a boundary calls the module's own ``configure_optimizers`` again, or the
    stage's factories where it has some. ``max_epochs`` follows from the stages, ``stage`` is logged (from 1),
    and each stage ends with a checkpoint ``stage-N.ckpt``.

    Lightning declined to offer this (issue 9982); users ask for it in 2006, 3095, 5314 and 18279.

    Args:
        stages: The stages, in order.
        dirpath: Folder of the ``stage-N.ckpt``; null means the trainer's log folder.

    Raises:
        StageError: If there is no stage; when a fit starts, if the trainer's settings contradict the stages,
            its strategy is not supported, a stage cannot be built as asked, or the run that is resumed began
            otherwise.

    >>> StagedTraining(stages=[Stage(epochs=30), Stage(epochs=30)]).stage_at(30)
    1
    """

    def __init__(self, stages: Sequence[Stage], dirpath: str | Path | None = None) -> None:
        check_stages(stages)
        self.stages = list(stages)
        self.dirpath = dirpath
        self._built = 0  # index of the stage that the existing optimizers belong to
        self._descriptions: list[dict[str, str]] = []
        self._resumed: list[dict[str, str]] = []  # the descriptions in the checkpoint

    def stage_at(self, epoch: int) -> int:
        """Index of the stage that ``epoch`` belongs to, both from 0. Override it for another schedule."""
        return stage_at(self.stages, epoch)

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called at each boundary, before the optimizers of stage ``index`` (from 1, the second) are made."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer and set its ``max_epochs``."""
        if stage != "fit":
            return
        self._built, self._resumed = 0, []
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise StageError(
                f"strategy: expected a single device or DDP, got {type(trainer.strategy).__name__}, which loads the "
                "optimizers' state before a callback can choose the stage that they belong to"
            )
        if _is_trial_run(trainer):
            return
        if trainer.max_steps != -1:
            raise StageError(f"max_steps: expected none, since the stages say when to stop, got {trainer.max_steps}")
        epochs = stage_ends(self.stages)[-1]
        # -1 means no limit, and 1000 is what Lightning sets where nobody asked for anything.
        if trainer.max_epochs not in (None, -1, 1000, epochs):
            raise StageError(f"max_epochs: expected none, or the stages' sum {epochs}, got {trainer.max_epochs}")
        trainer.fit_loop.max_epochs = epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the optimizers of the stage that training starts in, or resumes in."""
        # Every stage is built once, so that a mistake in the last one shows now and not after hours.
        self._descriptions = []
        kinds: list[list[type]] = []
        for i, stage in enumerate(self.stages):
            try:
                self._build_optimizers(trainer, pl_module, stage)
            except ValueError as error:  # a learning rate below 0, say
                raise StageError(f"stages[{i}]: {error}") from error
            kinds.append([type(optimizer) for optimizer in trainer.optimizers])
            if i and not stage.reset_optimizer and kinds[i] != kinds[i - 1]:
                raise StageError(
                    f"stages[{i}]: expected an optimizer like the one before, whose state it is to keep "
                    f"(reset_optimizer: false), got {kinds[i][0].__name__} after {kinds[i - 1][0].__name__}"
                )
            if any(config.reduce_on_plateau for config in trainer.strategy.lr_scheduler_configs):
                raise StageError(
                    f"stages[{i}].lr_scheduler: expected any but ReduceLROnPlateau, which steps after the "
                    "checkpoint is written, so that no run could be resumed exactly"
                )
            self._descriptions.append(_describe(stage, trainer))
        self._check_resumed()
        # Lightning loads the checkpoint's optimizer states into these when this hook has ended.
        self._build_optimizers(trainer, pl_module, self.stages[self._built])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that a resumed checkpoint may lie on."""
        # `on_train_epoch_start` is skipped when a checkpoint was saved in mid-epoch.
        self._cross_boundary(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that may lie before this epoch."""
        self._cross_boundary(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage with every step, so that its curve shows where the boundaries are."""
        pl_module.log("stage", self._built + 1.0)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the stage's last checkpoint."""
        if trainer.current_epoch + 1 in stage_ends(self.stages) and not _is_trial_run(trainer):
            folder = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)
            trainer.save_checkpoint(folder / f"stage-{self._built + 1}.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Which stage's optimizers the checkpoint holds, and how the stages were built."""
        # Not to be worked out from the epoch: the checkpoint of a stage's last epoch holds the old optimizers.
        return {"built": self._built, "stages": self._descriptions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Choose the stage; this comes before Lightning loads the optimizers' states."""
        self._built = state_dict["built"]
        self._resumed = state_dict["stages"]

    def _check_resumed(self) -> None:
        for i, before in enumerate(self._resumed[: self._built + 1]):
            if i >= len(self.stages):
                raise StageError(f"stages: expected at least the {self._built + 1} that this run began, got {i}")
            for field, value in before.items():
                if self._descriptions[i][field] != value:
                    raise StageError(
                        f"stages[{i}].{field}: expected {value}, with which this run began the stage, "
                        f"got {self._descriptions[i][field]}; only stages still to come may change"
                    )

    def _cross_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index = self.stage_at(trainer.current_epoch)
        if index == self._built:
            return
        states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        self.on_stage_start(trainer, pl_module, index)
        self._built = index
        self._build_optimizers(trainer, pl_module, self.stages[index])
        if not self.stages[index].reset_optimizer:
            for optimizer, state in zip(trainer.optimizers, states, strict=True):
                # The state alone: with the old param_groups the new scheduler would inherit a stale learning rate.
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _build_optimizers(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        # The strategy's method also replaces Lightning's wrappers and the scheduler configurations.
        trainer.strategy.setup_optimizers(trainer)
        if stage.optimizer is None and stage.lr_scheduler is None:
            return
        if len(trainer.optimizers) != 1:
            raise StageError(
                "expected a module with one optimizer where a stage has an optimizer or lr_scheduler of its own, "
                f"got one with {len(trainer.optimizers)}"
            )
        configured: dict[str, Any] = {"optimizer": _own_optimizer(stage, trainer.optimizers[0])}
        if stage.lr_scheduler is not None:
            configured["lr_scheduler"] = stage.lr_scheduler(configured["optimizer"])
        with _replaced(pl_module, "configure_optimizers", lambda: configured):
            trainer.strategy.setup_optimizers(trainer)


def _own_optimizer(stage: Stage, configured: Optimizer) -> Optimizer:
    if stage.optimizer is not None:
        return stage.optimizer([p for group in configured.param_groups for p in group["params"]])
    for group in configured.param_groups:
        # The module's own scheduler, which is dropped here, has left its mark on the learning rate.
        group["lr"] = group.pop("initial_lr", group["lr"])
    return configured


def _describe(stage: Stage, trainer: Trainer) -> dict[str, str]:
    """What a stage amounts to, as text: it tells whether a resumed run still means the same."""
    schedulers = [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
    # Without the parameters themselves, and without what a scheduler adds.
    options = [
        [{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in o.param_groups]
        for o in trainer.optimizers
    ]
    return {
        "epochs": str(stage.epochs),
        "reset_optimizer": str(stage.reset_optimizer),
        "optimizer": ", ".join(f"{type(o).__name__}{g}" for o, g in zip(trainer.optimizers, options, strict=True)),
        "lr_scheduler": ", ".join(f"{type(s).__name__}{s.state_dict()}" for s in schedulers),
    }


def _is_trial_run(trainer: Trainer) -> bool:
    # `fast_dev_run` brings its own max_steps, and saves nothing.
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


@contextmanager
def _replaced(instance: object, name: str, value: object) -> Iterator[None]:
    before = vars(instance).copy()
    setattr(instance, name, value)
    try:
        yield
    finally:
        if name in before:
            setattr(instance, name, before[name])
        else:
            delattr(instance, name)
