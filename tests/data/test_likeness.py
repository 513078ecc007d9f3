"""Likeness of questions, and the threshold from which on one is taken for a taught one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from own_files import made

from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.likeness import likeness, nearest, threshold
from tinygpt_lightning.data.noise import KINDS, vary

FAQ = [pair.question for pair in QADataModule(path=str(Path(__file__).parents[2] / "configs/faq.jsonl")).taught.pairs]


def test_the_form_of_a_question_plays_no_part() -> None:
    for kind in ("case", "punctuation", "spaces", "diacritics"):
        for seed in range(20):
            assert likeness(KINDS[kind]("Dự án này là gì", random.Random(seed)), "Dự án này là gì") == 1


def test_order_and_digits_count() -> None:
    assert likeness("gì là này án Dự", "Dự án này là gì") < 0.7
    assert likeness("Điều 12 nói gì", "Điều 21 nói gì") == 0
    assert likeness("Dự án nà là gìi", "Dự án này là gì") > 0.85


def test_the_nearest_questions_come_first() -> None:
    questions = ["What is a nat?", "What is a net", "Dự án này là gì"]
    assert nearest("what is a nat", questions, 2) == questions[:2]
    assert nearest("du an", questions, 5)[0] == questions[2]


def auroc(high: list[float], low: list[float]) -> float:
    wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
    return wins / len(high) / len(low)


@pytest.mark.parametrize("name", ["faq", 0, 4, 8, 12, 16])
def test_taught_questions_are_told_from_foreign_ones(name: str | int) -> None:
    questions = FAQ if name == "faq" else [pair.question for pair in made(int(name), pairs=100, kind="sentences")]
    source = random.Random(99)
    drawn = source.sample(questions, 60)
    taught = [likeness(vary(question, source), question) for question in drawn for _ in range(3)]
    others = [pair.question for pair in made(1000 + 4 * len(questions), pairs=30, kind="sentences")]
    shuffled = [" ".join(source.sample(words, len(words))) for question in drawn if len(words := question.split()) > 3]
    foreign = [max(likeness(q, near) for near in nearest(q, questions)) for q in others + shuffled]
    assert auroc(taught, foreign) >= 0.97
    known_from = threshold(questions)
    assert sum(value < known_from for value in taught) / len(taught) <= 0.05
    assert known_from > 0.4
    assert all(likeness(question, question) >= known_from for question in questions)
