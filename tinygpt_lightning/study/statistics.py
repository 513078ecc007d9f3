"""Exact tests, confidence intervals and corrections: pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy import stats

MOST_ENUMERATED = 20  # differences whose signs are enumerated, a million ways; beyond, the normal approximation


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934); ValueError unless it is of 0 to ``n`` successes.

    >>> low, high = clopper_pearson(20, 20)  # 0.025 ** (1 / 20)
    >>> round(low, 4), high
    (0.8316, 1.0)
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"expected 0 to n successes and n of 1 or more, got {successes} of {n}")
    low, high = stats.binomtest(successes, n).proportion_ci(confidence, method="exact")
    return float(low), float(high)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of a mean; ValueError for fewer than two values.

    >>> mean_interval([2.0, 2.0, 2.0])
    (2.0, 2.0)
    """
    if len(values) < 2:
        raise ValueError(f"expected two values or more, got {len(values)}")
    half = stats.sem(values) * stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of the mean of paired differences (Fisher 1935): under the null each sign is a coin flip.

    Exact up to 20 differences; beyond, by the normal approximation of the sum's distribution.

    >>> sign_flip([3.0, 1.0, 2.0, 5.0, 4.0])  # all on one side: 2 of 2^5 ways
    0.0625
    >>> sign_flip([0.0, 0.0])
    1.0
    """
    values = np.abs(np.array([value for value in differences if value], dtype=float))
    total = abs(float(sum(differences)))
    if not len(values):
        return 1.0
    if len(values) > MOST_ENUMERATED:
        return float(2 * stats.norm.sf(total / math.sqrt(float((values**2).sum()))))
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return float(np.mean(np.abs(sums) >= total * (1 - 1e-12)))


def permutation_test(seeds: Sequence[Sequence[tuple[Sequence[bool], Sequence[bool]]]]) -> float:
    """Exact two-sided p-value of a comparison of two levels whose labels are permuted within each seed.

    The statistic is the number of successes at the first level. Under the null a seed's runs are exchangeable: each
    choice of the runs that carry the first label is equally likely, the same one in all its strata of one shape. With
    one run at each level this is McNemar's exact test. Each seed has strata: the outcomes at both levels.

    >>> pair = [([True], [False])]  # one seed, one stratum
    >>> permutation_test([pair] * 6)  # 2 / 2^6
    0.03125
    >>> round(permutation_test([[([True], [False] * 4)]] * 2), 4)  # the label falls on the success in 1 of 5 ways
    0.04
    """
    observed, centre, spread = 0, 0.0, np.ones(1)  # the probability of each number of successes, from 0
    for strata in seeds:
        shapes: dict[tuple[int, int], list[list[bool]]] = {}
        for first, second in strata:
            observed += sum(first)
            centre += len(first) * (sum(first) + sum(second)) / (len(first) + len(second))
            shapes.setdefault((len(first), len(second)), []).append([*first, *second])
        for (n_first, n_second), outcomes in shapes.items():
            by_place = np.sum(outcomes, axis=0)  # all strata of this shape together
            counts = np.bincount([by_place[list(c)].sum() for c in combinations(range(n_first + n_second), n_first)])
            spread = np.convolve(spread, counts / counts.sum())
    distance = np.abs(np.arange(len(spread)) - centre)
    return min(1.0, float(spread[distance >= abs(observed - centre) - 1e-9].sum()))


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


def kaplan_meier(times: Sequence[float], events: Sequence[bool]) -> dict[float, float]:
    """The share without an event after each time of one (Kaplan and Meier 1958); other times end an observation.

    >>> kaplan_meier([1, 2, 2, 3], [True, True, False, True])
    {1: 0.75, 2: 0.5, 3: 0.0}
    """
    share, curve = 1.0, {}
    for time in sorted({time for time, event in zip(times, events, strict=True) if event}):
        at_risk = sum(other >= time for other in times)
        share *= 1 - sum(event and other == time for other, event in zip(times, events, strict=True)) / at_risk
        curve[time] = share
    return curve


def logrank_scores(times: Sequence[float], events: Sequence[bool]) -> list[float]:
    """Each run's score in the log-rank test (Peto and Peto 1972): its events less those expected by its time.

    >>> logrank_scores([1, 2], [True, False])
    [0.5, -0.5]
    """
    when, happened = np.array(times, dtype=float), np.array(events, dtype=bool)
    distinct, counts = np.unique(when[happened], return_counts=True)
    at_risk = len(when) - np.searchsorted(np.sort(when), distinct)
    hazard = np.concatenate([[0.0], np.cumsum(counts / at_risk)])
    return [float(score) for score in happened - hazard[np.searchsorted(distinct, when, side="right")]]
