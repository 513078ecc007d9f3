"""Files of pairs: what is read, and how each mistake is told."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_lightning.data.pair_files import Mistake, PairFile, PairsError, read_pairs, read_questions
from tinygpt_lightning.data.text import QAPair

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)  # before 3.11, csv reads no NUL
many_pairs = st.lists(st.tuples(texts, texts), min_size=1, unique_by=lambda pair: unicodedata.normalize("NFC", pair[0]))


def in_form(kind: str, pairs: list[tuple[str, str]]) -> bytes:
    if kind == ".jsonl":
        return "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs).encode()
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter="," if kind == ".csv" else "\t")
    writer.writerows([("question", "answer"), *pairs])
    return file.getvalue().encode()


def read(content: bytes, name: str = "pairs.jsonl") -> PairFile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        return read_pairs(path)


@settings(deadline=None)
@given(many_pairs, st.sampled_from([".jsonl", ".csv", ".tsv"]))
def test_any_pairs_come_through_a_file_unharmed(pairs: list[tuple[str, str]], kind: str) -> None:
    file = read(in_form(kind, pairs), f"pairs{kind}")
    assert not file.mistakes
    assert file.pairs == [tuple(unicodedata.normalize("NFC", part) for part in pair) for pair in pairs]


def test_other_columns_play_no_part_and_their_order_neither() -> None:
    assert read(b"id,answer,question\n1,A,Q\n", "pairs.CSV").pairs == [QAPair("Q", "A")]
    assert read(b'{"id": 1, "answer": "A", "question": "Q", "note": null}').pairs == [QAPair("Q", "A")]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv"])
def test_what_windows_and_editors_add_is_passed_over(name: str) -> None:
    content = in_form(Path(name).suffix, [("Q", "A"), ("Q2", "A2")]).replace(b"\r\n", b"\n")
    file = read(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n"), name)
    assert (file.pairs, file.mistakes) == ([QAPair("Q", "A"), QAPair("Q2", "A2")], [])


def test_rows_of_delimiters_alone_are_skipped_and_names_of_columns_stripped() -> None:
    file = read(b",,\n question , answer ,note\nQ,A,\n,,\n,,\nQ2,A2,x\n,,\n", "pairs.csv")
    assert (file.pairs, file.mistakes) == ([QAPair("Q", "A"), QAPair("Q2", "A2")], [])
    assert file.lines == [3, 6]


def test_lines_are_counted_where_a_text_has_several() -> None:
    file = read(b'question,answer\n"Q\n1","A\n\n1"\nQ2,A2\nQ3\n', "pairs.csv")
    assert (file.pairs, file.lines) == ([QAPair("Q\n1", "A\n\n1"), QAPair("Q2", "A2")], [2, 6])
    assert file.mistakes == [Mistake(7, "answer: expected text, and it is missing")]


def test_an_exact_repetition_counts_once_and_is_noted() -> None:
    row = b'{"question": "Q", "answer": "A"}\n'
    decomposed = '{"question": "e\u0301", "answer": "A"}\n'.encode()
    composed = '{"question": "\u00e9", "answer": "A"}\n'.encode()
    file = read(row + decomposed + row + composed)
    assert (file.pairs, file.lines, file.repeated) == ([QAPair("Q", "A"), QAPair("\u00e9", "A")], [1, 2], [3, 4])
    assert not file.mistakes


def test_a_question_may_be_the_beginning_of_another() -> None:
    assert not read(in_form(".jsonl", [("Xin", "1"), ("Xin chào", "2")])).mistakes


LINES = {
    "no JSON": (b"{question: 1}", "expected a JSON object, got no JSON (Expecting property name enclosed in"),
    "half a line": (b'{"question": "Q", "ans', "expected a JSON object, got no JSON (Unterminated string starting at "),
    "a list": (b'["Q", "A"]', 'expected a JSON object, got ["Q", "A"]'),
    "a number": (b"7", "expected a JSON object, got 7"),
    "no question": (b'{"answer": "A"}', "question: expected text, and it is missing"),
    "no answer": (b'{"question": "Q", "anser": "A"}', "answer: expected text, and it is missing"),
    "an empty question": (b'{"question": "", "answer": "A"}', "question: expected at least one character, got none"),
    "an empty answer": (b'{"question": "Q", "answer": ""}', "answer: expected at least one character, got none"),
    "a number as answer": (b'{"question": "Q", "answer": 3}', "answer: expected text, got 3"),
    "no UTF-8": (b'{"question": "\xe9", "answer": "A"}', "expected UTF-8, got the byte 0xe9 at column 15"),
    "half a character": (b'{"question": "\\ud83d", "answer": "A"}', "question: expected valid Unicode, got a lone"),
    "too deep": (b"[" * 200_000, "expected a JSON object, got one that is nested too deeply"),
    "another answer": (
        b'{"question": "first", "answer": "2"}',
        "expected one answer to a question, got another than in line 1: 'first'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_each_mistake_is_told_with_its_line(name: str) -> None:
    line, reason = LINES[name]
    file = read(b'{"question": "first", "answer": "1"}\n\n' + line + b'\n{"question": "last", "answer": "1"}\n')
    ((number, told),) = file.mistakes
    assert number == 3
    assert told.startswith(reason)
    assert len(told) < 120
    assert [pair.question for pair in file.pairs] == ["first", "last"], "reading goes on behind it"


TABLES = {
    "no such columns": (b"Frage;Antwort\nQ;A\n", 1, "expected a header with the columns question and answer"),
    "no answers": (b"question\nQ\n", 1, "expected a header with the columns question and answer"),
    "a comma that is not quoted": (
        b"question,answer\nQ,A, B\n",
        2,
        "expected 2 fields, got 3; quote a text that holds",
    ),
    "an empty field": (b"question,answer\nQ,\n", 2, "answer: expected at least one character, got none"),
    "a quotation mark without an end": (b'question,answer\n"Q,A\n', 2, "expected fields between ',', got something"),
    "UTF-16 without its mark": ("question,answer\nQ,é\n".encode("utf-16-le"), 2, "expected UTF-8, got the byte 0xe9"),
    "Windows-1252": ("question,answer\nQ,é\n".encode("cp1252"), 2, "expected UTF-8, got the byte 0xe9 at column 3"),
}


@pytest.mark.parametrize("name", TABLES)
def test_each_mistake_in_a_table_is_told_with_its_line(name: str) -> None:
    content, number, reason = TABLES[name]
    first = read(content, "pairs.csv").mistakes[0]
    assert first.line == number
    assert first.reason.startswith(reason)


def test_half_of_a_file_in_utf16_is_refused() -> None:
    with pytest.raises(PairsError, match="expected UTF-16 after its byte order mark, got something else"):
        read(b"\xff\xfeq", "pairs.csv")


def test_a_file_in_windows_own_encoding_is_refused_with_the_way_to_save_it_as_utf8() -> None:
    mistake = read("question,answer\nTaxe,29 €\n".encode("cp1252"), "pairs.csv").mistakes[0]
    assert "UTF-8 (in Excel: Save As" in mistake.reason


EXPECTED = [QAPair("Q1", "A; 1"), QAPair("Q\n2", "A2")]
EXCEL = {
    "commas": 'question,answer\nQ1,A; 1\n"Q\n2",A2\n',
    "semicolons": 'Question;Answer\r\nQ1;"A; 1"\r\n"Q\n2";A2\r\n',
    "tabulators": 'QUESTION\tANSWER\nQ1\tA; 1\n"Q\n2"\tA2\n',
    "vietnamese": 'STT;Câu hỏi;Trả lời\n1;Q1;"A; 1"\n2;"Q\n2";A2\n',
    "a school's": 'Câu hỏi,Đáp án\nQ1,A; 1\n"Q\n2",A2\n',
    "decomposed": unicodedata.normalize("NFD", 'Câu hỏi , Trả lời \nQ1,A; 1\n"Q\n2",A2\n'),
    "empty rows": 'question;answer;\nQ1;"A; 1";\n;;\n"Q\n2";A2;\n;;\n ; ;\n',
    "empty cells": 'question,answer\nQ1,A; 1,,\n"Q\n2",A2,,\n,,,\n',
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", EXCEL)
def test_a_table_is_read_as_excel_writes_it(name: str, encoding: str) -> None:
    file = read(EXCEL[name].encode(encoding), "pairs.csv")
    assert (file.pairs, file.mistakes) == (EXPECTED, [])


def chat(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


OTHERS: dict[str, dict[str, object]] = {
    "completion": {"prompt": "Q", "completion": "A"},
    "instruction": {"instruction": "Q", "input": "", "output": "A"},
    "messages": chat(("user", "Q"), ("assistant", "A")),
    "other case": {"Question": "Q", "ANSWER": "A"},
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", OTHERS)
def test_the_names_of_others_are_read_in_lines_and_in_an_array(name: str, encoding: str) -> None:
    row = OTHERS[name]
    assert read((json.dumps(row) + "\n").encode(encoding)).pairs == [QAPair("Q", "A")]
    array = read(json.dumps([{"question": "X,[]", "answer": "Y"}, row], indent=1).encode(encoding), "pairs.json")
    assert (array.pairs, array.lines, array.mistakes) == ([QAPair("X,[]", "Y"), QAPair("Q", "A")], [2, 6], [])


MORE: dict[str, tuple[dict[str, object], str]] = {
    "a third text": ({"instruction": "Q", "input": "I", "output": "A"}, "input: expected a question and an answer al"),
    "a system turn": (chat(("system", "S"), ("user", "Q"), ("assistant", "A")), "messages: expected one turn of the "),
    "two questions": (chat(*[("user", "Q"), ("assistant", "A")] * 2), "messages: expected one turn of the user and"),
    "no answer": (chat(("user", "Q")), "messages: expected one turn of the user and one of the assistant, got user"),
    "no turns": ({"messages": "Q"}, "messages: expected a list of turns, got 'Q'"),
    "no content": ({"messages": [{"role": "user"}, {"role": "assistant"}]}, "question: expected text, and it is"),
}


@pytest.mark.parametrize("name", MORE)
def test_what_has_more_than_a_pair_is_refused_by_its_line(name: str) -> None:
    row, reason = MORE[name]
    first = {"question": "first", "answer": "1"}
    for content, ending in ((f"{json.dumps(first)}\n{json.dumps(row)}", ".jsonl"), (json.dumps([first, row]), ".json")):
        (mistake,) = read(content.encode(), f"pairs{ending}").mistakes
        assert mistake.line == (2 if ending == ".jsonl" else 1)
        assert mistake.reason.startswith(reason)


@pytest.mark.parametrize(
    ("content", "line"), [("", 1), ("[1\n,", 2), ('{"question": "Q"}', 1), ("[" * 200_000, 1), ("[\n\n7]", 3)]
)
def test_what_is_no_array_of_objects_is_refused_by_its_line(content: str, line: int) -> None:
    (mistake,) = read(content.encode(), "pairs.json").mistakes
    assert mistake.line == line
    assert mistake.reason.startswith("expected a JSON ")
    assert len(mistake.reason) < 120


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.tsv"])
def test_a_file_of_nothing_has_no_pair(name: str) -> None:
    for content in (b"", b"\n\n"):
        assert read(content, name).mistakes == [Mistake(0, "expected at least one pair, got none")]


@pytest.mark.parametrize(("name", "ending"), [("pairs.txt", ".txt"), ("pairs", "no ending")])
def test_another_kind_of_file_is_refused_by_its_name(tmp_path: Path, name: str, ending: str) -> None:
    for reader in (read_pairs, read_questions):
        with pytest.raises(PairsError, match=rf"{name}: expected a file .jsonl, .json, .csv or .tsv, got {ending}$"):
            reader(tmp_path / name)


def test_a_missing_file_is_an_os_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_pairs(tmp_path / "nowhere.jsonl")


def test_ten_mistakes_are_told_at_once() -> None:
    mistakes = [Mistake(line, "wrong") for line in range(12, 0, -1)]
    assert str(PairsError("f", mistakes[11:])) == "f: line 1: wrong"
    assert str(PairsError("f", mistakes[10:])) == "f: 2 mistakes:\n  line 1: wrong\n  line 2: wrong"
    told = str(PairsError("f", mistakes)).splitlines()
    assert told == ["f: 12 mistakes, the first 10:", *(f"  line {line}: wrong" for line in range(1, 11))]


def test_questions_alone_are_enough_to_ask_and_may_repeat_themselves(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"question": "Q"}\n{"question": "e\u0301", "answer": 3}\n{"question": "Q"}\n', encoding="utf-8")
    assert [question for _, question in read_questions(path)] == ["Q", "\u00e9", "Q"]
    path.write_text('{"question": "Q"}\n{"answer": "Q"}\n\n7\n', encoding="utf-8")
    with pytest.raises(PairsError) as caught:
        read_questions(path)
    assert str(caught.value).splitlines()[0] == f"{path}: 2 mistakes:"
    path.write_text("", encoding="utf-8")
    with pytest.raises(PairsError, match="expected at least one question, got none"):
        read_questions(path)
