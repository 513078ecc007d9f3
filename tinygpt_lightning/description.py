"""The description of a model in its checkpoint: sizes, vocabulary and taught texts, with every value checked."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer

CHECKPOINT_KEY = "tinygpt"
_MODEL = "model."  # what Lightning puts before the weights' names: the model is an attribute of a module


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
        "known_from": taught.known_from,
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
    if isinstance(described, Mapping) and "known_from" not in described:
        described = {**described, "known_from": None}
    entries = ("config", "vocab", "template", "questions", "answers", "max_length", "prompt_to", "known_from")
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
    known_from = described["known_from"]
    if known_from is not None and not (isinstance(known_from, float) and 0 <= known_from <= 1):
        raise ValueError(f"known_from: expected a number from 0 to 1, or None, got {known_from!r:.60}")
    pairs = tuple(map(QAPair, questions, answers))
    return Taught(pairs, Template(str(described["template"])), max_length, prompt_to, known_from)


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


def n_parameters(config: GPTConfig) -> int:
    """Number of trained parameters; tied weights count once.

    >>> n_parameters(GPTConfig())
    7928064
    """
    return sum(parameter.numel() for parameter in without_weights(config).parameters())


def _check_names(found: object, expected: Any, where: str, path: str | os.PathLike[str]) -> None:
    if not isinstance(found, Mapping):
        raise CheckpointError(path, f"is invalid: expected entries in {where}, got {type(found).__name__}")
    for name in [*(name for name in expected if name not in found), *(name for name in found if name not in expected)]:
        problem = "lacks" if name in expected else "has an unknown entry"
        raise CheckpointError(path, f"is of another version: its {where} {problem} {name!r:.60}")
