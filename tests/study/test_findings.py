"""Comparisons: against counting by hand, against simulations without an effect, and with a planted one."""

import numpy as np
import pytest

from tinygpt_lightning.study.claims import Claims
from tinygpt_lightning.study.findings import EPOCHS, EPOCHS_OF_RUN, LOSS, comparisons, corrected, matched, shown_p
from tinygpt_lightning.study.rows import Results

from .tiny import RIDDLE, cell_of, outcome, results_of, row_of, schedule, tiny_study

LETTERS = {"letter": {name: {"model.config.n_inner": inner} for inner, name in enumerate("abc", 1)}}
TWO = {"model.config.n_head": [1, 2], "model.optimizer.lr": [0.1, 0.01]}
UNBALANCED = {  # 1, 1 and 4 cells
    "schedule": {
        "1×3": {"stages": [{"epochs": 3}]},
        "1×5": {"stages": [{"epochs": 5}]},
        "2×3": {"stages": [{"epochs": 3}, {"epochs": 3}]},
    },
    "reset": {"new": {"stages[1:].reset_optimizer": True}, "kept": {"stages[1:].reset_optimizer": False}},
    "weights": RIDDLE["factors"]["weights"],
}


def study(factors, seeds=20, **plan):
    return tiny_study(factors=factors, seeds=seeds, claims=None, **plan)


def by_pair(results, measure=None):
    family = corrected(comparisons(results, measure))
    return {(each.factor, each.within, each.levels): each for each in family}


def test_one_matched_pair_is_mcnemars_test():
    """With one head seeds 0 to 5 fail at one learning rate: 6 discordant pairs, p = 2 / 2^6."""

    def decide(cell, seed):
        return outcome(cell.levels != {"model.config.n_head": "1", "model.optimizer.lr": "0.1"} or seed > 5)

    tests = by_pair(results_of(study(TWO), decide))
    assert len(tests) == 4  # each factor at each level of the other one
    for key in (
        ("model.config.n_head", "model.optimizer.lr 0.1", ("1", "2")),
        ("model.optimizer.lr", "model.config.n_head 1", ("0.1", "0.01")),
    ):
        test = tests.pop(key)
        assert (test.n, test.shown, test.informative) == (20, ("14/20", "20/20"), True)
        assert test.effect == pytest.approx(-6 / 20)
        assert test.p == pytest.approx(2 / 2**6)
        assert test.p_holm == pytest.approx(2 * 2 / 2**6)  # the two others cannot reject
        assert not test.established
    assert {(test.p, test.informative) for test in tests.values()} == {(1, False)}


def test_levels_are_compared_pairwise():
    tests = by_pair(results_of(study(LETTERS), lambda cell, seed: outcome(cell.levels["letter"] != "c" or seed > 7)))
    assert {key[2] for key in tests} == {("a", "b"), ("a", "c"), ("b", "c")}
    for levels in (("a", "c"), ("b", "c")):
        assert tests["letter", "all runs", levels].p == pytest.approx(2 / 2**8)
        assert tests["letter", "all runs", levels].p_holm == pytest.approx(2 * 2 / 2**8)


def test_a_level_without_the_other_factor_is_compared_too():
    """1×3 has no boundary; within reset new it stands beside 2×3 with a new optimizer, and not beside a kept one."""
    results = results_of(study(UNBALANCED), lambda cell, _seed: outcome(cell.levels.get("reset") != "kept"))
    tests = by_pair(results)
    assert tests["schedule", "reset new", ("1×3", "2×3")].shown == ("20/20", "40/40")
    assert tests["schedule", "reset kept", ("1×3", "2×3")].shown == ("20/20", "0/40")
    assert tests["schedule", "reset kept", ("1×3", "2×3")].established
    assert tests["schedule", "all runs", ("1×3", "1×5")].p == 1


def test_a_difference_within_matched_cells_is_found_beside_cells_that_always_fail():
    """A success was once a seed whose runs are *all* exact: 12/12 against 0/12 then counted as 0/12 and 0/12."""

    def decide(cell, _seed):
        return outcome(cell.levels["letter"] != "c" and cell.levels["head"] == "1")

    factors = {**LETTERS, "head": {"1": {"model.config.n_head": 1}, "2": {"model.config.n_head": 2}}}
    tests = by_pair(results_of(study(factors, seeds=12), decide))
    test = tests["head", "letter a", ("1", "2")]
    assert (test.shown, test.established) == (("12/12", "0/12"), True)
    assert tests["letter", "head 1", ("a", "c")].established


@pytest.mark.parametrize("decisive", ["vocabulary", "optimizer", "weights"])
def test_the_factor_that_decides_is_found(decisive):
    first = next(iter(RIDDLE["factors"][decisive]))
    results = results_of(
        tiny_study(factors=schedule("2×3"), seeds=20), lambda cell, _seed: outcome(cell.levels[decisive] == first)
    )
    assert {test.factor for test in by_pair(results).values() if test.established} == {decisive}


def random_results(design, rng, measure, planted=None):
    """Runs whose outcome depends on the seed, and on nothing else unless an effect is planted."""
    ease = {seed: rng.uniform(0.3, 0.98) for seed in design.plan.seed_list}
    level = {seed: rng.normal(-4, 2) for seed in design.plan.seed_list}

    def decide(cell, seed):
        bonus = planted is not None and planted(cell)
        exact = bool(rng.random() < ease[seed]) and not bonus
        loss = 10 ** (level[seed] + rng.standard_t(3) * 0.5 + 2 * bonus)
        epochs = int(rng.geometric(0.2 + ease[seed] / 2)) + 9 * bonus
        return outcome(exact, loss=loss, epochs=epochs if epochs <= cell.recipe.stages[-1].epochs else None)

    return results_of(design, decide)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [2, 6, 20])
@pytest.mark.parametrize("factors", [TWO, UNBALANCED], ids=["balanced", "unbalanced"])
@pytest.mark.parametrize("measure", [None, LOSS, EPOCHS])
def test_without_an_effect_at_most_five_percent_of_studies_establish_one(factors, seeds, measure):
    rng, design, studies = np.random.default_rng(0), study(factors, seeds=seeds), 200
    found = sum(
        any(test.established for test in by_pair(random_results(design, rng, measure), measure).values())
        for _ in range(studies)
    )
    # A share of 5 % has a standard deviation of 1.5 % over 200 studies: two of them above.
    assert found <= 0.08 * studies


@pytest.mark.slow
def test_runs_of_a_level_that_are_alike_are_no_more_evidence_than_one():
    """One coin for each seed and level: with many runs at a level, that is no effect of the level either."""
    rng, design, studies = np.random.default_rng(2), study(UNBALANCED), 200
    found = 0
    for _ in range(studies):
        coins = {}
        results = results_of(
            design, lambda c, s, coins=coins: outcome(coins.setdefault((c.levels["schedule"], s), rng.random() < 0.5))
        )
        found += any(test.established for test in by_pair(results, None).values())
    assert found <= 0.08 * studies


@pytest.mark.parametrize("measure", [None, LOSS, EPOCHS])
def test_a_planted_effect_is_found(measure):
    rng, design = np.random.default_rng(1), study(UNBALANCED)
    results = random_results(design, rng, measure, planted=lambda cell: cell.levels.get("reset") == "kept")
    established = {test.factor for test in by_pair(results, measure).values() if test.established}
    assert "reset" in established
    assert "weights" not in established


def test_too_few_seeds_cannot_tell():
    claims = Claims(
        results_of(study(TWO, seeds=5), lambda cell, _seed: outcome(cell.levels["model.config.n_head"] == "1"))
    )
    assert min(test.p for test in claims.primary) == 0.0625
    assert not claims.established
    assert claims.cannot_tell(claims.primary)
    assert claims.shortcoming() == "5 seeds cannot establish an effect on exactness"


def test_seeds_with_missing_runs_are_left_out_of_their_tests_only():
    results = results_of(
        tiny_study(seeds=20),
        lambda _cell, _seed: outcome(True),
        keep=lambda cell, seed: not (seed == 3 and cell.levels.get("optimizer") == "kept"),
    )
    tests = by_pair(results)
    assert tests["optimizer", "vocabulary stable", ("new", "kept")].n == 19
    assert tests["weights", "vocabulary stable", ("carried", "redrawn")].n == 19
    assert tests["vocabulary", "schedule 1×3", ("stable", "resorted")].n == 20
    assert results.missing == 2 * 2 * 2


def test_a_paired_ratio_by_hand():
    def decide(cell, _seed):
        return outcome(True, loss=1.0 if cell.levels["model.config.n_head"] == "1" else 100.0)

    results = results_of(study(TWO), decide)
    loss = by_pair(results, LOSS)["model.config.n_head", "model.optimizer.lr 0.1", ("1", "2")]
    assert (loss.shown, loss.n, loss.left_out) == (("1", "100"), 20, 0)
    assert loss.effect == pytest.approx(1 / 100)
    assert loss.p == pytest.approx(2 / 2**20)
    rate = by_pair(results, LOSS)["model.optimizer.lr", "model.config.n_head 1", ("0.1", "0.01")]
    assert (rate.effect, rate.p, rate.informative) == (1, 1, False)


def test_a_diverged_loss_leaves_its_seed_out():
    results = results_of(study(LETTERS), lambda _cell, seed: outcome(True, loss=None if seed == 1 else 1.0))
    assert {(test.n, test.left_out) for test in by_pair(results, LOSS).values()} == {(19, 1)}


def test_runs_that_never_become_exact_are_censored():
    """With b half of the seeds never become exact within 30 epochs; without them b would look as fast as a."""

    def decide(cell, seed):
        never = cell.levels["letter"] == "b" and seed % 2
        return outcome(not never, epochs=None if never else 5)

    run = {"stages": [{"epochs": 30}]}
    design = tiny_study(run, factors={"letter": dict(list(LETTERS["letter"].items())[:2])}, seeds=20, claims=None)
    [test] = by_pair(results_of(design, decide), EPOCHS).values()
    assert (test.n, test.left_out, test.shown) == (20, 0, ("5", "5"))
    assert test.p == pytest.approx(2 / 2**10)
    [never] = by_pair(
        results_of(design, lambda cell, _: outcome(False, epochs=None if cell.levels["letter"] == "b" else 5)),
        EPOCHS,
    ).values()
    assert never.shown == ("5", "more than 30")


def test_rows_outside_the_design_are_ignored():
    wide = tiny_study(seeds=8)
    rows = [row_of(cell, seed, outcome(True)) for cell in wide.cells for seed in range(8)]
    narrow = tiny_study(factors=schedule("1×3"), seeds=2)
    results = Results(narrow, rows)
    assert (len(results.runs), results.missing) == (4, 0)
    assert set(results.by_cell[cell_of(narrow, vocabulary="stable")]) == {0, 1}


def test_cells_match_if_they_agree_in_what_both_have():
    cells = study(UNBALANCED).cells
    one, *_, last = cells
    staged = [cell for cell in cells if "reset" in cell.levels]
    assert matched([one], staged, "schedule") == [([one], staged)]
    new, kept = ([c for c in staged if c.levels["reset"] == level] for level in ("new", "kept"))
    assert [(len(a), len(b)) for a, b in matched(new, kept, "reset")] == [(1, 1), (1, 1)]
    assert matched([], [last], "reset") == []


def test_no_p_value_is_zero():
    assert shown_p(0.0) == "< 1e-10"


def test_epochs_of_a_run_are_censored_at_the_end_of_its_last_stage():
    """Six epochs are beyond the last stage of three, and within the run of six."""

    def decide(cell, _seed):
        return outcome(True, epochs=1, epochs_of_run_to_exact=5 if cell.levels["vocabulary"] == "stable" else 6)

    tests = by_pair(results_of(tiny_study(factors=schedule("2×3"), seeds=8), decide), EPOCHS_OF_RUN)
    test = tests["vocabulary", "schedule 2×3", ("stable", "resorted")]
    assert (test.shown, test.p) == (("5", "6"), 2 / 2**8)


def test_a_hypothesis_is_one_test_over_all_its_matched_cells():
    """Seeds 0 to 5 differ in both strata: 2 / 2^6, and no correction."""

    def decide(cell, seed):
        return outcome(cell.levels["model.config.n_head"] == "1" or seed > 5)

    claims = Claims(results_of(study(TWO, confirm="model.config.n_head"), decide))
    [test] = claims.primary
    assert (test.factor, test.within, test.shown) == ("model.config.n_head", "all runs", ("40/40", "28/40"))
    assert test.p == test.p_holm == pytest.approx(2 / 2**6)
    assert {each.factor for each in claims.secondary} == set(TWO)
    assert not {test} & set(claims.secondary)
    assert any("the one hypothesis of the plan" in sentence for sentence in claims.remarks())


@pytest.mark.parametrize("factor", ["absent", "letter"])
def test_a_hypothesis_has_a_factor_of_two_levels(factor):
    with pytest.raises(ValueError, match=f"confirm: expected a factor of two levels, got {factor}"):
        study(LETTERS, confirm=factor)
