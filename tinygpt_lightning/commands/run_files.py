"""The callback that writes a run's files while it trains."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from typing_extensions import override

from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.commands.run import FILES_KEY, Run
from tinygpt_lightning.gpt.files import link_whole, write_whole
from tinygpt_lightning.module import TinyGPTModule


class RunFiles(Checkpoint):
    """Writes settings and vocabulary when a fit begins, and ``last.ckpt`` as it goes on.

    Args:
        run: The run.
        config: Its settings, as YAML.
        save_every_n_seconds: How often ``last.ckpt`` is written; also at a stage's end, and when training stops.
        stop: The callback that knows whether somebody interrupted it.
    """

    def __init__(self, run: Run, config: str, save_every_n_seconds: float, stop: GracefulStop) -> None:
        self.run = run
        self.config = config
        self.save_every_n_seconds = save_every_n_seconds
        self.stop = stop
        self.ended_early = False
        self._saved = time.monotonic()
        self._stage_file: Path | None = None  # of a stage that has just ended

    @property
    @override
    def state_key(self) -> str:
        return FILES_KEY

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

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called before any checkpoint of a stage's last epoch is written; the stage's own is this run's last one."""
        self._stage_file = self.run.stage(index + 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        self.ended_early = trainer.should_stop and not self.stop.interrupted and done != trainer.max_epochs
        # The first process's clock decides: all of them take part when a checkpoint is written.
        is_due = trainer.strategy.broadcast(time.monotonic() - self._saved >= self.save_every_n_seconds)
        if not (self._stage_file or is_due or trainer.should_stop):
            return
        # What was logged goes first: a run killed in between would never log it again.
        for logger in trainer.loggers:
            logger.save()
        if not self._stage_file:
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
