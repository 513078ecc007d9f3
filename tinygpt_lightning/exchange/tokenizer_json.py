"""Hugging Face's ``tokenizer.json``: a vocabulary of characters as its tokenizers read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tinygpt_lightning.exchange.json_file import expect, read_json
from tinygpt_lightning.gpt.tokenizer import EOS, PAD, SPECIALS, UNK, CharTokenizer

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
