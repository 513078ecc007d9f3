"""How much two questions are alike, and from where on one is taken for the other."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from tinygpt_lightning.data.noise import fold, vary

SAMPLE = 100  # so many questions and foreign ones are compared to find the threshold
REFUSED = 0.02  # share of the variations of taught questions that the threshold may refuse
# Questions that nobody was taught, for the threshold: what people ask a program first.
FOREIGN = (
    "What time is it in Tokyo?", "How do I cook rice without burning it", "Who won the football match last night?",
    "Where can I park my car", "Tell me a joke about cats", "What is the capital of France?", "Bạn có người yêu chưa?",
    "Hôm nay trời có mưa không", "Giá vàng hôm nay bao nhiêu?", "Kể cho tôi nghe một câu chuyện vui",
    "Làm thế nào để giảm cân nhanh?", "¿Dónde está la biblioteca?", "Comment tu t'appelles ?", "Wie spät ist es?",
    "Сколько стоит билет до Москвы?", "今天天气怎么样", "明日の予定は何ですか", "오늘 뭐 먹을까요?",
)  # fmt: skip


def likeness(asked: str, taught: str) -> float:
    """How much of two questions is the same, in the same order: from 0 to 1.

    Case, diacritics, punctuation and spaces play no part. Different digits make a different question.

    Source: Ratcliff and Metzener 1988, as in `difflib`.

    >>> likeness("du an nay la gi", "Dự án này là gì?")
    1.0
    >>> likeness("Room 12?", "Room 21?")
    0.0
    """
    one, other = fold(asked), fold(taught)
    if [c for c in one if c.isdigit()] != [c for c in other if c.isdigit()]:
        return 0.0
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def nearest(asked: str, questions: Sequence[str], count: int = 3) -> list[str]:
    """The questions that are most alike to ``asked``, the nearest one first."""
    matcher = SequenceMatcher(None, autojunk=False)
    matcher.set_seq2(fold(asked))  # what is compared with many others is prepared once
    ranked: list[tuple[float, int]] = []
    for i, question in enumerate(questions):
        matcher.set_seq1(fold(question))
        ranked.append((matcher.ratio(), -i))
    return [questions[-i] for _, i in sorted(ranked, reverse=True)[:count]]


def threshold(questions: Sequence[str], seed: int = 0) -> float:
    """From which likeness on a question is taken for a taught one.

    It lies in the middle between the variations of taught questions and questions that nobody taught: those of
    `FOREIGN`, taught ones with their words shuffled, and such as begin like one and end like another. But it refuses
    no more than `REFUSED` of the variations.

    Args:
        questions: The taught questions.
        seed: Decides which are drawn.
    """
    source = random.Random(seed)
    drawn = source.sample(questions, min(len(questions), SAMPLE))
    alike = (likeness(vary(question, source), question) for question in drawn for _ in range(10))
    variations = sorted(value for value in alike if value)  # without its last word a question may lack its number
    lowest = variations[int(REFUSED * len(variations))]
    foreign = sorted(
        max(likeness(question, taught) for taught in nearest(question, drawn)) for question in _foreign(drawn, source)
    )
    highest = foreign[int((1 - REFUSED) * (len(foreign) - 1))]
    return min(lowest, (lowest + highest) / 2)


def _foreign(questions: Sequence[str], source: random.Random) -> Iterator[str]:
    yield from FOREIGN
    taught = set(map(fold, questions))
    for question in source.sample(questions, min(len(questions), SAMPLE // 4)):
        words, others = question.split(" "), source.choice(questions).split(" ")
        for changed in (source.sample(words, len(words)), words[: len(words) // 2] + others[len(others) // 2 :]):
            if fold(" ".join(changed)) not in taught:
                yield " ".join(changed)
