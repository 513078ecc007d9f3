"""How much of a new optimizer's effect each part of its state has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import median

from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.findings import SIGNIFICANCE
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.recipe import ADAMS_STATE
from tinygpt_lightning.study.results import Results
from tinygpt_lightning.study.statistics import Interval, holm, mcnemar_exact, paired_bootstrap

CARRIES = 0.9  # the share of the reset's effect from which on something is said to carry it


@dataclass(frozen=True)
class Share:
    """What a cell has of the whole reset's effect on the final loss, on the scale of the loss's logarithm.

    Args:
        cell: The cell.
        losses: Its final losses, dropout off; null where it is no number.
        lower: Seeds whose loss is lower than with everything kept.
        higher: Seeds whose loss is higher.
        mean: 0 is everything kept, 1 is everything new: the mean over seeds. Null if a loss is no number, or the
            whole reset does not lower the loss of every seed.
        interval: Its 95 % bootstrap interval.
        p: Of the sign test against everything kept, two-sided, corrected after Holm.
    """

    cell: Cell
    losses: list[float | None]
    lower: int
    higher: int
    mean: float | None
    interval: Interval | None
    p: float

    @property
    def new(self) -> frozenset[str]:
        """What starts anew."""
        last = self.cell.recipe.stages[-1]
        return frozenset(name for name in ADAMS_STATE if not last.keeps(name))

    @property
    def exploded(self) -> int:
        """Seeds that end above the loss of knowing nothing, or with none that is a number."""
        knows_nothing = math.log(self.cell.recipe.config.vocab_size)
        return sum(loss is None or loss > knows_nothing for loss in self.losses)

    @property
    def loss(self) -> str:
        """The final loss in words."""
        known = [loss for loss in self.losses if loss is not None]
        return f"{median(known):.2g} nats" if known else "no number"

    @property
    def carries(self) -> bool:
        """Whether nearly all of the effect is here."""
        return self.mean is not None and self.mean >= CARRIES and self.p < SIGNIFICANCE


def shares(results: Results) -> list[Share]:
    """One for each cell with several stages; none without a cell with everything kept, and one with everything new."""
    cells = [cell for cell in results.study.cells if len(cell.recipe.stages) > 1 and results.by_cell[cell]]
    own = {cell: cell.recipe.stages[-1] for cell in cells if cell.recipe.stages[-1].first_update == "own"}
    kept = next((cell for cell, last in own.items() if all(map(last.keeps, ADAMS_STATE))), None)
    new = next((cell for cell, last in own.items() if not any(map(last.keeps, ADAMS_STATE))), None)
    if not kept or not new:
        return []
    kept_losses, new_losses = (_losses(results.by_cell[cell]) for cell in (kept, new))
    found = []
    for cell in cells:
        losses = _losses(results.by_cell[cell])
        seeds = [seed for seed in losses if seed in kept_losses and seed in new_losses]
        gains = [_gain(kept_losses[seed], losses[seed]) for seed in seeds]
        wholes = [_gain(kept_losses[seed], new_losses[seed]) for seed in seeds]
        comparable = [
            gain / whole for gain, whole in zip(gains, wholes, strict=True) if whole > 0 and math.isfinite(gain)
        ]
        complete = len(comparable) == len(seeds) > 0
        lower, higher = sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains)
        found.append(
            Share(
                cell,
                list(losses.values()),
                lower,
                higher,
                sum(comparable) / len(comparable) if complete else None,
                paired_bootstrap(comparable) if complete and len(comparable) > 1 else None,
                mcnemar_exact(lower, higher),
            )
        )
    adjusted = holm([share.p for share in found])
    return [replace(share, p=p) for share, p in zip(found, adjusted, strict=True)]


def _losses(outcomes: Mapping[int, Outcome]) -> dict[int, float | None]:
    return {seed: outcome["final_loss_dropout_off"] for seed, outcome in outcomes.items()}


def _gain(before: float | None, after: float | None) -> float:
    """By how many powers of ten a loss is lower; one that is no number is higher than all others."""
    if before is None or after is None:
        return 0.0 if before == after else math.inf if before is None else -math.inf
    smallest = 1e-12  # a loss of nothing at all has no logarithm
    return math.log10(max(before, smallest) / max(after, smallest))
