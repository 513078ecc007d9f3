"""Stages and their schedule, without a Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable


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


class Schedule:
    """Which stage each epoch belongs to: whoever wants to know asks here, and nobody works it out anew.

    A subclass may override `stage_at`; the other answers follow from that one.

    Args:
        stages: The stages, in order.

    Raises:
        StageError: If there is no stage.

    >>> schedule = Schedule([Stage(epochs=30), Stage(epochs=20)])
    >>> [schedule.stage_at(epoch) for epoch in (0, 29, 30, 49, 50)]
    [0, 0, 1, 1, 1]
    >>> schedule.epochs, schedule.ends_stage(29), schedule.start_of_stage(40)
    (50, True, 30)
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        if not stages:
            raise StageError("stages: expected at least one stage, got none")
        self.stages = list(stages)
        self._ends = list(accumulate(stage.epochs for stage in stages))  # epochs done by the end of each

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return self._ends[-1]

    def stage_at(self, epoch: int) -> int:
        """Index of the stage that ``epoch`` belongs to, both from 0; after the end, the last one."""
        return min(sum(epoch >= end for end in self._ends), len(self.stages) - 1)

    def ends_stage(self, epoch: int) -> bool:
        """Whether ``epoch`` (from 0) is the last one before a boundary, or before the end."""
        return epoch + 1 == self.epochs or self.stage_at(epoch + 1) != self.stage_at(epoch)

    def start_of_stage(self, epoch: int) -> int:
        """The first of the epochs up to ``epoch`` that belong to one stage without a boundary between them."""
        while epoch and self.stage_at(epoch - 1) == self.stage_at(epoch):
            epoch -= 1
        return epoch
