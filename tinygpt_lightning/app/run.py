"""The folders of runs, ``checkpoints/<config name>/version_N``, and the files in them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from typing_extensions import override

from tinygpt_lightning.app.errors import UsageError
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.stages import Schedule
from tinygpt_lightning.gpt.checkpoint import CheckpointError, read_state
from tinygpt_lightning.gpt.files import link_whole, write_whole
from tinygpt_lightning.gpt.trained import LAST
from tinygpt_lightning.module import TinyGPTModule


@dataclass(frozen=True)
class Run:
    """One run's folder and its files.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting of the run."""
        return self.path / "config.yaml"

    @property
    def vocab(self) -> Path:
        """The vocabulary, symbol to id."""
        return self.path / "vocab.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    def stage(self, number: int) -> Path:
        """The checkpoint at the end of stage ``number``, from 1."""
        return self.path / f"stage-{number}.ckpt"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was begun with.

        Raises:
            UsageError: If it has none: it was killed before it began to train, or is no run.
        """
        if not self.config.is_file():
            raise UsageError(f"{self.path}: expected the folder of a run, with a config.yaml in it, found none")
        settings: dict[str, Any] = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        return settings

    def is_finished(self, stages: int | None = None) -> bool:
        """Whether so many stages are done; null means as many as the run's own settings have."""
        if not self.config.is_file():
            return False
        return self.stage(len(self.settings["stages"]) if stages is None else stages).exists()

    def ended_early(self) -> bool:
        """Whether it ended by itself before its stages did: by a time limit, say, and not by a signal."""
        try:
            return bool(read_state(self.last)["callbacks"][RunFiles.__qualname__]["ended_early"])
        except (CheckpointError, KeyError):
            return False

    def newest(self) -> Path | None:
        """The checkpoint to use if the run is over; none if it is not."""
        if self.config.is_file() and (end := self.stage(len(self.settings["stages"]))).exists():
            return end
        return self.last if self.ended_early() else None


def list_runs(folder: Path) -> list[Run]:
    """The runs below ``folder``, oldest first."""
    numbers = {int(path.name.removeprefix("version_")): path for path in folder.glob("version_*") if _is_run(path)}
    return [Run(numbers[number]) for number in sorted(numbers)]


def new_run(folder: Path) -> Run:
    """Make the folder of the next run; two processes that ask at once get two.

    Raises:
        OSError: If it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = list_runs(folder)
    for number in count(int(runs[-1].path.name.removeprefix("version_")) + 1 if runs else 0):
        path = folder / f"version_{number}"
        try:
            path.mkdir()
            break
        except FileExistsError:
            continue
    return Run(path)


def _is_run(path: Path) -> bool:
    return path.is_dir() and path.name.removeprefix("version_").isdecimal()


class RunFiles(Checkpoint):
    """Writes settings and vocabulary when a fit begins, and ``last.ckpt`` as it goes on.

    Args:
        run: The run.
        config: Its settings, as YAML.
        save_every_n_seconds: How often ``last.ckpt`` is written; also at a stage's end, and when training stops.
        stop: The callback that knows whether somebody interrupted it.
        schedule: Which epoch ends a stage.
    """

    def __init__(
        self, run: Run, config: str, save_every_n_seconds: float, stop: GracefulStop, schedule: Schedule
    ) -> None:
        self.run = run
        self.config = config
        self.save_every_n_seconds = save_every_n_seconds
        self.stop = stop
        self.schedule = schedule
        self.ended_early = False
        self._saved = time.monotonic()
        self._stage_file: Path | None = None  # of a stage that has just ended

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TinyGPTModule)  # noqa: S101
        if trainer.is_global_zero and (trainer.ckpt_path is None or not self.run.vocab.exists()):
            pl_module.tokenizer.save(self.run.vocab)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only now: nobody refuses the settings any more.
        if trainer.is_global_zero:
            write_whole(self.run.config, self.config.encode())
        self._saved = time.monotonic()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._link_last(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        self.ended_early = trainer.should_stop and not self.stop.interrupted and done != trainer.max_epochs
        ends_stage = self.schedule.ends_stage(trainer.current_epoch)
        # The first process's clock decides: all of them take part when a checkpoint is written.
        is_due = trainer.strategy.broadcast(time.monotonic() - self._saved >= self.save_every_n_seconds)
        if not (ends_stage or is_due or trainer.should_stop):
            return
        # What was logged goes first: a run killed in between would never log it again.
        for logger in trainer.loggers:
            logger.save()
        if ends_stage:
            # The stage's own checkpoint comes next, and is this one too.
            self._stage_file = self.run.stage(self.schedule.stage_at(trainer.current_epoch) + 1)
        else:
            trainer.save_checkpoint(self.run.last)
            self._saved = time.monotonic()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._link_last(trainer)
        # This callback hands its averages to the module only now, after the last checkpoint.
        averaging = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if averaging and trainer.current_epoch == trainer.max_epochs:
            self._stage_file = self.run.stage(len(self.run.settings["stages"]))
            trainer.save_checkpoint(self._stage_file)
            self._link_last(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"ended_early": self.ended_early}

    def _link_last(self, trainer: Trainer) -> None:
        if self._stage_file and trainer.is_global_zero:
            link_whole(self._stage_file, self.run.last)
            self._saved = time.monotonic()
        self._stage_file = None
