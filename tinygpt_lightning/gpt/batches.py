"""Batches: texts of several lengths as one tensor, in which the padding counts for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tinygpt_lightning.gpt.pairs import QAPair
from tinygpt_lightning.gpt.taught import Taught
from tinygpt_lightning.gpt.tokenizer import PAD, CharTokenizer

IGNORED = -100  # a target that cross-entropy leaves out


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
