"""Which taught question is meant, and the threshold from which on it is taken for that one."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
from own_files import made

from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.likeness import Questions, threshold
from tinygpt_lightning.data.noise import KINDS, fold, owners

FORMS = ("case", "punctuation", "spaces", "diacritics")


@cache
def questions_of(name: str) -> list[str]:
    """The questions of the project's file, or of a generated one: its kind, its seed and its number of pairs."""
    if name == "faq":
        file = Path(__file__).parents[2] / "configs/faq.jsonl"
        return [pair.question for pair in QADataModule(path=str(file)).taught.pairs]
    kind, seed, pairs = name.split("-")
    return [pair.question for pair in made(int(seed), pairs=int(pairs), kind=kind)]


@cache
def ready(name: str) -> tuple[Questions, float]:
    """The questions, ready to be compared, and their threshold."""
    return Questions(questions_of(name)), threshold(questions_of(name))


def test_the_form_of_a_question_plays_no_part() -> None:
    taught = Questions(questions_of("faq"))
    for kind in FORMS:
        for seed, question in enumerate(questions_of("faq")[:20]):
            assert taught.meant(KINDS[kind](question, random.Random(seed))) == (1.0, question)


def test_order_and_digits_count() -> None:
    taught = Questions(["Dự án này là gì", "Điều 12 nói gì"])
    assert taught.meant("gì là này án Dự")[0] < 0.5
    assert taught.meant("Điều 21 nói gì")[0] == 0
    assert taught.meant("Dự án nà là gìi")[0] > 0.8


@pytest.mark.parametrize(
    ("taught", "typed", "another"),
    [
        ("What is the capital of France?", "waht is the captial of frnace", "What is the capital of Germany?"),
        ("How many legs has a spider?", "how many legs has a", "How many legs has a horse?"),
        ("Thủ đô của Pháp là gì?", "thu do cua phap la gi vay", "Thủ đô của Lào là gì?"),
        ("Cửa hàng mở cửa lúc mấy giờ?", "cưa hàng mở cửa lúc mây giơ", "Cửa hàng đóng cửa lúc mấy giờ?"),
        ("法国的首都是哪里?", "法国首都是哪里", "德国的首都是哪里?"),
        ("Where is my order", "whereis my order", "Where is our order"),
        ("Choose row A please", "choose rowA please", "Choose row B please"),
        ("2 + 2 = ?", "2+2", "2 * 2 = ?"),
        ("C là gì?", "c la gi", "C++ là gì?"),
    ],
)
def test_another_word_is_no_typo(taught: str, typed: str, another: str) -> None:
    questions = Questions([taught, "Something else entirely"])
    known_from = threshold([taught, "Something else entirely"])
    assert questions.meant(typed)[1] == taught
    assert questions.meant(typed)[0] >= known_from
    assert questions.meant(another)[0] < known_from


def test_a_missing_first_or_last_word_is_one_edit() -> None:
    taught = Questions(["Please tell me what a nat is", "What is a"])
    for asked in ("tell me what a nat is", "Please tell me what a nat"):
        likeness, near = taught.meant(asked)
        assert near == "Please tell me what a nat is"
        assert likeness > 0.9
    assert taught.meant("is a")[0] < 0.7, "of three words none may be missing"


def test_where_two_are_as_near_none_is_meant() -> None:
    taught = Questions(["row B", "row C", "tá", "ta"])
    assert taught.meant("row b")[1] == "row B"
    assert taught.meant("row D")[0] < 0.5
    assert taught.meant("tá?") == (1.0, "tá"), "their form keeps them apart"
    assert taught.meant("TA") == (1.0, "ta")
    assert taught.meant("tà")[0] == 0.5
    assert Questions([]).meant("tá")[0] == 0


def test_the_nearest_questions_come_first() -> None:
    taught = Questions(["Dự án này là gì", "What is a net", "What is a nat?"])
    assert taught.nearest("what is a nat", 2) == ["What is a nat?", "What is a net"]
    assert taught.nearest("du an", 5)[0] == "Dự án này là gì"
    assert len(taught.nearest("Ω")) == 3


def auroc(high: list[float], low: list[float]) -> float:
    wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low)
    return wins / len(high) / len(low)


HELD_OUT = (
    "Wo finde ich den Bahnhof?", "Kannst du mir helfen", "Quelle heure est-il", "Je voudrais un billet pour Paris",
    "Dove si trova il museo", "Onde fica a praia", "Jak se máš dnes", "Gdzie jest dworzec", "Hur mår du idag",
    "Waar is het station", "Nerede oturuyorsun", "Missä on asema",
)  # fmt: skip


@pytest.mark.parametrize("name", ["faq", "sentences-0-60", "digits-5-60", "one character-2-60", "beginnings-3-60"])
def test_taught_questions_are_told_from_foreign_ones(name: str) -> None:
    """The foreign ones are another file's questions, taught ones with their words shuffled, and other languages."""
    questions = questions_of(name)
    (taught, known_from), source = ready(name), random.Random(99)
    drawn = source.sample(questions, 60)
    shuffled = [" ".join(source.sample(words, len(words))) for question in drawn if len(words := question.split()) > 3]
    others = questions_of("sentences-1001-40") + (questions_of("faq")[::5] if name != "faq" else [])
    foreign = [taught.meant(q)[0] for q in (*HELD_OUT, *others, *shuffled) if fold(q) not in owners(questions)]
    near = [(question, taught.meant(KINDS[kind](question, source))) for question in drawn for kind in (*FORMS, "typo")]
    known = [likeness if meant == question else 0 for question, (likeness, meant) in near]
    assert auroc(known, foreign) >= 0.97
    assert sum(likeness < known_from for likeness in known) / len(known) <= 0.02
    assert known_from > 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "share"), [*((kind, 0.98) for kind in FORMS), ("typo", 0.9), ("typo and typo", 0.75)])
@pytest.mark.parametrize("name", ["faq", "sentences-4-200", "one character-6-200", "beginnings-7-200"])
def test_questions_are_read_as_people_type_them(name: str, kind: str, share: float) -> None:
    questions = questions_of(name)
    (taught, known_from), by_fold = ready(name), owners(questions)
    source = random.Random(f"{name} {kind}")
    read = []
    for row, question in enumerate(questions[:60]):
        varied = question
        for change in kind.split(" and "):
            varied = KINDS[change](varied, source)
        if len(by_fold[fold(question)]) == 1 and by_fold.get(fold(varied), [row]) == [row]:
            likeness, near = taught.meant(varied)
            read.append(near == question and likeness >= known_from)
    assert sum(read) >= share * len(read)


def test_the_taught_questions_themselves_are_always_known() -> None:
    for name in ("faq", "one character-2-60"):
        taught = Questions(questions_of(name))
        for question, rows in zip(questions_of(name), owners(questions_of(name)).values(), strict=False):
            assert len(rows) > 1 or taught.meant(question)[0] == 1
