"""What a person sees in the terminal while something trains."""

from __future__ import annotations

import math
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


class Display:
    """Lines of progress on stderr that are written over; only in a terminal.

    Args:
        unit: What is counted, in the plural.
    """

    def __init__(self, unit: str) -> None:
        self.console = Console(stderr=True)
        self.is_live = self.console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(f"{unit}  {{task.fields[state]}}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            redirect_stdout=False,  # the results go where they are sent
        )
        self._tasks: dict[str, TaskID] = {}

    def start(self) -> None:
        """Begin to show what is added."""
        if self.is_live:
            self._progress.start()

    def update(self, title: str, done: int, total: int, state: str = "") -> None:
        """Bring the line ``title`` up to date, or add it."""
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total, state="")
        self._progress.update(self._tasks[title], completed=done, total=total, state=state)
        if done == total:
            self._progress.stop_task(self._tasks[title])

    def stop(self) -> None:
        """Leave the lines as they are."""
        if self.is_live:
            self._progress.stop()

    def print(self, line: str) -> None:
        """Write a line that stays."""
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class StageProgress(Callback):
    """Shows how each stage goes: a live line in a terminal, else one plain line at its end.

    Args:
        staged: The callback that knows the stages.
        pairs: How many pairs are learnt.
    """

    def __init__(self, staged: StagedTraining, pairs: int = 1) -> None:
        self.staged = staged
        self.pairs = pairs
        self.display = Display("epochs")
        self._unsaid = ""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.display = Display("epochs")
        self._unsaid = ""
        if trainer.is_global_zero:
            self.display.start()

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._update(trainer, self.staged.stages[self.staged.position.index].epochs)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Say how the stage went; it may be over before its epochs are."""
        self._update(trainer)
        self._say()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.display.stop()
        self._say()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.display.stop()  # so that the error appears below it

    def _update(self, trainer: Trainer, epochs: int | None = None) -> None:
        """Bring the stage's line up to date; ``epochs`` is what it takes in all, none if it is over."""
        if not trainer.is_global_zero:
            return
        title = f"stage {self.staged.position.index + 1}/{len(self.staged.stages)}"
        done = trainer.current_epoch + 1 - self.staged.position.begun
        total = epochs or done
        state = _state(trainer.callback_metrics, self.pairs)
        if self.display.is_live:
            self.display.update(title, done, total, state)
        else:
            self._unsaid = f"{title}: {done}{'' if done == total else f' of {total}'} epochs, {state}"

    def _say(self) -> None:
        if self._unsaid:
            self.display.print(self._unsaid)
            self._unsaid = ""


def _state(metrics: dict[str, Any], pairs: int) -> str:
    share = float(metrics.get("val/exact_match", 0))
    exact = f"{round(share * pairs)}/{pairs} exact" if pairs > 1 else "exact" if share else "not exact yet"
    # No step has been made yet where a run goes on from the very end of an epoch.
    return f"loss {float(metrics.get('train/loss', math.nan)):.3g}, {exact}"


class WorkProgress:
    """Shows how much of a known amount of work is done: live in a terminal, else a plain line every ten seconds.

    Work that is done sooner is nothing to talk about.

    Args:
        title: What is done.
        unit: What is counted, in the plural.
        total: How many of them there are.
    """

    def __init__(self, title: str, unit: str, total: int) -> None:
        self.title, self.unit, self.total = title, unit, total
        self.done = 0
        self.display = Display(unit)
        self._begun = self._last = time.monotonic()
        self.display.start()

    def advance(self, units: int) -> None:
        """Count ``units`` of work, and say so once in a while."""
        self.done += units
        now = time.monotonic()
        if self.display.is_live:
            self.display.update(self.title, self.done, self.total)
        elif now - self._last >= 10 or (self.done >= self.total and self._last > self._begun):
            self._last = now
            self.display.print(self.line(now - self._begun))
        if self.done >= self.total:
            self.close()

    def close(self) -> None:
        """Leave the line as it is."""
        self.display.stop()

    def line(self, seconds: float) -> str:
        """The state after so many seconds.

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
