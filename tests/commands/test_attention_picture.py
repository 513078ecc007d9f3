"""The picture of what the heads look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tinygpt_lightning.commands import attention_picture
from tinygpt_lightning.commands.attention_picture import BRIGHT, CELL, DARK, tile_heads


def picture_of(weights: Tensor, symbols: Sequence[str], columns: int = 1) -> Tensor:
    """The colours of the picture without gaps, ``(3, height, width)``."""
    picture = tile_heads(weights, symbols, columns=columns, gap=0)
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def cells(picture: Tensor) -> list[list[list[int]]]:
    """The colour in the middle of each cell, where a picture has no gaps."""
    return picture[:, CELL // 2 :: CELL, CELL // 2 :: CELL].permute(1, 2, 0).tolist()


def test_a_head_is_dark_where_it_does_not_look_and_bright_where_it_does() -> None:
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    rows = cells(picture_of(torch.stack([first, second]), "ab", columns=2))
    dark, bright = list(DARK), list(BRIGHT)
    assert [row[1:3] for row in rows[2:]] == [[bright, dark], [dark, bright]]
    assert [row[4:6] for row in rows[2:]] == [[dark, dark], [bright, dark]]
    assert sum(dark) < 255 < 500 < sum(bright)


def test_each_character_stands_above_its_column_and_left_of_its_row() -> None:
    text = "Xin chào\n"
    picture = picture_of(torch.zeros(1, len(text), len(text)), text)
    above = picture[0, CELL : 2 * CELL, CELL:].split(CELL, dim=1)
    left = picture[0, 2 * CELL :, :CELL].split(CELL, dim=0)
    for i, character in enumerate(text):
        assert torch.equal(above[i], left[i])
        alone = picture_of(torch.zeros(1, 1, 1), character)[0, CELL : 2 * CELL, CELL:]
        assert torch.equal(above[i], alone)
        assert above[i].min() < 128  # something is drawn
    assert len({bytes(letter.contiguous().numpy()) for letter in above}) == len(set(text))


@pytest.mark.parametrize("symbol", ["à", "你", "س", "\u200d", "\u0301", "\x1b", "<unk>", "\U0010fffd"])
def test_what_no_font_knows_is_drawn_all_the_same(monkeypatch: pytest.MonkeyPatch, symbol: str) -> None:
    monkeypatch.setattr(attention_picture, "FONTS", ())
    for remembered in (attention_picture._fonts, attention_picture._letter):
        remembered.cache_clear()
    picture = picture_of(torch.zeros(1, 1, 1), [symbol])
    assert picture[0, CELL : 2 * CELL, CELL:].min() < 200
    assert len(attention_picture._fonts()) == 1
    for remembered in (attention_picture._fonts, attention_picture._letter):
        remembered.cache_clear()


def test_a_place_without_a_head_stays_dark_and_bare(tmp_path: Path) -> None:
    picture = picture_of(torch.ones(3, 2, 2), "ab", columns=2)
    assert picture.shape == (3, 8 * CELL, 6 * CELL)
    assert picture[:, 4 * CELL : 6 * CELL, 3 * CELL :].eq(255).all()


def test_each_head_has_its_number() -> None:
    picture = picture_of(torch.zeros(2, 8, 8), "12345678", columns=2)[0, :CELL]
    first, second = picture[:, : 9 * CELL], picture[:, 9 * CELL :]
    assert first.min() < 128
    assert not torch.equal(first, second)  # head 0, head 1
