"""The answer follows the data: synthetic rows, and what the report makes of them."""

import re

import pytest

from tinygpt_lightning.study.claims import Claims, spread
from tinygpt_lightning.study.claims_reset import Reset
from tinygpt_lightning.study.claims_riddle import Riddle, same_vocabulary, verdicts
from tinygpt_lightning.study.outcome import IN_TRAINING
from tinygpt_lightning.study.report import cell_table, title

from .tiny import RESET, TWO_STAGES, outcome, results_of, schedule, tiny_study

FIELDS = ("exact", "text", "generated_char_error_rate")
TRAINING = {f"{name}{IN_TRAINING}": outcome(True)[name] for name in FIELDS}
SCHEDULES = schedule("1×3", "1×5", "2×3")


def riddle(decide, seeds=20, keep=lambda _cell, _seed: True):
    return Riddle(results_of(tiny_study(factors=SCHEDULES, seeds=seeds), decide, keep))


def paragraph(claims):
    text = " ".join(claims.sentences())
    assert len(re.findall(r"[.?!]\W*(?= [A-Z*]|$)", text)) <= 5, text
    return text


def vocabularies_decide(cell, _seed):
    return outcome(same_vocabulary(cell), **({} if same_vocabulary(cell) else TRAINING))


def optimizer_decides(cell, _seed):
    return outcome(cell.levels.get("optimizer") == "new")


def test_when_the_vocabularies_decide():
    text = paragraph(riddle(vocabularies_decide))
    assert text.startswith("**What decides is whether the last stage was trained on the vocabulary")
    assert "This alone predicts all 240 runs." in text
    assert "Of the 40 runs that are not exact, 40 are when" in text
    assert "No effect of optimizer and weights on exactness is established: no pair of runs differs in it." in text


def test_when_the_optimizer_decides():
    claims = riddle(optimizer_decides)
    text = paragraph(claims)
    assert text.startswith("**What decides on exactness is schedule, optimizer and the number of stages.** ")
    assert "The vocabularies alone predict 120 of 240 runs." in text
    assert "No effect of vocabulary and weights on exactness is established" in text
    [verdict] = [verdict for claim, verdict, _ in verdicts(claims) if "optimizer is a key" in claim]
    assert verdict == "holds"


def test_when_nothing_decides():
    claims = riddle(lambda _cell, _seed: outcome(True))
    text = paragraph(claims)
    assert text.startswith("**With 20 seeds no factor's effect on exactness is established.**")
    assert "that are not exact" not in text
    assert {verdict for claim, verdict, _ in verdicts(claims)} == {
        "holds", "does not hold throughout", "no effect on exactness established",
    }  # fmt: skip


def test_the_report_counts_runs_against_the_prediction():
    odd = riddle(lambda cell, seed: outcome(same_vocabulary(cell) or (seed == 0 and cell.levels["schedule"] == "1×3")))
    assert "vocabularies alone predict 239 of 240 runs" in paragraph(odd)
    assert "whether the last stage was trained" not in paragraph(odd)


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        (riddle(vocabularies_decide), "The riddle, answered"),
        (
            riddle(vocabularies_decide, seeds=4),
            "The riddle, not answered: 4 seeds cannot establish an effect on exactness",
        ),
        (
            riddle(lambda _cell, _seed: outcome(False, loss=None)),
            "The riddle, not answered: 240 of 240 runs diverged",
        ),
        (
            riddle(lambda cell, seed: outcome(same_vocabulary(cell), loss=None if seed else 1.0)),
            "The riddle, not answered: 228 of 240 runs diverged",
        ),
        (
            riddle(vocabularies_decide, keep=lambda cell, _seed: cell.levels.get("optimizer") != "new"),
            "The riddle, not answered: not all runs are there",
        ),
    ],
)
def test_a_report_is_an_answer_only_if_it_is_one(claims, expected):
    assert title(claims, "tiny") == expected


def test_a_study_without_claims():
    """Whatever is varied: what decides on exactness, and what a number depends on."""
    factors = {"model.config.n_head": [1, 2], "model.optimizer.lr": [0.1, 0.01, 0.001]}
    study = tiny_study(factors=factors, seeds=20, claims=None, title=None)
    claims = Claims(
        results_of(
            study,
            lambda cell, seed: outcome(
                cell.levels["model.optimizer.lr"] != "0.001", loss=1 + seed if "1" in cell.levels.values() else seed
            ),
        )
    )
    text = paragraph(claims)
    assert title(claims, "heads") == "heads, answered"
    assert text.startswith("**What decides on exactness is model.optimizer.lr.** ")
    assert "Runs that are exact: model.optimizer.lr 0.1 gives 20/20, 0.001 0/20 (model.config.n_head 1; p = " in text
    assert "No effect of model.config.n_head on exactness is established" in text
    assert "final loss, dropout off (nats) with model.config.n_head" in text
    assert set(claims.figures()) == {"exactness", "loss"}


def reset(losses, seeds=20, control=0.1):
    """Everything new, or parts of it, with its final loss: by what is kept, as `e`, `s`, `t`."""

    def decide(cell, seed):
        kept = "".join(letter for letter, level in zip("est", cell.levels.values(), strict=False) if level == "kept")
        loss = control if cell.control else losses[kept]
        more = {"learning_rate_factor": 7.0} if cell.control else {}
        return outcome(
            True, loss=loss and loss * (1 + seed / 100), update_norm=[1.0, 2.0], first_update_norm=1.0, **more
        )

    return Reset(results_of(tiny_study(TWO_STAGES, **{**RESET, "seeds": seeds}), decide))


SECOND_MOMENT = {"": 1e-4, "e": 1e-4, "t": 1e-4, "et": 1e-4, "s": 1e-2, "es": 1e-2, "st": 1e-2, "est": 1e-2}
BOTH_MOMENTS = {**SECOND_MOMENT, "e": None, "et": 50.0}


def test_when_the_second_moment_carries_the_reset():
    claims = reset(SECOND_MOMENT, control=1e-2)
    text = paragraph(claims)
    assert title(claims, "tiny") == "The reset, answered"
    assert text.startswith("**What carries the reset's effect on the loss is a reset of exp_avg_sq.**")
    assert "Step size alone explains 0 % of the effect" in text
    assert not any("Why, as far as" in section for section in claims.sections())


def test_when_both_moments_carry_it_together_and_one_alone_explodes():
    claims = reset(BOTH_MOMENTS, control=1e-3)
    text = paragraph(claims)
    assert title(claims, "tiny") == "The reset, answered"  # a cell that diverges is a result
    assert text.startswith("**What carries the reset's effect on the loss is a reset of exp_avg and exp_avg_sq.**")
    assert "exp_avg_sq alone ends at 55 nats, above the loss of knowing nothing in 20 seeds" in text
    assert "Step size alone explains 50 % of the effect" in text
    table = "\n".join(claims.sections())
    assert "Why, as far as" in table
    assert "| exp_avg kept, exp_avg_sq new, step new | no number | 20 | – | – | 0 / 20 |" in table
    assert set(claims.figures()) == {"reset", "exactness", "loss", "update_norm"}


def test_when_the_reset_does_nothing():
    claims = reset(dict.fromkeys(SECOND_MOMENT, 0.1))
    assert title(claims, "tiny") == "The reset, not answered: the reset does not lower the final loss of every seed"
    assert paragraph(claims) == "**With 20 seeds no effect of the reset on the final loss is established.**"


def test_too_few_seeds_establish_no_effect_of_the_reset():
    claims = reset(SECOND_MOMENT, seeds=4)
    assert title(claims, "tiny") == "The reset, not answered: 4 seeds establish no effect of the reset"
    assert "no effect of the reset" in paragraph(claims)


def test_a_cell_without_rows_has_a_line_in_the_table():
    table = cell_table(riddle(vocabularies_decide, keep=lambda cell, _: cell.levels["schedule"] != "1×5").results)
    [line] = [line for line in table.splitlines() if line.startswith("| vocabulary stable, schedule 1×5")]
    assert "| 0 | 0/0 | 0.000–1.000 |" in line


def test_spread_counts_missing_values():
    assert spread([None, None]) == "2 missing"
    assert spread([0.5, None, 1.5]) == "1 (0.5–1.5); 1 missing"
