"""Stopping a fit without losing anything."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class GracefulStop(Callback):
    """Ends a fit between two epochs, whoever asks for its end: Ctrl-C, SIGTERM, a time limit, early stopping.

    A step that is broken off leaves weights that belong to no step, and an epoch that is broken off cannot be
    resumed as if it had not been. So the epoch is brought to its end; with ``trainer.should_stop`` set, other
    callbacks can write a checkpoint of it. A second signal acts at once.

    Attributes:
        received: The signal that came to this process, or none.
        interrupted: Whether a signal, to this process or another one of the same fit, is what ends it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.interrupted = False
        self._min_epochs: int | None = None  # as the trainer was given it
        self._handlers: dict[signal.Signals, Any] = {}  # those before ours

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._min_epochs = trainer.fit_loop.min_epochs
        self._listen()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.received is None:
            self._listen()  # again: in the meantime Lightning has put its own handler in the place of ours
        self._finish_epoch(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish_epoch(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interrupted = trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)
        trainer.should_stop |= self.interrupted

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.fit_loop.min_epochs = self._min_epochs
        self._listen_no_more()
        self._handlers.clear()

    def _finish_epoch(self, trainer: Trainer) -> None:
        # Lightning leaves an epoch in its middle, unless it is one of those that must be trained.
        trainer.fit_loop.min_epochs = max(self._min_epochs or 0, trainer.current_epoch + 1)

    def _listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._note)
            self._handlers.setdefault(number, before)

    def _listen_no_more(self) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._listen_no_more()
