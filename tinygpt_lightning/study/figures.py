"""The study in three pictures; each returns a figure that belongs to nobody yet."""

from __future__ import annotations

import math
import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from tinygpt_lightning.gpt.tokenizer import PAD, UNK
from tinygpt_lightning.study.design import Cell, schedule_name
from tinygpt_lightning.study.findings import Results
from tinygpt_lightning.study.statistics import clopper_pearson

# Okabe and Ito 2008: told apart by colour-blind readers too.
BLUE, ORANGE, RED, GREY = "#0072B2", "#E69F00", "#D55E00", "#888888"
COLOURS = {"stable": BLUE, "resorted": ORANGE}
COLUMNS = 32  # characters in a line of the cipher


def exactness_figure(results: Results) -> Figure:
    """How often each cell gives the sentence, with exact 95 % intervals, under both vocabularies."""
    cells = [cell for cell in results.study.cells if results.by_cell[cell]]
    figure = Figure(figsize=(10, 1.6 + 0.42 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    for y, cell in enumerate(cells):
        outcomes = list(results.by_cell[cell].values())
        n = len(outcomes)
        colour = COLOURS[cell.vocabulary]
        k, trained = (sum(outcome[name] for outcome in outcomes) for name in ("exact", "exact_in_training_vocabulary"))
        for successes, at, fmt, size, line, fill in (
            (k, y - 0.14, "o", 8, colour, colour),
            (trained, y + 0.18, "D", 4.5, GREY, "white"),
        ):
            low, high = clopper_pearson(successes, n)
            share = successes / n
            error = [[share - low], [high - share]]
            axes.errorbar(share, at, xerr=error, fmt=fmt, color=line, mfc=fill, markersize=size, capsize=3)
        axes.text(1.04, y, f"{k}/{n}", va="center", weight="bold", color=colour)
    axes.set_yticks(range(len(cells)), [cell.name for cell in cells])
    axes.set_xlim(-0.03, 1.12)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("runs that reproduce the sentence exactly, with 95 % Clopper–Pearson intervals")
    figure.suptitle("Exact reproduction by cell", weight="bold")
    handles = [
        Line2D([], [], marker="o", ls="", markersize=8, color=colour, label=f"as read back: {vocabulary}")
        for vocabulary, colour in COLOURS.items()
        if vocabulary in results.study.vocabulary
    ]
    label = "same weights, read with the vocabulary of training"
    handles.append(Line2D([], [], marker="D", ls="", markersize=4.5, mfc="white", color=GREY, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def loss_figure(results: Results) -> Figure:
    """Loss by epoch of the first schedule with several stages: the median over seeds, and all of them between."""
    staged = [cell for cell in results.study.cells if cell.staged and results.by_cell[cell]]
    shown = [cell for cell in staged if cell.schedule == staged[0].schedule] or [
        cell for cell in results.study.cells if results.by_cell[cell]
    ]
    panels = list(dict.fromkeys(cell.weights for cell in shown))
    figure = Figure(figsize=(6 * len(panels), 5), layout="constrained")
    knows_nothing = math.log(results.study.model.config.vocab_size)
    for axes, weights in zip(np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels, strict=True):
        for cell in shown:
            if cell.weights == weights:
                _draw_losses(axes, results, cell)
        axes.axhline(knows_nothing, color=RED, lw=1)
        axes.annotate(
            f"ln {results.study.model.config.vocab_size} = {knows_nothing:.2f}: knows nothing",
            (1, knows_nothing), xycoords=("axes fraction", "data"), xytext=(-4, -3), textcoords="offset points",
            color=RED, ha="right", va="top",
        )  # fmt: skip
        axes.set_yscale("log")
        axes.set_xlabel("epoch")
        axes.set_title(f"weights {weights} at the boundary" if weights else "one stage")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("training loss (nats; median over seeds, band: all seeds)")
    lines, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Loss of {', '.join(sorted({schedule_name(cell.schedule) for cell in shown}))}", weight="bold")
    return figure


def _draw_losses(axes: Axes, results: Results, cell: Cell) -> None:
    # A diverged loss is null in the rows; as NaN it leaves a gap in the curve.
    curves = np.array([outcome["loss"] for outcome in results.by_cell[cell].values()], dtype=float)
    epochs = np.arange(1, curves.shape[1] + 1)
    label = f"vocabulary {cell.vocabulary}" + (f", optimizer {cell.optimizer}" if cell.staged else "")
    style = "--" if cell.optimizer == "kept" else "-"
    axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=COLOURS[cell.vocabulary], alpha=0.12, lw=0)
    axes.plot(epochs, np.median(curves, axis=0), style, color=COLOURS[cell.vocabulary], label=label, lw=1.8)
    for length in np.cumsum(cell.schedule)[:-1]:
        axes.axvline(length + 0.5, color=GREY, lw=0.8, ls=":")
        first = float(np.median(curves[:, length]))
        if cell.optimizer == "new" and first > math.log(results.study.model.config.vocab_size) * 1.2:
            axes.annotate(
                f"{first:.1f}: sure, in the wrong vocabulary", (length + 1, first), xytext=(8, 4),
                textcoords="offset points", color=COLOURS[cell.vocabulary], weight="bold", va="center",
            )  # fmt: skip


def symbols(text: str) -> list[str]:
    """A decoded text as the symbols it came from.

    >>> symbols("<pad>iq")
    ['<pad>', 'i', 'q']
    """
    return re.findall(f"{PAD}|{UNK}|.", text, flags=re.DOTALL)


def example(results: Results) -> tuple[Cell, int] | None:
    """The run to show: the first one that is misread and was right in training, or the first one at all."""
    runs = [(cell, seed, outcome) for cell, seed, outcome in results.runs]
    misread = [run for run in runs if not run[2]["exact"] and run[2]["exact_in_training_vocabulary"]]
    return next(((cell, seed) for cell, seed, _ in misread or runs), None)


def cipher_figure(results: Results, cell: Cell, seed: int) -> Figure:
    """The same weights, read with two vocabularies, character by character."""
    outcome = results.by_cell[cell][seed]
    truth = symbols(results.study.text)
    readings = [
        ("the sentence", truth),
        ("vocabulary of training", symbols(outcome["text_in_training_vocabulary"])),
        ("as read back", symbols(outcome["text"])),
    ]
    lines = -(-len(truth) // COLUMNS)
    figure = Figure(figsize=(13, 0.6 + 1.5 * lines), layout="constrained")
    axes = figure.add_subplot()
    for line in range(lines):
        for row, (name, reading) in enumerate(readings):
            y = line * (len(readings) + 0.7) + row
            axes.text(-0.4, y + 0.5, name, ha="right", va="center", fontsize=11)
            for i in range(line * COLUMNS, min(len(truth), (line + 1) * COLUMNS)):
                character = reading[i] if i < len(reading) else ""
                given = i < len(results.study.prompt)
                _draw_character(axes, i % COLUMNS, y, character, right=character == truth[i], given=given or row == 0)
    axes.set_xlim(-6.2, COLUMNS + 0.1)
    axes.set_ylim(lines * (len(readings) + 0.7) - 0.6, -0.1)
    axes.axis("off")
    figure.suptitle(
        f"What the network said ({cell.name}, seed {seed}): one set of weights, two vocabularies", weight="bold"
    )
    handles = [
        Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="white", label=label)
        for colour, label in (("#eeeeee", "given"), ("#cfe8f7", "right"), ("#f7cdb8", "wrong"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_character(axes: Axes, x: float, y: float, character: str, *, right: bool, given: bool) -> None:
    colour = "#eeeeee" if given else "#cfe8f7" if right else "#f7cdb8"
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", lw=1.5))
    special = len(character) > 1
    shown = character.strip("<>") if special else {" ": "␣", "\n": "↵"}.get(character, character)
    faint = character in (" ", "\n")
    axes.text(
        x + 0.5, y + 0.54, shown, ha="center", va="center", fontsize=8 if special else 13,
        color=GREY if faint else "black",
    )  # fmt: skip
