"""How small a network can learn the sentence, and in how many steps: what the rows say, and what can be proved."""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from typing_extensions import override

from tinygpt_lightning.study.cipher import symbols
from tinygpt_lightning.study.claims import Claims
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.figures import BLACK, GREY, RED
from tinygpt_lightning.study.markdown import table
from tinygpt_lightning.study.proof import proof, smallest_possible
from tinygpt_lightning.study.recipe import Recipe, n_parameters
from tinygpt_lightning.study.statistics import clopper_pearson

OPEN = 0.01  # the share of seeds that "every seed" may leave open, at the 95 % interval's lower end


class Record(NamedTuple):
    """What the original's author published: one run each.

    Args:
        parameters: Numbers that are trained.
        steps: Epochs of all stages together.
        folder: Of the original's repository.
    """

    parameters: int
    steps: int
    folder: str


# github.com/Mr-Jack-Tung/oneChatGPT: sizes as its training scripts print them, steps as they are set there.
RECORDS = (
    Record(780, 100 * 100, "Single_Block_GPT2_0,8k_params_OMG"),
    Record(3_492, 50 * 50, "Single_Block_GPT2_3,5k_params_OMG"),
    Record(34_704, 10 * 30, "Single_Block_GPT2_35k_params"),
    Record(7_928_064, 2 * 30, "Single_Block_GPT2_No_depend"),
)


class Point(NamedTuple):
    """A cell of the frontier.

    Args:
        cell: The cell.
        parameters: Of its network.
        steps: Epochs of all stages together.
        k: Seeds that become exact.
        n: Seeds.
    """

    cell: Cell
    parameters: int
    steps: int
    k: int
    n: int

    @property
    def size(self) -> str:
        """Its name, in lines that are short."""
        cell = self.cell
        return (cell.control or next(iter(cell.levels.values()), "")).replace(", ", ",\n")

    @property
    def interval(self) -> str:
        """The share of exact seeds with its exact interval."""
        low, high = clopper_pearson(self.k, self.n)
        return f"{self.k} of {self.n} seeds (95 % interval {100 * low:.1f}–{100 * high:.1f} %)"


class Frontier(Claims):
    """Which share of seeds becomes exact, over the network's size and the number of steps."""

    @property
    def points(self) -> list[Point]:
        """All cells that have runs, smallest network first."""
        found = []
        for cell, outcomes in self.results.by_cell.items():
            if outcomes:
                k = sum(outcome["exact"] for outcome in outcomes.values())
                steps = sum(stage.epochs for stage in cell.recipe.stages)
                found.append(Point(cell, n_parameters(cell.recipe.config), steps, k, len(outcomes)))
        return sorted(found, key=lambda point: (point.parameters, point.steps))

    @property
    def smallest(self) -> Point | None:
        """The smallest network that any seed learns, where most of them do."""
        learnt = [point for point in self.points if point.k]
        if not learnt:
            return None
        least = learnt[0].parameters
        return max((point for point in learnt if point.parameters == least), key=lambda point: point.k / point.n)

    @property
    def every(self) -> Point | None:
        """The smallest network that every seed learns, in the fewest steps."""
        return next((point for point in self.points if point.k == point.n), None)

    @override
    def shortcoming(self) -> str | None:
        if reason := self.gap():
            return reason
        if not self.smallest:
            return "no network learns the sentence"
        n = len(self.results.seeds)
        if clopper_pearson(n, n).low < 1 - OPEN:
            return f"{n} seeds leave more than {100 * OPEN:.0f} % of all seeds open, whatever they do"
        return None

    @override
    def sentences(self) -> list[str]:
        smallest, every = self.smallest, self.every
        if smallest is None:
            return [f"**None of {len(self.results.runs)} runs learns the sentence.**"]
        found = [
            f"**The smallest network that any seed learns has {smallest.parameters:,} parameters**: exact in "
            f"{smallest.interval} after {smallest.steps:,} steps."
        ]
        if every:
            same = (
                "this one, too"
                if every.parameters == smallest.parameters
                else f"one of {every.parameters:,} parameters"
            )
            found.append(f"The smallest one that every seed learns is {same}, in {every.steps:,} steps.")
        bound = smallest_possible(smallest.cell.recipe)
        if bound and smallest.parameters == n_parameters(bound):
            smaller = [point for point in self.points if point.parameters < smallest.parameters]
            runs = sum(point.n for point in smaller)
            found.append(
                "No smaller one exists within GPT-2's options, as is proved below"
                + (f"; of {runs:,} runs of smaller ones none is exact." if runs else ".")
            )
        least, steps = RECORDS[0].parameters, RECORDS[0].steps
        return [*found, f"The original's author published a record of {least} parameters in {steps:,} steps."]

    @override
    def sections(self) -> list[str]:
        if not self.points:
            return []
        recipe = self.points[0].cell.recipe
        argument = proof(recipe)
        return [
            "![frontier](frontier.png)",
            *(["## Why no smaller one exists", *argument] if argument else []),
            *self._experiment(recipe),
        ]

    def _experiment(self, recipe: Recipe) -> list[str]:
        rows = []
        for point in self.points:
            if point.k == 0:
                answers = [symbols(o["text"])[len(recipe.prompt) :] for o in self.results.by_cell[point.cell].values()]
                most = max(len(set(answer)) for answer in answers)
                rows.append([point.cell.name, f"{point.parameters:,}", f"{point.steps:,}", point.interval, str(most)])
        if not rows:
            return []
        header = ["cell", "parameters", "steps", "exact", "most different symbols in an answer"]
        return ["Beside it, the cells in which no seed becomes exact:", table(header, rows)]

    @override
    def figures(self) -> dict[str, Figure]:
        return {"frontier": frontier_figure(self.points)} if self.points else {}


def frontier_figure(points: list[Point]) -> Figure:
    """Share of exact seeds by size and steps, with what the original's author published."""
    sizes = {(point.parameters, point.size) for point in points}
    known = {parameters for parameters, _ in sizes}
    sizes |= {(record.parameters, "") for record in RECORDS if record.parameters not in known}
    places = {size: x for x, size in enumerate(sorted(sizes))}
    figure = Figure(figsize=(2.2 + 1.15 * len(places), 6.5), layout="constrained")
    axes = figure.add_subplot()
    xs = [places[point.parameters, point.size] for point in points]
    shares = axes.scatter(
        xs, [point.steps for point in points], c=[100 * point.k / point.n for point in points],
        cmap="viridis", vmin=0, vmax=100, s=1600, edgecolors=GREY,
    )  # fmt: skip
    for x, point in zip(xs, points, strict=True):
        share = 100 * point.k / point.n
        low, high = clopper_pearson(point.k, point.n)
        colour = "white" if share < 60 else BLACK
        for text, height, size in ((f"{share:.4g}", 4, 9), (f"{100 * low:.1f}–{100 * high:.1f}", -6, 6)):
            axes.annotate(
                text, (x, point.steps), (0, height), textcoords="offset points", ha="center", va="center",
                color=colour, fontsize=size,
            )  # fmt: skip
    for record in RECORDS:
        x = next(x for (parameters, _), x in places.items() if parameters == record.parameters)
        axes.scatter(x, record.steps, marker="*", s=320, color=RED)
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
    figure.suptitle(
        "How small, and how long: seeds that say the sentence exactly, in %, with 95 % Clopper–Pearson intervals",
        weight="bold",
    )
    return figure
