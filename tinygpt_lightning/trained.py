"""A trained model in use: `load` reads a checkpoint, `TrainedGPT` continues prompts and answers questions."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from tinygpt_lightning.data.batches import Batch, Collate, exact_rows
from tinygpt_lightning.data.noise import SPARE
from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.gpt.checkpoint import LIGHTNING, VERSION, CheckpointError, read_checkpoint, write_checkpoint
from tinygpt_lightning.gpt.generation import GenerationConfig, check_lengths, evaluating, generate
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer

LAST = "last.ckpt"  # the newest checkpoint in a run's folder
CHECKPOINT_KEY = "tinygpt"
BATCH_SIZE = 64  # evaluation batch size
_MODEL = "model."  # what Lightning puts before the weights' names: the model is an attribute of a module


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
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        return (
            f"TrainedGPT({parameters:,} parameters, n_embd={config.n_embd}, n_positions={config.n_positions}, "
            f"{len(self.tokenizer)} symbols, {pairs:,} taught answer{'s' * (pairs != 1)}, on {self._device})"
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
        prompts = questions if isinstance(questions, str) else list(map(template.prompt, questions))
        return [template.answer(continuation) for _, continuation in self._continue("questions", prompts, generation)]

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
    if Path(path).is_dir():
        path = Path(path) / LAST
    trained = network_of(read_checkpoint(path), path)
    trained.model.to(device)
    return trained


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


def state_of(weights: Mapping[str, Tensor], described: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a checkpoint for a model: its weights, by the names in `TinyGPT`, and its description."""
    return {"state_dict": {_MODEL + name: weight for name, weight in weights.items()}, CHECKPOINT_KEY: described}


def describe(config: GPTConfig, tokenizer: CharTokenizer, taught: Taught) -> dict[str, Any]:
    """The entry of a checkpoint under `CHECKPOINT_KEY`: sizes, vocabulary and taught texts, as plain values."""
    return {
        "config": dataclasses.asdict(config),
        "vocab": tokenizer.vocab,
        "template": taught.template.pattern,
        # Two lists of texts: of ten thousand pairs, reading a list of pairs takes four times as long.
        "questions": [pair.question for pair in taught.pairs],
        "answers": [pair.answer for pair in taught.pairs],
        "max_length": taught.max_length,
        "prompt_to": taught.prompt_to,
    }


def read_description(
    checkpoint: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[GPTConfig, CharTokenizer, Taught]:
    """Read sizes, vocabulary and taught texts of the model in a checkpoint, and check every value.

    Raises:
        CheckpointError: If the entry is not of the form that `describe` gives it; ``path`` is named.
    """
    described = checkpoint.get(CHECKPOINT_KEY)
    if described is None:
        raise CheckpointError(path, f"is of another model: it has no entry {CHECKPOINT_KEY!r}")
    if isinstance(described, Mapping) and "prompt_to" not in described and isinstance(described.get("questions"), list):
        # Versions before 0.2 had no such entry, and gave the question alone to a model of a single pair.
        described = {**described, "prompt_to": "question" if len(described["questions"]) == 1 else "answer"}
    entries = ("config", "vocab", "template", "questions", "answers", "max_length", "prompt_to")
    _check_names(described, entries, CHECKPOINT_KEY, path)
    types = get_type_hints(GPTConfig)
    _check_names(described["config"], types, f"{CHECKPOINT_KEY}.config", path)
    for name, value in described["config"].items():
        expected = get_args(types[name]) or (types[name],)
        if type(value) not in expected and not (type(value) is int and float in expected):
            names = " or ".join(kind.__name__ for kind in expected)
            raise CheckpointError(path, f"is invalid: expected {names} as config.{name}, got {value!r}")
    try:
        config, tokenizer = GPTConfig(**described["config"]), CharTokenizer(described["vocab"])
        taught = _read_taught(described)
    except ValueError as error:
        raise CheckpointError(path, f"is invalid: {error}") from error
    if config.vocab_size != len(tokenizer):
        raise CheckpointError(
            path, f"is invalid: expected a vocabulary of {config.vocab_size} symbols, got {len(tokenizer)}"
        )
    return config, tokenizer, taught


def _read_taught(described: Mapping[str, Any]) -> Taught:
    questions, answers, max_length = (described[name] for name in ("questions", "answers", "max_length"))
    for name, texts in (("questions", questions), ("answers", answers)):
        if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
            raise ValueError(f"expected a list of texts as {name}, got {texts!r:.60}")
    if len(questions) != len(answers):
        raise ValueError(f"expected {len(questions)} answers, one to each question, got {len(answers)}")
    if max_length is not None and (type(max_length) is not int or max_length < 1):
        raise ValueError(f"max_length: expected 1 or more, or None, got {max_length!r:.60}")
    prompt_to = described["prompt_to"]
    if prompt_to not in ("question", "answer"):
        raise ValueError(f"prompt_to: expected question or answer, got {prompt_to!r:.60}")
    pairs = tuple(map(QAPair, questions, answers))
    return Taught(pairs, Template(str(described["template"])), max_length, prompt_to)


def read_weights(checkpoint: Mapping[str, Any], config: GPTConfig, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a checkpoint, by their names in `TinyGPT`.

    Raises:
        CheckpointError: If names or shapes are not those of a model of these sizes; ``path`` is named.
    """
    try:
        expected = without_weights(config).state_dict()  # a file may ask for any size
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(path, f"is invalid: {str(error).splitlines()[0]}") from error
    weights = checkpoint.get("state_dict")
    _check_names(weights, [_MODEL + name for name in expected], "state_dict", path)
    assert isinstance(weights, dict)  # noqa: S101
    for name, weight in expected.items():
        got = weights[_MODEL + name]
        if not isinstance(got, Tensor) or not got.is_floating_point() or got.shape != weight.shape:
            shape = f"{tuple(got.shape)} of {got.dtype}" if isinstance(got, Tensor) else repr(got)
            raise CheckpointError(path, f"is invalid: expected {tuple(weight.shape)} as {name}, got {shape:.60}")
    return {name: weights[_MODEL + name] for name in expected}


class _Undrawn(TorchFunctionMode):
    """Skips the drawing of initial weights, which on PyTorch's meta device would load its compiler, for a second."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_, Tensor.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def without_weights(config: GPTConfig) -> TinyGPT:
    """Build a model on PyTorch's meta device: it has shapes only and takes no memory, whatever its sizes.

    Raises:
        RuntimeError: If a size is beyond the limits of a tensor.
    """
    with torch.device("meta"), _Undrawn():
        return TinyGPT(config)


def _check_names(found: object, expected: Any, where: str, path: str | os.PathLike[str]) -> None:
    if not isinstance(found, Mapping):
        raise CheckpointError(path, f"is invalid: expected entries in {where}, got {type(found).__name__}")
    for name in [*(name for name in expected if name not in found), *(name for name in found if name not in expected)]:
        problem = "lacks" if name in expected else "has an unknown entry"
        raise CheckpointError(path, f"is of another version: its {where} {problem} {name!r:.60}")
