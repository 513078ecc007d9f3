"""Stages: optimizers and schedulers made anew in the middle of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable


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
