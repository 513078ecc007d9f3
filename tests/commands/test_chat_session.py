"""A conversation."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from networks import learnt

from tinygpt_lightning.commands.chat import Session
from tinygpt_lightning.commands.terminal import refusal
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.trained import TrainedGPT


@pytest.fixture(scope="module")
def network() -> TrainedGPT:
    return learnt()


@pytest.fixture
def session(network: TrainedGPT, capsys: pytest.CaptureFixture[str]) -> Session:
    return Session(network, is_terminal=False)


def test_questions_are_answered_in_any_script_and_form(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("Xin chào\n", "Xin cha\u0300o\r\n", "你好", "family?", "", "  \n"):
        assert session.take(line)
    assert capsys.readouterr() == ("Chào bạn!\nChào bạn!\n我们很好。\n👨‍👩‍👧 <eos>\n\n\n", "")


def test_a_question_that_was_taught_is_a_question_even_with_a_slash(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    assert session.take("/help")
    assert capsys.readouterr().out == "a question, too\n"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("Z", "character 'Z' (U+005A) at position 1 of 'Z' is not in the vocabulary"),
        ("\udcff", "is not in the vocabulary"),
        ("Xin" * 50, "prompt: expected at most max_length"),
        ("/", "/: expected one of the commands"),
        ("/foo", "/foo: expected one of the commands that /help lists"),
        ("/temperature hot", "temperature: expected a number, got 'hot'"),
        ("/temperature null", "temperature: expected a number, got 'null'"),
        ("/temperature -1", "temperature: expected 0 or more, got -1.0"),
        ("/temperature nan", "temperature: expected 0 or more, got nan"),
        ("/top_k 1.5", "top_k: expected a whole number, or null, got '1.5'"),
        ("/top_p 2", "top_p: expected more than 0 and at most 1"),
        ("/look 0", "/look: expected a number from 1 to 11, as /top counts, got '0'"),
        ("/look 12", "/look: expected a number from 1 to 11"),
        ("/look ²", "/look: expected a number from 1 to 11"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line_and_the_chat_goes_on(
    session: Session, capsys: pytest.CaptureFixture[str], line: str, reason: str
) -> None:
    session.take("Xin chào")
    capsys.readouterr()
    assert session.take(line)
    out, err = capsys.readouterr()
    assert out == ("" if line.startswith("/") else "\n")  # a pipe gets a line for each question
    assert reason in err
    assert err.count("\n") == 1
    assert session.generation == GenerationConfig()
    assert session.take("你好")
    assert capsys.readouterr().out == "我们很好。\n"


@pytest.mark.parametrize("line", ["/top", "/look", "/look 1"])
def test_there_is_nothing_to_look_at_before_an_answer(
    session: Session, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert session.take(line)
    assert "ask something first" in capsys.readouterr().err


def test_settings_are_set_and_shown_by_generations_names(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("/temperature 0.8", "/top_k 5", "/top_p 0.9", "/seed 3", "/max_length 60", "/top_k null", "/seed"):
        assert session.take(line)
    assert session.generation == GenerationConfig(60, 0.8, None, 0.9, 3)
    out, err = capsys.readouterr()
    assert out == ("" if line.startswith("/") else "\n")  # a pipe gets a line for each question
    assert err.splitlines()[0] == "temperature is 0.8"
    assert err.splitlines()[-2:] == ["top_k is null", "seed is 3"]


def test_settings_change_how_it_speaks(
    session: Session, network: TrainedGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in ("/temperature 9", "/seed 3"):
        session.take(line)
    capsys.readouterr()
    session.take("Xin chào")
    said = capsys.readouterr().out
    assert said == network.answer("Xin chào", GenerationConfig(temperature=9.0, seed=3)) + "\n"
    assert said != "Chào bạn!\n"


def test_top_lists_every_symbol_with_its_runners_up(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.take("Xin chào")
    capsys.readouterr()
    session.take("/top")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [(row[0], row[1]) for row in rows] == [(str(i), c) for i, c in enumerate([*"Chào␣bạn!.", "<eos>"], 1)]
    assert session.reply is not None
    for row, symbol in zip(rows, session.reply.written, strict=True):
        assert float(row[2]) == pytest.approx(100 * symbol.probability, abs=0.006)
        assert row[3] == symbol.runners_up[0][0].replace(" ", "␣").replace("\n", "⏎")


def test_top_shades_a_symbol_and_not_the_cell_around_it(
    network: TrainedGPT, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("tinygpt_lightning.commands.terminal.SURE", 2)
    session = Session(network, is_terminal=True)
    session.take("Xin chào")
    capsys.readouterr()
    session.take("/top")
    row = capsys.readouterr().out.splitlines()[1]
    assert re.search("\x1b\\[[0-9;]+mC\x1b\\[0m", row), row


def test_look_shows_the_text_before_the_symbol_and_each_head(
    session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    session.take("Xin chào")
    capsys.readouterr()
    session.take("/look 3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["When à was written (number 3 of 11):", "       Question:␣Xin␣chào␣⏎Answer:␣Ch"]
    assert [line[:7] for line in lines[2:]] == [f"head {head} " for head in range(1, 5)]
    assert any(block in "".join(lines[2:]) for block in "▒▓█")
    session.take("/look")
    assert capsys.readouterr().out.startswith("When <eos> was written (number 11 of 11):")


@pytest.fixture(scope="module")
def careful(network: TrainedGPT) -> TrainedGPT:
    """The same model with a threshold."""
    return TrainedGPT(network.model, network.tokenizer, replace(network.taught, known_from=0.8))


def test_a_question_that_was_not_taught_is_refused_with_the_nearest_ones(
    careful: TrainedGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(careful, is_terminal=True)
    session.take("Xin chào")
    capsys.readouterr()
    for question in ("chào Xin", "Ω"):  # one of known characters, and one that the vocabulary lacks
        assert session.take(question)
        shown = capsys.readouterr().out.splitlines()
        assert len(shown) == 4, "a sentence, and the three nearest questions"
        assert {line.strip() for line in shown[1:]} < {pair.question for pair in careful.taught.pairs}
    session.take("/look")
    assert "When" in capsys.readouterr().out, "the last answer is still there"
    session.take("xin chao")
    assert capsys.readouterr().out.strip() != ""


def test_in_a_narrow_window_the_nearest_questions_stay_indented(
    careful: TrainedGPT, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "6")
    Session(careful, is_terminal=True).take("chào Xin")
    after = capsys.readouterr().out.splitlines()
    after = after[next(i for i, line in enumerate(after) if line.startswith("  ")) :]
    assert len(after) > 3
    assert all(line.startswith("  ") for line in after)


def test_a_pipe_gets_an_empty_line_for_a_refused_question(
    careful: TrainedGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(careful, is_terminal=False)
    for line in ("Xin chào", "chào Xin", " \n", "你好"):
        session.take(line)
    out, err = capsys.readouterr()
    assert out == "Chào bạn!\n\n\n我们很好。\n"
    assert "Xin chào" in err


def test_a_question_that_is_read_as_another_one_is_named(
    careful: TrainedGPT, capsys: pytest.CaptureFixture[str]
) -> None:
    session = Session(careful, is_terminal=False)
    session.take("xin chao?")
    assert capsys.readouterr().err == ""
    session.take("xin chaoo")
    out, err = capsys.readouterr()
    assert (out, err) == ("Chào bạn!\n", "read as: Xin chào\n")


def test_the_asker_is_refused_in_his_language() -> None:
    assert "chưa được dạy" in refusal("Bạn là ai?")
    assert "chưa được dạy" in refusal("Thấp nhất?")
    assert "chưa được dạy" in refusal("ban la ai" + "Bạn là ai")
    assert "not taught" in refusal("Who are you?") == refusal("Où est la gare?")


def test_the_taught_questions_are_listed(session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    session.take("/questions")
    assert capsys.readouterr().out.splitlines() == [pair.question for pair in session.trained.taught.pairs]
    session.take("/questions CHAO xin")
    assert capsys.readouterr().out == "Xin chào\n"
    session.take("/questions nchao")  # of two words
    session.take("/questions none")
    assert capsys.readouterr().out == ""


def test_quit_ends_it(session: Session) -> None:
    assert not session.take("/quit")


def test_help_lists_every_command_and_setting(network: TrainedGPT, capsys: pytest.CaptureFixture[str]) -> None:
    session = Session(TrainedGPT(network.model, network.tokenizer), is_terminal=False)
    assert session.take("/help")
    out = capsys.readouterr().out
    for name in ("/top", "/look N", "/quit", "/temperature N", "/top_k N", "/top_p N", "/seed N", "/max_length N"):
        assert f"\n{name} " in f"\n{out}"
    assert all(len(line) <= 80 for line in out.splitlines())
