"""The batches of an epoch: texts of similar lengths."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler
from typing_extensions import override

STRETCH = 0.1  # lengths are stretched by up to this share, so that a pair meets others in each epoch


class LengthSampler(DistributedSampler[list[int]]):
    """Makes batches of texts of similar lengths; with several processes, each gets its share of every batch.

    The batches depend on the run's seed and the epoch alone: a resumed run sees the same ones, and one process with
    a batch as large as those of several processes together sees the same texts.

    Args:
        lengths: The length of each text, in characters.
        batch_size: Texts a batch, in each process.
        shuffle: Whether each epoch has other batches, in another order.
        world_size: Number of processes.
        rank: Index of this process, from 0.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, shuffle: bool, world_size: int, rank: int) -> None:
        # The seed that Lightning gives its own samplers of this kind.
        super().__init__(lengths, world_size, rank, shuffle, seed=int(os.environ.get("PL_GLOBAL_SEED", 0)))  # type: ignore[arg-type]
        self.lengths = lengths
        self.batch_size = batch_size

    @override
    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch) if self.shuffle else None
        for batch in length_batches(self.lengths, self.batch_size * self.num_replicas, generator):
            if len(batch) >= self.num_replicas:
                yield batch[self.rank :: self.num_replicas]
            else:
                # Too few for all: each process takes the whole batch, which leaves the mean gradient as it is, but
                # only the first process counts it.
                yield batch if self.rank == 0 else [~row for row in batch]

    @override
    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.num_replicas))


def length_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Put texts of similar lengths together, in batches of nearly equal size.

    Args:
        lengths: The length of each text.
        batch_size: The most texts in a batch.
        generator: Shuffles the texts; None leaves them sorted by length.

    Returns:
        The batches, as indices of ``lengths``.

    >>> length_batches([3, 9, 4, 8, 2], batch_size=3)
    [[4, 0], [2, 3, 1]]
    """
    keys = torch.tensor(lengths, dtype=torch.double)
    count = -(-len(lengths) // batch_size)
    if generator is not None:
        keys *= 1 + STRETCH * torch.rand(len(lengths), dtype=torch.double, generator=generator)
    order = keys.argsort(stable=True)
    ends = [len(lengths) * i // count for i in range(count + 1)]
    batches = [order[ends[i] : ends[i + 1]].tolist() for i in range(count)]
    if generator is not None:
        batches = [batches[i] for i in torch.randperm(count, generator=generator).tolist()]
    return batches
