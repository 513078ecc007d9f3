"""The riddle: why two stages of 30 epochs reproduce the sentence, and one stage of 300 does not."""

from __future__ import annotations

import re

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from typing_extensions import override

from tinygpt_lightning.gpt.tokenizer import PAD, UNK
from tinygpt_lightning.study.claims import Claims, table
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.figures import GREY
from tinygpt_lightning.study.findings import Comparison, compare, shown_p
from tinygpt_lightning.study.outcome import Outcome, as_trained

COLUMNS = 32  # symbols in a line of the figure
GIVEN, RIGHT, WRONG = "#eeeeee", "#cfe8f7", "#f7cdb8"


class Riddle(Claims):
    """The original project's claims about its stages, and the evidence of the rows."""

    @property
    def predicted(self) -> int:
        """Number of runs whose exactness the vocabularies alone predict."""
        return sum(outcome["exact"] == same_vocabulary(cell) for cell, _, outcome in self.results.runs)

    @property
    def networks(self) -> int:
        """Number of different networks among the runs: those of one seed with one loss curve and end are the same."""
        return len({(seed, o["final_loss_dropout_off"], tuple(o["loss"])) for _, seed, o in self.results.runs})

    @property
    def example(self) -> tuple[Cell, int] | None:
        """The run to show: the first inexact one that is exact in the vocabulary of training, or the first run."""
        runs = self.results.runs
        misread = [run for run in runs if not run[2]["exact"] and as_trained(run[2], "exact")]
        return next(((cell, seed) for cell, seed, _ in misread or runs), None)

    @override
    def own_contrasts(self) -> list[Comparison]:
        found = []
        for within, renumbered in (("ids kept", False), ("renumbered on reload", True)):
            cells = [cell for cell in self.results.study.cells if cell.recipe.renumber == renumbered]
            sides = [cell for cell in cells if staged(cell)], [cell for cell in cells if not staged(cell)]
            strata = [sides] if all(sides) else []
            found.append(compare(self.results, "the number of stages", within, ("several", "one"), strata, None))
        return [comparison for comparison in found if comparison]

    @override
    def headline(self) -> list[str]:
        runs = len(self.results.runs)
        if self.predicted == runs and set(self.established) & set(self.varying("renumber")):
            return [
                "**What decides is whether the last stage was trained on the vocabulary that is used to read.**",
                f"This alone predicts all {runs} runs.",
            ]
        return [*super().headline(), f"The vocabularies alone predict {self.predicted} of {runs} runs."]

    @override
    def remarks(self) -> list[str]:
        rescued = [as_trained(outcome, "exact") for _, _, outcome in self.results.runs if not outcome["exact"]]
        rescue = (
            f"Of the {len(rescued)} runs that are not exact, {sum(rescued)} are when the same weights are read with "
            "the vocabulary they were trained on."
        )
        return [*([rescue] if rescued else []), *self.without_effect()]

    @override
    def sections(self) -> list[str]:
        sections = [
            "## What holds of the original's findings",
            table(["claim", "verdict", "evidence"], verdicts(self)),
            f"{len(self.results.runs)} rows are {self.networks} different networks: the vocabulary that is read "
            "changes no training of one stage, and a kept optimizer with carried weights is one long stage. A shorter "
            "single stage is the beginning of a longer one. Where all runs are exact, exactness is at its ceiling and "
            "shows no difference between them; epochs to exactness and shorter last stages can.",
        ]
        if self.example:
            cell, seed = self.example
            sections += [
                "## What the network said",
                f"{cell.name}, seed {seed}: one set of weights, read with two vocabularies.",
                "![The cipher](cipher.png)",
                cipher_text(self.results.by_cell[cell][seed], cell.recipe.text),
            ]
        return sections

    @override
    def figures(self) -> dict[str, Figure]:
        figures = super().figures()
        if self.example:
            cell, seed = self.example
            figures["cipher"] = cipher_figure(cell, seed, self.results.by_cell[cell][seed])
        return figures


def staged(cell: Cell) -> bool:
    """Whether there is more than one stage."""
    return len(cell.recipe.stages) > 1


def same_vocabulary(cell: Cell) -> bool:
    """Whether the last stage trains with the vocabulary that generation uses: the predicted exactness."""
    return not cell.recipe.renumber or staged(cell)


def verdicts(claims: Riddle) -> list[tuple[str, str, str]]:
    """The original's claims that the design tests: claim, verdict, evidence."""
    by_cell = claims.results.by_cell
    original = [cell for cell in by_cell if cell.recipe.renumber and by_cell[cell]]
    found = []
    for cell in original:
        later = cell.recipe.stages[1:]
        if later and all(stage.keeps_nothing and stage.weights == "carried" for stage in later):
            exact = [outcome["exact"] for outcome in by_cell[cell].values()]
            lengths = "+".join(str(stage.epochs) for stage in cell.recipe.stages)
            claim = f"stages of {lengths} epochs, with everything rebuilt, reproduce the sentence"
            verdict = "holds" if all(exact) else "does not hold throughout"
            found.append((claim, verdict, f"exact in {sum(exact)} of {len(exact)} runs"))
    single = [outcome for cell in original if not staged(cell) for outcome in by_cell[cell].values()]
    if single:
        k = sum(outcome["exact"] for outcome in single)
        trained = sum(as_trained(outcome, "exact") for outcome in single)
        verdict = "does not hold throughout" if k else "holds, as it is read back"
        evidence = f"exact in {k} of {len(single)} runs; with the vocabulary of training the same weights in {trained}"
        found.append(("one stage, however long, does not", verdict, evidence))
    for claim, setting in (
        ("re-initialising the optimizer is a key factor", "reset_optimizer"),
        ("the first stage is essential: it gives the next one better weights", "weights"),
    ):
        about = [each for each in claims.primary if each.factor in claims.varying(setting)]
        if about:
            verdict = "holds" if any(each.established for each in about) else "no effect on exactness established"
            tests = [
                f"{e.within}: {e.levels[0]} {e.shown[0]}, {e.levels[1]} {e.shown[1]}, p {shown_p(e.p)}" for e in about
            ]
            found.append((claim, verdict, "; ".join(tests)))
    return found


def symbols(text: str) -> list[str]:
    """Split a decoded text into its symbols.

    >>> symbols("<pad>iq")
    ['<pad>', 'i', 'q']
    """
    return re.findall(f"{PAD}|{UNK}|.", text, flags=re.DOTALL)


def cipher_text(outcome: Outcome, text: str) -> str:
    """The sentence and both generated texts, one place for each symbol: □ is `<pad>`, ■ is `<unk>`."""
    marks = {PAD: "□", UNK: "■", "\n": "⏎"}
    readings = _readings(outcome, text)
    lines = [f"{name:22}  {''.join(marks.get(symbol, symbol) for symbol in reading)}" for name, reading in readings]
    return "\n".join(["```", *lines, "```"])


def cipher_figure(cell: Cell, seed: int, outcome: Outcome) -> Figure:
    """The sentence and both generated texts as a figure, with wrong symbols in another colour."""
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
    about = f"({cell.name}, seed {seed}): one set of weights, two vocabularies"
    figure.suptitle(f"What the network said {about}", weight="bold")
    patches = [Rectangle((0, 0), 1, 1, facecolor=colour, edgecolor="white") for colour in (GIVEN, RIGHT, WRONG)]
    figure.legend(patches, ["given", "right", "wrong"], loc="outside lower center", ncols=3, frameon=False)
    return figure


def _readings(outcome: Outcome, text: str) -> list[tuple[str, list[str]]]:
    texts = {"the sentence": text, "vocabulary of training": as_trained(outcome, "text")}
    return [(name, symbols(each)) for name, each in {**texts, "as read back": outcome["text"]}.items()]


def _draw_character(axes: Axes, x: float, y: float, character: str, colour: str) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", lw=1.5))
    size, colour = 8 if len(character) > 1 else 13, GREY if character in (" ", "\n") else "black"
    shown = {" ": "␣", "\n": "↵"}.get(character, character.strip("<>") if len(character) > 1 else character)
    axes.text(x + 0.5, y + 0.54, shown, ha="center", va="center", fontsize=size, color=colour)
