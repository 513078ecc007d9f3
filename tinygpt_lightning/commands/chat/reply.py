"""An answer while it is written: each symbol with its probability, and what the heads looked at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tinygpt_lightning.gpt.generation import GenerationConfig, stream
from tinygpt_lightning.gpt.tokenizer import EOS
from tinygpt_lightning.trained import TrainedGPT

RUNNERS_UP = 3


class Symbol(NamedTuple):
    """A symbol that a network wrote.

    Args:
        text: The character, or the name of a special symbol.
        probability: What the network gave it, before temperature, top-k and top-p.
        runners_up: The likeliest others and their probabilities, best first.
    """

    text: str
    probability: float
    runners_up: tuple[tuple[str, float], ...]


class Reply:
    """What a network says to a question.

    Args:
        network: The network.
        question: The question; the template is put around it.
        generation: How to speak.

    Attributes:
        written: Everything written so far; also what the template puts behind an answer, and the end symbol.

    Raises:
        UnknownCharacterError: If the vocabulary lacks a character of the question.
        ValueError: If the question is too long.
    """

    def __init__(self, network: TrainedGPT, question: str, generation: GenerationConfig) -> None:
        self.network = network
        self.written: list[Symbol] = []
        network.tokenizer.encode(question)  # by itself, so that a complaint counts from its beginning
        prompt = network.taught.template.prompt(question)
        self._ids, self._generation = network.encode_prompt(prompt, generation)
        self._prompt_length = len(self._ids)

    def shown(self) -> Iterator[Symbol]:
        """Write the answer, as `TrainedGPT.answer` gives it: without what the template puts behind it."""
        closing = self.network.taught.template.closing
        held: list[Symbol] = []  # what may turn out to be that
        for symbol in self._write():
            held.append(symbol)
            if len(held) > len(closing):
                yield held.pop(0)
        if "".join(symbol.text for symbol in held) != closing:
            yield from held

    def context(self, number: int) -> list[str]:
        """The symbols that were there when the one with that number, from 1, was written."""
        return [self._name(i) for i in self._ids[: self._prompt_length + number - 1]]

    def attention(self, number: int) -> Tensor:
        """Where each head looked then: one weight for each symbol of the `context`, ``(H, T)``."""
        ids = torch.tensor([self._ids[: self._prompt_length + number - 1]])
        return self.network.model.attention_weights(ids)[0, :, -1]

    def _write(self) -> Iterator[Symbol]:
        """Every symbol of the answer; the end symbol is written, and not said."""
        end = self.network.tokenizer.end
        for step in stream(self.network.model, torch.tensor([self._ids]), self._generation, end=end):
            symbol = self._symbol(int(step.ids[0]), step.logits[0])
            self._ids.append(int(step.ids[0]))
            self.written.append(symbol)
            if self._ids[-1] != end:
                yield symbol

    def _symbol(self, i: int, logits: Tensor) -> Symbol:
        probabilities = logits.double().softmax(dim=-1)
        best = probabilities.topk(min(RUNNERS_UP + 1, len(probabilities))).indices.tolist()
        others = [other for other in best if other != i][:RUNNERS_UP]
        return Symbol(
            self._name(i),
            probabilities[i].item(),
            tuple((self._name(other), probabilities[other].item()) for other in others),
        )

    def _name(self, i: int) -> str:
        return EOS if i == self.network.tokenizer.end else self.network.tokenizer.decode([i])
