"""A fit ends between two epochs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from tinygpt_lightning.callbacks.graceful_stop import GracefulStop


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Python's own, whatever an earlier fit left behind: Lightning ignores Ctrl-C for good when it has come once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class AsksInMidEpoch(Callback):
    """Asks for an end, in one way or another, in the first of four batches of the second epoch."""

    def __init__(self, number: signal.Signals | None = None) -> None:
        self.number = number
        self.batches = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.batches += 1
        if trainer.current_epoch == 1 and self.batches == 5:
            if self.number is None:
                trainer.should_stop = True
            else:
                os.kill(os.getpid(), self.number)


def fit(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", default_root_dir=folder, max_epochs=9, limit_train_batches=4, limit_val_batches=0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=list(callbacks), **settings,
    )  # fmt: skip
    trainer.fit(BoringModel())
    return trainer


@pytest.mark.parametrize("number", [None, signal.SIGINT, signal.SIGTERM])
def test_the_epoch_is_finished_first(tmp_path: Path, number: signal.Signals | None) -> None:
    stop, asks = GracefulStop(), AsksInMidEpoch(number)
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    trainer = fit(tmp_path, asks, stop)
    assert (trainer.current_epoch, asks.batches) == (2, 8)
    assert (stop.received, stop.interrupted) == (number, number is not None)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_without_the_callback_the_epoch_is_broken_off(tmp_path: Path) -> None:
    asks = AsksInMidEpoch()
    fit(tmp_path, asks)
    assert asks.batches == 5


def test_min_epochs_are_trained(tmp_path: Path) -> None:
    trainer = fit(tmp_path, AsksInMidEpoch(), GracefulStop(), min_epochs=6)
    assert trainer.current_epoch == 6
    assert trainer.min_epochs == 6


def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    class Impatient(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    stop = GracefulStop()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, Impatient(), stop)
    assert stop.received == signal.SIGINT


def test_a_complete_fit_is_not_interrupted(tmp_path: Path) -> None:
    stop = GracefulStop()
    trainer = fit(tmp_path, stop)
    assert trainer.current_epoch == 9
    assert not stop.interrupted
    assert torch.isfinite(trainer.model.layer.weight).all()


def test_the_same_object_stops_a_second_fit_only_on_a_new_signal(tmp_path: Path) -> None:
    stop = GracefulStop()
    fit(tmp_path, AsksInMidEpoch(signal.SIGINT), stop)
    assert (stop.received, stop.interrupted) == (signal.SIGINT, True)
    trainer = fit(tmp_path, stop)
    assert trainer.current_epoch == 9
    assert (stop.received, stop.interrupted) == (None, False)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    asks = AsksInMidEpoch()
    with ThreadPoolExecutor(1) as pool:
        trainer = pool.submit(fit, tmp_path, asks, GracefulStop()).result()
    assert (trainer.current_epoch, asks.batches) == (2, 8)
