"""Pairs of one's own, from the file to the answers, as a new user types it."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command

from tinygpt_lightning import load
from tinygpt_lightning.commands.main import main

PAIRS = {
    "你好": "你好!很高兴认识你。",
    "مرحبا": "أهلًا وسهلًا بك!",
    unicodedata.normalize("NFD", "Bạn khỏe không?"): unicodedata.normalize("NFD", "Tôi khỏe, cảm ơn bạn!"),
    "👩‍👩‍👧‍👦?": "A family: 👩, 👩, 👧 and 👦🏽.",
    "Xin": "A question that another one begins with",
    "Xin chào": "Chào bạn!",
}
COMPOSED = [tuple(unicodedata.normalize("NFC", part) for part in pair) for pair in PAIRS.items()]
OWN = """
data: {path: pairs.jsonl, batch_size: 3}
stages: [{epochs: 25}, {epochs: 25, reset_optimizer: false}]
model:
  config: {n_embd: 64, n_head: 4, n_positions: 96, embd_pdrop: 0, attn_pdrop: 0, resid_pdrop: 0}
  loss_on: answer
  optimizer: {class_path: AdamW, init_args: {lr: 1e-2}}
trainer: {accelerator: cpu}
"""
PREDICT = ("predict", "--config", "own.yaml")
VALIDATE = ("validate", "--config", "own.yaml")
MANY = 5_000  # questions, whose texts fill several times what a pipe holds


def in_lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rows_of(file: Path | str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def text(question: str, answer: str) -> str:
    return f"Question: {question} \nAnswer: {answer}."


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `PAIRS` were learnt; their file is gone since."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.yaml").write_text(OWN, encoding="utf-8")
    file = folder / "pairs.jsonl"
    file.write_text(in_lines([{"question": q, "answer": a} for q, a in PAIRS.items()]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "own.yaml"])
    file.unlink()
    return folder


@pytest.fixture
def there(learnt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(learnt)
    return learnt


# What was taught is asked, without flags


@pytest.mark.parametrize("where", [("--config", "own.yaml"), ("--ckpt_path", "checkpoints/own/version_0/last.ckpt")])
def test_it_is_asked_what_it_learnt_though_the_file_is_gone(
    there: Path, command: Command, where: tuple[str, str]
) -> None:
    assert command("predict", *where) == (0, "".join(text(*pair) + "\n" for pair in COMPOSED), "")
    result = command("validate", *where)
    assert "\nval/exact_match        1\n" in result.out
    assert len(result.out.splitlines()) == 4


def test_in_python_too(there: Path) -> None:
    trained = load("checkpoints/own/version_0")
    assert [(question, trained.answer(question)) for question, _ in COMPOSED] == COMPOSED


def test_a_pair_of_ones_own_needs_no_repetition_of_its_flags(home: Path, command: Command) -> None:
    answer = "你好!我们是一个很小的网络 café 👧"
    fit = command("fit", "--config", "small.yaml", "--data.question", "你好", "--data.answer", answer)
    assert "exact      yes" in fit.out
    expected = (0, text("你好", answer) + "\n", "")
    assert command("predict", "--config", "small.yaml") == expected
    assert command("predict", "--ckpt_path", "checkpoints/small/version_0") == expected
    assert command("predict", "--config", "small.yaml", "--data.question", "你好") == expected
    assert command("validate", "--config", "small.yaml").out.count("\n") == 4


# Questions and prompts


def test_questions_go_into_the_template_and_prompts_do_not(there: Path, command: Command) -> None:
    (asked,) = (text("Xin chào", "Chào bạn!") + "\n",)
    assert command(*PREDICT, "--data.questions", '["Xin chào"]').out == asked
    assert command(*PREDICT, "--data.prompts", '["Question: Xin chào \\nAnswer: Ch"]').out == asked


@pytest.mark.parametrize(
    ("name", "batch_size"), [("questions.jsonl", "1"), ("questions.csv", "4"), ("questions.tsv", "100")]
)
def test_a_file_of_questions_is_answered_in_its_order(
    there: Path, tmp_path: Path, command: Command, name: str, batch_size: str
) -> None:
    asked = [COMPOSED[i] for i in (5, 0, 4, 0, 3, 1, 2)]
    file = tmp_path / name
    lines = in_lines([{"question": q} for q, _ in asked]) if name.endswith("jsonl") else "\n".join(
        ["question", *(q for q, _ in asked)]
    )  # fmt: skip
    file.write_text(lines, encoding="utf-8")
    result = command(
        *PREDICT, "--data.path", file, "--output", tmp_path / "answers.jsonl", "--data.batch_size", batch_size
    )
    assert result == (0, "".join(text(*pair) + "\n" for pair in asked), "")
    assert rows_of(tmp_path / "answers.jsonl") == [
        {"prompt": f"Question: {q} \nAnswer: ", "text": text(q, a), "question": q, "answer": a} for q, a in asked
    ]


def test_answers_are_pairs_again(there: Path, tmp_path: Path, command: Command) -> None:
    questions = json.dumps([question for question, _ in COMPOSED], ensure_ascii=False)
    assert command(*PREDICT, "--data.questions", questions, "--output", tmp_path / "pairs.jsonl").code == 0
    result = command(*VALIDATE, "--data.path", tmp_path / "pairs.jsonl")
    assert "\nval/exact_match        1\n" in result.out


def test_sampled_texts_are_those_that_each_question_gives_alone(there: Path, command: Command) -> None:
    hot = (*PREDICT, "--generation.temperature", "3", "--generation.seed", "5", "--data.questions")
    *alone, together = (
        command(*hot, json.dumps(questions, ensure_ascii=False)).out
        for questions in [*([question] for question, _ in COMPOSED), [question for question, _ in COMPOSED]]
    )
    assert together == "".join(alone)
    assert len(set(alone)) == len(alone)
    assert alone != [text(*pair) + "\n" for pair in COMPOSED]


# As they come


def read_until(terminal: int, enough: Callable[[str], bool]) -> str:
    shown = b""
    until = time.monotonic() + 60
    while not enough(shown.decode(errors="replace")) and time.monotonic() < until:
        shown += os.read(terminal, 65536)
    return shown.decode(errors="replace")


def test_texts_and_progress_appear_before_the_end_and_an_interrupted_file_is_not_kept(
    learnt: Path, tmp_path: Path
) -> None:
    asked, answers = tmp_path / "many.jsonl", tmp_path / "answers.jsonl"
    asked.write_text(in_lines([{"question": "你好"}] * MANY), encoding="utf-8")
    answers.write_text("an earlier one", encoding="utf-8")
    words = [sys.executable, "-m", "tinygpt_lightning", *PREDICT, "--data.path", asked, "--output", answers]
    ours, theirs = pty.openpty()
    with subprocess.Popen(words, cwd=learnt, text=True, stdout=subprocess.PIPE, stderr=theirs) as it:
        os.close(theirs)
        assert it.stdout
        assert it.stdout.readline() == "Question: 你好 \n"
        shown = read_until(ours, lambda shown: bool(re.search(rf"[1-9]/{MANY}", shown)))
        assert it.poll() is None
        it.send_signal(signal.SIGINT)
        rest = it.stdout.read()
        assert it.wait(60) == 130
    os.close(ours)
    assert "predict" in shown
    assert set(rest.splitlines()) <= set(text(*COMPOSED[0]).splitlines()), "and nothing of the progress among them"
    assert answers.read_text(encoding="utf-8") == "an earlier one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.jsonl", "many.jsonl"]


# What is not exact yet


def test_what_is_not_learnt_is_shown_with_what_it_says_instead(there: Path, tmp_path: Path, command: Command) -> None:
    changed = [{"question": q, "answer": a} for q, a in COMPOSED]
    changed[0]["answer"] = "你好!"
    changed[5]["answer"] = "Chào bạn! A question"
    (tmp_path / "changed.jsonl").write_text(in_lines(changed), encoding="utf-8")
    result = command(*VALIDATE, "--data.path", tmp_path / "changed.jsonl", "--output", tmp_path / "rest.jsonl")
    assert result.code == 0, result.err
    assert result.out.splitlines()[1].split() == ["val/exact_match", f"{4 / 6:.6g}"]
    assert result.out.splitlines()[4:] == [
        "",
        "not exact yet: 2 of 6",
        "",
        "  question  你好",
        "  expected  你好!.",
        "  says      你好!很高兴认识你。.",
        "",
        "  question  Xin chào",
        "  expected  Chào bạn! A question.",
        "  says      Chào bạn!.",
    ]
    assert rows_of(tmp_path / "rest.jsonl") == [
        {"question": "你好", "expected": "你好!.", "says": "你好!很高兴认识你。."},
        {"question": "Xin chào", "expected": "Chào bạn! A question.", "says": "Chào bạn!."},
    ]


def test_pairs_that_were_not_measured_are_not_judged(there: Path, tmp_path: Path, command: Command) -> None:
    wrong = [{"question": q, "answer": "in"} for q, _ in COMPOSED]
    (tmp_path / "wrong.jsonl").write_text(in_lines(wrong), encoding="utf-8")
    limit = ("--data.batch_size", "2", "--trainer.limit_val_batches", "1", "--output", tmp_path / "rest.jsonl")
    result = command(*VALIDATE, "--data.path", tmp_path / "wrong.jsonl", *limit)
    assert result.code == 0, result.err
    assert len(rows_of(tmp_path / "rest.jsonl")) == 2
    assert "\nnot measured: 4 of 6\n" in result.out
    assert "not measured: 6 of 6" in command(*VALIDATE, "--trainer.limit_val_batches", "0").out
    result = command(*VALIDATE, *limit)
    assert "val/exact_match        1\n" in result.out
    assert not rows_of(tmp_path / "rest.jsonl")


def test_of_many_the_first_20_are_shown_and_all_are_written(there: Path, tmp_path: Path, command: Command) -> None:
    rows = [{"question": "X" * i, "answer": "in"} for i in range(1, 24)]
    (tmp_path / "wrong.jsonl").write_text(in_lines(rows), encoding="utf-8")
    wrong = (*VALIDATE, "--data.path", tmp_path / "wrong.jsonl")
    result = command(*wrong)
    assert "\nval/exact_match        0\n" in result.out
    assert result.out.count("  says      ") == 20
    assert result.out.endswith("\nand 3 more; --output FILE writes all of them\n")
    result = command(*wrong, "--output", tmp_path / "rest.jsonl")
    assert result.out.count("  says      ") == 20
    assert "more" not in result.out
    assert [row["question"] for row in rows_of(tmp_path / "rest.jsonl")] == [row["question"] for row in rows]


def test_validation_measures_the_loss_that_training_did(there: Path, command: Command) -> None:
    lines = command(*VALIDATE).out.splitlines()
    assert float(lines[0].split()[1]) < 0.1, "of answers alone; what comes before them was never learnt"


# Mistakes in files

FIT_MISTAKES = {
    "no JSON": ("{question: 1}", "line 7: expected a JSON object, got no JSON"),
    "no answer": ('{"question": "q"}', "line 7: answer: expected text, and it is missing"),
    "an empty answer": ('{"question": "q", "answer": ""}', "line 7: answer: expected at least one character, got none"),
    "another answer": (
        '{"question": "你好", "answer": "q"}',
        "line 7: expected one answer to a question, got another",
    ),
    "too long": (
        '{"question": "q", "answer": "' + "q" * 99 + '"}',
        "line 7: the text needs 121 positions",
    ),
}


@pytest.fixture
def own(home: Path) -> Path:
    (home / "own.yaml").write_text(OWN, encoding="utf-8")
    rows = [{"question": q, "answer": a} for q, a in PAIRS.items()]
    (home / "pairs.jsonl").write_text(in_lines(rows), encoding="utf-8")
    return home


@pytest.mark.parametrize("name", FIT_MISTAKES)
def test_a_mistake_in_a_file_is_told_with_its_line_before_anything_is_trained(
    own: Path, command: Command, name: str
) -> None:
    line, reason = FIT_MISTAKES[name]
    with (own / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    result = command("fit", "--config", "own.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: pairs.jsonl: {reason}")
    assert len(result.err.splitlines()) == 1
    assert not list(own.glob("checkpoints/own/*"))


def test_a_file_that_is_no_utf8_is_told_with_its_line(own: Path, command: Command) -> None:
    (own / "pairs.jsonl").write_bytes(b'{"question": "q", "answer": "a"}\n{"question": "\xe9", "answer": "a"}\n')
    result = command("fit", "--config", "own.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: pairs.jsonl: line 2: expected UTF-8, got the byte 0xe9 at column 15")


def test_ten_mistakes_are_told_at_once(own: Path, command: Command) -> None:
    (own / "pairs.jsonl").write_text('{"question": "q"}\n' * 12, encoding="utf-8")
    lines = command("fit", "--config", "own.yaml").err.splitlines()
    assert lines[0] == "error: pairs.jsonl: 12 mistakes, the first 10:"
    assert [line.split(":")[0] for line in lines[1:]] == [f"  line {number}" for number in range(1, 11)]


@pytest.mark.parametrize("verb", ["fit", "validate", "predict"])
def test_a_missing_file_is_told_by_its_name(there: Path, command: Command, verb: str) -> None:
    result = command(verb, "--config", "own.yaml", "--data.path", "none.jsonl")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert "none.jsonl" in result.err


def test_an_exact_repetition_is_a_warning_and_counts_once(own: Path, command: Command) -> None:
    with (own / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('\n{"question": "你好", "answer": "你好!很高兴认识你。"}\n')
    result = command("fit", "--config", "own.yaml", "--stages", '[{"epochs": 1}]')
    assert result.code == 0
    assert result.err.splitlines()[0] == (
        "warning: pairs.jsonl: these lines repeat an earlier pair, which counts once: 8"
    )
    assert "pairs      6\n" in result.out


@pytest.mark.parametrize("verb", ["validate", "predict"])
def test_characters_that_the_model_does_not_know_are_told_with_their_lines(
    there: Path, tmp_path: Path, command: Command, verb: str
) -> None:
    rows = [{"question": q, "answer": "in"} for q in ("Xin", "Xin €", "X", "Ж")]
    (tmp_path / "q.jsonl").write_text(in_lines(rows), encoding="utf-8")
    result = command(verb, "--config", "own.yaml", "--data.path", tmp_path / "q.jsonl")
    assert (result.code, result.out) == (2, "")
    lines = result.err.splitlines()
    assert lines[0] == f"error: {tmp_path}/q.jsonl: 2 mistakes:"
    assert lines[1].startswith("  line 2: character '€' (U+20AC) at position 15 of 'Question: Xin € \\nAnswer: ")
    assert lines[2].startswith("  line 4: character 'Ж'")


def test_texts_that_the_model_has_no_room_for_are_told(there: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "q.csv").write_text("question,answer\nX,in\n" + "X" * 90 + ",in\n", encoding="utf-8")
    result = command(*PREDICT, "--data.path", tmp_path / "q.csv")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {tmp_path}/q.csv: line 3: prompt: expected at most max_length=")
    result = command(*VALIDATE, "--data.path", tmp_path / "q.csv")
    assert result.err.startswith(f"error: {tmp_path}/q.csv: line 3: the text needs 113 positions")
    last = "checkpoints/own/version_0/last.ckpt"
    result = command("validate", "--ckpt_path", last, "--data.question", "X" * 90, "--data.answer", "in")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: model.config.n_positions: expected 113 or more")
