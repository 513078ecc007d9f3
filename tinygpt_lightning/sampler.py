"""Batches of similar lengths: which texts are learnt together, in which order, by which process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import DistributedSampler
from typing_extensions import override

STRETCH = 0.1  # by up to so much a length is taken to be another one, so that a pair meets others in each epoch


class LengthSampler(DistributedSampler[list[int]]):
    """Makes batches of texts of similar lengths; with several processes, each gets its share of every batch.

    How the batches come about depends on the run's seed and the epoch alone: they are the same in a run that is
    resumed, and one process with a batch as large as those of several together sees the same.

    Args:
        lengths: The length of each text, in characters.
        batch_size: Texts a batch, in each process.
        shuffle: Whether each epoch has other batches, in another order.
        world_size: Number of processes.
        rank: Which of them this is, from 0.
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
            # Where there are too few for all, each process takes them all, which leaves the mean as it is.
            yield batch[self.rank :: self.num_replicas] if len(batch) >= self.num_replicas else batch

    @override
    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.num_replicas))


def length_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator | None = None
) -> list[list[int]]:
    """Put texts of similar lengths together, as many in each batch as in the others.

    Args:
        lengths: The length of each text.
        batch_size: The most texts in a batch.
        generator: Shuffles them; null leaves them sorted by length.

    Returns:
        The batches, as places in ``lengths``.

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
