"""A trained model that begins a new fit: it grows where new pairs need more characters or positions."""

from __future__ import annotations

import torch

from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer

GROWING = ("wte.weight", "wpe.weight", "lm_head.weight")  # a row for each symbol or position


def more_symbols(known: CharTokenizer, needed: CharTokenizer) -> CharTokenizer:
    """Add the symbols that ``known`` lacks behind its own, which keep their ids.

    >>> more_symbols(CharTokenizer.from_text("b"), CharTokenizer.from_text("abc")).vocab
    {'b': 0, '<pad>': 1, '<unk>': 2, 'a': 3, 'c': 4}
    """
    new = [symbol for symbol in needed.vocab if symbol not in known.vocab]
    return CharTokenizer({**known.vocab, **{symbol: len(known) + i for i, symbol in enumerate(new)}})


@torch.no_grad()
def grow_from(model: TinyGPT, trained: TinyGPT) -> None:
    """Begin ``model`` with the weights of ``trained``; rows for new symbols and positions stay as they were drawn.

    Raises:
        ValueError: If another size than the number of symbols or positions differs, or one of these is smaller.
    """
    weights = trained.state_dict()
    if extra := weights.keys() - model.state_dict().keys():
        raise ValueError(
            f"data.rehearse: expected a model without {min(extra)}, got one with it; set model.config.bias"
        )
    for name, weight in model.state_dict().items():
        old = weights.get(name, weight[:0])
        grows = name in GROWING and old.shape[1:] == weight.shape[1:] and len(old) <= len(weight)
        if not grows and old.shape != weight.shape:
            raise ValueError(
                f"data.rehearse: expected a model with {name} of {tuple(weight.shape)}, got {tuple(old.shape)}; "
                "only symbols and positions can be added"
            )
        weight[: len(old)] = old
