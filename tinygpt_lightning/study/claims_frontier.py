"""How small a model can learn the sentence, and in how many steps; and why no smaller one can."""

from __future__ import annotations

from itertools import chain, count, product, takewhile
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from typing_extensions import override

from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.study.claims import Claims, table
from tinygpt_lightning.study.claims_riddle import symbols
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.figures import BLACK, GREY, RED
from tinygpt_lightning.study.recipe import Recipe
from tinygpt_lightning.study.statistics import clopper_pearson

MOST_WITHOUT_BIAS = 3  # different symbols that a model of width 2 without biases can generate
OPEN = 0.01  # "every seed" needs a 95 % interval whose lower end is above 1 - OPEN


# Parameters and steps (epochs of all stages together) of results that the original's author published, of one run each.
# github.com/Mr-Jack-Tung/oneChatGPT: sizes as its training scripts print them, steps as they are set there. The last
# folder's transcript is of width 1,020; with the settings that are in it now, its model has 7,928,064 parameters.
RECORDS = (
    (780, 100 * 100),  # Single_Block_GPT2_0,8k_params_OMG
    (3_492, 50 * 50),  # Single_Block_GPT2_3,5k_params_OMG
    (34_704, 10 * 30),  # Single_Block_GPT2_35k_params
    (13_613_940, 2 * 30),  # Single_Block_GPT2_No_depend
)


class Point(NamedTuple):
    """A cell of the frontier, with ``k`` of ``n`` seeds exact after ``steps``, the epochs of all stages together."""

    cell: Cell
    parameters: int
    steps: int
    k: int
    n: int

    @property
    def size(self) -> str:
        """Name of the size, in short lines."""
        return (self.cell.control or next(iter(self.cell.levels.values()), "")).replace(", ", ",\n")

    @property
    def interval(self) -> str:
        """The exact seeds with the Clopper-Pearson interval of their fraction."""
        low, high = clopper_pearson(self.k, self.n)
        return f"{self.k} of {self.n} seeds (95 % interval {100 * low:.1f}–{100 * high:.1f} %)"


class Frontier(Claims):
    """The fraction of seeds that become exact, by the model's size and the number of steps."""

    @property
    def points(self) -> list[Point]:
        """All cells that have runs, smallest model first."""
        points = []
        for cell, outcomes in self.results.by_cell.items():
            if outcomes:
                k = sum(outcome["exact"] for outcome in outcomes.values())
                steps = sum(stage.epochs for stage in cell.recipe.stages)
                points.append(Point(cell, n_parameters(cell.recipe.config), steps, k, len(outcomes)))
        return sorted(points, key=lambda point: (point.parameters, point.steps))

    @property
    def smallest(self) -> Point | None:
        """The smallest model that any seed learns, at the length at which most seeds learn it."""
        learnt = [point for point in self.points if point.k]
        return min(learnt, key=lambda point: (point.parameters, -point.k / point.n), default=None)

    @override
    def shortcoming(self) -> str | None:
        if reason := self.gap():
            return reason
        if not self.smallest:
            return "no network learns the sentence"
        n = len(self.results.seeds)
        is_open = clopper_pearson(n, n)[0] < 1 - OPEN
        return f"{n} seeds leave more than {100 * OPEN:.0f} % of all seeds open, whatever they do" if is_open else None

    @override
    def sentences(self) -> list[str]:
        points, smallest = self.points, self.smallest
        if smallest is None:
            return [f"**None of {len(self.results.runs)} runs learns the sentence.**"]
        found = [
            f"**The smallest network that any seed learns has {smallest.parameters:,} parameters**: exact in "
            f"{smallest.interval} after {smallest.steps:,} steps."
        ]
        if every := next((point for point in points if point.k == point.n), None):
            same = every.parameters == smallest.parameters
            which = "this one, too" if same else f"one of {every.parameters:,} parameters"
            found.append(f"The smallest one that every seed learns is {which}, in {every.steps:,} steps.")
        bound = smallest_possible(smallest.cell.recipe)
        if bound and smallest.parameters == n_parameters(bound):
            runs = sum(point.n for point in points if point.parameters < smallest.parameters)
            found.append(
                f"In real arithmetic no smaller one exists within one block of GPT-2 with {bound.vocab_size} symbols, "
                f"{bound.n_positions} positions and all biases or none, as is proved below"
                + (f"; of {runs:,} runs of smaller ones none is exact." if runs else ".")
            )
        parameters, steps = RECORDS[0]
        return [*found, f"The original's author published a record of {parameters} parameters in {steps:,} steps."]

    @override
    def sections(self) -> list[str]:
        if not self.points:
            return []
        recipe = self.points[0].cell.recipe
        argument = proof(recipe)
        found = ["![frontier](frontier.png)", *(["## Why no smaller one exists", *argument] if argument else [])]
        rows = []
        for point in self.points:
            if point.k == 0:
                answers = [symbols(o["text"])[len(recipe.prompt) :] for o in self.results.by_cell[point.cell].values()]
                most = max(len(set(answer)) for answer in answers)
                rows.append([point.cell.name, f"{point.parameters:,}", f"{point.steps:,}", point.interval, str(most)])
        header = ["cell", "parameters", "steps", "exact", "most different symbols in an answer"]
        beside = ["Beside it, the cells in which no seed becomes exact:", table(header, rows)]
        return [*found, *(beside if rows else [])]

    @override
    def figures(self) -> dict[str, Figure]:
        return {"frontier": frontier_figure(self.points)} if self.points else {}


def frontier_figure(points: list[Point]) -> Figure:
    """Fraction of exact seeds by size and steps, and the results that the original's author published."""
    sizes = {(point.parameters, point.size) for point in points}
    known = {parameters for parameters, _ in sizes}
    sizes |= {(parameters, "") for parameters, _ in RECORDS if parameters not in known}
    places = {size: x for x, size in enumerate(sorted(sizes))}
    figure = Figure(figsize=(2.2 + 1.15 * len(places), 6.5), layout="constrained")
    axes = figure.add_subplot()
    xs, percent = [places[point.parameters, point.size] for point in points], [100 * p.k / p.n for p in points]
    steps = [point.steps for point in points]
    shares = axes.scatter(xs, steps, c=percent, cmap="viridis", vmin=0, vmax=100, s=1600, edgecolors=GREY)
    for x, point, share in zip(xs, points, percent, strict=True):
        low, high = clopper_pearson(point.k, point.n)
        colour = "white" if share < 60 else BLACK
        for text, height, size in ((f"{share:.4g}", 4, 9), (f"{100 * low:.1f}–{100 * high:.1f}", -6, 6)):
            axes.annotate(
                text, (x, point.steps), (0, height), textcoords="offset points", ha="center", va="center",
                color=colour, fontsize=size,
            )  # fmt: skip
    for record, step in RECORDS:
        x = next(x for (parameters, _), x in places.items() if parameters == record)
        axes.scatter(x, step, marker="*", s=320, color=RED)
    axes.set_xticks(range(len(places)), [f"{parameters:,}\n{size}" for parameters, size in places], fontsize=9)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_yscale("log")
    axes.margins(y=0.12)
    axes.set_xlabel("parameters")
    axes.set_ylabel("steps")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.colorbar(shares, label="seeds that say the sentence exactly, %", shrink=0.8)
    star = Line2D([], [], marker="*", ls="", markersize=14, color=RED)
    words = "published by the original's author, one run each"
    figure.legend([star], [words], loc="outside lower center", frameon=False)
    about = "seeds that say the sentence exactly, in %, with 95 % Clopper–Pearson intervals"
    figure.suptitle(f"How small, and how long: {about}", weight="bold")
    return figure


def least(recipe: Recipe, width: int, *, bias: bool, tied: bool) -> GPTConfig:
    """The smallest model of a kind that has a position for each character that it reads."""
    # The last character is generated and not read, so it needs no position.
    n_positions = (recipe.taught.max_length or 0) - 1
    return GPTConfig(recipe.config.vocab_size, n_positions, width, 1, n_inner=1, bias=bias, tie_weights=tied)


def smallest_possible(recipe: Recipe) -> GPTConfig | None:
    """The smallest model that can generate the answer; None if the answer has too few symbols for the proof."""
    return least(recipe, 2, bias=True, tied=True) if _symbols(recipe) > MOST_WITHOUT_BIAS else None


def kinds_below(recipe: Recipe, parameters: int) -> list[GPTConfig]:
    """The smallest model of every kind (width, biases, tied weights) that has one with fewer parameters.

    GPT-2's other options only add parameters (a wider MLP, more positions) or none (heads).
    """
    by_width = ([least(recipe, w, bias=b, tied=t) for b, t in product((False, True), repeat=2)] for w in count(1))
    smaller = ([config for config in kinds if n_parameters(config) < parameters] for kinds in by_width)
    return list(chain.from_iterable(takewhile(bool, smaller)))


def proof(recipe: Recipe) -> list[str]:
    """The proof in Markdown; empty if it does not hold for this sentence."""
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
        "- Width 3 has more parameters in its embeddings alone.",
        f"This is about real numbers. Floating point has two counter-examples, which were built and are tests of this "
        "project: a curiosity of arithmetic that shows what the proof assumes. *220 parameters in float32*, width 2 "
        "without biases: the logits of all symbols from some id on overflow to infinity, and argmax takes the first of "
        "them, so that u chooses the id. *106 parameters in bfloat16*, width 1: the same overflow, and there LayerNorm "
        "of one number is not constant, but a rounding error that depends on the number. The vocabulary counts too: "
        f"without `<pad>` and `<unk>`, which the sentence lacks, it would have {V - 2} symbols, and the smallest model "
        f"{parameters - 2 * config.n_embd} parameters.",
    ]


def _symbols(recipe: Recipe) -> int:
    return len(set(recipe.text[len(recipe.prompt) :]))
