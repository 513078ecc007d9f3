"""Batches of similar lengths, the same for everybody who knows seed and epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from own_files import made

from tinygpt_lightning import ExactResume, QADataModule, SafeCheckpointIO, TinyGPTModule
from tinygpt_lightning.data.batches import Batch
from tinygpt_lightning.data.sampler import LengthSampler, Repetition, length_batches

some_lengths = st.lists(st.integers(1, 300), min_size=1, max_size=60)


@settings(deadline=None)
@given(some_lengths, st.integers(1, 70), st.booleans())
def test_each_text_comes_once_in_as_few_batches_as_can_be_none_of_them_much_smaller(
    lengths: list[int], batch_size: int, shuffle: bool
) -> None:
    generator = torch.Generator().manual_seed(0) if shuffle else None
    batches = length_batches(lengths, -(-len(lengths) // batch_size), generator)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == -(-len(lengths) // batch_size)
    sizes = {len(batch) for batch in batches}
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def test_a_batch_has_similar_lengths() -> None:
    lengths = torch.randint(20, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = length_batches(lengths, 20, torch.Generator().manual_seed(1))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.2 * sum(lengths)
    longest = [max(lengths[i] for i in batch) for batch in batches]
    assert longest != sorted(longest), "but the batches come in any order"


def sampler(
    rank: int = 0, world_size: int = 1, batch_size: int = 4, shuffle: bool = True, n: int = 22
) -> LengthSampler:
    return LengthSampler([5 * (i % 7) + 9 for i in range(n)], batch_size, shuffle, world_size, rank)


def test_seed_and_epoch_decide_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def epoch(number: int, seed: str) -> list[list[int]]:
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        one = sampler()
        one.set_epoch(number)
        list(one)  # having been read before makes no difference
        return list(one)

    assert epoch(3, "1") == epoch(3, "1")
    assert epoch(3, "1") != epoch(4, "1")
    assert epoch(3, "1") != epoch(3, "2")


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_batches_of_one_that_has_as_much_room_as_all(shuffle: bool) -> None:
    alone = list(sampler(batch_size=6, shuffle=shuffle))
    shares = [list(sampler(rank, 3, 2, shuffle)) for rank in range(3)]
    assert {len(share) for share in shares} == {len(alone), len(sampler(0, 3, 2))}
    for whole, *parts in zip(alone, *shares, strict=True):
        assert sorted(i for part in parts for i in part) == sorted(whole)
        assert max(map(len, parts)) <= 2


def test_too_few_for_all_processes_are_taken_by_each_and_counted_by_the_first() -> None:
    for n in (1, 2):
        shares = [[row for batch in sampler(rank, world_size=3, n=n) for row in batch] for rank in range(3)]
        assert sorted(shares[0]) == list(range(n))
        for share in shares[1:]:
            assert sorted(~row for row in share) == list(range(n))


def test_what_comes_again_comes_in_as_many_batches() -> None:
    once, more = sampler(), sampler()
    more.again = [3, 3, 20]
    assert Counter(row for batch in more for row in batch) == Counter([*range(22), 3, 3, 20])
    assert len(list(more)) == len(list(once)) == len(more)


class Record(Callback):
    """The rows of each epoch, and the pairs that are not exact after it; saves a checkpoint at one step."""

    def __init__(self, file: Path | None = None, step: int = 0) -> None:
        self.file, self.step = file, step
        self.rows: list[Counter[int]] = []
        self.wrong: list[list[int]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.rows.append(Counter())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.rows[-1].update(batch.rows.tolist())

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.file and trainer.global_step == self.step:
            trainer.save_checkpoint(self.file)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TinyGPTModule)
        exact = pl_module.trained.knows(pl_module.taught.pairs)
        self.wrong.append([row for row, is_exact in enumerate(exact) if not is_exact])


PAIRS = made(0, pairs=30, kind="sentences")


def repeated(record: Record, ckpt_path: Path | None = None) -> TinyGPTModule:
    seed_everything(0)
    data = QADataModule.of(PAIRS)
    module = TinyGPTModule.for_data(data)
    callbacks = [Repetition(2), record, ExactResume()]
    # A validation in the middle of an epoch finds others wrong, which do not join this epoch.
    settings = {"max_epochs": 26, "val_check_interval": 0.5}
    trainer = quiet_trainer(callbacks=callbacks, plugins=[SafeCheckpointIO()], **settings)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.mark.filterwarnings("ignore:.*not resumable")  # Lightning does not know of ExactResume
def test_an_epoch_has_the_pairs_again_that_were_wrong_before(tmp_path: Path) -> None:
    record = Record()
    whole = repeated(record)
    assert record.rows[0] == Counter(range(30))
    for rows, wrong in zip(record.rows[1:], record.wrong, strict=False):
        times = min(2, 6 // max(len(wrong), 1))  # a fifth of 30 may come again
        assert rows == Counter([*range(30), *wrong * times])
    first = next(epoch for epoch, rows in enumerate(record.rows) if sum(rows.values()) > 30)

    file = tmp_path / "within.ckpt"
    repeated(Record(file, step=8 * first + 5))
    resumed = repeated(rest := Record(), file)
    assert rest.rows[-1] == record.rows[-1]
    assert all(weight.equal(resumed.state_dict()[name]) for name, weight in whole.state_dict().items())
