"""Stages and their schedule, without a Trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from tinygpt_lightning.callbacks.until import Until


class StageError(ValueError):
    """Stages that cannot be trained as asked."""


@dataclass(frozen=True)
class Stage:
    """A part of a training run with optimizers of its own.

    Args:
        epochs: Length of the stage, in epochs; with ``until``, the most that it takes.
        reset_optimizer: Whether the stage starts with empty optimizers; if not, their state (momentum and
            the like) is carried over from the stage before.
        optimizer: Makes the stage's optimizer from the parameters; null means what the module configures.
        lr_scheduler: Makes the stage's learning rate scheduler from its optimizer; null means what the
            module configures, or none if the stage has an optimizer of its own.
        until: When the stage ends before its epochs are over: a logged value that is good enough or no longer gets
            better, or, in Python, any function of the trainer and the module, which is asked at the end of each
            epoch; null means never.

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

    def describe(self) -> dict[str, str]:
        """What the stage is but for its optimizer, as text, by name."""
        until = self.until
        is_plain = until is None or isinstance(until, Until)
        named = str(until) if is_plain else getattr(until, "__qualname__", type(until).__qualname__)
        return {"epochs": str(self.epochs), "reset_optimizer": str(self.reset_optimizer), "until": named}


class Schedule:
    """Which stage each epoch belongs to: whoever wants to know asks here, and nobody works it out anew.

    A subclass may override `stage_at`; the other answers follow from that one.

    Args:
        stages: The stages, in order.
        ended_early: Epochs of the stages that ended before theirs were over, by index.

    Raises:
        StageError: If there is no stage.

    >>> schedule = Schedule([Stage(epochs=30), Stage(epochs=20)])
    >>> [schedule.stage_at(epoch) for epoch in (0, 29, 30, 49, 50)]
    [0, 0, 1, 1, 1]
    >>> schedule.epochs, schedule.ends_stage(29), schedule.start_of_stage(40)
    (50, True, 30)
    >>> schedule.end_stage(11)
    >>> schedule.epochs, schedule.ends_stage(11), schedule.stage_at(12)
    (32, True, 1)
    """

    def __init__(self, stages: Sequence[Stage], ended_early: Mapping[int, int] | None = None) -> None:
        if not stages:
            raise StageError("stages: expected at least one stage, got none")
        self.stages = list(stages)
        self.ended_early = dict(ended_early or {})

    @property
    def epochs(self) -> int:
        """Epochs of all stages together; those that are not over count at their longest."""
        return self._ends()[-1]

    def stage_at(self, epoch: int) -> int:
        """Index of the stage that ``epoch`` belongs to, both from 0; after the end, the last one."""
        return min(sum(epoch >= end for end in self._ends()), len(self.stages) - 1)

    def ends_stage(self, epoch: int) -> bool:
        """Whether ``epoch`` (from 0) is the last one before a boundary, or before the end."""
        return epoch + 1 == self.epochs or self.stage_at(epoch + 1) != self.stage_at(epoch)

    def start_of_stage(self, epoch: int) -> int:
        """The first of the epochs up to ``epoch`` that belong to one stage without a boundary between them."""
        while epoch and self.stage_at(epoch - 1) == self.stage_at(epoch):
            epoch -= 1
        return epoch

    def end_stage(self, epoch: int) -> None:
        """End the stage of ``epoch`` with that one."""
        self.ended_early[self.stage_at(epoch)] = epoch + 1 - self.start_of_stage(epoch)

    def _ends(self) -> list[int]:
        """Epochs done by the end of each stage."""
        return list(accumulate(self.ended_early.get(i, stage.epochs) for i, stage in enumerate(self.stages)))
