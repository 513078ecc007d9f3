"""What a new optimizer does: which entries of AdamW's state must be reset, and what larger steps alone explain."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median

from matplotlib.figure import Figure
from typing_extensions import override

from tinygpt_lightning.study.claims import Claims, listed, spread, table
from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.figures import BLACK, COLOURS, CURVES, draw_curve, finish_curves, place_legend
from tinygpt_lightning.study.findings import SIGNIFICANCE, SMALLEST
from tinygpt_lightning.study.recipe import ADAMS_STATE
from tinygpt_lightning.study.rows import Results
from tinygpt_lightning.study.statistics import holm, mean_interval, sign_flip

CARRIES = 0.9  # least fraction of the reset's effect that counts as nearly all of it


class Reset(Claims):
    """The effect on the loss of a reset of AdamW's `exp_avg`, `exp_avg_sq` and `step`, each alone and together."""

    def __init__(self, results: Results) -> None:
        super().__init__(results)
        self.shares = shares(results)

    @property
    def factorial(self) -> dict[frozenset[str], Share]:
        """The combinations of levels, by the entries that are reset."""
        return {share.new: share for share in self.shares if share.cell.control is None}

    @property
    def carriers(self) -> list[frozenset[str]]:
        """The smallest sets of entries whose reset has nearly all of the effect."""
        enough = [new for new, share in self.factorial.items() if share.carries]
        return [new for new in enough if not any(other < new for other in enough)]

    @override
    def shortcoming(self) -> str | None:
        if self.results.missing:
            return "not all runs are there"
        # A cell that diverges is a result here; but without these two there is nothing to compare.
        whole = self.factorial.get(WHOLE)
        if whole is None or whole.mean is None:
            return "the reset does not lower the final loss of every seed"
        return None if whole.p < SIGNIFICANCE else f"{len(self.results.seeds)} seeds establish no effect of the reset"

    @override
    def sentences(self) -> list[str]:
        seeds, factorial = len(self.results.seeds), self.factorial
        if self.shortcoming():
            return [f"**With {seeds} seeds no effect of the reset on the final loss is established.**"]
        carriers = [listed(sorted(carrier)) for carrier in self.carriers]
        least = min(self.carriers, key=len)
        found = [
            f"**What carries the reset's effect on the loss is a reset of {' or '.join(carriers)}.**",
            f"The final loss is then {factorial[least].loss}, with everything new it is {factorial[WHOLE].loss}, with "
            f"everything kept {factorial[frozenset()].loss} (medians of {seeds} seeds).",
        ]
        parts = [
            f"{listed(sorted(new))} alone ends at {share.loss}"
            + (f", above the loss of knowing nothing in {share.exploded} seeds" if share.exploded else "")
            for new, share in factorial.items()
            if new and new < least
        ]
        found += [f"Less is not enough: {'; '.join(parts)}."] if parts else []
        larger = [share for share in self.shares if share.cell.recipe.stages[-1].first_update == "as_new"]
        for share in larger[:1]:
            factor = spread(outcome["learning_rate_factor"] for outcome in self.results.by_cell[share.cell].values())
            part = "a part that cannot be told" if share.mean is None else f"{100 * share.mean:.0f} %"
            found.append(
                f"Step size alone explains {part} of the effect on the loss's logarithm: with everything kept and the "
                f"learning rate times {factor}, so that the first update is as large as the reset's, the final loss is "
                f"{share.loss}."
            )
        return found

    @override
    def sections(self) -> list[str]:
        if not self.shares:
            return []
        rows = [
            [
                share.cell.name, share.loss, str(share.exploded), "–" if share.mean is None else f"{share.mean:.3f}",
                "–" if share.interval is None else "{:.3f} to {:.3f}".format(*share.interval),
                f"{share.lower} / {share.higher}", f"{share.p:.2g}",
            ]
            for share in self.shares
        ]  # fmt: skip
        header = ["cell", "final loss, median", "seeds above knowing nothing", "share of the reset's effect"]
        header += ["95 % interval", "seeds lower / higher than kept", "p (Holm)"]
        return [
            "## What each part of the state does",
            table(header, rows),
            "Share: how far the logarithm of the final loss (dropout off) goes from that of everything kept, 0, to "
            "that of everything new, 1; mean over the seeds, each compared with itself, with Student's "
            f"interval. From {CARRIES} on, a part is said to carry the effect. p: sign test against everything kept. "
            "*Seeds above knowing nothing*: the loss at the end is above that of a uniform guess, or no number.",
            *([WHY] if self.carriers == [MOMENTS] else []),
        ]

    @override
    def figures(self) -> dict[str, Figure]:
        found = super().figures()
        return {"reset": self._figure([name for name in CURVES if name in found]), **found} if self.shares else found

    def _figure(self, curves: list[str]) -> Figure:
        figure = Figure(figsize=(7 * len(curves), 5.6), layout="constrained")
        for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False).flat, curves, strict=True):
            for share in self.shares:
                first, second, step = (name in share.new for name in ADAMS_STATE)
                label = f"new: {listed(sorted(share.new))}" if share.new else "everything kept"
                looks = COLOURS[2 * first + second], "-" if step else "--", label
                control = share.cell.control
                draw_curve(axes, self.results, share.cell, curve, *((BLACK, "-.", control) if control else looks))
            finish_curves(axes, self.results, curve)
            axes.set_ylabel(CURVES[curve])
        place_legend(figure, figure.axes[0].get_lines())
        figure.suptitle("What starts anew at the boundary; medians over seeds, band: all seeds", weight="bold")
        return figure


WHOLE, MOMENTS = frozenset(ADAMS_STATE), frozenset({"exp_avg", "exp_avg_sq"})
# In the report only if the rows agree with it.
WHY = (
    "Why, as far as arithmetic goes: AdamW divides the first moment by the root of the second. The second one, kept, "
    "still holds the large gradients of the beginning, so every step is small; anew, it holds those of today, and the "
    "step is about the learning rate in each weight, however small the gradients have become. The first moment, kept, "
    "is of yesterday's size: divided by a second moment of today's size it is far too large a step, once. "
    "(Others reset them on purpose: Asadi et al. 2023, arXiv 2306.17833, both moments between the iterations of "
    "reinforcement learning; Ellis et al. 2024, arXiv 2412.17113, Adam-Rel, the step count, which is a cell here; "
    "SPAM, arXiv 2501.06842, both moments, followed by a warm-up; AdaR, IJCAI 2025, both moments on a cycle. Abduweili "
    "and Liu 2024, arXiv 2412.02153, are about the second moment's start from zero.)"
)


@dataclass(frozen=True)
class Share:
    """The fraction of the whole reset's effect on the logarithm of the final loss that a cell has.

    It is 0 with everything kept, and 1 with everything new. None stands for a fraction if a loss is NaN or inf, or the
    whole reset does not lower the loss of every seed.
    """

    cell: Cell
    losses: list[float | None]  # final losses, dropout off; None for NaN and inf
    lower: int  # seeds whose loss is lower than with everything kept
    higher: int
    mean: float | None  # of the fraction, over the seeds
    interval: tuple[float, float] | None  # Student's 95 % interval of the mean
    p: float  # of the two-sided sign test against everything kept, after Holm's correction

    @property
    def new(self) -> frozenset[str]:
        """The entries that are reset."""
        last = self.cell.recipe.stages[-1]
        return frozenset(name for name in ADAMS_STATE if not last.keeps(name))

    @property
    def exploded(self) -> int:
        """Number of seeds whose final loss is above that of a uniform guess, NaN or inf."""
        return sum(loss is None or loss > math.log(self.cell.recipe.config.vocab_size) for loss in self.losses)

    @property
    def loss(self) -> str:
        """The median final loss, as text."""
        known = [loss for loss in self.losses if loss is not None]
        return f"{median(known):.2g} nats" if known else "no number"

    @property
    def carries(self) -> bool:
        """Whether the cell has nearly all of the effect."""
        return self.mean is not None and self.mean >= CARRIES and self.p < SIGNIFICANCE


def shares(results: Results) -> list[Share]:
    """The shares of all cells with several stages; none unless a cell keeps everything, and another one nothing."""
    cells = [cell for cell in results.study.cells if len(cell.recipe.stages) > 1 and results.by_cell[cell]]
    own = {cell: cell.recipe.stages[-1] for cell in cells if cell.recipe.stages[-1].first_update == "own"}
    kept = next((cell for cell, last in own.items() if all(map(last.keeps, ADAMS_STATE))), None)
    new = next((cell for cell, last in own.items() if not any(map(last.keeps, ADAMS_STATE))), None)
    if not kept or not new:
        return []
    losses_of = {cell: {s: o["final_loss_dropout_off"] for s, o in results.by_cell[cell].items()} for cell in cells}
    kept_losses, new_losses = losses_of[kept], losses_of[new]
    found = []
    for cell, losses in losses_of.items():
        seeds = [seed for seed in losses if seed in kept_losses and seed in new_losses]
        gains = [_gain(kept_losses[seed], losses[seed]) for seed in seeds]
        wholes = [_gain(kept_losses[seed], new_losses[seed]) for seed in seeds]
        parts = [gain / whole for gain, whole in zip(gains, wholes, strict=True) if whole > 0 and math.isfinite(gain)]
        complete = len(parts) == len(seeds) > 0
        mean = sum(parts) / len(parts) if complete else None
        interval = mean_interval(parts) if complete and len(parts) > 1 else None
        lower, higher = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        p = sign_flip([1.0] * lower + [-1.0] * higher)
        found.append(Share(cell, list(losses.values()), lower, higher, mean, interval, p))
    adjusted = holm([share.p for share in found])
    return [replace(share, p=p) for share, p in zip(found, adjusted, strict=True)]


def _gain(before: float | None, after: float | None) -> float:
    """By how many powers of ten the loss is lower; None, a diverged loss, is higher than all others."""
    if before is None or after is None:
        return 0.0 if before == after else math.inf if before is None else -math.inf
    return math.log10(max(before, SMALLEST) / max(after, SMALLEST))
