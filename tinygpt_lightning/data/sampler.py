"""The batches of an epoch: texts of similar lengths, and those once more that the model does not know yet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DistributedSampler
from typing_extensions import override

from tinygpt_lightning.data.batches import COPY, Batch

SHARE = 0.2  # of the pairs: so many may come again in an epoch
STRETCH = 0.1  # lengths are stretched by up to this share, so that a pair meets others in each epoch


class LengthSampler(DistributedSampler[list[int]]):
    """Makes batches of texts of similar lengths; with several processes, each gets its share of every batch.

    The batches depend on the run's seed, the epoch and what comes again: a resumed run sees the same ones, and one
    process with a batch as large as those of several processes together sees the same texts.

    Args:
        lengths: The length of each text, in characters.
        batch_size: Texts a batch, in each process.
        shuffle: Whether each epoch has other batches, in another order.
        world_size: Number of processes.
        rank: Index of this process, from 0.

    Attributes:
        again: Indices of texts that the next epoch has once more, as often as they are here; batches become larger.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, shuffle: bool, world_size: int, rank: int) -> None:
        # The seed that Lightning gives its own samplers of this kind.
        super().__init__(lengths, world_size, rank, shuffle, seed=int(os.environ.get("PL_GLOBAL_SEED", 0)))  # type: ignore[arg-type]
        self.lengths = lengths
        self.batch_size = batch_size
        self.again: Sequence[int] = ()

    @override
    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch) if self.shuffle else None
        rows = [*range(len(self.lengths)), *self.again]
        for part in length_batches([self.lengths[row] for row in rows], len(self), generator):
            batch = [rows[i] for i in part]
            if len(batch) >= self.num_replicas:
                yield batch[self.rank :: self.num_replicas]
            else:
                # Too few for all: each process takes the whole batch, which leaves the mean gradient as it is, but
                # only the first process counts it.
                yield batch if self.rank == 0 else [~row for row in batch]

    @override
    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.num_replicas))


def length_batches(lengths: Sequence[int], count: int, generator: torch.Generator | None = None) -> list[list[int]]:
    """Put texts of similar lengths together, in batches of nearly equal size.

    Args:
        lengths: The length of each text.
        count: The number of batches.
        generator: Shuffles the texts; None leaves them sorted by length.

    Returns:
        The batches, as indices of ``lengths``.

    >>> length_batches([3, 9, 4, 8, 2], count=2)
    [[4, 0], [2, 3, 1]]
    """
    keys = torch.tensor(lengths, dtype=torch.double)
    if generator is not None:
        keys *= 1 + STRETCH * torch.rand(len(lengths), dtype=torch.double, generator=generator)
    order = keys.argsort(stable=True)
    ends = [len(lengths) * i // count for i in range(count + 1)]
    batches = [order[ends[i] : ends[i + 1]].tolist() for i in range(count)]
    if generator is not None:
        batches = [batches[i] for i in torch.randperm(count, generator=generator).tolist()]
    return batches


class Repetition(Callback):
    """Lets an epoch have the pairs again that were not exact in the last validation.

    The last pairs to be memorised are a few among many that the model has known for long. To see those more often
    mostly saves epochs.

    Args:
        times: How often an epoch has such a pair besides once; less often, or never, where they are many.

    Source: spaced repetition, as in Leitner 1972, "So lernt man lernen".
    """

    repeat_epoch_start = False  # what comes again in an epoch stays until its end

    def __init__(self, times: int) -> None:
        self.times = times
        self._begin()

    def _begin(self) -> None:
        self._again: list[int] = []  # in this epoch
        self._wrong: list[int] = []  # rows of the pairs that were not exact in the last validation
        self._found: list[int] = []  # in this process, in the validation at hand

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._begin()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _sampler(trainer).again = self._again  # of an epoch that is resumed

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sampler = _sampler(trainer)
        times = min(self.times, int(SHARE * len(sampler.lengths)) // max(len(self._wrong), 1))
        sampler.again = self._again = times * self._wrong

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._found = []

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        exact: Tensor = outputs
        self._found += batch.rows[~exact & (batch.rows != COPY)].tolist()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            wrong = torch.zeros(len(_sampler(trainer).lengths), device=pl_module.device)
            wrong[self._found] = 1.0
            self._wrong = trainer.strategy.reduce(wrong, reduce_op="sum").nonzero().flatten().tolist()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"again": self._again, "wrong": self._wrong}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._again, self._wrong = state_dict["again"], state_dict["wrong"]


def _sampler(trainer: Trainer) -> LengthSampler:
    loader: Any = trainer.train_dataloader
    sampler: LengthSampler = loader.sampler
    return sampler
