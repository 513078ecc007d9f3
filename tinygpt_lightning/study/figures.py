"""Figures for any study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tinygpt_lightning.study.design import Cell, Factor, Study, level_names
from tinygpt_lightning.study.outcome import IN_TRAINING, as_trained
from tinygpt_lightning.study.rows import Results
from tinygpt_lightning.study.statistics import clopper_pearson

# Okabe and Ito 2008: colour-blind readers can tell these apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442")
RED, GREY, BLACK = "#D55E00", "#888888", "#000000"
STYLES = ("-", "--", ":", "-.")
CURVES = {"loss": "training loss (nats)", "update_norm": "length of an update (norm of the weights' change)"}
MOST_COLUMNS = 3


class Looks(NamedTuple):
    """How a cell is drawn."""

    colour: str  # level of the first factor; controls are black
    style: str  # level of the factor with the fewest levels among the others
    panel: str  # levels of all other factors, as text
    label: str  # levels that colour and style stand for, as text


def looks(study: Study) -> dict[Cell, Looks]:
    """How each cell is drawn: curves in one panel differ in two factors at most."""
    first = study.factors[:1]
    second = sorted(study.factors[1:], key=lambda factor: len(factor.levels))[:1]
    return {
        cell: Looks(BLACK, "-", "controls", cell.name)
        if cell.control
        else Looks(
            COLOURS[_number(cell, first) % len(COLOURS)],
            STYLES[_number(cell, second) % len(STYLES)],
            _words(cell, [factor for factor in study.factors if factor not in first + second]),
            _words(cell, first + second),
        )
        for cell in study.cells
    }


def _number(cell: Cell, factors: list[Factor]) -> int:
    """Index of the cell's level of the only factor; 0 if it has none."""
    return next((list(f.levels).index(cell.levels[f.name]) for f in factors if f.name in cell.levels), 0)


def _words(cell: Cell, factors: list[Factor]) -> str:
    return level_names({factor.name: cell.levels[factor.name] for factor in factors if factor.name in cell.levels})


def exactness_figure(results: Results) -> Figure:
    """Fraction of exact seeds by cell, with 95 % intervals, in the vocabulary that is read and that of training."""
    cells = [cell for cell in results.study.cells if results.by_cell[cell]]
    drawn = looks(results.study)
    misread = any(f"exact{IN_TRAINING}" in outcome for _, _, outcome in results.runs)
    # The cells' names take what they need, a tenth of an inch for a character; the axis and its text take the rest.
    width = 5.5 + 0.085 * max((len(cell.name) for cell in cells), default=0)
    figure = Figure(figsize=(width, 1.9 + 0.42 * len(cells)), layout="constrained")
    axes = figure.add_subplot()
    for y, cell in enumerate(cells):
        outcomes = list(results.by_cell[cell].values())
        n, k = len(outcomes), sum(outcome["exact"] for outcome in outcomes)
        _draw_share(axes, k, n, y - 0.14 * misread, fmt="o", markersize=8, color=drawn[cell].colour)
        if misread:
            trained = sum(as_trained(outcome, "exact") for outcome in outcomes)
            _draw_share(axes, trained, n, y + 0.18, fmt="D", markersize=4.5, color=GREY, mfc="white")
        axes.text(1.04, y, f"{k}/{n}", va="center", weight="bold", color=drawn[cell].colour)
    axes.set_yticks(range(len(cells)), [cell.name for cell in cells])
    axes.set_xlim(-0.03, 1.3)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("exact runs, with 95 % Clopper–Pearson intervals", fontsize=10)
    figure.suptitle("Exact reproduction by cell", weight="bold")
    if misread:
        read = Line2D([], [], marker="o", ls="", markersize=8, color=GREY, label="as read back")
        trained_with = Line2D([], [], marker="D", ls="", markersize=4.5, mfc="white", color=GREY)
        trained_with.set_label("same weights, read with the vocabulary of training")
        place_legend(figure, [read, trained_with])
    return figure


def place_legend(figure: Figure, lines: Sequence[Line2D]) -> None:
    """Put a legend of one line for each label below all else, in as many columns as the figure is wide enough for."""
    handles: dict[str, Line2D] = {}
    for line in lines:
        if not str(line.get_label()).startswith("_"):  # matplotlib's own names
            handles.setdefault(str(line.get_label()), line)
    width, height = figure.get_size_inches()
    columns = max(1, min(len(handles), int(width / (0.6 + 0.085 * max(map(len, handles), default=1)))))
    figure.set_size_inches(width, height + 0.22 * -(-len(handles) // columns))
    figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=columns, frameon=False)


def _draw_share(axes: Axes, k: int, n: int, y: float, **marks: object) -> None:
    low, high = clopper_pearson(k, n)
    share = k / n
    axes.errorbar(share, y, xerr=[[share - low], [high - share]], capsize=3, **marks)  # type: ignore[arg-type]


def curve_figure(results: Results, curve: str) -> Figure:
    """One of `CURVES` by epoch, for every cell: the median over seeds, and a band from the lowest to the highest."""
    drawn = {cell: how for cell, how in looks(results.study).items() if results.by_cell[cell]}
    panels = list(dict.fromkeys(how.panel for how in drawn.values()))
    columns = min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    width = max(5 * columns, 1 + 0.085 * max(len(how.label) for how in drawn.values()))  # one entry of the legend
    figure = Figure(figsize=(max(6.5, width), 0.9 + 3.6 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        for cell, how in drawn.items():
            if how.panel == panel:
                draw_curve(axes, results, cell, curve, how.colour, how.style, how.label)
        finish_curves(axes, results, curve)
        axes.set_title("\n".join(wrap(panel, 60)), fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    figure.supylabel(f"{CURVES[curve]}; median over seeds, band: all seeds", fontsize=10)
    place_legend(figure, [line for axes in figure.axes for line in axes.get_lines()])
    figure.suptitle(f"{CURVES[curve].partition(' (')[0].capitalize()} by epoch", weight="bold")
    return figure


def draw_curve(axes: Axes, results: Results, cell: Cell, curve: str, colour: str, style: str, label: str) -> None:
    """Draw the curve of one cell."""
    outcomes = [outcome for outcome in results.by_cell[cell].values() if curve in outcome]
    if not outcomes:
        return
    epochs = outcomes[0]["epochs"]
    # A diverged loss is None in a row; as NaN it leaves a gap in the curve.
    curves = np.array([outcome[curve] for outcome in outcomes if outcome["epochs"] == epochs], dtype=float)
    if len(curves) > 1:
        axes.fill_between(epochs, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.12, lw=0)
    axes.plot(epochs, np.median(curves, axis=0), style, color=colour, label=label, lw=1.8)
    for length in np.cumsum([stage.epochs for stage in cell.recipe.stages])[:-1]:
        axes.axvline(length + 0.5, color=GREY, lw=0.8, ls=":")


def finish_curves(axes: Axes, results: Results, curve: str) -> None:
    """Set scale and grid, and mark the loss of a uniform guess."""
    vocabularies = {cell.recipe.config.vocab_size for cell in results.study.cells}
    if curve == "loss" and len(vocabularies) == 1:
        size = vocabularies.pop()
        axes.axhline(math.log(size), color=RED, lw=1)
        axes.annotate(
            f"ln {size} = {math.log(size):.2f}: knows nothing", (1, math.log(size)),
            xycoords=("axes fraction", "data"), xytext=(-4, -3), textcoords="offset points",
            color=RED, ha="right", va="top", fontsize=9,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
