"""Files of question-answer pairs, and what is wrong in them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt_lightning.data.file_rows import file_rows
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.tokenizer import normalize

MOST_MISTAKES = 10  # so many are told at once


class Mistake(NamedTuple):
    """What is wrong in a line of a file.

    Args:
        line: Its number, from 1; 0 for the file as a whole.
        reason: What was expected, and what is there.
    """

    line: int
    reason: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.reason}" if self.line else self.reason


class PairsError(ValueError):
    """A file of pairs is refused; the message has the file, and the first mistakes with their lines."""

    def __init__(self, path: str | os.PathLike[str], mistakes: Sequence[Mistake]) -> None:
        first = [str(mistake) for mistake in sorted(mistakes)[:MOST_MISTAKES]]
        if len(mistakes) == 1:
            super().__init__(f"{os.fspath(path)}: {first[0]}")
            return
        shown = "" if len(mistakes) <= MOST_MISTAKES else f", the first {MOST_MISTAKES}"
        super().__init__("\n  ".join([f"{os.fspath(path)}: {len(mistakes)} mistakes{shown}:", *first]))


@dataclass
class PairFile:
    """What a file of pairs holds, in Unicode's composed form, and what is wrong with it.

    Args:
        path: The file.
        pairs: Each pair once, in the order of the file.
        lines: Where each of them begins, from 1.
        repeated: Lines that repeat an earlier pair exactly.
        mistakes: What is wrong.
    """

    path: Path
    pairs: list[QAPair] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)


def read_pairs(path: str | os.PathLike[str]) -> PairFile:
    """Read a file of pairs: JSON objects, one a line (.jsonl) or in an array (.json), or a table (.csv, .tsv).

    Each has a ``question`` and an ``answer``, or the names that others give them: see `file_rows`. Other fields are
    ignored.

    Returns:
        What could be read, and the mistakes: it is for the caller to add those that only he can see, and to
        raise a `PairsError`.

    Raises:
        PairsError: If the file's name ends in something else.
        OSError: If it cannot be read.
    """
    file = PairFile(Path(path))
    known: dict[str, tuple[int, str]] = {}  # question to where it was first, and its answer there
    for line, row in _rows(file.path, ("question", "answer")):
        if isinstance(row, str):
            file.mistakes.append(Mistake(line, row))
            continue
        pair = QAPair(row["question"], row["answer"])
        first, answer = known.setdefault(pair.question, (line, pair.answer))
        if first == line:
            file.pairs.append(pair)
            file.lines.append(line)
        elif answer == pair.answer:
            file.repeated.append(line)
        else:
            file.mistakes.append(
                Mistake(line, f"expected one answer to a question, got another than in line {first}: {pair.question!r}")
            )
    if not file.pairs and not file.mistakes:
        file.mistakes.append(Mistake(0, "expected at least one pair, got none"))
    return file


def read_questions(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Read the questions of a file as `read_pairs` takes it; it may do without answers, and repeat itself.

    Returns:
        Of each, the line where it begins, from 1, and the question.

    Raises:
        PairsError: If anything is wrong with it.
        OSError: If it cannot be read.
    """
    rows = list(_rows(Path(path), ("question",)))
    mistakes = [Mistake(line, row) for line, row in rows if isinstance(row, str)]
    if mistakes or not rows:
        raise PairsError(path, mistakes or [Mistake(0, "expected at least one question, got none")])
    return [(line, row["question"]) for line, row in rows if not isinstance(row, str)]


def _rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | str]]:
    """The rows of a file: line, and the texts of the fields that are asked for, or what is wrong."""
    try:
        for line, row in file_rows(path, fields):
            yield line, row if isinstance(row, str) else _texts(row, fields)
    except ValueError as error:
        raise PairsError(path, [Mistake(0, str(error))]) from None


def _texts(row: dict[str, Any], fields: Sequence[str]) -> dict[str, str] | str:
    texts = {}
    for name in fields:
        text = row.get(name)
        if text is None:
            return f"{name}: expected text, and it is missing"
        if not isinstance(text, str):
            return f"{name}: expected text, got {text!r:.60}"
        if not text:
            return f"{name}: expected at least one character, got none"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"{name}: expected valid Unicode, got a lone surrogate in {text!r:.60}"
        texts[name] = normalize(text)
    return texts
