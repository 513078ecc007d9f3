"""Which factors matter, by tests that the design fixes before there are results.

A factor is compared within each level of the first factor, and the first factor within each level of the second:
effects often depend on another factor, and the order of the factors in the config says which one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from tinygpt_lightning.study.design import Cell, Factor, level_names
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.rows import Results
from tinygpt_lightning.study.statistics import (
    Interval,
    cochran_q,
    friedman,
    holm,
    mcnemar_exact,
    paired_bootstrap,
)

SIGNIFICANCE = 0.05
MEASURES: dict[str, Callable[[Outcome], float | None]] = {
    "final loss, dropout off (nats)": lambda outcome: outcome["final_loss_dropout_off"],
    "final loss, dropout on (nats)": lambda outcome: outcome["final_loss_dropout_on"],
    "epochs of the last stage to exactness": lambda outcome: outcome["epochs_to_exact"],
    "first update of the last stage (norm)": lambda outcome: outcome.get("first_update_norm"),
}

Groups = Mapping[str, Sequence[Cell]]  # level to the cells that have it


@dataclass(frozen=True)
class Contrast:
    """A test of one factor on exactness, paired by seed: McNemar's for two levels, Cochran's Q for more.

    A seed is a success at a level if *all* its runs at that level are exact, so each seed counts once: the
    runs of a seed are similar, and counting each would make the evidence look stronger than it is.

    Args:
        factor: Name of the factor.
        within: The part of the design that is compared.
        levels: The levels that are compared.
        n: Number of seeds that have all their runs at all levels.
        exact: Number of seeds that are successes, at each level.
        differing: Number of seeds that are not the same at all levels.
        p: Two-sided p-value.
        p_holm: The p-value after Holm's correction for all tests of the study; None before it.
    """

    factor: str
    within: str
    levels: tuple[str, ...]
    n: int
    exact: tuple[int, ...]
    differing: int
    p: float
    p_holm: float | None = None

    @property
    def test(self) -> str:
        """Name of the test."""
        return "McNemar's exact" if len(self.levels) == 2 else "Cochran's Q"

    @property
    def decisive(self) -> bool:
        """Whether the effect is significant after the correction."""
        return self.p_holm is not None and self.p_holm < SIGNIFICANCE


def contrast(results: Results, factor: str, within: str, groups: Groups) -> Contrast | None:
    """Compare groups of cells; None if fewer than two have cells, or no seed has all its runs."""
    groups = {level: cells for level, cells in groups.items() if cells}
    everywhere = [cell for cells in groups.values() for cell in cells]
    seeds = [seed for seed in results.seeds if all(seed in results.by_cell[cell] for cell in everywhere)]
    if len(groups) < 2 or not seeds:
        return None
    outcomes = [
        [all(results.by_cell[cell][seed]["exact"] for cell in cells) for cells in groups.values()] for seed in seeds
    ]
    exact = tuple(sum(level) for level in zip(*outcomes, strict=True))
    differing = sum(len(set(levels)) > 1 for levels in outcomes)
    if len(groups) == 2:
        p = mcnemar_exact(sum(a and not b for a, b in outcomes), sum(b and not a for a, b in outcomes))
    else:
        p = cochran_q(outcomes)
    return Contrast(factor, within, tuple(groups), len(seeds), exact, differing, p)


def factor_contrasts(results: Results) -> list[Contrast]:
    """Tests of every factor within each level of the first one, and of the first one within each of the second."""
    factors = results.study.factors
    tests = []
    for number, factor in enumerate(factors):
        others = [factors[0]] if number else factors[1:2]
        for within, levels in ((other.name, level) for other in others for level in other.levels):
            tests.append(
                contrast(results, factor.name, f"{within} {levels}", _groups(results, factor, {within: levels}))
            )
        if not others:
            tests.append(contrast(results, factor.name, "all runs", _groups(results, factor, {})))
    return [test for test in tests if test]


def corrected(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Correct all p-values together, after Holm."""
    adjusted = holm([each.p for each in contrasts])
    return [replace(each, p_holm=p) for each, p in zip(contrasts, adjusted, strict=True)]


def _groups(results: Results, factor: Factor, within: Mapping[str, str]) -> Groups:
    cells = [cell for cell in results.study.cells if within.items() <= cell.levels.items()]
    return {level: [cell for cell in cells if cell.levels.get(factor.name) == level] for level in factor.levels}


@dataclass(frozen=True)
class Effect:
    """What a factor does to a number, paired by seed, everything else being equal.

    Of two levels it is the mean of first minus second with a bootstrap interval, of more it is Friedman's test.

    Args:
        factor: What is varied.
        measure: What is measured, in words, with its unit.
        where: The cells that are compared, in words.
        levels: The levels that are compared.
        medians: Of the measure at each level; null where there is none.
        n: Seeds of which all levels have the measure.
        left_out: Seeds of which one lacks it: a run never became exact, or its loss diverged.
        mean: Mean of first minus second; null of more than two levels, or without pairs.
        interval: Its 95 % bootstrap interval; null with fewer than two pairs.
        p: Friedman's p-value; null of two levels, or without seeds.
    """

    factor: str
    measure: str
    where: str
    levels: tuple[str, ...]
    medians: tuple[float | None, ...]
    n: int
    left_out: int
    mean: float | None = None
    interval: Interval | None = None
    p: float | None = None

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero, or the p-value is small: for itself, without a correction."""
        if self.interval is not None:
            return self.interval.low > 0 or self.interval.high < 0
        return self.p is not None and self.p < SIGNIFICANCE


def effects(results: Results) -> list[Effect]:
    """Every factor, on every measure that some run has, wherever cells differ in nothing else."""
    measured = [
        name for name, value in MEASURES.items() if any(value(outcome) is not None for _, _, outcome in results.runs)
    ]
    return [
        effect(results, factor.name, where, cells, measure)
        for factor in results.study.factors
        for where, cells in _rows_of(results, factor)
        for measure in measured
    ]


def effect(results: Results, factor: str, where: str, cells: Mapping[str, Cell], measure: str) -> Effect:
    """Compare one cell for each level on one measure."""
    by_level = [results.by_cell[cell] for cell in cells.values()]
    everywhere = [seed for seed in results.seeds if all(seed in level for level in by_level)]
    values = [[MEASURES[measure](level[seed]) for level in by_level] for seed in everywhere]
    complete = [[value for value in row if value is not None] for row in values if None not in row]
    medians = tuple(_median(MEASURES[measure](outcome) for outcome in level.values()) for level in by_level)
    found = Effect(factor, measure, where, tuple(cells), medians, len(complete), len(values) - len(complete))
    if not complete:
        return found
    if len(cells) > 2:
        return replace(found, p=friedman(complete))
    differences = [first - second for first, second in complete]
    interval = paired_bootstrap(differences) if len(differences) > 1 else None
    return replace(found, mean=sum(differences) / len(differences), interval=interval)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _rows_of(results: Results, factor: Factor) -> Iterator[tuple[str, dict[str, Cell]]]:
    """Cells that differ in the factor alone, with what they have in common in words."""
    found: dict[str, dict[str, Cell]] = {}
    for cell in results.study.cells:
        if factor.name in cell.levels:
            others = {name: level for name, level in cell.levels.items() if name != factor.name}
            words = level_names(others) or "all runs"
            found.setdefault(words, {})[cell.levels[factor.name]] = cell
    yield from ((words, cells) for words, cells in found.items() if len(cells) > 1)
