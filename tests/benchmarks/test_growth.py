"""What more pairs cost: ``python -m pytest tests/benchmarks/test_growth.py -n0 --benchmark-enable``.

The machine decides how long anything takes, so these are no part of the suite, and what is asserted are ratios, of
the processor's time on one thread.
"""

from __future__ import annotations

import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import AdamW

from tinygpt_lightning import load
from tinygpt_lightning.commands.main import main
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.module import next_token_loss

LETTERS = "abcdefghijklmnopqrstuvwxyz àáảãạ"
NO_DROPOUT = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
SIZES = [1, 10, 100, 1_000, 10_000]


class EpochTimes(Callback):
    """Notes how long each epoch takes, in seconds of the processor."""

    seconds: list[float]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        EpochTimes.seconds.append(time.process_time() - self.begun)


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(EpochTimes, "seconds", [], raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_pairs(n: int) -> str:
    """Write ``n`` pairs that nothing but memory can know."""
    chance = random.Random(n)
    rows = [
        {"question": f"{i} " + "".join(chance.choices(LETTERS, k=12)), "answer": "".join(chance.choices(LETTERS, k=20))}
        for i in range(n)
    ]
    path = Path(f"{n}.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def fit(path: str, epochs: int, width: int, *more: str) -> None:
    size = {"n_embd": width, "n_head": 4, "n_positions": 96, **NO_DROPOUT}
    main([
        "fit", "--data.path", path, "--stages", json.dumps([{"epochs": epochs}]), "--model.config", json.dumps(size),
        "--trainer.accelerator", "cpu", "--trainer.callbacks", '[{"class_path": "test_growth.EpochTimes"}]', *more,
    ])  # fmt: skip


def characters(path: str) -> int:
    taught = QADataModule(path=path).taught
    return sum(map(taught.length, taught.pairs))


@pytest.mark.parametrize("n", SIZES)
def test_an_epoch(benchmark: Any, n: int) -> None:
    path = random_pairs(n)
    benchmark.pedantic(fit, args=(path, 3, 32), rounds=1)
    benchmark.extra_info["seconds per epoch"] = statistics.median(EpochTimes.seconds)
    benchmark.extra_info["characters"] = characters(path)


def test_from_100_pairs_on_an_epoch_takes_as_long_as_its_characters() -> None:
    rates = []
    for n in (100, 1_000, 10_000):
        path = random_pairs(n)
        EpochTimes.seconds.clear()
        fit(path, 5 if n < 10_000 else 3, 32)
        rates.append(statistics.median(EpochTimes.seconds) / characters(path))
    print("microseconds a character:", [round(1e6 * rate, 2) for rate in rates])
    assert max(rates[1:]) <= 1.3 * rates[0]


def test_memory_is_that_of_a_batch_and_the_pairs_themselves() -> None:
    peaks = []
    for n in (100, 10_000):  # in this order: what is known of children is the largest one's
        words = ["fit", "--data.path", random_pairs(n), "--stages", '[{"epochs": 1}]', "--model.config.n_embd", "48"]
        subprocess.run([sys.executable, "-m", "tinygpt_lightning", *words, "--trainer.accelerator", "cpu"], check=True)
        peaks.append(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
    print(f"MiB at 100 and at 10,000 pairs: {peaks[0]:.0f}, {peaks[1]:.0f}")
    assert peaks[1] - peaks[0] < 100, "that is 10 KiB a pair"


def test_10_000_pairs_begin_less_than_a_second_later_than_one(benchmark: Any) -> None:
    def begin(path: str) -> float:
        begun = time.process_time()
        data = QADataModule(path=path)
        next(iter(data.train_dataloader()))
        return time.process_time() - begun

    one = begin(random_pairs(1))
    many = benchmark.pedantic(begin, args=(random_pairs(10_000),), rounds=1)
    assert many - one < 1


def plain_epochs(path: str, epochs: int, width: int) -> list[float]:
    """The same batches in a plain loop: the times of its epochs."""
    data = QADataModule(path=path)
    model = TinyGPT(GPTConfig(len(data.tokenizer), 96, width, 4, **NO_DROPOUT))
    optimizer = AdamW(model.parameters(), lr=3e-4, fused=True)
    loader = data.train_dataloader()
    seconds = []
    for epoch in range(epochs):
        begun = time.process_time()
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        for batch in loader:
            optimizer.zero_grad()
            next_token_loss(model(batch.ids), batch.targets).backward()
            optimizer.step()
        seconds.append(time.process_time() - begun)
    return seconds


def test_an_epoch_costs_a_tenth_more_than_a_plain_loop_at_most() -> None:
    path = random_pairs(1_000)
    before = plain_epochs(path, 3, 192)
    fit(path, 6, 192, "--trainer.limit_val_batches", "0")
    plain = statistics.median(before + plain_epochs(path, 3, 192))
    ratio = statistics.median(EpochTimes.seconds) / plain
    print(f"fit takes {ratio:.3f} of a plain loop's {plain:.2f} s")
    assert ratio <= 1.10


@pytest.mark.slow
def test_1_000_random_pairs_are_learnt_without_a_mistake() -> None:
    schedule = {"class_path": "OneCycleLR", "init_args": {"max_lr": 5e-3, "total_steps": 50, "pct_start": 0.2}}
    begun = time.process_time()
    fit(
        random_pairs(1_000), 50, 192, "--data.batch_size", "25", "--model.loss_on", "answer",
        "--model.lr_scheduler", json.dumps(schedule), "--trainer.check_val_every_n_epoch", "5",
    )  # fmt: skip
    print(f"{time.process_time() - begun:.0f} s on one thread")
    trained = load("checkpoints/default/version_0")
    assert sum(trained.knows(trained.taught.pairs)) == 1_000
