"""Questions as people type them: in another case, without diacritics, with a typo. The answer stays."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from rapidfuzz import process
from rapidfuzz.distance import OSA

from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.tokenizer import normalize

MARKS = "?!.,"
SIGNS = "+*×÷<>#"  # which another question has, as digits: 2 + 2 is not 2 * 2, and C++ is not C
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard
NEIGHBOURS = {
    letter: "".join(row[max(i - 1, 0) : i] + row[i + 1 : i + 2]) for row in ROWS for i, letter in enumerate(row)
}
WORD = r"[\u3040-\u30ff\u3400-\u9fff]|[^\u3040-\u30ff\u3400-\u9fff]+"
TYPOS = 2  # by so many, questions are too much alike for either to be varied
SPARE = 2  # characters by which a variation may be longer than its question


def plain(text: str) -> str:
    """Drop the diacritics.

    >>> plain("Dự án này là gì, đúng không?")
    'Du an nay la gi, dung khong?'
    """
    decomposed = unicodedata.normalize("NFD", text.replace("đ", "d").replace("Đ", "D"))
    return normalize("".join(character for character in decomposed if not unicodedata.combining(character)))


def fold(text: str) -> str:
    """What is left of a question without case, diacritics, punctuation (but `SIGNS`) and spaces.

    >>> fold(" What is a  NAT?"), fold("...")
    ('whatisanat', '...')
    """
    return "".join(words(text)) or text


def words(text: str) -> list[str]:
    """The words of a text, each as `fold` leaves it; a Chinese or Japanese character is a word.

    >>> words("Đây là mèo?"), words("猫は何?")
    (['day', 'la', 'meo'], ['猫', 'は', '何'])
    """
    folded = ("".join(c for c in word if c.isalnum() or c in SIGNS) for word in plain(text).casefold().split())
    return [word for joined in folded for word in re.findall(WORD, joined)]


def _case(text: str, source: random.Random) -> str:
    lower = text.lower()
    return source.choice([lower, lower, text.upper(), text[:1].swapcase() + text[1:]])


def _punctuation(text: str, source: random.Random) -> str:
    bare = text.rstrip(MARKS + " ")
    return (bare or text) + source.choice(["", "", "?", " ?", "??", ".", "!"])


def _spaces(text: str, source: random.Random) -> str:
    places = [0, len(text), *(match.start() for match in re.finditer(" ", text))]
    place = source.choice(places)
    return text[:place] + " " + text[place:]


def _typo(text: str, source: random.Random) -> str:
    # A digit that is mistyped asks something else.
    places = [i for i, character in enumerate(text) if character.isalpha()]
    if len(places) < 4:
        return text
    i = source.choice(places)
    kind = source.randrange(4)
    if kind == 0:
        return text[:i] + text[i + 1 :]
    if kind == 1:
        return text[:i] + text[i] + text[i:]
    if kind == 2 and i + 1 < len(text) and text[i + 1].isalpha():
        return text[:i] + text[i + 1] + text[i] + text[i + 2 :]
    near = NEIGHBOURS.get(plain(text[i]).lower())
    return text[:i] + (source.choice(near) if near else "") + text[i + 1 :]


def _word(text: str, source: random.Random) -> str:
    parts = text.split(" ")
    if len(parts) < 4:
        return text
    return " ".join(parts[1:] if source.random() < 0.5 else parts[:-1])


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "case": _case,
    "punctuation": _punctuation,
    "spaces": _spaces,
    "diacritics": lambda text, _: plain(text),
    "typo": _typo,
    "word": _word,
}
DRAWN = ("case", "punctuation", "spaces", "diacritics", "typo", "typo", "typo", "word")  # a typo has most forms


def vary(question: str, source: random.Random) -> str:
    """Change a question in one to three ways."""
    for kind in source.choices(DRAWN, k=source.choice([1, 1, 2, 2, 3])):
        question = KINDS[kind](question, source)
    return question


class Noise:
    """Variations of taught questions, of known characters, none of which is another taught question.

    Questions that up to `TYPOS` typos, or nothing but case, diacritics, punctuation and spaces, tell apart are not
    varied: a model that is to overlook such differences memorises them more slowly.

    Args:
        pairs: The questions and their answers.
        amount: Variations of each question in an epoch, on average and at most.
        seed: The run's seed.
    """

    def __init__(self, pairs: Sequence[QAPair], amount: float, seed: int) -> None:
        self._pairs, self._amount, self._seed = pairs, amount, seed
        self._folds = [fold(pair.question) for pair in pairs]
        self._is_apart: dict[int, bool] = {}
        self._taught = set(self._folds)
        self._known = {character for pair in pairs for character in pair.question}

    def __call__(self, row: int, epoch: int) -> Iterator[QAPair]:
        """The variations of a pair in an epoch; they depend on nothing but the run's seed.

        Args:
            row: Index of the pair.
            epoch: From 0.
        """
        question, answer = self._pairs[row]
        if not self._stands_apart(row):
            return
        source = random.Random(f"{self._seed} {epoch} {row}")
        for _ in range(int(self._amount + source.random())):
            varied = vary(question, source)
            is_another = (folded := fold(varied)) != self._folds[row] and folded in self._taught
            fits = varied.strip() and len(varied) <= len(question) + SPARE and self._known.issuperset(varied)
            if fits and not is_another:
                yield QAPair(varied, answer)

    def _stands_apart(self, row: int) -> bool:
        if row not in self._is_apart:
            near = process.extract(self._folds[row], self._folds, scorer=OSA.distance, score_cutoff=TYPOS, limit=2)
            self._is_apart[row] = len(near) == 1  # the question itself
        return self._is_apart[row]


def owners(questions: Iterable[str]) -> Mapping[str, list[int]]:
    """Indices of the questions by their `fold`."""
    by_fold: dict[str, list[int]] = defaultdict(list)
    for i, question in enumerate(questions):
        by_fold[fold(question)].append(i)
    return dict(by_fold)
