"""Batches: pairs of similar lengths, tokenised and padded to one tensor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, DistributedSampler
from typing_extensions import override

from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.gpt.tokenizer import PAD, CharTokenizer

IGNORED = -100  # a target that cross-entropy leaves out
STRETCH = 0.1  # lengths are stretched by up to this share, so that a pair meets others in each epoch
COPY = -1  # the row of a pair that is not counted: another process counts it, or it is a variation


class Batch(NamedTuple):
    """Pairs as tensors. The padding is on the right, where no character before it attends to it.

    Args:
        ids: Ids of each text's characters but the last one, ``(B, T)``.
        targets: Ids of the next characters, ``(B, T)``; `IGNORED` in the padding.
        mask: Whether a target belongs to the continuation of the prompt, ``(B, T)``.
        rows: Index of each pair among those that are taught, ``(B,)``; `COPY` for a pair that another process counts,
            and for a variation.
    """

    ids: Tensor
    targets: Tensor
    mask: Tensor
    rows: Tensor

    @property
    def answers(self) -> Tensor:
        """The targets, but `IGNORED` within the prompt too, ``(B, T)``."""
        return self.targets.masked_fill(~self.mask, IGNORED)


class NumberedPairs(Dataset[list[tuple[int, QAPair]]]):
    """Pairs with their indices, a batch at a time, as `LengthSampler` asks for them.

    Args:
        pairs: The pairs.
        vary: Makes variations of the pair with that index, which join the batch behind the pairs; None means none.
    """

    def __init__(self, pairs: Sequence[QAPair], vary: Callable[[int], Iterable[QAPair]] | None = None) -> None:
        self.pairs = pairs
        self.vary = vary

    @override
    def __getitem__(self, rows: list[int]) -> list[tuple[int, QAPair]]:
        numbered = [(row, self.pairs[row]) if row >= 0 else (COPY, self.pairs[~row]) for row in rows]
        if self.vary is not None:
            numbered += [(COPY, varied) for row in rows for varied in self.vary(row if row >= 0 else ~row)]
        return numbered


class Collate:
    """Makes a batch of numbered pairs; each text is tokenised once.

    Args:
        tokenizer: The vocabulary. If it has an end symbol, each text ends with it.
        taught: The form of the texts.

    >>> taught = Taught.of([QAPair("a", "b")], prompt_to="question")
    >>> Collate(taught.tokenizer(), taught)([(0, taught.pairs[0])]).ids.shape
    torch.Size([1, 22])
    """

    def __init__(self, tokenizer: CharTokenizer, taught: Taught) -> None:
        self.tokenizer = tokenizer
        self.taught = taught
        self._encoded: dict[QAPair, tuple[Tensor, int]] = {}

    def __call__(self, numbered: Sequence[tuple[int, QAPair]]) -> Batch:
        """Tokenise and pad.

        Args:
            numbered: The pairs with their rows.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
        """
        rows, pairs = zip(*numbered, strict=True)
        texts, prompts = zip(*map(self._encode, pairs, (row != COPY for row in rows)), strict=True)
        ids = pad_sequence(list(texts), batch_first=True, padding_value=self.tokenizer.vocab[PAD])  # (B, T + 1)
        position = torch.arange(1, ids.size(1))  # of each target
        ends, starts = torch.tensor([[len(text)] for text in texts]), torch.tensor([[length] for length in prompts])
        is_text = position < ends  # (B, T)
        targets = ids[:, 1:].masked_fill(~is_text, IGNORED)
        return Batch(ids[:, :-1], targets, is_text & (position >= starts), torch.tensor(rows))

    def _encode(self, pair: QAPair, keep: bool) -> tuple[Tensor, int]:
        """The ids of a pair's text, ``(T + 1,)``, and the length of its prompt; variations are not worth keeping."""
        if pair in self._encoded:
            return self._encoded[pair]
        prompt, rest = map(self.tokenizer.encode, self.taught.parts(pair))
        end = [] if self.tokenizer.end is None else [self.tokenizer.end]
        encoded = torch.tensor([*prompt, *rest, *end]), len(prompt)
        if keep:
            self._encoded[pair] = encoded
        return encoded


def exact_rows(predicted: Tensor, batch: Batch, tokenizer: CharTokenizer, max_length: int | None) -> Tensor:
    """Find the pairs whose prompts greedy decoding would continue with the whole answer, and with nothing behind it.

    It does if and only if every teacher-forced argmax over the answer is right: up to the first mistake both see
    the same characters, and a mistake in one is a mistake in the other. Without an end symbol only ``max_length``
    ends a text, so that a shorter one is never exact.

    Args:
        predicted: The likeliest next characters, ``(B, T)``.
        batch: The pairs.
        tokenizer: Their vocabulary.
        max_length: Length that generation does not exceed, in symbols.

    Returns:
        Truth values, ``(B,)``.
    """
    is_right = ((predicted == batch.targets) | ~batch.mask).all(dim=1)
    if tokenizer.end is not None:
        return is_right
    return is_right & ((batch.targets != IGNORED).sum(dim=1) + 1 == max_length)


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
