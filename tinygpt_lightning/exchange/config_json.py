"""Hugging Face's ``config.json`` and ``generation_config.json``: the sizes of a network, and how it speaks.

What Hugging Face has no field for stands under a key of its own, which its programs keep and ignore.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinygpt_lightning.data.text import Taught
from tinygpt_lightning.description import CHECKPOINT_KEY, describe
from tinygpt_lightning.exchange.json_file import expect, read_json
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import PAD, CharTokenizer
from tinygpt_lightning.trained import TrainedGPT

CONFIG = "config.json"
# Fields that have the same name and meaning in both, and what their absence means to Hugging Face.
SHARED = {
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_head": 12, "n_inner": None, "embd_pdrop": 0.1,
    "attn_pdrop": 0.1, "resid_pdrop": 0.1, "layer_norm_epsilon": 1e-5,
}  # fmt: skip
INITIALIZER_RANGE = 0.02
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function


def config_json(network: TrainedGPT) -> dict[str, Any]:
    """Describe a network as GPT-2 with one layer.

    Raises:
        ValueError: If it has no biases, which GPT-2 always has.
    """
    config, described = network.model.config, describe(network.model.config, network.tokenizer, network.taught)
    if not config.bias:
        raise ValueError("bias: expected true, since GPT-2 has a bias everywhere for Hugging Face, got false")
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": 1,
        "activation_function": TANH_GELU[0],
        **{name: getattr(config, name) for name in SHARED},
        "initializer_range": config.initializer_range or INITIALIZER_RANGE,
        "tie_word_embeddings": config.tie_weights,
        **_symbols(network.tokenizer),
        "dtype": str(network.model.wte.weight.dtype).removeprefix("torch."),
        "use_cache": True,
        CHECKPOINT_KEY: {
            **{name: described[name] for name in ("template", "questions", "answers", "max_length", "prompt_to")},
            "initializer_range": config.initializer_range,
        },
    }


def generation_config_json(network: TrainedGPT) -> dict[str, Any]:
    """Describe how a network speaks: greedily, to the end of a text."""
    max_length = network.taught.max_length or network.model.config.n_positions
    return {**_symbols(network.tokenizer), "do_sample": False, "max_length": max_length}


def _symbols(tokenizer: CharTokenizer) -> dict[str, int | None]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.end, "pad_token_id": tokenizer.vocab[PAD]}


def read_config(folder: Path) -> dict[str, Any]:
    """What a checkpoint would say of the network in a folder, but for its vocabulary.

    Raises:
        CheckpointError: If it is not GPT-2 with one layer.
    """
    path = folder / CONFIG
    found = read_json(path)
    for name, default, *expected in (
        ("model_type", None, "gpt2"),
        ("n_layer", 12, 1),
        ("activation_function", TANH_GELU[0], *TANH_GELU),
        ("scale_attn_weights", True, True),
        ("scale_attn_by_inverse_layer_idx", False, False),
        ("add_cross_attention", False, False),
        ("tie_word_embeddings", True, True, False),
    ):
        expect(path, found, str(name), default, *expected)
    own = found.get(CHECKPOINT_KEY, {})
    if not isinstance(own, dict):
        raise CheckpointError(path, f"expected an object as {CHECKPOINT_KEY}, got {type(own).__name__}")
    config = asdict(GPTConfig())
    config.update({name: found.get(name, default) for name, default in SHARED.items()})
    config["tie_weights"] = found.get("tie_word_embeddings", True)
    config["initializer_range"] = own.get("initializer_range", found.get("initializer_range", INITIALIZER_RANGE))
    unknown = describe(GPTConfig(), CharTokenizer.from_text(""), Taught())
    taught = {
        name: own.get(name, unknown[name]) for name in ("template", "questions", "answers", "max_length", "prompt_to")
    }
    return {"config": config, **taught}
