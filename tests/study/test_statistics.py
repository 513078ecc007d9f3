"""The statistics against counting, and against formulas written down independently."""

from itertools import permutations, product
from math import comb, erfc, exp, gamma, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt_lightning.study.statistics import (
    clopper_pearson,
    cochran_q,
    friedman,
    holm,
    mcnemar_exact,
    paired_bootstrap,
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
def test_mcnemar_counts_all_ways_the_pairs_could_have_gone(b, c):
    n = b + c
    # Every discordant pair could have gone either way: those at least as lopsided as what was seen.
    ways = [sum(way) for way in product((0, 1), repeat=n)]
    expected = sum(abs(first - n / 2) >= abs(b - n / 2) for first in ways) / 2**n
    assert mcnemar_exact(b, c) == pytest.approx(expected)


def chi_square_tail(x, degrees):
    """Above x, by the recurrence of the incomplete gamma function from 1 or 2 degrees of freedom up."""
    tail = erfc(sqrt(x / 2)) if degrees % 2 else exp(-x / 2)
    for k in range(1 if degrees % 2 else 2, degrees, 2):
        tail += (x / 2) ** (k / 2) * exp(-x / 2) / gamma(k / 2 + 1)
    return tail


def sum_of_squares(numbers):
    mean = sum(numbers) / len(numbers)
    return sum((number - mean) ** 2 for number in numbers)


@given(st.integers(2, 5).flatmap(lambda k: st.lists(st.lists(st.booleans(), min_size=k, max_size=k), min_size=1)))
def test_cochran_by_its_formula(outcomes):
    k = len(outcomes[0])
    within = sum(sum(row) * (k - sum(row)) for row in outcomes)
    if not within:
        assert cochran_q(outcomes) == 1
        return
    columns = [sum(column) for column in zip(*outcomes, strict=True)]
    q = (
        (k - 1)
        * (k * sum(c * c for c in columns) - sum(columns) ** 2)
        / (k * sum(columns) - sum(sum(r) ** 2 for r in outcomes))
    )
    assert cochran_q(outcomes) == pytest.approx(chi_square_tail(q, k - 1), abs=1e-12)


def test_cochran_of_two_levels_is_mcnemars_asymptotic_test():
    outcomes = [[True, False]] * 9 + [[False, True]] * 3 + [[True, True]] * 5
    assert cochran_q(outcomes) == pytest.approx(chi_square_tail((9 - 3) ** 2 / (9 + 3), 1))


@given(st.lists(st.permutations(range(4)), min_size=1, max_size=12))
def test_friedman_by_its_formula(numbers):
    n, k = len(numbers), 4
    sums = [sum(row[level] + 1 for row in numbers) for level in range(k)]
    statistic = 12 * sum(total**2 for total in sums) / (n * k * (k + 1)) - 3 * n * (k + 1)
    assert friedman([[10.0**rank for rank in row] for row in numbers]) == pytest.approx(
        chi_square_tail(statistic, k - 1), abs=1e-9
    )


def test_friedman_shares_the_ranks_of_ties():
    """Midranks: 1.5, 1.5, 3 twice and 1, 2.5, 2.5 once."""
    ranks = [(1.5, 1.5, 3), (1.5, 1.5, 3), (1, 2.5, 2.5)]
    mean = [sum(column) / 3 for column in zip(*ranks, strict=True)]
    spread = sum((rank - 2) ** 2 for row in ranks for rank in row)
    statistic = 3 * 3 * 2 * sum_of_squares(mean) / spread
    assert friedman([[7, 7, 9], [0, 0, 1], [1, 2, 2]]) == pytest.approx(chi_square_tail(statistic, 2))


def test_friedman_agrees_with_all_permutations():
    """Against all ways the levels of each seed could have been exchanged; the tests are asymptotic, so roughly."""
    numbers = [[1, 2, 3], [1, 3, 2], [1, 2, 3], [2, 1, 3], [1, 2, 3]]

    def statistic(rows):
        return sum_of_squares([sum(column) for column in zip(*rows, strict=True)])

    ways = [statistic(rows) for rows in product(*(list(permutations(row)) for row in numbers))]
    expected = sum(way >= statistic(numbers) for way in ways) / len(ways)
    assert friedman(numbers) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("test", [cochran_q, friedman])
@pytest.mark.parametrize("rows", [[], [[1]], [[1], [0]]])
def test_a_comparison_needs_seeds_and_levels(test, rows):
    with pytest.raises(ValueError, match="expected seeds with two levels or more"):
        test(rows)


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


def test_bootstrap_counts_all_resamples():
    differences = [0.0, 1.0, 5.0]
    means = sorted(sum(pick) / 3 for pick in product(differences, repeat=3))
    low, high = paired_bootstrap(differences, confidence=0.5, resamples=200_000)
    # All 27 resamples are equally likely: the quartiles are the 7th and the 21st.
    assert (low, high) == pytest.approx((means[6], means[20]))


def test_bootstrap_is_the_same_every_time():
    differences = [0.3, -0.2, 0.5, 0.9, -0.1]
    assert paired_bootstrap(differences) == paired_bootstrap(differences)
    assert paired_bootstrap(differences) != paired_bootstrap(differences, seed=1)


def test_bootstrap_refuses_a_single_pair():
    with pytest.raises(ValueError, match="two differences or more, got 1"):
        paired_bootstrap([1.0])
