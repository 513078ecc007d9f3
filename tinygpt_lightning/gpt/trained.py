"""A trained network in use: what a checkpoint means, and the texts and answers that come from it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from tinygpt_lightning.gpt.checkpoint import CheckpointError, read_checkpoint
from tinygpt_lightning.gpt.generation import GenerationConfig, generate
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.template import Template
from tinygpt_lightning.gpt.tokenizer import CharTokenizer

LAST = "last.ckpt"  # the newest checkpoint in a run's folder
CHECKPOINT_KEY = "tinygpt"
_MODEL = "model."  # what Lightning puts before the weights' names: the model is an attribute of a module


class TrainedGPT:
    """A model together with what is needed to talk to it.

    Args:
        model: The model.
        tokenizer: The vocabulary that its weights know.
        template: The form of the texts that it learnt.
    """

    def __init__(self, model: TinyGPT, tokenizer: CharTokenizer, template: Template | None = None) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = template or Template()

    def complete(self, prompt: str, generation: GenerationConfig | None = None) -> str:
        """Continue ``prompt``.

        Args:
            prompt: Any text of known characters.
            generation: How; greedy and 64 characters long by default.

        Returns:
            The prompt in Unicode's composed form, and its continuation.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the prompt is empty or too long.
        """
        return "".join(self._continue(prompt, generation))

    def answer(self, question: str, generation: GenerationConfig | None = None) -> str:
        """Answer ``question``: the answer alone, without the template around it.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character.
            ValueError: If the question is too long.
        """
        return self.template.answer(self._continue(self.template.prompt(question), generation)[1])

    def _continue(self, prompt: str, generation: GenerationConfig | None) -> tuple[str, str]:
        ids = self.tokenizer.encode(prompt)
        device = self.model.wte.weight.device
        text = generate(self.model, torch.tensor([ids], device=device), generation)[0].tolist()
        return self.tokenizer.decode(text[: len(ids)]), self.tokenizer.decode(text[len(ids) :])


def load(path: str | os.PathLike[str]) -> TrainedGPT:
    """Read a trained network, ready to use, onto the CPU; nothing in the file is executed.

    Args:
        path: A checkpoint, or the folder of a run.

    Raises:
        CheckpointError: If it is not a whole checkpoint of this project.
    """
    if Path(path).is_dir():
        path = Path(path) / LAST
    checkpoint = read_checkpoint(path)
    config, tokenizer, template = read_description(checkpoint, path)
    weights = read_weights(checkpoint, config, path)
    with torch.device("meta"):  # no weights are drawn that would be thrown away
        model = TinyGPT(config)
    model.load_state_dict(weights, assign=True)
    if config.tie_weights:
        model.lm_head.weight = model.wte.weight
    return TrainedGPT(model.eval(), tokenizer, template)


def describe(config: GPTConfig, tokenizer: CharTokenizer, template: Template) -> dict[str, Any]:
    """What a checkpoint holds under `CHECKPOINT_KEY`, so that its weights can be used."""
    return {"config": dataclasses.asdict(config), "vocab": tokenizer.vocab, "template": template.pattern}


def read_description(
    checkpoint: Mapping[str, Any], path: str | os.PathLike[str]
) -> tuple[GPTConfig, CharTokenizer, Template]:
    """Size, vocabulary and template of the model in a checkpoint, whatever somebody may have put there.

    Raises:
        CheckpointError: If it is none that `describe` has made; ``path`` is named.
    """
    described = checkpoint.get(CHECKPOINT_KEY)
    if described is None:
        raise CheckpointError(path, f"is of another model: it has no entry {CHECKPOINT_KEY!r}")
    _check_names(described, ("config", "vocab", "template"), CHECKPOINT_KEY, path)
    types = get_type_hints(GPTConfig)
    _check_names(described["config"], types, f"{CHECKPOINT_KEY}.config", path)
    for name, value in described["config"].items():
        expected = get_args(types[name]) or (types[name],)
        if type(value) not in expected and not (type(value) is int and float in expected):
            names = " or ".join(kind.__name__ for kind in expected)
            raise CheckpointError(path, f"is of no model: expected {names} as config.{name}, got {value!r}")
    try:
        config, tokenizer = GPTConfig(**described["config"]), CharTokenizer(described["vocab"])
        template = Template(str(described["template"]))
    except ValueError as error:
        raise CheckpointError(path, f"is of no model: {error}") from error
    if config.vocab_size != len(tokenizer):
        raise CheckpointError(
            path, f"is of no model: expected a vocabulary of {config.vocab_size} symbols, got {len(tokenizer)}"
        )
    return config, tokenizer, template


def read_weights(checkpoint: Mapping[str, Any], config: GPTConfig, path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a checkpoint, by the names that they have in `TinyGPT`.

    Raises:
        CheckpointError: If they are not those of a model of this size; ``path`` is named.
    """
    try:
        with torch.device("meta"):  # sizes without memory: a file may ask for any
            expected = TinyGPT(config).state_dict()
    except (RuntimeError, TypeError) as error:
        raise CheckpointError(path, f"is of no model: {str(error).splitlines()[0]}") from error
    weights = checkpoint.get("state_dict")
    _check_names(weights, [_MODEL + name for name in expected], "state_dict", path)
    assert isinstance(weights, dict)  # noqa: S101
    for name, weight in expected.items():
        got = weights[_MODEL + name]
        if not isinstance(got, Tensor) or not got.is_floating_point() or got.shape != weight.shape:
            shape = f"{tuple(got.shape)} of {got.dtype}" if isinstance(got, Tensor) else repr(got)
            raise CheckpointError(path, f"is of no model: expected {tuple(weight.shape)} as {name}, got {shape:.60}")
    return {name: weights[_MODEL + name] for name in expected}


def _check_names(found: object, expected: Any, where: str, path: str | os.PathLike[str]) -> None:
    if not isinstance(found, Mapping):
        raise CheckpointError(path, f"is of no model: expected entries in {where}, got {type(found).__name__}")
    for name in [*(name for name in expected if name not in found), *(name for name in found if name not in expected)]:
        problem = "lacks" if name in expected else "has an unknown entry"
        raise CheckpointError(path, f"is of another version: its {where} {problem} {name!r:.60}")
