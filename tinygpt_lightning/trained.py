"""A trained model in use: `load` reads a checkpoint, `TrainedGPT` continues prompts and answers questions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tinygpt_lightning.data.batches import Batch, Collate, exact_rows
from tinygpt_lightning.data.likeness import Questions
from tinygpt_lightning.data.noise import SPARE
from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.description import (
    describe,
    n_parameters,
    read_description,
    read_weights,
    state_of,
    without_weights,
)
from tinygpt_lightning.gpt.checkpoint import LIGHTNING, VERSION, read_checkpoint, write_checkpoint
from tinygpt_lightning.gpt.generation import GenerationConfig, check_lengths, evaluating, generate
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize

LAST = "last.ckpt"  # the newest checkpoint in a run's folder
BATCH_SIZE = 64  # evaluation batch size


class Answer(NamedTuple):
    """An answer, and whether the model was taught to give it.

    Args:
        text: The answer.
        confidence: How much the question is like the taught one that it is read as, from 0 to 1; 0 if this is not the
            answer to that one. Probabilities would not do: a model may be as sure of nonsense as of what it was taught.
        known: Whether the confidence reaches the threshold that was found when the pairs were taught; true of every
            answer of a model without one.
    """

    text: str
    confidence: float
    known: bool


class TrainedGPT:
    """A model with its vocabulary and the texts that it was taught.

    Several threads may use it at once, as long as nobody trains the model meanwhile.

    Args:
        model: The model.
        tokenizer: The vocabulary that its weights know.
        taught: The texts that it was taught.
    """

    def __init__(self, model: TinyGPT, tokenizer: CharTokenizer, taught: Taught = Taught()) -> None:  # noqa: B008
        self.model = model
        self.tokenizer = tokenizer
        self.taught = taught

    def __repr__(self) -> str:
        config, pairs = self.model.config, len(self.taught.pairs)
        return (
            f"TrainedGPT({n_parameters(config):,} parameters, n_embd={config.n_embd}, "
            f"n_positions={config.n_positions}, {len(self.tokenizer)} symbols, "
            f"{pairs:,} taught answer{'s' * (pairs != 1)}, on {self._device})"
        )

    def complete(self, prompt: str, generation: GenerationConfig | None = None) -> str:
        """Continue ``prompt``.

        Args:
            prompt: Any text of known characters.
            generation: How; by default greedy, and up to the text's end.

        Returns:
            The prompt in Unicode's composed form, and its continuation.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the prompt is empty or too long.
        """
        return self.complete_all([prompt], generation)[0]

    def answer(self, question: str, generation: GenerationConfig | None = None) -> str:
        """Answer ``question``: the answer alone, without the template around it.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the question is empty or too long.
        """
        return self.answer_all([question], generation)[0]

    def complete_all(self, prompts: Sequence[str], generation: GenerationConfig | None = None) -> list[str]:
        """Continue several prompts at once; each text equals the text of its prompt alone."""
        return ["".join(parts) for parts in self._continue("prompts", prompts, generation)]

    def answer_all(self, questions: Sequence[str], generation: GenerationConfig | None = None) -> list[str]:
        """Answer several questions at once."""
        template = self.taught.template
        if not all(questions):
            raise ValueError("question: expected at least one character, got none")
        prompts = (
            questions
            if isinstance(questions, str)
            else [template.prompt(self.as_taught(question)) for question in questions]
        )
        return [template.answer(continuation) for _, continuation in self._continue("questions", prompts, generation)]

    def ask(self, question: str) -> Answer:
        """Answer ``question`` greedily, and say whether the model was taught to answer it.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character, and the model has no threshold. With one, a
                question that is not known gets no text.
            ValueError: If the question is empty or too long.
        """
        confidence, _ = self._meant(question)
        if question and self.taught.known_from is not None and confidence < self.taught.known_from:
            return Answer("", confidence, known=False)
        return self.judge(question, self.answer(question))

    def as_taught(self, question: str) -> str:
        """The taught question that ``question`` is read as: the nearest one, if it is near enough.

        The question itself is returned if no taught one reaches the threshold, or another one is as near as the
        nearest, and for a model without a threshold, which was taught without noise.
        """
        likeness, near = self._meant(question)
        return near if self.taught.known_from is not None and likeness >= self.taught.known_from else question

    def judge(self, question: str, answer: str) -> Answer:
        """Say whether the model was taught to give ``answer`` to ``question``."""
        likeness, near = self._meant(question)
        confidence = likeness if self._answers.get(near) == answer else 0.0
        return Answer(answer, confidence, self.taught.known_from is None or confidence >= self.taught.known_from)

    def nearest(self, question: str, count: int = 3) -> list[str]:
        """The taught questions that are most like ``question``, the nearest one first."""
        return self._questions.nearest(question, count)

    def predict_next(self, text: str) -> dict[str, float]:
        """The probability of each symbol to come next after ``text``, the likeliest first.

        Args:
            text: Any text of known characters. Special symbols are named as in the vocabulary, ``<eos>`` ends a text.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the text is empty or too long.
        """
        with evaluating(self.model), torch.inference_mode():
            probabilities = self.model(self._encode(text))[0, -1].double().softmax(dim=-1).tolist()
        symbols = sorted(self.tokenizer.vocab.items(), key=lambda entry: -probabilities[entry[1]])
        return {symbol: probabilities[i] for symbol, i in symbols}

    def attention(self, text: str) -> Tensor:
        """How much each character of ``text`` (row) attends to each other one (column), by head: ``(H, T, T)``.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the text is empty or too long.
        """
        return self.model.attention_weights(self._encode(text))[0]

    def encode_prompt(
        self, prompt: str, generation: GenerationConfig | None = None
    ) -> tuple[list[int], GenerationConfig]:
        """Tokenise ``prompt``, and fill in the length at which its text ends.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the prompt is empty or too long.
        """
        generation = generation or GenerationConfig()
        if generation.max_length is None and (longest := self.taught.max_length) is not None:
            if self.tokenizer.end is not None:  # a question may be asked with some characters more
                longest = min(longest + SPARE, self.model.config.n_positions + 1)
            generation = dataclasses.replace(generation, max_length=longest)
        ids = self.tokenizer.encode(prompt)
        check_lengths(generation, self.model.config.n_positions, len(ids))
        return ids, generation

    def knows(self, pairs: Sequence[QAPair]) -> list[bool]:
        """Find which of ``pairs`` are exact, without generating: `complete` gives the whole text, and nothing else."""
        collate = Collate(self.tokenizer, self.taught)
        known: list[bool] = []
        with evaluating(self.model), torch.inference_mode():
            for i in range(0, len(pairs), BATCH_SIZE):
                numbered = list(enumerate(pairs[i : i + BATCH_SIZE], i))
                batch = Batch(*(tensor.to(self._device) for tensor in collate(numbered)))
                predicted = self.model(batch.ids).argmax(dim=-1)
                known += exact_rows(predicted, batch, self.tokenizer, self.taught.max_length).tolist()
        return known

    def _meant(self, question: str) -> tuple[float, str]:
        """How much ``question`` is like the taught one that it is read as, and that one."""
        asked = normalize(question)
        return (1.0, asked) if asked in self._answers else self._questions.meant(asked)

    @cached_property
    def _answers(self) -> dict[str, str]:
        """The answer to each taught question."""
        return dict(self.taught.pairs)

    @cached_property
    def _questions(self) -> Questions:
        return Questions(list(self._answers))

    @property
    def _device(self) -> torch.device:
        return self.model.wte.weight.device

    def _encode(self, text: str) -> Tensor:
        """The ids of a text, ``(1, T)``."""
        ids, limit = self.tokenizer.encode(text), self.model.config.n_positions
        if not 1 <= len(ids) <= limit:
            raise ValueError(f"text: expected 1 to {limit} characters, n_positions, got {len(ids)}")
        return torch.tensor([ids], device=self._device)

    def _continue(
        self, name: str, prompts: Sequence[str], generation: GenerationConfig | None
    ) -> Iterator[tuple[str, str]]:
        """Each prompt and its continuation; all prompts are checked before the first one is continued."""
        if isinstance(prompts, str):
            raise TypeError(f"{name}: expected a list of texts, got the text {prompts!r:.60}; put it into a list")
        encoded = [self.encode_prompt(prompt, generation) for prompt in prompts]
        decode = self.tokenizer.decode
        for i in range(0, len(encoded), BATCH_SIZE):
            batch = encoded[i : i + BATCH_SIZE]
            lengths = torch.tensor([len(ids) for ids, _ in batch], device=self._device)
            ids = pad_sequence([torch.tensor(ids, device=self._device) for ids, _ in batch], batch_first=True)
            texts = generate(self.model, ids, batch[0][1], lengths=lengths, end=self.tokenizer.end).tolist()
            for text, n in zip(texts, lengths.tolist(), strict=True):
                yield decode(text[:n]), decode(text[n:])


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> TrainedGPT:
    """Read a trained model, ready to use; nothing in the file is executed.

    Args:
        path: A checkpoint, or the folder of a run.
        device: Where the model is to compute.

    Raises:
        CheckpointError: If it is not a whole checkpoint of this project.
    """
    path = checkpoint_in(path)
    trained = network_of(read_checkpoint(path), path)
    trained.model.to(device)
    return trained


def checkpoint_in(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The newest checkpoint of a run, if ``path`` is its folder; or else ``path``."""
    return Path(path) / LAST if Path(path).is_dir() else path


def network_of(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> TrainedGPT:
    """Build the model that a checkpoint holds.

    Raises:
        CheckpointError: If the checkpoint is not of this project; ``path`` is named.
    """
    config, tokenizer, taught = read_description(checkpoint, path)
    weights = read_weights(checkpoint, config, path)
    model = without_weights(config)
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.lm_head.weight = model.wte.weight
    return TrainedGPT(model.eval(), tokenizer, taught)


def save(network: TrainedGPT, path: str | os.PathLike[str]) -> None:
    """Write a model as a checkpoint that `load` and the commands read: a third of a run's, which has its optimizer.

    Raises:
        OSError: If the file cannot be written.
    """
    described = describe(network.model.config, network.tokenizer, network.taught)
    write_checkpoint({VERSION: LIGHTNING, **state_of(network.model.state_dict(), described)}, path)
