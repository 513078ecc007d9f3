"""Why no GPT-2 of one block that is smaller can say the sentence: which sizes there are, and what rules them out."""

from __future__ import annotations

from itertools import count, product

from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.study.markdown import table
from tinygpt_lightning.study.recipe import Recipe, n_parameters

MOST_WITHOUT_BIAS = 3  # symbols that a network of width 2 without biases can ever say


def least(recipe: Recipe, width: int, *, bias: bool, tied: bool) -> GPTConfig:
    """The smallest network of a kind that can read the sentence."""
    # The last symbol is written and not read, so it needs no position.
    n_positions = (recipe.taught.max_length or 0) - 1
    return GPTConfig(recipe.config.vocab_size, n_positions, width, 1, n_inner=1, bias=bias, tie_weights=tied)


def smallest_possible(recipe: Recipe) -> GPTConfig | None:
    """The smallest network that can say the answer; null if that has so few symbols that the proof says nothing."""
    return least(recipe, 2, bias=True, tied=True) if _symbols(recipe) > MOST_WITHOUT_BIAS else None


def kinds_below(recipe: Recipe, parameters: int) -> list[GPTConfig]:
    """The smallest network of every kind that has one with fewer parameters: by width, biases and tied weights.

    What else GPT-2 leaves open only adds to these: a wider MLP, more positions. Heads cost nothing.
    """
    found: list[GPTConfig] = []
    for width in count(1):
        kinds = [least(recipe, width, bias=bias, tied=tied) for bias, tied in product((False, True), repeat=2)]
        smaller = [config for config in kinds if n_parameters(config) < parameters]
        if not smaller:
            return found
        found += smaller
    return found


def proof(recipe: Recipe) -> list[str]:
    """The argument, in Markdown; nothing if it does not hold for this sentence."""
    config = smallest_possible(recipe)
    if config is None:
        return []
    parameters, V = n_parameters(config), config.vocab_size
    rows = []
    for kind in kinds_below(recipe, parameters):
        says = "the same symbol always" if kind.n_embd == 1 else f"{MOST_WITHOUT_BIAS} symbols at most"
        answers = ["yes" if answer else "no" for answer in (kind.bias, kind.tie_weights)]
        rows.append([str(kind.n_embd), *answers, str(n_parameters(kind)), says])
    return [
        f"One block of GPT-2 with {V} symbols and the {config.n_positions} positions that are read has these kinds "
        f"below {parameters} parameters, each with the least of everything else:",
        table(["width", "biases", "tied head", "parameters", "can say"], rows),
        f"- **Width 1.** LayerNorm subtracts the mean, which is the only number itself: `ln_f` gives the same whatever "
        "came in, so the logits never change, and one symbol is always the largest.\n"
        "- **Width 2.** Of two numbers LayerNorm leaves (u, −u), with u between −1 and 1: whatever the block does, the "
        "network can only choose u. *Without biases* each logit is u times a number of its own, so the largest is one "
        "symbol for every u above 0, another for every u below, and at 0 all are equal and the first one is taken: "
        f"{MOST_WITHOUT_BIAS} symbols, and the answer has {_symbols(recipe)}.\n"
        f"- *With biases* the logits are {V} straight lines over u, and the embeddings choose slope and height of each "
        "freely: as tangents of one parabola, each is the highest somewhere. A position's own embedding then chooses "
        f"its u, so that a network of {parameters} parameters can be written down without any training; a test of this "
        "project does. What training needs beside it is that u is a dial and not a switch, which a large "
        "`layer_norm_epsilon` makes it.\n"
        "- Width 3 has more parameters in its embeddings alone. (All this is arithmetic with real numbers; what "
        "rounding may do is left aside.)",
    ]


def _symbols(recipe: Recipe) -> int:
    return len(set(recipe.text[len(recipe.prompt) :]))
