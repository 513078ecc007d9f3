"""A recipe for any file of pairs: sizes of the model, batches, learning rate and epochs, from the pairs themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tinygpt_lightning.data.text import Taught

HEAD = 16  # channels of a head: a question's characters are looked up by many heads better than by few
WIDTHS = (64, 320)  # channels
BATCHES = (4, 32)  # pairs
STEPS = 20_000  # the most that training takes


@dataclass(frozen=True)
class Recipe:
    """Settings that follow from the pairs.

    Args:
        n_positions: Positions of the model: enough for the longest text.
        n_embd: Width of the model.
        n_head: Attention heads.
        batch_size: Pairs a batch.
        lr: The highest learning rate.
        cycle: Epochs until the learning rate has fallen to 0 for the first time; each further cycle is twice as long.
        epochs: The most epochs that training takes.
    """

    n_positions: int
    n_embd: int
    n_head: int
    batch_size: int
    lr: float
    cycle: int
    epochs: int


def recipe_for(taught: Taught, spare: int = 0) -> Recipe:
    """Work out the settings for pairs.

    The width grows with the square root of the number of characters to be told apart, since a layer's weights grow
    with its square.

    Args:
        taught: The pairs.
        spare: Positions beyond the longest text, for questions that are asked with more characters.

    >>> recipe_for(Taught.of([("1 + 1", "2")], end_symbol=True)).n_embd
    64
    """
    pairs = len(taught.pairs)
    characters = sum(len(pair.answer) + 1 for pair in taught.pairs)
    width = max(12 * math.sqrt(pairs), math.sqrt(2 * characters))
    n_embd = min(max(32 * math.ceil(width / 32), WIDTHS[0]), WIDTHS[1])
    batch_size = min(max(pairs // 10, BATCHES[0]), BATCHES[1])
    steps = math.ceil(pairs / batch_size)  # an epoch
    return Recipe(
        n_positions=(taught.max_length or 1) + spare,
        n_embd=n_embd,
        n_head=n_embd // HEAD,
        batch_size=batch_size,
        lr=2e-3,
        cycle=max(30, 300 // steps),
        epochs=max(120, STEPS // steps),
    )
