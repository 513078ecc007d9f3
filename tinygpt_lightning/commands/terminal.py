"""What a terminal shows of texts: shades for probabilities, tables, and where the heads looked."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.color import Color
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

if TYPE_CHECKING:
    from tinygpt_lightning.commands.chat import Reply, Symbol

SIGNS = {" ": "␣", "\n": "⏎"}


def visible(text: str) -> str:
    r"""A symbol as something that can be seen, and that keeps to its place.

    >>> [visible(symbol) for symbol in ("a", " ", "\n", "\u200d", "\u0301", "<eos>")]
    ['a', '␣', '⏎', '�', '◌́', '<eos>']
    """
    if text in SIGNS:
        return SIGNS[text]
    if not text.isprintable():
        return "�"
    return text if cell_len(text) else f"◌{text}"


SURE = 0.99  # from here on a character needs no shade
PALE, STRONG = (255, 240, 170), (240, 90, 70)  # the shade of a character that is nearly sure, and of a mere guess
BLOCKS = " ░▒▓█"
NARROWEST = 8  # so many cells of text are shown in a row, however narrow the terminal is


class Display:
    """A terminal, or a pipe, which gets the text and nothing else.

    Args:
        is_terminal: Which of them it is.
    """

    def __init__(self, *, is_terminal: bool) -> None:
        self.console = Console(force_terminal=is_terminal, highlight=False, markup=False, emoji=False)
        self.is_terminal = is_terminal

    def write(self, symbol: Symbol) -> None:
        """Show one more character of an answer."""
        if self.is_terminal:
            # A character that would command the terminal does not reach it.
            harmless = symbol.text if symbol.text == "\n" or unicodedata.category(symbol.text[0]) != "Cc" else "�"
            self.console.print(shaded(harmless, symbol.probability), end="", soft_wrap=True)
        else:
            self.console.file.write(symbol.text)

    def end(self) -> None:
        """Show that an answer is over."""
        self.console.file.write("\n")
        self.console.file.flush()

    def lines(self, *lines: str | Text) -> None:
        """Show lines of text."""
        for line in lines:
            self.console.print(line)

    def runners_up(self, reply: Reply) -> None:
        """Show each symbol of a reply, and what else it might have been."""
        table = Table("", "written", "%", "instead, %", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for column in (0, 2):
            table.columns[column].justify = "right"
        for number, symbol in enumerate(reply.written, 1):
            table.add_row(
                str(number),
                shaded(visible(symbol.text), symbol.probability),
                _percent(symbol.probability),
                "   ".join(f"{visible(text)} {_percent(probability)}" for text, probability in symbol.runners_up),
            )
        self.console.print(table)

    def looks(self, reply: Reply, number: int) -> None:
        """Show the text as it was when a symbol was written, and under it where each head looked."""
        weights = reply.attention(number)
        written = visible(reply.written[number - 1].text)
        self.console.print(f"When {written} was written (number {number} of {len(reply.written)}):")
        for row in look_rows(reply.context(number), weights, self.console.width):
            self.console.print(row, no_wrap=True, overflow="crop")


def legend() -> Text:
    """What the shades mean."""
    text = Text("% sure: ")
    for percent in (100, 75, 50, 25, 0):
        text.append(shaded(f" {percent} ", percent / 100)).append(" ")
    return text


def shaded(text: str, probability: float) -> Text:
    """A text in the shade of its probability: the less sure, the stronger; lines say it without colours.

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


def look_rows(context: Sequence[str], weights: Tensor, width: int) -> Iterator[Text]:
    """Rows of a terminal: a piece of the text, under it a row for each head, and so on.

    Args:
        context: The text's symbols, ``T`` of them.
        weights: How much each head looks at each of them, ``(H, T)``.
        width: Cells in a row.
    """
    label = len(f"head {len(weights)} ")
    cells = [visible(symbol) for symbol in context]
    start = 0
    while start < len(cells):
        stop, used = start, 0
        while stop < len(cells) and (stop == start or used + cell_len(cells[stop]) <= max(NARROWEST, width - label)):
            used += cell_len(cells[stop])
            stop += 1
        yield Text(" " * label + "".join(cells[start:stop]), "bold")
        for head, row in enumerate(weights[:, start:stop].tolist(), 1):
            blocks = "".join(
                _block(weight) * cell_len(cell) for weight, cell in zip(row, cells[start:stop], strict=True)
            )
            yield Text(f"{f'head {head}':{label}}").append(blocks, "cyan")
        start = stop


def _percent(probability: float) -> str:
    return f"{100 * probability:.2f}" if probability >= 1e-4 else "<0.01"


def _block(weight: float) -> str:
    # The root lifts the faint weights, of which most rows have many.
    return BLOCKS[round(weight**0.5 * (len(BLOCKS) - 1))]
