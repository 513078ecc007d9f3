"""The answer follows the data: synthetic rows in which one thing or another decides."""

import pytest

from tinygpt_lightning.study.findings import Results, answer, claims, factor_tests, reset_effects
from tinygpt_lightning.study.report import cell_table, spread, title

from .tiny import tiny_study


def outcome(exact, loss=0.1, epochs=5, in_training=True):
    return {
        "exact": exact,
        "text": "right" if exact else "wrong",
        "char_error_rate": 0.0 if exact else 0.5,
        "exact_in_training_vocabulary": in_training,
        "text_in_training_vocabulary": "right",
        "char_error_rate_in_training_vocabulary": 0.0,
        "loss": [3.5, 1.0],
        "first_loss_of_stage": [3.5],
        "epochs_to_exact": epochs,
        "final_loss_dropout_on": loss,
        "final_loss_dropout_off": loss,
    }


def results(decide, seeds=20, keep=lambda _cell, _seed: True):
    study = tiny_study(schedules=[[3], [9], [3, 3]], seeds=seeds)
    rows = [
        {"config": study.config(cell, seed), "outcome": decide(cell, seed)}
        for cell in study.cells
        for seed in study.seed_list
        if keep(cell, seed)
    ]
    return Results(study, rows)


def paragraph(found):
    return answer(found, factor_tests(found), reset_effects(found))


def vocabularies_decide(cell, _seed):
    return outcome(cell.same_vocabulary)


def optimizer_decides(cell, _seed):
    return outcome(cell.optimizer == "new")


def test_when_the_vocabularies_decide():
    text = paragraph(results(vocabularies_decide))
    assert text.startswith("**What decides is whether the last stage was trained on the vocabulary")
    assert "predicts all 240 runs" in text
    assert "No effect of the optimizer at the boundary on exactness is established" in text
    assert "No effect of the weights at the boundary" in text
    assert "Of the 40 runs that are not exact, 40 are when" in text


def test_when_the_optimizer_decides():
    found = results(optimizer_decides)
    text = paragraph(found)
    assert text.startswith("**What decides is the optimizer at the boundary.** ")
    assert "The vocabularies alone predict 120 of 240" in text
    assert "new is exact in 20 of 20 seeds and kept in 0" in text
    assert "No effect of the vocabulary on reload" in text
    [claim] = [claim for claim in claims(found, factor_tests(found)) if "optimizer is a key" in claim.claim]
    assert claim.verdict == "holds"


def test_when_nothing_decides():
    text = paragraph(results(lambda _cell, _seed: outcome(True)))
    assert text.startswith("**With 20 seeds no factor's effect on exactness is established.**")
    assert "that are not exact" not in text


def test_a_report_is_an_answer_only_if_it_is_one():
    def named(found):
        return title(found, factor_tests(found))

    assert named(results(vocabularies_decide)) == "The riddle, answered"
    assert named(results(vocabularies_decide, seeds=4)) == "The riddle, not answered: 4 seeds establish no effect"
    diverged = named(results(lambda _cell, _seed: outcome(False, loss=None)))
    assert diverged == "The riddle, not answered: 240 of 240 runs diverged"
    found = results(vocabularies_decide, keep=lambda cell, _seed: cell.optimizer != "new")
    assert named(found) == "The riddle: not all runs are there"


def test_too_few_seeds_establish_nothing():
    found = results(vocabularies_decide, seeds=5)
    assert min(test.p for test in factor_tests(found)) == 0.0625
    assert paragraph(found).startswith("**With 5 seeds no factor's effect on exactness is established.**")


def test_one_run_against_the_prediction_is_said():
    text = paragraph(results(lambda cell, seed: outcome(cell.same_vocabulary or (seed == 0 and cell.schedule == (3,)))))
    assert "vocabularies alone predict 239 of 240 runs" in text
    assert "whether the last stage was trained" not in text


def test_tests_by_hand():
    """Resorted single runs of seeds 0 to 5 fail, all else is exact: 6 discordant pairs, p = 2 / 2^6."""
    found = results(lambda cell, seed: outcome(cell.same_vocabulary or seed > 5))
    tests = {(test.factor, test.within): test for test in factor_tests(found)}
    assert len(tests) == 10
    vocabulary = tests["the vocabulary on reload", "one stage"]
    assert (vocabulary.n, vocabulary.exact, vocabulary.only) == (20, (20, 14), (6, 0))
    assert vocabulary.p == pytest.approx(2 / 2**6)
    assert vocabulary.p_holm == pytest.approx(10 * 2 / 2**6)
    assert not vocabulary.decisive
    assert tests["the number of stages", "resorted"].only == (6, 0)
    assert tests["the optimizer at the boundary", "resorted"].p == 1


def test_seeds_with_missing_runs_are_left_out_of_their_tests_only():
    found = results(vocabularies_decide, keep=lambda cell, seed: not (seed == 3 and cell.optimizer == "kept"))
    tests = {(test.factor, test.within): test for test in factor_tests(found)}
    assert tests["the vocabulary on reload", "one stage"].n == 20
    assert tests["the optimizer at the boundary", "stable"].n == 19
    assert found.missing == 4


def test_reset_effect_by_hand():
    def decide(cell, seed):
        new = cell.optimizer == "new"
        return outcome(True, loss=1.0 if new else 3.0, epochs=None if new and seed < 4 else 5)

    effects = {(e.measure, e.where): e for e in reset_effects(results(decide))}
    loss = effects["final loss, dropout off (nats)", "2×3, stable, weights carried"]
    assert (loss.n, loss.left_out, loss.mean, loss.interval) == (20, 0, -2, (-2, -2))
    assert loss.clear
    epochs = effects["epochs of the last stage to exactness", "2×3, stable, weights carried"]
    assert (epochs.n, epochs.left_out, epochs.mean, epochs.clear) == (16, 4, 0, False)


def test_rows_outside_the_design_are_left_aside():
    wide = results(vocabularies_decide, seeds=8)
    rows = [{"config": wide.study.config(c, s), "outcome": o} for c, s, o in wide.runs]
    narrow = Results(tiny_study(schedules=[[3]], seeds=2), rows)
    assert (len(narrow.runs), narrow.missing) == (4, 0)


def test_a_cell_without_rows_is_shown_as_such():
    table = cell_table(results(vocabularies_decide, keep=lambda cell, _seed: cell.schedule != (9,)))
    [line] = [line for line in table.splitlines() if line.startswith("| 1×9, stable")]
    assert "| 0 | 0/0 | 0.000–1.000 |" in line


def test_spread_names_what_is_missing():
    assert spread([None, None]) == "2 missing"
    assert spread([0.5, None, 1.5]) == "1 (0.5–1.5); 1 missing"
