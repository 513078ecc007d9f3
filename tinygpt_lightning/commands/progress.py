"""Progress on stderr: live lines in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from typing_extensions import override

from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.errors import say


def progress_lines(unit: str) -> Progress:
    """Make lines of progress that appear in a terminal alone; results on stdout do not pass through them.

    Args:
        unit: What is counted, in the plural.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[state]}}".strip()),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        redirect_stdout=False,
    )


class StageProgress(Callback):
    """Shows the progress of each stage: a live line in a terminal, elsewhere one plain line at its end.

    Args:
        staged: The callback that knows the stages.
        pairs: How many pairs are taught.
    """

    def __init__(self, staged: StagedTraining, pairs: int = 1) -> None:
        self.staged = staged
        self.pairs = pairs
        self._begin()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()
        if trainer.is_global_zero:
            self._lines.start()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Complete the stage's line; the stage may end before its length."""
        self._update(trainer, is_over=True)
        self._print()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lines.stop()
        self._print()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._lines.stop()  # so that the error appears below them

    def _begin(self) -> None:
        self._lines = progress_lines("")
        self._tasks: dict[int, TaskID] = {}  # by stage
        self._line = ""  # the stage's plain line, not printed yet

    def _update(self, trainer: Trainer, *, is_over: bool = False) -> None:
        """Update the stage's line."""
        if not trainer.is_global_zero:
            return
        position, index = self.staged.position, self.staged.position.index
        title = f"stage {index + 1}/{len(self.staged.stages)}"
        if index not in self._tasks:
            self._tasks[index] = self._lines.add_task(title, state="")
        stage = self.staged.stages[index]
        unit = "epochs" if stage.steps is None else "steps"
        done = trainer.global_step - position.step if stage.steps else trainer.current_epoch + 1 - position.epoch
        total = done if is_over else stage.epochs or stage.steps
        state = f"{unit}, {_state(trainer, self.pairs)}"
        self._lines.update(self._tasks[index], completed=done, total=total, state=state)
        if self._lines.disable:
            self._line = f"{title}: {done}{'' if done == total else f' of {total}'} {state}"

    def _print(self) -> None:
        if self._line:
            say(self._line)
            self._line = ""


def _state(trainer: Trainer, pairs: int) -> str:
    """The values to show; what was not measured is left out, or said to be unknown."""
    metrics = trainer.callback_metrics
    # A run that is resumed from the very end of an epoch has not made a step yet.
    state = f"loss {float(metrics['train/loss']):.3g}, " if "train/loss" in metrics else ""
    if "val/exact_match" not in metrics:
        return f"{state}exactness not measured"
    share = float(metrics["val/exact_match"])
    limit: Any = trainer.limit_val_batches  # 1.0 is all of them, and 1 is one batch; or overfit_batches
    if limit != 1.0 or isinstance(limit, int):
        return f"{state}{share:.0%} of the measured pairs exact"
    if pairs > 1:
        return f"{state}{round(share * pairs)}/{pairs} exact"
    return state + ("exact" if share else "not exact yet")


class WorkProgress:
    """Shows how much of a known amount of work is done: live in a terminal, elsewhere a line every ten seconds.

    Work that takes less than ten seconds prints no line.

    Args:
        title: The work.
        unit: What is counted, in the plural.
        total: How many units there are.
    """

    def __init__(self, title: str, unit: str, total: int) -> None:
        self.title, self.unit, self.total = title, unit, total
        self.done = 0
        self._lines = progress_lines(unit)
        self._task = self._lines.add_task(title, total=total, state="")
        self._begun = self._printed = time.monotonic()
        self._lines.start()

    def advance(self, units: int) -> None:
        """Count ``units`` of work."""
        self.done += units
        self._lines.update(self._task, completed=self.done)
        now = time.monotonic()
        is_due = now - self._printed >= 10 or (self.done >= self.total and self._printed > self._begun)
        if self._lines.disable and is_due:
            self._printed = now
            say(self.line(now - self._begun))
        if self.done >= self.total:
            self.close()

    def close(self) -> None:
        """Stop updating; the last state stays on the screen."""
        self._lines.stop()

    def line(self, seconds: float) -> str:
        """The plain line after this many seconds.

        >>> progress = WorkProgress("study", "seed-epochs", 200)
        >>> progress.done = 50
        >>> progress.line(30)
        'study: 50 of 200 seed-epochs (25 %), 0:00:30 gone, about 0:01:30 left'
        """
        left = seconds * (self.total - self.done) / self.done
        return (
            f"{self.title}: {self.done} of {self.total} {self.unit} ({100 * self.done // self.total} %), "
            f"{timedelta(seconds=round(seconds))} gone, about {timedelta(seconds=round(left))} left"
        )
