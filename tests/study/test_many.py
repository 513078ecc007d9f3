"""A reset with one pair and with many: what the rows say of it, and the files that the study reads."""

import pytest

from tinygpt_lightning.study.claims_many import Many
from tinygpt_lightning.study.report import title

from .test_claims import paragraph
from .tiny import ROOT, outcome, results_of, tiny_study

FACTORS = {
    "pairs": {"1": {"data.answer": "a"}, "7 in batches of 3": {"data.answer": "b"}, "9": {"data.answer": "c"}},
    "optimizer": {"kept": {"stages": [{"epochs": 30}]}, "new": {"stages": [{"epochs": 10}] * 3}},
}
EPOCHS = {
    ("1", "kept"): 12,
    ("1", "new"): 12,
    ("7 in batches of 3", "kept"): 20,
    ("7 in batches of 3", "new"): 14,
    ("9", "kept"): 25,
    ("9", "new"): None,
}


def many(epochs=EPOCHS, seeds=10):
    def decide(cell, seed):
        reached = epochs[cell.levels["pairs"], cell.levels["optimizer"]]
        return outcome(reached is not None, epochs_of_run_to_exact=reached and reached + seed % 3)

    study = tiny_study(factors=FACTORS, seeds=seeds, claims="many", outcome="epochs_of_run", title="A reset")
    return Many(results_of(study, decide))


def test_it_says_where_a_reset_helps_and_where_it_harms():
    claims = many()
    assert title(claims, "") == "A reset, answered"
    text = paragraph(claims)
    assert text.startswith(
        "**A new optimizer every 10 epochs helps with 7 in batches of 3; it harms with 9; it makes no established "
        "difference with 1 (pairs).**"
    )
    assert "1: 13 / 13; 7 in batches of 3: 21 / 15; 9: 26 / more than 30." in text
    assert "A reset costs" not in text
    assert {each.factor for each in claims.primary} == {"optimizer"}
    section = claims.sections()[1]
    assert "| 9 | 26 / more than 30 | 10 / 0 | 0.0039 | harms |" in section


def test_a_reason_is_given_where_a_reset_helps_nowhere():
    text = paragraph(many({**EPOCHS, ("7 in batches of 3", "new"): 22}))
    assert "harms with 7 in batches of 3 and 9; it makes" in text
    assert "A reset costs" in text


def test_nothing_is_claimed_of_too_few_seeds():
    claims = many(seeds=3)
    assert "cannot establish" in title(claims, "")
    assert paragraph(claims).startswith("**A new optimizer every 10 epochs makes no established difference with 1")


@pytest.mark.parametrize("n", [1, 10, 50])
def test_a_part_of_the_pairs_is_the_first_lines(n):
    lines = (ROOT / "configs" / "faq.jsonl").read_bytes().splitlines()
    assert (ROOT / "configs" / f"faq-{n}.jsonl").read_bytes().splitlines() == lines[:n]
