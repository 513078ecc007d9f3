"""Characters in a terminal: visible symbols, colours for probabilities, attention as shaded blocks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.style import Style
from rich.text import Text
from torch import Tensor

SIGNS = {" ": "␣", "\n": "⏎"}
SURE = 0.99  # a character of at least this probability gets no colour
PALE, STRONG = (255, 240, 170), (240, 90, 70)  # background at probability 1 and at probability 0
BLOCKS = " ░▒▓█"
MIN_CELLS = 8  # cells of text in a row, at least, however narrow the terminal is
# What no neighbouring language has: đ, the marks hook, dot, horn and breve, and a circumflex with a tone above it.
VIETNAMESE = re.compile("[đ\u0309\u0323\u031b\u0306]|\u0302[\u0300\u0301\u0303]")


def visible(symbol: str) -> str:
    r"""Replace a symbol that cannot be seen, or that would join its neighbour, by one that can.

    >>> [visible(symbol) for symbol in ("a", " ", "\n", "\u200d", "\u0301", "<eos>")]
    ['a', '␣', '⏎', '�', '◌́', '<eos>']
    """
    if symbol in SIGNS:
        return SIGNS[symbol]
    if not symbol.isprintable():
        return "�"
    return symbol if cell_len(symbol) else f"◌{symbol}"


def harmless(symbol: str) -> str:
    """Replace a control character, which would command the terminal; a line break stays."""
    return "�" if symbol != "\n" and unicodedata.category(symbol[0]) == "Cc" else symbol


def percent(probability: float) -> str:
    """Format a probability, from 0 to 1, in percent."""
    return f"{100 * probability:.2f}" if probability >= 1e-4 else "<0.01"


def shaded(text: str, probability: float) -> Text:
    """Colour a text by its probability: the lower, the stronger; underline and bold work without colours.

    Args:
        text: The text.
        probability: From 0 to 1.
    """
    if probability >= SURE:
        return Text(text)
    mixed = [round(pale * probability + strong * (1 - probability)) for pale, strong in zip(PALE, STRONG, strict=True)]
    background = Color.from_triplet(ColorTriplet(*mixed))
    black = Color.from_rgb(0, 0, 0)
    return Text(text, Style.from_color(black, background) + Style(underline=probability < 0.9, bold=probability < 0.5))


def refusal(asked: str) -> str:
    """Say, in the language of the question, that the model was not taught to answer it.

    Args:
        asked: The question, and the nearest taught ones, which show the language of a question without diacritics.

    >>> refusal("Núi thấp nhất?")
    'Tôi chưa được dạy câu này. Gần nhất là:'
    """
    if VIETNAMESE.search(unicodedata.normalize("NFD", asked.lower())):
        return "Tôi chưa được dạy câu này. Gần nhất là:"
    return "I was not taught this. The nearest questions are:"


def legend() -> Text:
    """One line that explains the colours of `shaded`."""
    text = Text("% sure: ")
    for share in (100, 75, 50, 25, 0):
        text.append(shaded(f" {share} ", share / 100)).append(" ")
    return text


def look_rows(context: Sequence[str], weights: Tensor, width: int) -> Iterator[Text]:
    """Draw attention: a row of text, below it one row for each head, then the next row of text.

    Args:
        context: The text's symbols, ``T`` of them.
        weights: Attention of each head to each symbol, ``(H, T)``.
        width: Cells in a row.
    """
    label = len(f"head {len(weights)} ")
    cells = [visible(symbol) for symbol in context]
    start = 0
    while start < len(cells):
        stop, used = start, 0
        while stop < len(cells) and (stop == start or used + cell_len(cells[stop]) <= max(MIN_CELLS, width - label)):
            used += cell_len(cells[stop])
            stop += 1
        yield Text(" " * label + "".join(cells[start:stop]), "bold")
        for head, row in enumerate(weights[:, start:stop].tolist(), 1):
            blocks = "".join(
                _block(weight) * cell_len(cell) for weight, cell in zip(row, cells[start:stop], strict=True)
            )
            yield Text(f"{f'head {head}':{label}}").append(blocks, "cyan")
        start = stop


def _block(weight: float) -> str:
    # The square root makes small weights visible; most weights of a row are small.
    return BLOCKS[round(weight**0.5 * (len(BLOCKS) - 1))]
