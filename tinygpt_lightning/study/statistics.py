"""Confidence intervals, exact tests and corrections: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a proportion (Clopper and Pearson 1934).

    Raises:
        ValueError: If ``n`` is below 1 or ``successes`` is not from 0 to ``n``.

    >>> low, high = clopper_pearson(20, 20)  # 0.025 ** (1 / 20)
    >>> round(low, 4), high
    (0.8316, 1.0)
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 to n successes and n of 1 or more, got {successes} of {n}")
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
    return Interval(float(interval.low), float(interval.high))


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of a paired comparison of two yes/no outcomes (McNemar 1947).

    Args:
        only_first: Number of pairs in which only the first outcome is a success.
        only_second: Number of pairs in which only the second one is. Pairs that agree do not count.

    >>> mcnemar_exact(5, 0)  # 2 · 0.5^5
    0.0625
    >>> mcnemar_exact(0, 0)
    1.0
    """
    discordant = only_first + only_second
    return float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0


def cochran_q(outcomes: Sequence[Sequence[bool]]) -> float:
    """Asymptotic p-value of a paired comparison of several yes/no outcomes (Cochran 1950).

    Args:
        outcomes: One outcome for each level, by seed.

    Raises:
        ValueError: If there are no seeds, fewer than two levels, or not the same number for each seed.

    >>> round(cochran_q([[True, True, False]] * 6), 4)  # Q = 12, two degrees of freedom
    0.0025
    >>> cochran_q([[True, True, True]] * 6)
    1.0
    """
    values = _by_seed(outcomes)
    k = values.shape[1]
    of_level, of_seed = values.sum(axis=0), values.sum(axis=1)
    spread = float((of_seed * (k - of_seed)).sum())
    if spread == 0:  # no seed differs between levels
        return 1.0
    q = k * (k - 1) * float(((of_level - of_level.mean()) ** 2).sum()) / spread
    return float(stats.chi2.sf(q, k - 1))


def friedman(numbers: Sequence[Sequence[float]]) -> float:
    """Asymptotic p-value of a paired comparison of several numbers, by their ranks (Friedman 1937).

    Args:
        numbers: One number for each level, by seed.

    Raises:
        ValueError: If there are no seeds, fewer than two levels, or not the same number for each seed.

    >>> round(friedman([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), 4)  # chi² = 6, two degrees of freedom
    0.0498
    >>> friedman([[1, 1, 1], [2, 2, 2]])
    1.0
    """
    values = _by_seed(numbers)
    n, k = values.shape
    ranks = stats.rankdata(values, axis=1)
    spread = float(((ranks - (k + 1) / 2) ** 2).sum())
    if spread == 0:  # all ranks are tied
        return 1.0
    chi2 = (k - 1) * n * n * float(((ranks.mean(axis=0) - (k + 1) / 2) ** 2).sum()) / spread
    return float(stats.chi2.sf(chi2, k - 1))


def _by_seed(rows: Sequence[Sequence[float]]) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    values = np.array(rows, dtype=float)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"expected seeds with two levels or more, got {rows!r:.60}")
    return values


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values so that the chance of any false finding among them stays below the level (Holm 1979).

    >>> [round(p, 4) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def paired_bootstrap(
    differences: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile interval of the mean of paired differences (Efron 1979); equal seeds give equal intervals.

    The percentile method and not BCa, which is undefined when all differences are equal.

    Raises:
        ValueError: If there are fewer than two differences.

    >>> paired_bootstrap([2.0, 2.0, 2.0])
    Interval(low=2.0, high=2.0)
    """
    if len(differences) < 2:
        raise ValueError(f"expected two differences or more, got {len(differences)}")
    values = np.asarray(differences, dtype=float)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(float(low), float(high))
