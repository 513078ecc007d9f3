"""What a chat looks like."""

from __future__ import annotations

import io

import pytest
import torch
from networks import untrained
from rich.cells import cell_len
from rich.console import Console

from tinygpt_lightning.commands.chat import Session, Symbol
from tinygpt_lightning.commands.terminal import look_rows, shaded


def test_the_surest_has_no_shade_and_the_others_have_more_the_less_sure_they_are() -> None:
    assert shaded("a", 1.0).style == ""
    greens = [shaded("a", probability).style.bgcolor.triplet.green for probability in (0.98, 0.7, 0.4, 0.0)]
    assert greens == sorted(greens, reverse=True)
    assert len(set(greens)) == 4


def test_without_colours_lines_and_weight_say_it() -> None:
    styles = [(bool(style.underline), bool(style.bold)) for style in (shaded("a", p).style for p in (0.95, 0.8, 0.3))]
    assert styles == [(False, False), (True, False), (True, True)]


@pytest.mark.parametrize("width", [10, 20, 40, 80])
@pytest.mark.parametrize("text", ["Question: Xin chào \nAnswer: Chào", "你好" * 10, "e\u0301\u200d👨👩" * 5])
def test_shades_stand_under_their_characters_at_any_width(text: str, width: int) -> None:
    weights = torch.rand(2, len(text), generator=torch.Generator().manual_seed(0))
    rows = [row.plain for row in look_rows(list(text), weights, width)]
    assert [row[:7] for row in rows] == ["       ", "head 1 ", "head 2 "] * (len(rows) // 3)
    for line, *heads in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert cell_len(line) <= max(width, 15)
        assert {cell_len(head) for head in heads} == {cell_len(line)}
    if text.isascii():
        assert "".join(row[7:] for row in rows[::3]) == text


def test_a_head_is_dark_where_it_looks() -> None:
    text, first, second = (row.plain for row in look_rows("ab 好", torch.tensor([[1, 0, 0, 0], [0, 0, 0.1, 0.9]]), 80))
    assert text == "       ab␣好"
    assert first == "head 1 █    "
    assert second == "head 2   ░██"


@pytest.mark.parametrize("character", ["\x1b", "\a", "\b", "\r"])
def test_no_answer_commands_the_terminal_and_a_pipe_gets_what_was_said(character: str) -> None:
    for is_terminal, expected in ((True, "�"), (False, character)):
        session = Session(untrained(), is_terminal=is_terminal)
        session.console = Console(file=io.StringIO(newline=""), force_terminal=is_terminal)
        session.write(Symbol(character, 1.0, ()))
        assert session.console.file.getvalue() == expected  # type: ignore[attr-defined]
