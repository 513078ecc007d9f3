"""Files of question-answer pairs: JSONL, CSV and TSV, and what is wrong in them."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.files import naming
from tinygpt_lightning.gpt.tokenizer import normalize

DELIMITERS = {".csv": ",", ".tsv": "\t"}
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
    """Read a file of pairs: JSON objects, one a line (.jsonl), or a table with a header (.csv, .tsv).

    Each has a ``question`` and an ``answer``; what else there is plays no part.

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
    """The lines of a file: number, and the fields that are asked for, or what is wrong."""
    kind = path.suffix.lower()
    if kind != ".jsonl" and kind not in DELIMITERS:
        raise PairsError(path, [Mistake(0, f"expected a file .jsonl, .csv or .tsv, got {path.suffix or 'no ending'}")])
    with naming(path):
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")  # the byte order mark that Windows puts there
    rows = _json_rows(content) if kind == ".jsonl" else _table_rows(content, fields, DELIMITERS[kind])
    for line, row in rows:
        yield line, row if isinstance(row, str) else _texts(row, fields)


def _json_rows(content: bytes) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            yield number, _not_utf8(error, line)
        except json.JSONDecodeError as error:
            yield number, f"expected a JSON object, got no JSON ({error.msg} at column {error.colno})"
        except RecursionError:
            yield number, "expected a JSON object, got one that is nested too deeply"
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, f"expected a JSON object, got {line.decode():.60}"


def _table_rows(content: bytes, fields: Sequence[str], delimiter: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    broken = False
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            broken = True
            yield number, _not_utf8(error, line)
    if broken:  # where a line ends is no longer sure: there may have been a quotation mark
        return
    reader = csv.reader(io.StringIO(content.decode(), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            first, begin = begin, reader.line_num + 1
            if not any(cells):  # a spreadsheet's empty row is a row of delimiters
                continue
            if not header:
                header = [name.strip() for name in cells]
                if missing := [name for name in fields if name not in header]:
                    yield first, f"expected a column {missing[0]}, got the columns {', '.join(header):.60}"
                    return
            elif len(cells) > len(header):
                yield first, f"expected {len(header)} fields, got {len(cells)}; quote a text that holds {delimiter!r}"
            else:
                yield first, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        yield begin, f"expected fields between {delimiter!r}, got something else: {error}"


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


def _not_utf8(error: UnicodeDecodeError, line: bytes) -> str:
    return f"expected UTF-8, got the byte 0x{line[error.start]:02x} at column {error.start + 1}"
