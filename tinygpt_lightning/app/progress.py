"""What a person reads in the terminal: one line for each stage, and the result."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from tinygpt_lightning.app.run import Run
from tinygpt_lightning.callbacks.staged_training import StagedTraining, stage_ends
from tinygpt_lightning.data import QAPair


class StageProgress(Callback):
    """Shows on stderr how each stage goes: a live line in a terminal, else one plain line at its end.

    Args:
        staged: The callback that knows the stages.
    """

    def __init__(self, staged: StagedTraining) -> None:
        self.staged = staged
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the live display."""
        self._shown = -1
        if trainer.is_global_zero and self.console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("epochs  {task.fields[state]}"),
                TimeElapsedColumn(),
                console=self.console,
            )
            self._progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the stage's line up to date."""
        if not trainer.is_global_zero:
            return
        stages = self.staged.stages
        index = self.staged.stage_at(trainer.current_epoch)
        done = trainer.current_epoch + 1 - stage_ends(stages)[index] + stages[index].epochs
        title = f"stage {index + 1}/{len(stages)}"
        state = _state(trainer.callback_metrics)
        if self._progress is None:
            if done == stages[index].epochs:
                self.console.print(f"{title}: {done} epochs, {state}", highlight=False)
            return
        if self._shown != index:
            self._task = self._progress.add_task(title, total=stages[index].epochs, state="")
            self._shown = index
        assert self._task is not None  # noqa: S101
        self._progress.update(self._task, completed=done, state=state)
        if done == stages[index].epochs:
            self._progress.stop_task(self._task)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the live display."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the live display, so that the error appears below it."""
        self._close()

    def _close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _state(metrics: dict[str, Any]) -> str:
    exact = "exact" if metrics.get("val/exact_match") else "not exact yet"
    # No step has been made yet where a run goes on from the very end of an epoch.
    return f"loss {float(metrics.get('train/loss', math.nan)):.4f}, {exact}"


def print_result(pair: QAPair, generated: str, run: Run) -> None:
    """Say on stdout what the run has learnt, and where to look further."""
    indented = generated.replace("\n", "\n           ")
    print(f"prompt     {pair.prompt}")
    print(f"generated  {indented}")
    print(f"exact      {'yes' if generated == pair.text else 'no'}")
    print(f"run        {run.path}")
    print(f"look       tensorboard --logdir {run.path.parent.parent}")
