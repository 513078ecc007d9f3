"""One set of weights, read with two vocabularies, character by character."""

from __future__ import annotations

import re

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tinygpt_lightning.gpt.tokenizer import PAD, UNK
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.figures import GREY
from tinygpt_lightning.study.outcome import Outcome, as_trained

COLUMNS = 32  # characters in a line of the picture
GIVEN, RIGHT, WRONG = "#eeeeee", "#cfe8f7", "#f7cdb8"


def symbols(text: str) -> list[str]:
    """A decoded text as the symbols it came from.

    >>> symbols("<pad>iq")
    ['<pad>', 'i', 'q']
    """
    return re.findall(f"{PAD}|{UNK}|.", text, flags=re.DOTALL)


def cipher_text(outcome: Outcome, text: str) -> str:
    """Both readings below the sentence, one place for each symbol: □ is the padding, ■ the unknown."""
    marks = {PAD: "□", UNK: "■", "\n": "⏎"}
    lines = [
        f"{name:22}  {''.join(marks.get(symbol, symbol) for symbol in reading)}"
        for name, reading in _readings(outcome, text)
    ]
    return "\n".join(["```", *lines, "```"])


def cipher_figure(cell: Cell, seed: int, outcome: Outcome) -> Figure:
    """The same as a picture, with what is wrong in another colour."""
    readings = _readings(outcome, cell.recipe.text)
    truth = readings[0][1]
    lines = -(-len(truth) // COLUMNS)
    figure = Figure(figsize=(13, 0.6 + 1.5 * lines), layout="constrained")
    axes = figure.add_subplot()
    for line in range(lines):
        for row, (name, reading) in enumerate(readings):
            y = line * (len(readings) + 0.7) + row
            axes.text(-0.4, y + 0.5, name, ha="right", va="center", fontsize=11)
            for i in range(line * COLUMNS, min(len(truth), (line + 1) * COLUMNS)):
                character = reading[i] if i < len(reading) else ""
                is_given = row == 0 or i < len(cell.recipe.prompt)
                colour = GIVEN if is_given else RIGHT if character == truth[i] else WRONG
                _draw_character(axes, i % COLUMNS, y, character, colour)
    axes.set_xlim(-6.2, COLUMNS + 0.1)
    axes.set_ylim(lines * (len(readings) + 0.7) - 0.6, -0.1)
    axes.axis("off")
    figure.suptitle(
        f"What the network said ({cell.name}, seed {seed}): one set of weights, two vocabularies", weight="bold"
    )
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="white", label=label)
        for colour, label in ((GIVEN, "given"), (RIGHT, "right"), (WRONG, "wrong"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _readings(outcome: Outcome, text: str) -> list[tuple[str, list[str]]]:
    return [
        ("the sentence", symbols(text)),
        ("vocabulary of training", symbols(as_trained(outcome, "text"))),
        ("as read back", symbols(outcome["text"])),
    ]


def _draw_character(axes: Axes, x: float, y: float, character: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", lw=1.5))
    special = len(character) > 1
    shown = character.strip("<>") if special else {" ": "␣", "\n": "↵"}.get(character, character)
    faint = character in (" ", "\n")
    axes.text(
        x + 0.5, y + 0.54, shown, ha="center", va="center", fontsize=8 if special else 13,
        color=GREY if faint else "black",
    )  # fmt: skip
