"""A folder as Hugging Face's ``AutoModelForCausalLM`` and ``AutoTokenizer`` open it, written and read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from tinygpt_lightning.description import state_of
from tinygpt_lightning.exchange.config_json import CONFIG, config_json, generation_config_json, read_config
from tinygpt_lightning.exchange.tokenizer_json import TOKENIZER, read_vocab, tokenizer_config_json, tokenizer_json
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.trained import TrainedGPT, network_of

WEIGHTS = "model.safetensors"
FILES = {CONFIG, WEIGHTS, TOKENIZER, "tokenizer_config.json", "generation_config.json"}


def write_hugging_face(network: TrainedGPT, folder: Path) -> None:
    """Write a network's files into an empty folder.

    Raises:
        ValueError: If it is none that Hugging Face's GPT-2 can be.
        OSError: If they cannot be written.
    """
    from safetensors.torch import save

    model, tokenizer = network.model, network.tokenizer
    descriptions = {
        CONFIG: config_json(network),
        TOKENIZER: tokenizer_json(tokenizer),
        "tokenizer_config.json": tokenizer_config_json(tokenizer, model.config.n_positions),
        "generation_config.json": generation_config_json(network),
    }
    weights = {
        their_name(name): _turned(name, weight)
        for name, weight in model.state_dict().items()
        if not (model.config.tie_weights and name == "lm_head.weight")  # it is the embedding's
    }
    for file, description in descriptions.items():
        write_whole(folder / file, (json.dumps(description, ensure_ascii=False, indent=2) + "\n").encode())
    write_whole(folder / WEIGHTS, save(weights, {"format": "pt"}))


def read_hugging_face(folder: Path) -> TrainedGPT:
    """Read such a folder; nothing in it is executed.

    Raises:
        CheckpointError: If it holds no network that this project can express.
    """
    described = {**read_config(folder), "vocab": read_vocab(folder)}
    weights = _read_weights(folder / WEIGHTS)
    if described["config"]["tie_weights"] and "transformer.wte.weight" in weights:
        weights.setdefault("lm_head.weight", weights["transformer.wte.weight"])
    ours = {our_name(name): weight for name, weight in weights.items()}
    return network_of(state_of({name: _turned(name, weight) for name, weight in ours.items()}, described), folder)


def their_name(name: str) -> str:
    """Hugging Face's name of a weight.

    >>> their_name("h.attn.c_proj.weight")
    'transformer.h.0.attn.c_proj.weight'
    """
    if name.startswith("lm_head."):
        return name
    return "transformer." + (f"h.0.{name.removeprefix('h.')}" if name.startswith("h.") else name)


def our_name(name: str) -> str:
    """The name that Hugging Face's has here, or the same if it has none.

    >>> our_name("transformer.h.0.attn.c_proj.weight")
    'h.attn.c_proj.weight'
    """
    return name.removeprefix("transformer.").replace("h.0.", "h.", 1) if name.startswith("transformer.") else name


def _turned(name: str, weight: Tensor) -> Tensor:
    # Hugging Face keeps the linear weights within the block as (in, out), as OpenAI released them.
    return (weight.t() if ".c_" in name and name.endswith(".weight") and weight.dim() == 2 else weight).contiguous()


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights: dict[str, Any] = load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(path, f"is no whole file of tensors ({error!s:.60})") from None
    if unknown := [name for name in weights if their_name(our_name(name)) != name]:
        raise CheckpointError(path, f"cannot be expressed: {unknown[0]!r:.80} is no weight of GPT-2 with one layer")
    return weights
