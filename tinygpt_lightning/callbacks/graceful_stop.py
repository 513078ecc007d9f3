"""Stopping a fit from outside, without losing anything."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class StopOnSignal(Callback):
    """Ends a fit after the epoch in which Ctrl-C or SIGTERM comes; a second one acts at once.

    A step that is broken off leaves weights that belong to no step: so the epoch is brought to its end, and
    with ``trainer.should_stop`` set, other callbacks can write a checkpoint of it.

    Attributes:
        received: The signal that came, or none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}  # those before ours

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen."""
        self._listen()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen again: in the meantime Lightning has put its own handler in the place of ours."""
        self._listen()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop if a signal came, to this process or another of the same fit."""
        trainer.should_stop |= trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen no more."""
        self._listen_no_more()

    def _listen(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, self._note)
            self._handlers.setdefault(number, before)

    def _listen_no_more(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._listen_no_more()
