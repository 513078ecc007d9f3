"""When a new optimizer every few epochs helps, and when it harms: with one pair and with many, until all are exact."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from typing_extensions import override

from tinygpt_lightning.study.claims import Claims, listed, shown, table
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.findings import Comparison, corrected, shown_p
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.rows import Results

AFTER = 3  # epochs behind a reset in which the loss is looked at
UNDECIDED = "makes no established difference"


class Many(Claims):
    """Epochs to exactness with the optimizer kept or new, at each level of the factor ``pairs``."""

    def __init__(self, results: Results) -> None:
        super().__init__(results)
        # What the pairs themselves do is no question here, and would only cost the correction.
        self.primary = corrected([each for each in self.primary if each.factor == "optimizer"])
        self.every = min(cell.recipe.stages[0].epochs for cell in results.study.cells)

    @override
    def headline(self) -> list[str]:
        found: dict[str, list[str]] = {"helps": [], "harms": [], UNDECIDED: []}
        for each in self.primary:
            found[self._verdict(each)].append(_pairs(each))
        parts = [f"{verdict} with {listed(pairs)}" for verdict, pairs in found.items() if pairs]
        return [f"**A new optimizer every {self.every} epochs {'; it '.join(parts) or UNDECIDED} (pairs).**"]

    @override
    def evidence(self) -> list[str]:
        epochs = "; ".join(f"{_pairs(each)}: {' / '.join(each.shown)}" for each in self.primary)
        about = f"(medians of {len(self.results.seeds)} seeds, each at its best learning rate)"
        levels = " / ".join(self.primary[0].levels) if self.primary else ""
        return [f"Epochs until all pairs are exact, {levels} {about}: {epochs}."] if levels else []

    @override
    def remarks(self) -> list[str]:
        return [] if "helps" in map(self._verdict, self.primary) else list(WHY)

    @override
    def sections(self) -> list[str]:
        header, rows = ["pairs", "epochs", "exact seeds", "p (Holm)", "a new optimizer", "rise of the loss"], []
        for each in self.primary:
            sides = [self.results.by_cell[cell].values() for cell in self._cells(each)]
            exact = " / ".join(str(sum(outcome["exact"] for outcome in side)) for side in sides)
            rises = " / ".join(shown(rise(list(side), self.every)) for side in sides)
            p = shown_p(each.p_holm or 0).removeprefix("= ")
            rows.append([_pairs(each), " / ".join(each.shown), exact, p, self._verdict(each), rises])
        return [
            "## When a reset helps",
            table(header, rows),
            "Two numbers are those of the optimizer kept / new. *Rise of the loss*: the highest training loss of the "
            f"{AFTER} epochs behind every {self.every}th, over the loss of that epoch; the median. Where all runs are "
            "exact before, there is none.",
        ]

    def _cells(self, each: Comparison) -> list[Cell]:
        """The two cells of a comparison, in the order of its levels."""
        at = {cell.levels["optimizer"]: cell for cell in self.results.by_cell if cell.levels["pairs"] == _pairs(each)}
        return [at[level] for level in each.levels]

    def _verdict(self, each: Comparison) -> str:
        epochs = [[o["epochs_of_run_to_exact"] for o in self.results.by_cell[c].values()] for c in self._cells(each)]
        end = sum(stage.epochs for stage in self._cells(each)[0].recipe.stages)
        kept, new = (sum(epoch or end + 1 for epoch in side) for side in epochs)
        return UNDECIDED if not each.established else "helps" if new < kept else "harms"


def rise(outcomes: Sequence[Outcome], every: int) -> float | None:
    """The highest loss of the epochs behind each reset, over the loss before it: the median.

    >>> rise([{"epochs": [1, 2, 3, 4], "loss": [4.0, 2.0, 3.0, 1.0]}], every=2)
    1.5
    """
    found = []
    for outcome in outcomes:
        loss = dict(zip(outcome["epochs"], outcome["loss"], strict=True))
        for epoch in range(every, max(loss), every):
            behind = [loss[later] for later in range(epoch + 1, epoch + 1 + AFTER) if later in loss]
            if None not in (loss[epoch], *behind):
                found.append(max(behind) / loss[epoch])
    return median(found) if found else None


def _pairs(each: Comparison) -> str:
    return each.within.removeprefix("pairs ")


# In the report only if the rows agree with it.
WHY = (
    "A reset costs, as far as the rows say: the loss rises behind it. A new AdamW has no averages yet, so its first "
    "updates are about as long as the learning rate in every weight, whatever the gradient.",
    "That helps where the second moment still holds gradients much larger than those of today, as late in the "
    "training of one sentence at a rate that is too low (`reset.yaml`); many pairs are exact before that.",
)
