"""What is refused when a fit in stages starts."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

from tinygpt_lightning.callbacks.stages import Schedule, StageError


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that restores optimizers too early.

    Raises:
        StageError: The message names the strategy.
    """
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise StageError(
            f"strategy: expected a single device or DDP, got {type(trainer.strategy).__name__}, which loads the "
            "optimizers' state before a callback can choose the stage that they belong to"
        )


def check_settings(trainer: Trainer, schedule: Schedule) -> None:
    """Refuse settings of the trainer, and callbacks, that contradict the stages.

    Raises:
        StageError: The message names the setting.
    """
    if trainer.max_steps != -1:
        raise StageError(f"max_steps: expected none, since the stages say when to stop, got {trainer.max_steps}")
    # -1 means no limit, and 1000 is what Lightning sets where nobody asked for anything.
    if trainer.max_epochs not in (None, -1, 1000, schedule.epochs):
        raise StageError(f"max_epochs: expected none, or the stages' sum {schedule.epochs}, got {trainer.max_epochs}")
    ends_early = any(stage.until is not None for stage in schedule.stages)
    if ends_early and type(schedule).stage_at is not Schedule.stage_at:
        raise StageError(f"until: expected stages one after another, got those of {type(schedule).__name__}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            _check_weight_averaging(callback, schedule, ends_early)


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run whose stages, as far as they are begun, were others.

    Args:
        before: What the checkpoint says of them.
        now: The same of the stages as they are now.

    Raises:
        StageError: The message names the first thing that differs, with both values.
    """
    built = now["built"]
    pairs = [*zip(before["stages"], now["stages"], strict=True)]
    # Of a stage that is over, nobody asks any more how its optimizer was made.
    pairs[built] = ({**pairs[built][0], **before["optimizer"]}, {**pairs[built][1], **now["optimizer"]})
    for i, (old, new) in enumerate(pairs):
        for name in [*new, *old]:
            if old.get(name) != new.get(name):
                expected, got = (textwrap.shorten(str(stage.get(name)), 80) for stage in (old, new))
                raise StageError(
                    f"stages[{i}].{name}: expected {expected}, with which this run began the stage, got {got}; "
                    "only stages still to come may change"
                )


def _check_weight_averaging(averaging: StochasticWeightAveraging, schedule: Schedule, ends_early: bool) -> None:
    if ends_early:
        raise StageError("until: expected no StochasticWeightAveraging beside it, which needs to know the last epoch")
    start: int | float = averaging._swa_epoch_start
    # Counted from 1, or a share of all epochs, as Lightning works it out.
    first = max((start if isinstance(start, int) else int(schedule.epochs * start)) - 1, 0)
    last_stage = schedule.start_of_stage(schedule.epochs - 1)
    if first < last_stage:
        raise StageError(
            f"StochasticWeightAveraging.swa_epoch_start: expected {last_stage + 1} or more, so that it "
            f"averages within the last stage, got {start}; a boundary would replace its learning rates"
        )
