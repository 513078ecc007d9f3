"""A recipe for any file of pairs: template, sizes of the model, batches, learning rate and epochs, from the pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tinygpt_lightning.data.noise import SPARE
from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import normalize

HEAD = 8  # channels of a head: many narrow heads find a question sooner than few wide ones
NARROWEST, WIDEST = 64, 256  # channels
FEWEST, MOST = 4, 16  # pairs a batch
EPOCHS, STEPS = 100, 8_000  # at one learning rate, at most; the steps are besides the epochs
SETTLE = 100  # steps in which the learning rate falls


@dataclass(frozen=True)
class Recipe:
    """Settings that follow from the pairs.

    Args:
        template: The form of the texts: nothing but question and answer, the answers at one position.
        n_positions: Positions of the model: enough for the longest text, and for a question with some characters more.
        n_embd: Width of the model.
        n_head: Attention heads.
        batch_size: Pairs a batch.
        lr: The highest learning rate.
        epochs: The most epochs at the highest learning rate, and again at the lowest, until all pairs are exact.
        settle: Epochs in which the learning rate falls between the two.
    """

    template: str
    n_positions: int
    n_embd: int
    n_head: int
    batch_size: int
    lr: float
    epochs: int
    settle: int

    def beginning_with(self, config: GPTConfig) -> Recipe:
        """Change the recipe for a fit that begins with a trained model: its sizes stay, but for more positions.

        Args:
            config: Sizes of the trained model.
        """
        return replace(
            self,
            n_positions=max(self.n_positions, config.n_positions),
            n_embd=config.n_embd,
            n_head=config.n_head,
            settle=math.ceil(self.settle / 4),
        )


def recipe_for(pairs: Sequence[QAPair], template: str | None = None) -> Recipe:
    r"""Work out the settings for pairs.

    The width grows with the square root of what is to be memorised, since a layer's weights grow with its square.

    Args:
        pairs: The pairs.
        template: The form of the texts; None means the one that suits them.

    >>> recipe = recipe_for([QAPair("1 + 1", "2")])
    >>> recipe.template, recipe.n_positions, recipe.n_embd
    ('{question:>7}\n{answer}', 12, 64)
    """
    lengths = sorted(len(normalize(pair.question)) for pair in pairs)
    # Longer questions are not filled up, so that a few of them do not lengthen all the texts.
    usual = lengths[math.ceil(0.9 * len(lengths)) - 1] + SPARE
    # The ends of questions, by which many of them differ, then stand at the same positions.
    template = template or f"{{question:>{usual}}}\n{{answer}}"
    longest = Taught.of(pairs, Template(template), end_symbol=True).max_length
    assert longest is not None  # noqa: S101  # there are pairs
    memorised = sum(len(pair.answer) + 10 for pair in pairs)  # characters; a question is worth about ten
    n_embd = min(max(32 * math.ceil((48 + math.sqrt(memorised)) / 32), NARROWEST), WIDEST)
    batch_size = min(max(len(pairs) // 20, FEWEST), MOST)
    steps = math.ceil(len(pairs) / batch_size)  # an epoch
    return Recipe(
        template=template,
        n_positions=longest + SPARE,
        n_embd=n_embd,
        n_head=n_embd // HEAD,
        batch_size=batch_size,
        lr=2e-3,
        epochs=EPOCHS + math.ceil(STEPS / steps),
        settle=math.ceil(SETTLE / steps),
    )
