"""The callback that writes a run's files while it trains."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from typing_extensions import override

from tinygpt_lightning.app.run import FILES_KEY, Run
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.module import TinyGPTModule


class RunFiles(Checkpoint):
    """Writes settings and vocabulary when a fit begins, and ``last.ckpt`` as it goes on.

    Args:
        run: The run.
        config: Its settings, as YAML.
        save_every_n_epochs: How often ``last.ckpt`` is written, in epochs; also when training stops.
        stop: The callback that knows whether somebody interrupted it.
    """

    def __init__(self, run: Run, config: str, save_every_n_epochs: int, stop: GracefulStop) -> None:
        self.run = run
        self.config = config
        self.save_every_n_epochs = save_every_n_epochs
        self.stop = stop
        self.ended_early = False

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

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        self.ended_early = trainer.should_stop and not self.stop.interrupted and done != trainer.max_epochs
        if done % self.save_every_n_epochs == 0 or done == trainer.max_epochs or trainer.should_stop:
            # What was logged goes first: a run killed in between would never log it again.
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.run.last)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # This callback hands its averages to the module only now, after the last checkpoint.
        averaging = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if averaging and trainer.current_epoch == trainer.max_epochs:
            for path in (self.run.stage(len(self.run.settings["stages"])), self.run.last):
                trainer.save_checkpoint(path)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"ended_early": self.ended_early}
