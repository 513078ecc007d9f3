"""Batches: which texts are learnt together, and how they become one tensor in which the padding counts for nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DistributedSampler
from typing_extensions import override

from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.gpt.tokenizer import PAD, CharTokenizer

IGNORED = -100  # a target that cross-entropy leaves out
STRETCH = 0.1  # by up to so much a length is taken to be another one, so that a pair meets others in each epoch


@dataclass(frozen=True)
class Batch:
    """Pairs, ready to be learnt. The padding is on the right, where no character before it looks.

    Args:
        inputs: The characters of each text but the last one, ``(B, T)``.
        targets: The character that comes next, ``(B, T)``; `IGNORED` in the padding.
        answers: The same, but `IGNORED` within the prompt too, ``(B, T)``.
    """

    inputs: Tensor
    targets: Tensor
    answers: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        return Batch(self.inputs.to(device), self.targets.to(device), self.answers.to(device))


def exact_rows(predicted: Tensor, answers: Tensor) -> Tensor:
    """Which answers greedy decoding would give back whole.

    It does if and only if every teacher-forced argmax over the answer is right: up to the first mistake both see
    the same characters, and a mistake in one is one in the other.

    Args:
        predicted: The likeliest next characters, ``(B, T)``.
        answers: Those that should come, ``(B, T)``; `IGNORED` outside of the answer.

    Returns:
        Truth values, ``(B,)``.
    """
    return ((predicted == answers) | (answers == IGNORED)).all(dim=1)


class PairEncoder:
    """Turns pairs into batches; each pair is encoded once.

    Args:
        tokenizer: The vocabulary. Where it has an end symbol, each text ends with that.
        taught: The form of the texts.
    """

    def __init__(self, tokenizer: CharTokenizer, taught: Taught) -> None:
        self.tokenizer = tokenizer
        self.taught = taught
        self._encoded: dict[QAPair, tuple[Tensor, int]] = {}

    def __call__(self, pairs: Sequence[QAPair]) -> Batch:
        """Make a batch.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
        """
        texts, prompts = zip(*map(self._encode, pairs), strict=True)
        ids = pad_sequence(list(texts), batch_first=True, padding_value=self.tokenizer.vocab[PAD])  # (B, T + 1)
        position = torch.arange(1, ids.size(1))  # of each target
        ends, starts = torch.tensor([[len(text)] for text in texts]), torch.tensor([[length] for length in prompts])
        targets = ids[:, 1:].masked_fill(position >= ends, IGNORED)
        return Batch(ids[:, :-1], targets, targets.masked_fill(position < starts, IGNORED))

    def _encode(self, pair: QAPair) -> tuple[Tensor, int]:
        """The ids of the text, ``(T + 1,)``, and the length of the prompt."""
        if pair not in self._encoded:
            prompt, rest = map(self.tokenizer.encode, self.taught.parts(pair))
            end = [] if self.tokenizer.end is None else [self.tokenizer.end]
            self._encoded[pair] = torch.tensor([*prompt, *rest, *end]), len(prompt)
        return self._encoded[pair]


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
