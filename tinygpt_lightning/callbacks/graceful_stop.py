"""Ends a fit at an epoch's end, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class GracefulStop(Callback):
    """Ends a fit between two epochs, whoever asks for the end: Ctrl-C, SIGTERM, a time limit, early stopping.

    A step that is broken off leaves weights that belong to no step, and an epoch that is broken off cannot be resumed
    exactly. So the epoch is finished first; with ``trainer.should_stop`` set, other callbacks can write a checkpoint
    of it. A second signal acts at once. Python receives signals in the main thread only: a fit in another thread ends
    gracefully by ``trainer.should_stop`` alone.

    Attributes:
        received: The signal that this process received in this fit, or None.
        interrupted: Whether a signal, to this process or another one of the same fit, ended it.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)) -> None:
        self.signals = signals
        self.received: signal.Signals | None = None
        self.interrupted = False
        self._min_epochs: int | None = None  # the trainer's own
        self._handlers: dict[signal.Signals, Any] = {}  # those before ours

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.received, self.interrupted = None, False  # the same object in a second fit
        self._min_epochs = trainer.fit_loop.min_epochs
        self._listen()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.received is None:
            self._listen()  # again, since Lightning has replaced the handlers
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
        self._restore_handlers()
        self._handlers.clear()

    def _finish_epoch(self, trainer: Trainer) -> None:
        # Lightning breaks off an epoch unless it is one of the `min_epochs`.
        trainer.fit_loop.min_epochs = max(self._min_epochs or 0, trainer.current_epoch + 1)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in self.signals:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup started this process
            before = signal.signal(number, self._receive)
            self._handlers.setdefault(number, before)

    def _restore_handlers(self) -> None:
        for number, before in self._handlers.items():
            signal.signal(number, before)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore_handlers()
