"""Batches: pairs of similar lengths, tokenised and padded to one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset
from typing_extensions import override

from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.gpt.tokenizer import PAD, CharTokenizer

IGNORED = -100  # a target that cross-entropy leaves out
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
    """Pairs with their indices, a batch at a time, as `sampler.LengthSampler` asks for them.

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
