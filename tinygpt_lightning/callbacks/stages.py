"""Stages, when they end, and how a run moves through them, without a Trainer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable


class StageError(ValueError):
    """Stages that cannot be trained as configured."""


@dataclass(frozen=True)
class Until:
    """Ends a stage when a logged value is good enough or no longer improves.

    Args:
        monitor: Name of the value, as in ``self.log``. It is checked once an epoch, at its end, and
            only in epochs with a validation if there is one at all; in a stage with ``steps``, after each validation.
        mode: Which values are better: ``min``, the lower ones, or ``max``, the higher ones.
        stopping_threshold: The stage ends when the value is as good as this; null means never.
        for_epochs: How many times in a row the value must be as good as ``stopping_threshold``.
        patience: The stage ends when the value has not improved so many times in a row; null means never.
        min_delta: Only a change by more than this is an improvement.

    Raises:
        ValueError: If there is neither ``stopping_threshold`` nor ``patience``, or a number is out of range.
    """

    monitor: str
    mode: Literal["min", "max"] = "min"
    stopping_threshold: float | None = None
    for_epochs: int = 1
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode: expected min or max, got {self.mode!r}")
        if self.stopping_threshold is None and self.patience is None:
            raise ValueError("expected stopping_threshold, patience or both, got neither")
        if self.for_epochs < 1 or (self.patience is not None and self.patience < 1):
            raise ValueError(f"for_epochs, patience: expected 1 or more, got {self.for_epochs}, {self.patience}")
        if self.min_delta < 0:
            raise ValueError(f"min_delta: expected 0 or more, got {self.min_delta}")

    def judge(self, value: float, seen: Mapping[str, float]) -> tuple[bool, dict[str, float]]:
        """Decide whether the stage ends.

        Args:
            value: The monitored value.
            seen: What earlier calls in this stage returned; empty at its start.

        Returns:
            Whether the stage ends, and plain values to be given to the next call.

        >>> until, seen, ends = Until("val/loss", stopping_threshold=0.1, for_epochs=2, patience=3), {}, []
        >>> for loss in (0.5, 0.09, 0.2, 0.1, 0.05):
        ...     end, seen = until.judge(loss, seen)
        ...     ends.append(end)
        >>> ends
        [False, False, False, False, True]
        """
        sign = 1 if self.mode == "max" else -1  # so that higher is better
        is_good = self.stopping_threshold is not None and sign * value >= sign * self.stopping_threshold
        is_better = sign * value - self.min_delta > seen.get("best", -math.inf)
        reached = seen.get("reached", 0) + 1 if is_good else 0  # times in a row
        waited = 0 if is_better else seen.get("waited", 0) + 1
        best = sign * value if is_better else seen.get("best", -math.inf)
        ends = reached >= self.for_epochs or (self.patience is not None and waited >= self.patience)
        return ends, {"best": best, "reached": reached, "waited": waited}


@dataclass(frozen=True)
class Stage:
    """A part of a training run with its own optimizers. It has either ``epochs`` or ``steps``.

    Args:
        epochs: Length of the stage, in epochs; with ``until``, the maximum. Where the stage begins in the middle of an
            epoch, the rest of that epoch counts as one.
        reset_optimizer: Whether the stage starts with empty optimizers; if not, it keeps the state (momentum and the
            like) of the stage before.
        optimizer: Makes the stage's optimizer from the parameters; null means the module's ``configure_optimizers``.
        lr_scheduler: Makes the stage's learning rate scheduler from its optimizer; null means the module's, or none
            if the stage has its own optimizer.
        until: When the stage ends before its length: a logged value that is good enough or no longer improves; or, in
            Python, any function of the trainer and the module. It is checked at the end of each epoch; in a stage with
            ``steps``, after each validation, or, without validation, at the end of each epoch. null means never.
        interval: When ``lr_scheduler`` steps, each ``epoch`` or each ``step``, as in Lightning's ``lr_scheduler``
            dictionary.
        frequency: After how many of them it steps.
        monitor: Name of the logged value that a ReduceLROnPlateau needs; null means none.
        steps: Length of the stage, in optimizer steps as ``trainer.global_step`` counts them; the stage may end in the
            middle of an epoch.
        freeze: Names of parameters that do not learn in this stage, or patterns such as ``encoder.*``, one or several.
            Dropout and running averages (BatchNorm) go on.
        restore_best: Whether the stage ends with the weights for which the value that ``until`` monitors was best.
        reload_dataloaders: Whether loaders are made anew after ``on_stage_start``; only behind a stage in epochs.

    Raises:
        ValueError: If there is not exactly one of ``epochs`` and ``steps``, or a value is out of range.
    """

    epochs: int | None = None
    reset_optimizer: bool = True
    optimizer: OptimizerCallable | None = None
    lr_scheduler: LRSchedulerCallable | None = None
    until: Until | Callable[[Trainer, LightningModule], bool] | None = None
    interval: Literal["epoch", "step"] = "epoch"
    frequency: int = 1
    monitor: str | None = None
    steps: int | None = None
    freeze: str | Sequence[str] | None = None
    restore_best: bool = False
    reload_dataloaders: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"expected either epochs or steps, got epochs: {self.epochs}, steps: {self.steps}")
        if self.interval not in ("epoch", "step"):
            raise ValueError(f"interval: expected epoch or step, got {self.interval!r}")
        for name in ("epochs", "steps", "frequency"):
            value = getattr(self, name)
            if value is not None and type(value) is not int:
                raise ValueError(f"{name}: expected an integer, got {value!r}")
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if self.restore_best and not isinstance(self.until, Until):
            raise ValueError(f"restore_best: expected until with a monitored value, got until: {self.until}")

    @property
    def patterns(self) -> list[str]:
        """The patterns of ``freeze``."""
        return [self.freeze] if isinstance(self.freeze, str) else list(self.freeze or [])

    def as_text(self) -> dict[str, str]:
        """Return the settings that a checkpoint records, by name; the optimizer's are compared when it is built."""
        until = self.until
        is_plain = until is None or isinstance(until, Until)
        name = str(until) if is_plain else getattr(until, "__qualname__", type(until).__qualname__)
        length = {"epochs": str(self.epochs)} if self.steps is None else {"steps": str(self.steps)}
        others = {
            name: str(value)
            for name in ("freeze", "restore_best", "reload_dataloaders")
            if (value := getattr(self, name))
        }
        return {**length, "reset_optimizer": str(self.reset_optimizer), "until": name, **others}


@dataclass(frozen=True)
class Position:
    """Where a run is in its stages.

    Args:
        index: The current stage, from 0.
        epoch: Epochs of the run that were done when the stage began.
        step: Optimizer steps of the run that were done when the stage began.
        is_over: Whether the stage has ended and the next one has not begun.

    >>> stages = [Stage(epochs=30), Stage(epochs=20)]
    >>> position = Position()
    >>> position.reaches_end(stages, 29, 290), position.reaches_end(stages, 30, 300), position.last_epoch(stages, 12)
    (False, True, 50)
    >>> Position(is_over=True).last_epoch(stages, 12)
    32
    >>> position.next(12, 120)
    Position(index=1, epoch=12, step=120, is_over=False)
    """

    index: int = 0
    epoch: int = 0
    step: int = 0
    is_over: bool = False

    def reaches_end(self, stages: Sequence[Stage], epochs: int, steps: int) -> bool:
        """Whether the stage has its full length when so many ``epochs`` and ``steps`` of the run are done."""
        stage = stages[self.index]
        if stage.epochs is not None:
            return epochs - self.epoch >= stage.epochs
        return stage.steps is not None and steps - self.step >= stage.steps

    def next(self, epochs: int, steps: int) -> Position:
        """Return the position at the next stage's start, when so many ``epochs`` and ``steps`` of the run are done."""
        return Position(self.index + 1, epochs, steps)

    def last_epoch(self, stages: Sequence[Stage], epochs: int) -> int:
        """Return after how many epochs the run ends at the latest; -1 if stages with ``steps`` are still to come.

        Args:
            stages: All stages.
            epochs: Epochs of the run that are done; they count where the stage is over.
        """
        lengths = [stage.epochs for stage in stages[self.index + self.is_over :]]
        if None in lengths:
            return -1
        return (epochs if self.is_over else self.epoch) + sum(filter(None, lengths))


def check_stages(stages: object) -> list[Stage]:
    """Return the stages as a list.

    Raises:
        StageError: If there are none, or something else is among them, or a function as ``until`` does not take a
            trainer and a module; the message names the stage.
    """
    if not isinstance(stages, Sequence) or not all(isinstance(stage, Stage) for stage in stages):
        raise StageError(f"stages: expected a list of Stage, got {stages!r}")
    if not stages:
        raise StageError("stages: expected at least one stage, got none")
    for i, stage in enumerate(stages):
        if callable(stage.until):
            try:
                inspect.signature(stage.until).bind("trainer", "pl_module")
            except TypeError as error:
                raise StageError(f"stages[{i}].until: expected a function of trainer and pl_module: {error}") from None
            except ValueError:  # written in C, without a signature
                pass
        if stage.reload_dataloaders and i and stages[i - 1].steps is not None:
            raise StageError(
                f"stages[{i}].reload_dataloaders: expected epochs in the stage before, got steps: {stages[i - 1].steps}"
            )
    return list(stages)


def current_stage(trainer: Trainer) -> int:
    """Return the index of the stage that a trainer is in, for a module whose steps depend on it; without stages 0."""
    callbacks: Sequence[object] = trainer.callbacks  # type: ignore[attr-defined]
    positions = [
        position for callback in callbacks if isinstance(position := getattr(callback, "position", None), Position)
    ]
    return positions[0].index if positions else 0
