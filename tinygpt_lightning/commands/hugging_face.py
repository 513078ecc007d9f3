"""A model as a folder of Hugging Face's: written and read by transformers' own classes, tokenizer files by hand.

Hugging Face's configuration keeps unknown keys: what it has no field for stands under `CHECKPOINT_KEY`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from tinygpt_lightning.data.text import Taught
from tinygpt_lightning.description import CHECKPOINT_KEY, describe, state_of
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import EOS, PAD, SPECIALS, UNK, CharTokenizer
from tinygpt_lightning.trained import TrainedGPT, network_of

if TYPE_CHECKING:
    from transformers import GPT2Config

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
FILES = {CONFIG, WEIGHTS, TOKENIZER, "tokenizer_config.json", "generation_config.json"}
# Fields of `GPTConfig` that have the same name and meaning in transformers' `GPT2Config`.
SHARED = (
    "vocab_size", "n_positions", "n_embd", "n_head", "n_inner", "embd_pdrop", "attn_pdrop", "resid_pdrop",
    "layer_norm_epsilon",
)  # fmt: skip
TAUGHT = ("template", "questions", "answers", "max_length", "prompt_to", "known_from")
TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
# The post-processor that transformers 5 writes for a tokenizer that adds no symbols to a text.
_SEQUENCES = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
ADDS_NOTHING = {"type": "TemplateProcessing", "single": _SEQUENCES[:1], "pair": _SEQUENCES, "special_tokens": {}}


def write_hugging_face(trained: TrainedGPT, folder: Path) -> None:
    """Write a model's five files into an empty folder.

    Raises:
        ValueError: If GPT-2 in transformers cannot express the model.
        OSError: If a file cannot be written.
    """
    from transformers import GenerationConfig, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model, tokenizer = trained.model, trained.tokenizer
    symbols = {"eos_token_id": tokenizer.end, "pad_token_id": tokenizer.vocab[PAD]}
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(_their_config(trained, symbols))
    weights = {their_name(name): _turned(name, weight) for name, weight in model.state_dict().items()}
    theirs.load_state_dict(weights, assign=True)
    theirs.tie_weights()
    theirs.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=_max_new_tokens(trained), **symbols
    )
    theirs.save_pretrained(folder)
    descriptions = {
        TOKENIZER: tokenizer_json(tokenizer),
        "tokenizer_config.json": _tokenizer_config(trained),
    }
    for file, description in descriptions.items():
        write_whole(folder / file, (json.dumps(description, ensure_ascii=False, indent=2) + "\n").encode())


def read_hugging_face(folder: Path) -> TrainedGPT:
    """Read such a folder; no code in it is executed.

    Raises:
        CheckpointError: If `TinyGPT` cannot express the model, or a file is damaged.
    """
    described = {**_read_config(folder / CONFIG), "vocab": _read_vocab(folder / TOKENIZER)}
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
    """The name in `TinyGPT` of a weight of Hugging Face's; an unknown name stays as it is.

    >>> our_name("transformer.h.0.attn.c_proj.weight")
    'h.attn.c_proj.weight'
    """
    return name.removeprefix("transformer.").replace("h.0.", "h.", 1) if name.startswith("transformer.") else name


def tokenizer_json(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Describe a tokenizer that composes the text (NFC) and takes each character as a symbol.

    An unknown character is an error there too, since ``unk_token`` names no symbol.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    theirs = Tokenizer(models.WordLevel(tokenizer.vocab, unk_token=""))
    theirs.normalizer = normalizers.NFC()
    theirs.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    theirs.decoder = decoders.Fuse()
    specials = [symbol for symbol in SPECIALS if symbol in tokenizer.vocab]
    theirs.add_special_tokens([AddedToken(symbol, normalized=False, special=True) for symbol in specials])
    description: dict[str, Any] = json.loads(theirs.to_str())
    return description


def _tokenizer_config(trained: TrainedGPT) -> dict[str, Any]:
    tokenizer, n_positions = trained.tokenizer, trained.model.config.n_positions
    # By hand: the class that transformers 5 would name here is unknown to transformers 4.
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "unk_token": UNK,
        **({} if tokenizer.end is None else {"eos_token": EOS}),
        "split_special_tokens": True,  # a text that contains "<eos>" contains five characters
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_positions,
        "padding_side": "left",  # so that each prompt of a batch is continued from its last symbol
        "chat_template": _chat_template(trained.taught),
        # Without the token types that transformers 4 adds, which GPT-2 would embed as symbols.
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _chat_template(taught: Taught) -> str:
    """A template in Jinja that puts the last message into the prompt for a question."""
    longer_than_any_width = 10_000 * "\ue000"
    before, after = taught.prompt(longer_than_any_width).split(longer_than_any_width)
    width = len(taught.prompt("")) - len(before) - len(after)  # to which a template may fill up a question
    fill = "rjust" if taught.prompt("?").startswith(f"{before} ") else "ljust"
    content = f"messages[-1]['content'].{fill}({width})"
    return "{{ " + json.dumps(before) + f" + {content} + " + json.dumps(after) + " }}"


def _max_new_tokens(trained: TrainedGPT) -> int:
    """The longest taught continuation, with its end symbol; else as much as the model has positions for."""
    taught = trained.taught
    if not taught.pairs:
        return trained.model.config.n_positions
    return max(len(taught.parts(pair)[1]) for pair in taught.pairs) + (trained.tokenizer.end is not None)


def _their_config(trained: TrainedGPT, symbols: dict[str, int | None]) -> GPT2Config:
    from transformers import GPT2Config

    config, described = trained.model.config, describe(trained.model.config, trained.tokenizer, trained.taught)
    if not config.bias:
        raise ValueError("bias: expected true, since GPT-2 in transformers has a bias everywhere, got false")
    theirs = {
        "n_layer": 1,
        "activation_function": TANH_GELU[0],
        **{name: getattr(config, name) for name in SHARED},
        **({} if config.initializer_range is None else {"initializer_range": config.initializer_range}),
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": None,
        **symbols,
        CHECKPOINT_KEY: {**{name: described[name] for name in TAUGHT}, "initializer_range": config.initializer_range},
    }
    return GPT2Config(**theirs)


def _read_config(path: Path) -> dict[str, Any]:
    """The description that a checkpoint holds, but for its vocabulary."""
    from transformers import GPT2Config

    content = _read_json(path)
    _expect(path, content, "model_type", "gpt2")
    own = content.get(CHECKPOINT_KEY, {})
    if not isinstance(own, dict):
        raise CheckpointError(path, f"expected an object as {CHECKPOINT_KEY}, got {type(own).__name__}")
    try:
        theirs = vars(GPT2Config.from_dict(content))
    except Exception as error:  # any error that the content of a file provokes here
        reason = " ".join(str(error).split())
        raise CheckpointError(path, f"is not a configuration of GPT-2: {reason:.120}") from None
    for name, *expected in (
        ("n_layer", 1),
        ("activation_function", *TANH_GELU),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
        ("tie_word_embeddings", True, False),
    ):
        _expect(path, theirs, str(name), *expected)
    config = {**asdict(GPTConfig()), **{name: theirs[name] for name in SHARED}}
    config["tie_weights"] = theirs["tie_word_embeddings"]
    config["initializer_range"] = own.get("initializer_range", theirs["initializer_range"])
    unknown = describe(GPTConfig(), CharTokenizer.from_text(""), Taught())
    return {"config": config, **{name: own.get(name, unknown[name]) for name in TAUGHT}}


def _read_vocab(path: Path) -> dict[str, int]:
    """Symbol to id, not checked yet."""
    content = _read_json(path)
    form = tokenizer_json(CharTokenizer.from_text(""))
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        _expect(path, content, name, form[name])
    _expect(path, content, "post_processor", None, ADDS_NOTHING)
    model = content.get("model")
    _expect(path, model if isinstance(model, dict) else {}, "type", form["model"]["type"])
    vocab: dict[str, int] = content["model"].get("vocab")
    return vocab


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        weights: dict[str, Tensor] = load(path.read_bytes())
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise CheckpointError(path, f"is not a whole file of tensors ({error!s:.60})") from None
    if unknown := [name for name in weights if their_name(our_name(name)) != name]:
        raise CheckpointError(path, f"cannot be expressed: {unknown[0]!r:.80} is no weight of GPT-2 with one layer")
    return weights


def _turned(name: str, weight: Tensor) -> Tensor:
    # Hugging Face keeps the linear weights within the block as (in, out), as OpenAI released them.
    return (weight.t() if ".c_" in name and name.endswith(".weight") and weight.dim() == 2 else weight).contiguous()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"expected a JSON object, got none ({error!s:.60})") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, f"expected a JSON object, got {type(content).__name__}")
    return content


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _expect(path: Path, content: dict[str, Any], name: str, *expected: object) -> None:
    """Refuse a file in which an entry has another value, or a value of another type, than the expected ones."""
    value = content.get(name)
    if not any(type(value) is type(each) and value == each for each in expected):
        wanted = " or ".join(f"{json.dumps(each):.100}" for each in expected)
        raise CheckpointError(path, f"cannot be expressed: expected {wanted} as {name}, got {json.dumps(value):.100}")
