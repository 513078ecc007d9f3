"""Files of pairs as people might have them, made from seeds: six alphabets, tables of digits, questions much alike."""

from __future__ import annotations

import random
import unicodedata

from tinygpt_lightning.data.text import QAPair

ALPHABETS = {
    "vietnamese": ["a", "ă", "â", "e", "ê", "i", "o", "ô", "ơ", "u", "ư", "bcdđghklmnpqrstvx"],
    "latin": ["aeiou", "bcdfghjklmnprstvwz"],
    "greek": ["αεηιουω", "βγδθκλμνπρστφχ"],
    "cyrillic": ["аеиоуыя", "бвгджзклмнпрстфхш"],
    "hangul": ["".join(map(chr, range(0xAC00, 0xAC00 + 588 * 19, 97)))],
    "chinese": ["的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后"],
}
TONES = "\u0300\u0301\u0309\u0303\u0323"
KINDS = ("sentences", "digits", "one character", "beginnings")


def made(seed: int, *, pairs: int | None = None, kind: str | None = None) -> list[QAPair]:
    """Make the pairs of a file.

    Args:
        seed: Decides everything that is not given.
        pairs: How many; None draws 1 to 2,000, with few files of many.
        kind: One of `KINDS`.

    Returns:
        Pairs with distinct questions, answers of 1 to 400 characters.
    """
    source = random.Random(seed)
    count = pairs or round(2000 ** source.random())
    kind = kind or KINDS[seed % len(KINDS)]
    words = _words(source, list(ALPHABETS)[seed // len(KINDS) % len(ALPHABETS)])
    longest = source.choice([1, 4, 10, 20, 60] if count <= 200 else [1, 4, 8])  # words of an answer
    questions: dict[str, None] = {}
    stem = " ".join(source.choices(words, k=3))
    while len(questions) < count:
        sentence = " ".join(source.choices(words, k=source.randint(2, 8)))
        if kind == "digits":
            question = str(source.randrange(10 * count))
        elif kind == "one character":
            question = f"{stem} {chr(source.choice([0x41, 0x61]) + source.randrange(26))}{source.randrange(count)}?"
        elif kind == "beginnings":
            last = source.choice([*questions, stem])[:80]
            question = f"{last} {source.choice(words)}"
        else:
            question = sentence[0].upper() + sentence[1:] + source.choice(["?", "", "!"])
        questions.setdefault(question)
    return [QAPair(question, _answer(source, words, kind, longest)) for question in questions]


def _answer(source: random.Random, words: list[str], kind: str, longest: int) -> str:
    if kind == "digits":
        return "".join(source.choices("0123456789", k=source.randint(1, min(12, 2 * longest))))
    return " ".join(source.choices(words, k=source.randint(1, longest)))[:400].strip()


def _words(source: random.Random, alphabet: str) -> list[str]:
    """Some hundreds of words of an alphabet."""
    letters = ALPHABETS[alphabet]
    words = set()
    for _ in range(400):
        if len(letters) == 1:
            word = "".join(source.choices(letters[0], k=source.randint(1, 3)))
        else:
            vowels, consonants = "".join(letters[:-1]), letters[-1]
            length = 1 if alphabet == "vietnamese" else source.randint(1, 3)
            word = "".join(
                source.choice(consonants) + source.choice(vowels) + source.choice(["", source.choice(consonants)])
                for _ in range(length)
            )
            if alphabet == "vietnamese" and source.random() < 0.7:
                word = word[:2] + source.choice(TONES) + word[2:]
        words.add(unicodedata.normalize("NFC", word))
    return sorted(words)
