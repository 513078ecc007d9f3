"""The rows of a file of pairs, as people and programs write them: JSON Lines, JSON arrays, and Excel's tables."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinygpt_lightning.gpt.files import naming
from tinygpt_lightning.gpt.tokenizer import normalize

DELIMITERS = {".csv": ",;\t", ".tsv": "\t"}  # the usual one first; Excel writes ; where a comma is the decimal point
NAMES = {
    "question": ("question", "prompt", "instruction", "câu hỏi"),
    "answer": ("answer", "completion", "output", "trả lời", "câu trả lời", "đáp án"),
}
TURNS = ("user", "assistant")

Row = dict[str, Any] | str  # the fields by name, or what is wrong


def file_rows(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    """Read a file row by row.

    The names of the fields are those of `NAMES`, in any case. A JSON object may have ``messages`` instead, with one
    turn of the user and one of the assistant, as chat models are trained.

    Args:
        path: A file .jsonl, .json, .csv or .tsv, in UTF-8, or in UTF-16 with its byte order mark.
        fields: The fields that are needed, of ``question`` and ``answer``.

    Yields:
        The line where the row begins, from 1, and the row.

    Raises:
        ValueError: If the file's name ends in something else, or its encoding is invalid.
        OSError: If the file cannot be read.
    """
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".json", *DELIMITERS):
        raise ValueError(f"expected a file .jsonl, .json, .csv or .tsv, got {path.suffix or 'no ending'}")
    with naming(path):
        content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            content = content.decode("utf-16").encode()
        except UnicodeError as error:
            raise ValueError(f"expected UTF-16 after its byte order mark, got something else: {error}") from None
    content = content.removeprefix(codecs.BOM_UTF8)  # which Windows puts there
    if kind == ".jsonl":
        rows = _json_lines(content)
    else:
        wrong = list(_wrong_lines(content))
        if wrong:  # where a row ends is no longer sure: there may have been a quotation mark
            yield from wrong
            return
        text = content.decode()
        rows = _json_array(text) if kind == ".json" else _table(text, fields, DELIMITERS[kind])
    for line, row in rows:
        yield line, row if isinstance(row, str) else _pair(row)


def _pair(row: Mapping[str, Any]) -> Row:
    """Find the fields of a pair under the names that the file gives them."""
    if "messages" in row:
        return _turns(row["messages"])
    given = {_folded(name): value for name, value in row.items()}
    if given.get("input"):
        return f"input: expected a question and an answer alone, got a third text, {given['input']!r:.60}"
    found = {field: next((name for name in names if name in given), None) for field, names in NAMES.items()}
    return {field: given[name] for field, name in found.items() if name is not None}


def _turns(messages: object) -> Row:
    """A question and its answer in the form of a chat."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        return f"messages: expected a list of turns, got {messages!r:.60}"
    roles = tuple(turn.get("role") for turn in messages)
    if roles != TURNS:
        return f"messages: expected one turn of the user and one of the assistant, got {', '.join(map(str, roles)):.60}"
    return {field: turn.get("content") for field, turn in zip(NAMES, messages, strict=True)}


def _json_lines(content: bytes) -> Iterator[tuple[int, Row]]:
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
            yield number, _object(row)


def _json_array(text: str) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        yield error.lineno, f"expected a JSON array, got no JSON ({error.msg} at column {error.colno})"
        return
    except RecursionError:
        yield 1, "expected a JSON array, got one that is nested too deeply"
        return
    if not isinstance(rows, list):
        yield 1, f"expected a JSON array of objects, got {text!r:.60}"
        return
    position, decoder = text.index("[") + 1, json.JSONDecoder()
    line, counted = 1, 0
    for row in rows:  # once more, for the lines: it is valid JSON, so only spaces and a comma stand before a row
        while text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        position = decoder.raw_decode(text, position)[1]
        yield line, _object(row)


def _object(row: object) -> Row:
    return row if isinstance(row, dict) else f"expected a JSON object, got {json.dumps(row, ensure_ascii=False):.60}"


def _table(text: str, fields: Sequence[str], delimiters: str) -> Iterator[tuple[int, Row]]:
    delimiter = next((mark for mark in delimiters if not _missing(_header(text, mark), fields)), delimiters[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            first, begin = begin, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue  # Excel leaves such rows where something was deleted
            if not header:
                header = cells
                if missing := _missing(header, fields):
                    yield (
                        first,
                        (
                            f"expected a header with the columns {' and '.join(fields)}, between {delimiter!r}; "
                            f"{missing[0]} is missing in {', '.join(header):.60}"
                        ),
                    )
                    return
            elif len(cells) > len(header) and any(cells[len(header) :]):
                yield first, f"expected {len(header)} fields, got {len(cells)}; quote a text that holds {delimiter!r}"
            else:
                yield first, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        yield begin, f"expected fields between {delimiter!r}, got something else: {error}"


def _header(text: str, delimiter: str) -> list[str]:
    """The first row of a table that is not empty, if ``delimiter`` is what its fields are separated by."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return next((cells for cells in reader if any(cells)), [])
    except csv.Error:
        return []


def _missing(header: Sequence[str], fields: Sequence[str]) -> list[str]:
    names = set(map(_folded, header))
    return [field for field in fields if not names.intersection(NAMES[field])]


def _folded(name: str) -> str:
    return normalize(name.strip()).casefold()


def _wrong_lines(content: bytes) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode()
        except UnicodeDecodeError as error:
            yield number, _not_utf8(error, line)


def _not_utf8(error: UnicodeDecodeError, line: bytes) -> str:
    byte = f"0x{line[error.start]:02x} at column {error.start + 1}"
    return f"expected UTF-8, got the byte {byte}; save it as UTF-8 (in Excel: Save As, CSV UTF-8)"
