"""The statistics against counting, and against formulas written down independently."""

from itertools import combinations, product
from math import comb, erfc, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tinygpt_lightning.study.statistics import (
    clopper_pearson,
    holm,
    kaplan_meier,
    logrank_scores,
    mean_interval,
    permutation_test,
    sign_flip,
)


def at_least(k, n, p):
    return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))


@pytest.mark.parametrize(("k", "n"), [(1, 1), (3, 10), (9, 10), (17, 20)])
def test_clopper_pearson_cuts_off_its_tails(k, n):
    low, high = clopper_pearson(k, n)
    assert at_least(k, n, low) == pytest.approx(0.025)
    if k < n:
        assert 1 - at_least(k + 1, n, high) == pytest.approx(0.025)


def test_clopper_pearson_by_hand():
    assert clopper_pearson(20, 20) == pytest.approx((0.025 ** (1 / 20), 1))
    assert clopper_pearson(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert clopper_pearson(3, 10) == pytest.approx((0.0667, 0.6525), abs=5e-5)  # as tabulated


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_clopper_pearson_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match=f"got {k} of {n}"):
        clopper_pearson(k, n)


@pytest.mark.parametrize(("b", "c"), [(0, 1), (5, 0), (2, 6), (4, 4), (7, 1)])
def test_one_matched_pair_counts_all_ways_it_could_have_gone(b, c):
    n = b + c
    ways = [sum(way) for way in product((0, 1), repeat=n)]
    expected = sum(abs(first - n / 2) >= abs(b - n / 2) for first in ways) / 2**n
    assert sign_flip([1.0] * b + [-1.0] * c) == pytest.approx(expected)
    assert permutation_test([[([True], [False])]] * b + [[([False], [True])]] * c) == pytest.approx(expected)


@given(st.lists(st.floats(-5, 5).map(lambda value: round(value, 2)), min_size=1, max_size=9))
def test_sign_flip_counts_all_signs(differences):
    total = abs(sum(differences))
    ways = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    assert sign_flip(differences) == pytest.approx(sum(way >= total - 1e-9 for way in ways) / len(ways))


def test_sign_flip_of_many_is_nearly_exact():
    """Equal differences make it a sign test, which scipy knows exactly."""
    differences = [1.0] * 38 + [-1.0] * 22
    assert sign_flip(differences) == pytest.approx(erfc(16 / sqrt(60) / sqrt(2)))
    assert sign_flip(differences) == pytest.approx(stats.binomtest(38, 60).pvalue, abs=0.02)


LEVELS = st.tuples(st.lists(st.booleans(), min_size=1, max_size=2), st.lists(st.booleans(), min_size=1, max_size=3))


@given(st.lists(LEVELS, min_size=1, max_size=4))
def test_permutation_test_counts_all_labellings(seeds):
    def first_level(labels):
        return sum(sum(runs[i] for i in chosen) for runs, chosen in zip(runs_of, labels, strict=True))

    runs_of = [[*first, *second] for first, second in seeds]
    choices = [list(combinations(range(len(first) + len(second)), len(first))) for first, second in seeds]
    ways = [first_level(labels) for labels in product(*choices)]
    centre = sum(ways) / len(ways)
    observed = sum(sum(first) for first, _ in seeds)
    expected = sum(abs(way - centre) >= abs(observed - centre) - 1e-9 for way in ways) / len(ways)
    assert permutation_test([[stratum] for stratum in seeds]) == pytest.approx(expected)


def test_strata_of_one_seed_are_permuted_together():
    """Two strata that agree are not twice the evidence: a seed is one coin."""
    pair = ([True], [False])
    assert permutation_test([[pair, pair]] * 6) == pytest.approx(2 / 2**6)


def test_kaplan_meier_against_scipy():
    times, events = [3, 5, 5, 8, 8, 9, 12, 12], [True, True, False, True, True, False, True, False]
    data = stats.CensoredData.right_censored(times, [not event for event in events])
    reference = stats.ecdf(data).sf
    curve = kaplan_meier(times, events)
    for time, share in curve.items():
        assert share == pytest.approx(reference.evaluate(time))


def test_logrank_scores_against_scipy():
    """The sum of one group's scores is the numerator of the log-rank test: observed less expected events."""
    times, events = [3, 5, 6, 8, 8, 9, 12, 12, 4, 7], [True] * 6 + [False] * 2 + [True, False]
    scores = logrank_scores(times, events)
    assert sum(scores) == pytest.approx(0)
    groups = [
        stats.CensoredData.right_censored([times[i] for i in part], [not events[i] for i in part])
        for part in (range(5), range(5, 10))
    ]
    statistic = stats.logrank(*groups).statistic
    assert statistic * sum(scores[:5]) > 0 or statistic == pytest.approx(0)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03, 0.5]) == pytest.approx([0.09, 0.04, 0.09, 0.5])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_by_its_definition(p_values):
    """Step down: hypotheses are rejected in order while p < level / those left; adjusted p inverts that."""

    def rejected(level):
        out = set()
        for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[index] * (len(p_values) - rank) > level:
                break
            out.add(index)
        return out

    adjusted = holm(p_values)
    for level in (0.01, 0.05, 0.3, 0.99):
        assert {i for i, p in enumerate(adjusted) if p <= level} == rejected(level)


def test_mean_interval_by_hand():
    """Student's quantile with two degrees of freedom is 4.3027."""
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.3027 / sqrt(3), 2 + 4.3027 / sqrt(3)), abs=1e-4)


def test_mean_interval_refuses_a_single_value():
    with pytest.raises(ValueError, match="two values or more, got 1"):
        mean_interval([1.0])
