"""Which factors matter: comparisons of levels in matched cells, which the design fixes before there are results.

Two levels of a factor are compared within each level of the first factor, and those of the first factor within each
level of the second: effects often depend on another factor, and the order of the factors in the config says which one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import median

import numpy as np

from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.rows import Results
from tinygpt_lightning.study.statistics import holm, kaplan_meier, logrank_scores, permutation_test, sign_flip

SIGNIFICANCE = 0.05
LOSS = "final loss, dropout off (nats)"
EPOCHS = "epochs of the last stage to exactness"
EPOCHS_OF_RUN = "epochs to exactness"
MEASURES: dict[str, Callable[[Outcome], float | None]] = {
    LOSS: lambda outcome: outcome["final_loss_dropout_off"],
    "final loss, dropout on (nats)": lambda outcome: outcome["final_loss_dropout_on"],
    EPOCHS: lambda outcome: outcome["epochs_to_exact"],
    EPOCHS_OF_RUN: lambda outcome: outcome.get("epochs_of_run_to_exact"),
    "first update of the last stage (norm)": lambda outcome: outcome.get("first_update_norm"),
}
OUTCOMES = {"exactness": None, "loss": LOSS, "epochs": EPOCHS, "epochs_of_run": EPOCHS_OF_RUN}  # of a plan
ENDS: dict[str, Callable[[Cell], int]] = {  # measures in epochs, to the epoch at which a run is censored
    EPOCHS: lambda cell: cell.recipe.stages[-1].epochs,
    EPOCHS_OF_RUN: lambda cell: sum(stage.epochs for stage in cell.recipe.stages),
}
POOLED = "all runs"  # the part of a design that is all of it
SMALLEST = 1e-12  # a loss of 0 has no logarithm

Run = tuple[Cell, int]
Stratum = tuple[list[Cell], list[Cell]]  # matched cells: those of the first level, those of the second


@dataclass(frozen=True)
class Comparison:
    """Two levels of a factor, compared on exactness or on a number.

    Numbers are tested by flips of the sign of each seed's mean difference: of logarithms, or of log-rank scores for
    epochs to exactness, where a run that never became exact counts as censored. Exactness is tested by a permutation
    of the labels within each seed and by sign flips, and the larger p-value counts: the permutation needs runs of a
    seed that are exchangeable, which runs of one level that share a beginning are not; sign flips need differences
    that are symmetric under the null, which they are not if one level has more runs. For one pair of cells both are
    McNemar's exact test.
    """

    factor: str
    within: str  # the part of the design that is compared
    levels: tuple[str, str]
    measure: str | None  # None means exactness
    n: int  # seeds that have all runs at both levels, with the measure
    left_out: int  # seeds that lack the measure in some run, because its loss diverged
    shown: tuple[str, str]  # of each level: exact runs of all runs, or the median
    effect: float | None  # difference of the exact shares, or ratio of geometric means, first to second; None: epochs
    p: float  # two-sided
    informative: bool  # whether any result of these seeds could have a p-value below 1
    p_holm: float | None = None  # after Holm's correction for all informative tests of its family; None before it

    @property
    def established(self) -> bool:
        """Whether the difference is significant after the correction."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


def compare(
    results: Results, factor: str, within: str, levels: tuple[str, str], strata: Sequence[Stratum], measure: str | None
) -> Comparison | None:
    """Compare matched cells; None if there are none, or no seed has all their runs."""
    cells = [cell for stratum in strata for side in stratum for cell in side]
    seeds = [seed for seed in results.seeds if all(seed in results.by_cell[cell] for cell in cells)]
    if not cells or not seeds:
        return None
    values: dict[Run, float | None] = {}
    for first, second in strata:
        runs = [(cell, seed) for seed in seeds for cell in [*first, *second]]
        values.update(zip(runs, _comparable(results, runs, measure), strict=True))
    complete = [seed for seed in seeds if all(values[cell, seed] is not None for cell in cells)]
    by_seed = [[[[values[cell, seed] for cell in side] for side in stratum] for stratum in strata] for seed in complete]
    differences = [float(np.mean([np.mean(a) - np.mean(b) for a, b in each])) for each in by_seed]  # type: ignore[arg-type]
    p, informative, effect = sign_flip(differences), any(differences), None
    sides = [[(cell, seed) for stratum in strata for cell in stratum[i] for seed in seeds] for i in (0, 1)]
    if measure is None:
        p = max(p, permutation_test(by_seed))  # type: ignore[arg-type]
        # Where all runs of each stratum agree, every permutation gives what was observed.
        informative = any(len({*a, *b}) > 1 for each in by_seed for a, b in each)
        counts = [(sum(bool(values[run]) for run in side), len(side)) for side in sides]
        effect = counts[0][0] / counts[0][1] - counts[1][0] / counts[1][1]
        shown = [f"{k}/{n}" for k, n in counts]
    else:
        shown = [_median(results, side, measure) for side in sides]
        if differences and measure not in ENDS:
            effect = 10 ** (sum(differences) / len(differences))
    return Comparison(
        factor, within, levels, measure, len(complete), len(seeds) - len(complete), (shown[0], shown[1]), effect, p,
        informative,
    )  # fmt: skip


def _comparable(results: Results, runs: Sequence[Run], measure: str | None) -> Sequence[float | None]:
    """The measure of each run on the scale of the test; None where it is missing."""
    if measure is None:
        return [bool(results.by_cell[cell][seed]["exact"]) for cell, seed in runs]
    values = [MEASURES[measure](results.by_cell[cell][seed]) for cell, seed in runs]
    if measure in ENDS:
        # Matched runs are observed for as long as the shortest one: two readings of one training have equal scores.
        horizon = min(ENDS[measure](cell) for cell, _ in runs)
        reached = [value is not None and value <= horizon for value in values]
        times = [value if is_in and value else horizon for value, is_in in zip(values, reached, strict=True)]
        return logrank_scores(times, reached)
    return [None if value is None else math.log10(max(value, SMALLEST)) for value in values]


def _median(results: Results, runs: Sequence[Run], measure: str) -> str:
    values = [MEASURES[measure](results.by_cell[cell][seed]) for cell, seed in runs]
    if measure in ENDS:
        return median_epochs(values, [ENDS[measure](cell) for cell, _ in runs])
    known = [value for value in values if value is not None]
    return f"{median(known):.4g}" if known else "–"


def median_epochs(epochs: Sequence[float | None], ends: Sequence[int]) -> str:
    """The Kaplan–Meier median of epochs to exactness, as text; a run that never became exact is censored at its end.

    >>> median_epochs([3, 5, None], [9, 9, 9]), median_epochs([3, None, None], [9, 9, 9])
    ('5', 'more than 9')
    >>> median_epochs(range(1, 11), [10] * 10)
    '5'
    """
    times = [end if epoch is None else epoch for epoch, end in zip(epochs, ends, strict=True)]
    curve = kaplan_meier(times, [epoch is not None for epoch in epochs])
    half = 0.5 + 1e-9  # a product of shares is rounded
    return next((f"{time:g}" for time, share in curve.items() if share <= half), f"more than {max(ends, default=0)}")


def comparisons(results: Results, measure: str | None) -> list[Comparison]:
    """Compare all pairs of levels of each factor on one measure."""
    found = (compare(results, *pair, measure) for pair in _pairs(results))
    return [each for each in found if each]


def _pairs(results: Results) -> Iterator[tuple[str, str, tuple[str, str], list[Stratum]]]:
    """Factor, part of the design, two levels, and their matched cells."""
    factors = results.study.factors
    for number, factor in enumerate(factors):
        others = [factors[0]] if number else factors[1:2]
        parts = [(other.name, level) for other in others for level in other.levels] or [("", "")]
        if factor.name == results.study.plan.confirm:
            parts = [("", ""), *parts]
        for first, second in combinations(factor.levels, 2):
            seen: list[list[Stratum]] = []
            for name, level in parts:
                # A cell without the other factor (one stage has no boundary) stands beside all of its levels.
                cells = [cell for cell in results.study.cells if cell.levels.get(name, level) == level]
                sides = [[cell for cell in cells if cell.levels.get(factor.name) == own] for own in (first, second)]
                strata = matched(sides[0], sides[1], factor.name)
                if strata and strata not in seen:
                    seen.append(strata)
                    is_part = name and any(name in cell.levels for side in sides for cell in side)
                    yield factor.name, f"{name} {level}" if is_part else POOLED, (first, second), strata


def matched(first: Iterable[Cell], second: Iterable[Cell], factor: str = "") -> list[Stratum]:
    """Group the cells of two levels of ``factor`` by the levels of all other factors that every cell has."""
    sides = [list(first), list(second)]
    everywhere = [cell.levels for side in sides for cell in side]
    common = [name for name in (everywhere[0] if everywhere else ()) if all(name in levels for levels in everywhere)]
    strata: dict[tuple[str, ...], Stratum] = {}
    for i, side in enumerate(sides):
        for cell in side:
            key = tuple(cell.levels[name] for name in common if name != factor)
            strata.setdefault(key, ([], []))[i].append(cell)
    return [stratum for stratum in strata.values() if all(stratum)]


def families(results: Results, more: Iterable[Comparison]) -> tuple[list[Comparison], list[Comparison]]:
    """All comparisons, and ``more``: those on the outcome that the study is about, and all others.

    Each family is corrected together. If the plan states a hypothesis, its test is the first family.
    """
    plan = results.study.plan
    asked = OUTCOMES[plan.outcome]
    other_epochs = EPOCHS if asked == EPOCHS_OF_RUN else EPOCHS_OF_RUN
    every = [*comparisons(results, None), *more]
    for name, value in MEASURES.items():
        if name != other_epochs and any(value(outcome) is not None for *_, outcome in results.runs):
            every += comparisons(results, name)
    primary = [
        each for each in every if each.measure == asked
        and (plan.confirm is None or (each.factor, each.within) == (plan.confirm, POOLED))
    ]  # fmt: skip
    return corrected(primary), corrected([each for each in every if each not in primary])


def corrected(family: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values of a family together, after Holm; tests that cannot reject are not counted (Tarone 1990)."""
    adjusted = iter(holm([each.p for each in family if each.informative]))
    return [replace(each, p_holm=next(adjusted) if each.informative else 1.0) for each in family]


def shown_p(p: float) -> str:
    """A p-value as text; a very small one has no digits that mean anything."""
    return "< 1e-10" if p < 1e-10 else f"= {p:.2g}"
