"""Which taught question is meant by what people type, and from which likeness on it is taken for that one."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import accumulate

from rapidfuzz import process
from rapidfuzz.distance import OSA

from tinygpt_lightning.data.noise import SIGNS, fold, vary, words
from tinygpt_lightning.gpt.tokenizer import normalize

CANDIDATES = 24  # nearest texts, up to three of a question, that are compared further
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


class Questions:
    """Taught questions, ready to be compared with what people type.

    Two questions are alike by the share of characters that need no edit. Case, diacritics, punctuation and spaces play
    no part, and a missing first or last word counts as one edit. Different digits or `SIGNS` make a different
    question, and so does another word in the place of a taught one, as Germany in that of France.

    Args:
        questions: The questions.

    >>> taught = Questions(["Dự án này là gì?", "Room 12?"])
    >>> taught.meant("du an nay la gi"), taught.meant("Room 21?")[0]
    ((1.0, 'Dự án này là gì?'), 0.0)
    """

    def __init__(self, questions: Sequence[str]) -> None:
        self._questions = questions
        self._forms = [_forms(question) for question in questions]
        self._texts = ["".join(form) for forms in self._forms for form in forms]
        self._questions_of = [i for i, forms in enumerate(self._forms) for _ in forms]

    def meant(self, asked: str) -> tuple[float, str]:
        """How much ``asked`` is like the question that is meant, and that question.

        It is halved if another question is as near, or if ``asked`` has another word in the place of a taught one; up
        to a half it means nothing.
        """
        ranked, typed = self._ranked(asked), words(asked)
        scores = Counter(score for score, _ in ranked)
        best = 0.0, asked
        for score, i in ranked:
            if score[0] <= best[0]:
                break
            is_meant = score[0] > 0.5 and scores[score] == 1 and _has_same_words(typed, self._forms[i])
            best = max(best, (score[0] if is_meant else score[0] / 2, self._questions[i]), key=lambda found: found[0])
        return best

    def nearest(self, asked: str, count: int = 3) -> list[str]:
        """The questions that are most alike to ``asked``, the nearest one first."""
        return [self._questions[i] for _, i in self._ranked(asked)[:count]]

    def _ranked(self, asked: str) -> list[tuple[tuple[float, int], int]]:
        """Candidates with their likeness and, of those that differ in form alone, the edits of the form; best first."""
        folded, exact = fold(asked), normalize(asked).casefold()
        near = process.extract(folded, self._texts, scorer=OSA.normalized_similarity, limit=CANDIDATES)
        ranked = []
        for i in dict.fromkeys(self._questions_of[text] for *_, text in near):
            whole, *shorter = map("".join, self._forms[i])
            likeness = max(_likeness(folded, whole), *(_likeness(folded, form, missing=1) for form in shorter), 0.0)
            in_form = OSA.distance(exact, self._questions[i].casefold()) if folded == whole else 0
            ranked.append(((likeness, -in_form), i))
        return sorted(ranked, key=lambda entry: entry[0], reverse=True)


def _likeness(asked: str, form: str, *, missing: int = 0) -> float:
    one, other = ([c for c in text if c.isdigit() or c in SIGNS] for text in (asked, form))
    if one != other:
        return 0.0
    return 1 - (OSA.distance(asked, form) + missing) / max(len(asked), len(form))


def _has_same_words(asked: Sequence[str], forms: Sequence[Sequence[str]]) -> bool:
    """Whether ``asked`` has the words of a question, given in its `_forms`, up to typos; it may have more words."""
    whole, *shorter = forms
    return not _has_another(whole, asked) or any(
        not _has_another(form, asked) and not _has_another(asked, form, added=True) for form in shorter
    )


def _has_another(known: Sequence[str], others: Sequence[str], *, added: bool = False) -> bool:
    """Whether another word, or if ``added`` nothing, stands among ``others`` in the place of one of ``known``."""
    joined, text = "".join(known), "".join(others)
    blocks = SequenceMatcher(None, joined, text, autojunk=False).get_opcodes()
    bounds = [0, *accumulate(map(len, others))]
    begin = 0
    for word in known:
        end = begin + len(word)
        before, behind = [*_places(blocks, begin)], [*_places(blocks, end)]
        low, high = before[-1], behind[0]
        if low < high:  # with what was inserted at its edges, as far as it is of the same word
            low = max(before[0], bounds[bisect_right(bounds, low) - 1])
            high = min(behind[-1], bounds[bisect_left(bounds, high)])
        if (low < high or added) and OSA.distance(word, text[low:high]) > max(len(word) // 3, min(len(word) - 1, 1)):
            return True
        begin = end
    return False


def _places(blocks: Sequence[tuple[str, int, int, int, int]], i: int) -> Iterator[int]:
    """Where position ``i`` of one text is in another, from before to behind what is inserted there."""
    for _, begin, end, other_begin, other_end in blocks:
        if i == begin:
            yield other_begin
        if i == end:
            yield other_end
        elif begin < i < end:
            yield min(other_begin + i - begin, other_end)


def _forms(question: str) -> list[list[str]]:
    """The words of a question, and those without its first and without its last one if it has four or more."""
    parts = question.split()
    shorter = [parts, parts[1:], parts[:-1]] if len(parts) > 3 else [parts]
    return [words(" ".join(part)) or [question] for part in shorter]


def threshold(questions: Sequence[str], seed: int = 0) -> float:
    """From which likeness on a question is taken for a taught one, 0.5 or more.

    It lies in the middle between the variations of taught questions and questions that nobody taught: those of
    `FOREIGN`, taught ones with their words shuffled, and such as begin like one and end like another. But it refuses
    no more than `REFUSED` of the variations.

    Args:
        questions: The taught questions.
        seed: Decides which are drawn.
    """
    source = random.Random(seed)
    drawn = source.sample(questions, min(len(questions), SAMPLE))
    taught = Questions(questions)
    meant = [(question, *taught.meant(vary(question, source))) for question in drawn for _ in range(4)]
    alone = sorted(likeness for question, likeness, near in meant if near == question and likeness > 0.5)
    foreign = sorted(taught.meant(question)[0] for question in _foreign(drawn, source))
    lowest = alone[int(REFUSED * len(alone))] if alone else 1.0
    highest = foreign[int((1 - REFUSED) * (len(foreign) - 1))]
    return max(0.51, min(lowest, (lowest + highest) / 2))


def _foreign(questions: Sequence[str], source: random.Random) -> Iterator[str]:
    yield from FOREIGN
    taught = set(map(fold, questions))
    for question in source.sample(questions, min(len(questions), SAMPLE // 4)):
        words, others = question.split(" "), source.choice(questions).split(" ")
        for changed in (source.sample(words, len(words)), words[: len(words) // 2] + others[len(others) // 2 :]):
            if fold(" ".join(changed)) not in taught:
                yield " ".join(changed)
