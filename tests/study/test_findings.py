"""The findings follow the data: synthetic rows in which one thing or another decides, for each test."""

import pytest

from tinygpt_lightning.study.findings import corrected, effects, factor_contrasts
from tinygpt_lightning.study.rows import Common, Results, Row

from .tiny import RIDDLE, cell_of, outcome, results_of, schedule, tiny_study

LETTERS = {"letter": {name: {"model.config.n_inner": inner} for inner, name in enumerate("abc", 1)}}
TWO = {"model.config.n_head": [1, 2], "model.optimizer.lr": [0.1, 0.01]}


def study(factors, seeds=20):
    return tiny_study(factors=factors, seeds=seeds, claims=None)


def contrasts_of(results):
    return {(test.factor, test.within): test for test in corrected(factor_contrasts(results))}


def effects_of(results):
    return {(effect.factor, effect.measure, effect.where): effect for effect in effects(results)}


def test_mcnemar_by_hand():
    """With one head seeds 0 to 5 fail at one learning rate: 6 discordant pairs, p = 2 / 2^6."""

    def decide(cell, seed):
        return outcome(cell.levels != {"model.config.n_head": "1", "model.optimizer.lr": "0.1"} or seed > 5)

    tests = contrasts_of(results_of(study(TWO), decide))
    assert len(tests) == 4  # each factor at each level of the other one
    for key in (("model.config.n_head", "model.optimizer.lr 0.1"), ("model.optimizer.lr", "model.config.n_head 1")):
        test = tests.pop(key)
        assert (test.test, test.n, test.exact, test.differing) == ("McNemar's exact", 20, (14, 20), 6)
        assert test.p == pytest.approx(2 / 2**6)
        assert test.p_holm == pytest.approx(4 * 2 / 2**6)
        assert not test.decisive
    assert {test.p for test in tests.values()} == {1}


def test_cochran_by_hand():
    """Of three levels one is right in 6 of 20 seeds less: Q = 12 with two degrees of freedom."""
    [test] = contrasts_of(
        results_of(study(LETTERS), lambda cell, seed: outcome(cell.levels["letter"] != "c" or seed > 5))
    ).values()
    assert (test.test, test.factor, test.within, test.levels) == ("Cochran's Q", "letter", "all runs", ("a", "b", "c"))
    assert (test.n, test.exact, test.differing) == (20, (20, 20, 14), 6)
    assert test.p == pytest.approx(2.718281828 ** (-12 / 2))
    assert test.decisive


@pytest.mark.parametrize("decisive", ["vocabulary", "optimizer", "weights"])
def test_the_factor_that_decides_is_found(decisive):
    first = next(iter(RIDDLE["factors"][decisive]))
    results = results_of(
        tiny_study(factors=schedule("2×3"), seeds=20), lambda cell, _seed: outcome(cell.levels[decisive] == first)
    )
    assert {test.factor for test in contrasts_of(results).values() if test.decisive} == {decisive}


def test_a_seed_counts_once_and_only_if_all_its_runs_are_exact():
    def decide(cell, seed):
        return outcome(
            not (seed == 7 and cell.levels.get("weights") == "redrawn" and cell.levels["optimizer"] == "new")
        )

    test = contrasts_of(results_of(tiny_study(seeds=20), decide))["optimizer", "vocabulary stable"]
    assert (test.levels, test.n, test.exact, test.differing) == (("new", "kept"), 20, (19, 20), 1)


def test_too_few_seeds_establish_nothing():
    results = results_of(study(TWO, seeds=5), lambda cell, _seed: outcome(cell.levels["model.config.n_head"] == "1"))
    tests = contrasts_of(results).values()
    assert min(test.p for test in tests) == 0.0625
    assert not any(test.decisive for test in tests)


def test_seeds_with_missing_runs_are_left_out_of_their_tests_only():
    results = results_of(
        tiny_study(seeds=20),
        lambda _cell, _seed: outcome(True),
        keep=lambda cell, seed: not (seed == 3 and cell.levels.get("optimizer") == "kept"),
    )
    tests = contrasts_of(results)
    assert tests["optimizer", "vocabulary stable"].n == 19
    assert tests["weights", "vocabulary stable"].n == 19
    assert tests["vocabulary", "schedule 1×3"].n == 20
    assert results.missing == 2 * 2 * 2


def test_a_paired_difference_by_hand():
    def decide(cell, seed):
        one = cell.levels["model.config.n_head"] == "1"
        return outcome(True, loss=1.0 if one else 3.0, epochs=None if one and seed < 4 else 5)

    found = effects_of(results_of(study(TWO), decide))
    loss = found["model.config.n_head", "final loss, dropout off (nats)", "model.optimizer.lr 0.1"]
    assert (loss.levels, loss.medians) == (("1", "2"), (1.0, 3.0))
    assert (loss.n, loss.left_out, loss.mean, loss.interval, loss.p) == (20, 0, -2, (-2, -2), None)
    assert loss.clear
    epochs = found["model.config.n_head", "epochs of the last stage to exactness", "model.optimizer.lr 0.1"]
    assert (epochs.n, epochs.left_out, epochs.mean, epochs.clear) == (16, 4, 0, False)
    rate = found["model.optimizer.lr", "final loss, dropout off (nats)", "model.config.n_head 1"]
    assert (rate.mean, rate.clear) == (0, False)


def test_friedman_of_three_levels():
    """Each seed's loss is lowest with a and highest with c: chi² = 2 · 20, two degrees of freedom."""
    results = results_of(
        study(LETTERS), lambda cell, seed: outcome(True, loss=seed + "abc".index(cell.levels["letter"]))
    )
    loss = effects_of(results)["letter", "final loss, dropout off (nats)", "all runs"]
    assert (loss.n, loss.medians, loss.mean, loss.interval) == (20, (9.5, 10.5, 11.5), None, None)
    assert loss.p == pytest.approx(2.718281828 ** (-40 / 2))
    assert loss.clear
    epochs = effects_of(results)["letter", "epochs of the last stage to exactness", "all runs"]
    assert (epochs.p, epochs.clear) == (1, False)


def test_a_measure_that_no_run_has_is_left_out():
    results = results_of(study(TWO), lambda _cell, _seed: outcome(False, epochs=None))
    assert {effect.measure for effect in effects(results)} == {
        "final loss, dropout off (nats)", "final loss, dropout on (nats)",
    }  # fmt: skip


def test_rows_outside_the_design_are_ignored():
    wide = tiny_study(seeds=8)
    rows = [Row(Common(cell.recipe.settings, {}), seed, 1.0, outcome(True)) for cell in wide.cells for seed in range(8)]
    narrow = tiny_study(factors=schedule("1×3"), seeds=2)
    results = Results(narrow, rows)
    assert (len(results.runs), results.missing) == (4, 0)
    assert set(results.by_cell[cell_of(narrow, vocabulary="stable")]) == {0, 1}
