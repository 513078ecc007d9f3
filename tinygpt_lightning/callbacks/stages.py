"""Stages, when they end, and how a run moves through them, without a Trainer."""

from __future__ import annotations

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
        monitor: Name of the value, as in ``self.log``. It is checked once an epoch, at its end; with
            ``check_val_every_n_epoch`` above 1, only in epochs with a validation.
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
    """A part of a training run with its own optimizers.

    Args:
        epochs: Length of the stage, in epochs; with ``until``, the maximum.
        reset_optimizer: Whether the stage starts with empty optimizers; if not, it keeps the state (momentum and the
            like) of the stage before.
        optimizer: Makes the stage's optimizer from the parameters; null means the module's ``configure_optimizers``.
        lr_scheduler: Makes the stage's learning rate scheduler from its optimizer; null means the module's, or none
            if the stage has its own optimizer.
        until: When the stage ends before its epochs are over: a logged value that is good enough or no longer
            improves; or, in Python, any function of the trainer and the module, which is called at the end of each
            epoch. null means never.

    Raises:
        ValueError: If ``epochs`` is below 1.
    """

    epochs: int
    reset_optimizer: bool = True
    optimizer: OptimizerCallable | None = None
    lr_scheduler: LRSchedulerCallable | None = None
    until: Until | Callable[[Trainer, LightningModule], bool] | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs: expected 1 or more, got {self.epochs}")

    def as_text(self) -> dict[str, str]:
        """Return the settings that a checkpoint records, by name; the optimizer's are compared when it is built."""
        until = self.until
        is_plain = until is None or isinstance(until, Until)
        name = str(until) if is_plain else getattr(until, "__qualname__", type(until).__qualname__)
        return {"epochs": str(self.epochs), "reset_optimizer": str(self.reset_optimizer), "until": name}


@dataclass(frozen=True)
class Position:
    """Where a run is in its stages.

    Args:
        index: The current stage, from 0.
        begun: Epochs that were done when the stage began.
        is_over: Whether the stage has ended; the next one begins at the next epoch's start.

    >>> stages = [Stage(epochs=30), Stage(epochs=20)]
    >>> position = Position()
    >>> position.ends(stages, 29), position.ends(stages, 30), position.last_epoch(stages, 12)
    (False, True, 50)
    >>> position.over().last_epoch(stages, 12)
    32
    >>> position.over().next(12)
    Position(index=1, begun=12, is_over=False)
    """

    index: int = 0
    begun: int = 0
    is_over: bool = False

    def ends(self, stages: Sequence[Stage], epochs: int) -> bool:
        """Whether the stage is as long as it can be when ``epochs`` of the run are done."""
        return epochs - self.begun >= stages[self.index].epochs

    def over(self) -> Position:
        """Return the position when the stage has ended."""
        return Position(self.index, self.begun, is_over=True)

    def next(self, epochs: int) -> Position:
        """Return the position at the next stage's start, when ``epochs`` of the run are done."""
        return Position(self.index + 1, epochs)

    def last_epoch(self, stages: Sequence[Stage], epochs: int) -> int:
        """Return after how many epochs the run ends at the latest.

        Args:
            stages: All stages.
            epochs: Epochs of the run that are done; they count where the stage is over.
        """
        current = epochs if self.is_over else self.begun + stages[self.index].epochs
        return current + sum(stage.epochs for stage in stages[self.index + 1 :])
