"""A folder as Hugging Face's programs open it, written and read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from tinygpt_lightning.data.text import Taught
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import EOS, PAD, SPECIALS, UNK, CharTokenizer
from tinygpt_lightning.trained import CHECKPOINT_KEY, TrainedGPT, describe, network_of, state_of


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: If the file cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes().decode(), parse_constant=_no_number)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"expected a JSON object, got none ({error!s:.60})") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, f"expected a JSON object, got {type(content).__name__}")
    return content


def expect(path: Path, found: dict[str, Any], name: str, default: object, *expected: object) -> None:
    """Refuse a file in which an entry is anything but what is expected; ``default`` is what its absence means.

    Raises:
        CheckpointError: It names the file, the entry and both values.
    """
    value = found.get(name, default)
    if not any(type(value) is type(each) and value == each for each in expected):
        wanted = " or ".join(f"{json.dumps(each):.100}" for each in expected)
        raise CheckpointError(path, f"cannot be expressed: expected {wanted} as {name}, got {json.dumps(value):.100}")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


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
            **{name: described[name] for name in ("template", "questions", "answers", "max_length")},
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
    taught = {name: own.get(name, unknown[name]) for name in ("template", "questions", "answers", "max_length")}
    return {"config": config, **taught}


TOKENIZER = "tokenizer.json"
# What transformers 5 writes where nothing is to be added to a text.
_SEQUENCES = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
AS_IT_IS = {"type": "TemplateProcessing", "single": _SEQUENCES[:1], "pair": _SEQUENCES, "special_tokens": {}}


def tokenizer_json(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Describe a tokenizer: Unicode's composed form, then each character is a symbol.

    One that the vocabulary lacks is an error there too: the symbol that would stand for it is none.
    """
    # Only now: it is an extra.
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    made = Tokenizer(models.WordLevel(tokenizer.vocab, unk_token=""))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    specials = [symbol for symbol in SPECIALS if symbol in tokenizer.vocab]
    made.add_special_tokens([AddedToken(symbol, normalized=False, special=True) for symbol in specials])
    description: dict[str, Any] = json.loads(made.to_str())
    return description


def tokenizer_config_json(tokenizer: CharTokenizer, n_positions: int) -> dict[str, Any]:
    """Say which symbols are special; where a text has their names in it, these are characters as all others."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNK,
        **({} if tokenizer.end is None else {"eos_token": EOS}),
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_positions,
        # Without token types, which transformers 4 adds and GPT-2 would take for symbols of the text.
        "model_input_names": ["input_ids", "attention_mask"],
    }


def read_vocab(folder: Path) -> dict[str, int]:
    """The vocabulary of a folder: symbol to id, not checked yet.

    Raises:
        CheckpointError: If its symbols are anything but the characters of composed text.
    """
    path = folder / TOKENIZER
    found = read_json(path)
    form = tokenizer_json(CharTokenizer.from_text(""))
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        expect(path, found, name, None, form[name])
    expect(path, found, "post_processor", None, None, AS_IT_IS)
    model = found.get("model")
    expect(path, model if isinstance(model, dict) else {}, "type", None, form["model"]["type"])
    vocab: dict[str, int] = found["model"].get("vocab")
    return vocab


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
