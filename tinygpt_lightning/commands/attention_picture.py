"""A picture of what each head looks at, with the characters at its edges."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from tinygpt_lightning.commands.symbols import visible

LONGEST = 96  # so many characters fit; what comes behind them is nothing that they could look at
CELL = 10  # side of a weight, and of a character, in pixels
DARK, BRIGHT = (13, 8, 64), (255, 230, 77)
# A byte for each pixel, which takes a third of the time and memory of three: shades from dark to bright, then greys.
SHADES, GREYS = 224, 32
# Where systems have a font that knows more than the one that Pillow brings along, which is English.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc",
    "PingFang.ttc", "NotoSansArabic-Regular.ttf",
)  # fmt: skip

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def tile_heads(weights: Tensor, symbols: Sequence[str], columns: int = 4, gap: int = 6) -> Image.Image:
    """Lay the heads' attention maps out side by side as one picture.

    Args:
        weights: Attention of each head, ``(H, T, T)``, from 0 to 1.
        symbols: The text, ``T`` of them; they stand above the columns and left of the rows.
        columns: Maps in a row.
        gap: Space between maps, in pixels.

    Returns:
        The picture: dark where a row's position (query) ignores a column's (key), bright where it looks.

    >>> tile_heads(torch.eye(2).repeat(3, 1, 1), "ab", columns=2, gap=1).size
    (63, 63)
    """
    heads = len(weights)
    rows = -(-heads // columns)
    # The root lifts the faint weights, of which most rows have many.
    shades = (weights.cpu().sqrt() * (SHADES - 1)).round().byte()
    maps = F.pad(shades, (0, 0, 0, 0, 0, rows * columns - heads))  # (R·columns, T, T)
    maps = maps.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)  # (R·columns, T·CELL, T·CELL)
    white = SHADES + GREYS - 1
    maps = F.pad(maps, (CELL + gap, 0, CELL + gap, 0), value=white)
    letters = torch.cat([_drawn(symbol) for symbol in symbols], dim=1)  # (CELL, T·CELL)
    maps[:heads, gap : gap + CELL, gap + CELL :] = letters
    maps[:heads, gap + CELL :, gap : gap + CELL] = torch.cat(torch.split(letters, CELL, dim=1))
    height, width = maps.shape[1:]
    tiled = maps.view(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
    picture = Image.fromarray(F.pad(tiled, (0, gap, 0, gap), value=white).numpy())
    picture.putpalette(_palette())
    return picture


def _palette() -> bytes:
    shades, greys = np.linspace(DARK, BRIGHT, SHADES), np.linspace((0, 0, 0), (255, 255, 255), GREYS)
    return np.concatenate([shades, greys]).round().astype(np.uint8).tobytes()


@cache
def _drawn(symbol: str) -> Tensor:
    """A symbol, in greys, ``(CELL, CELL)``; without its accents or as a dot where no font knows it."""
    shown = visible(symbol) if len(symbol) == 1 else "·"
    for text in (shown, unicodedata.normalize("NFD", shown)[0], "·"):
        if font := next((font for font in _fonts() if _knows(font, text)), None):
            break
    image = Image.new("L", (CELL, CELL), 255)
    ImageDraw.Draw(image).text((CELL / 2, CELL / 2), text, fill=0, font=font, anchor="mm")
    return torch.from_numpy(np.array(image)) // (256 // GREYS) + SHADES


@cache
def _fonts() -> tuple[_Font, ...]:
    found: list[_Font] = []
    for name in FONTS:
        try:
            found.append(ImageFont.truetype(name, CELL - 1))
        except OSError:
            continue
    return (*found, ImageFont.load_default(CELL - 1))


def _knows(font: _Font, text: str) -> bool:
    # What a font does not know looks like what no font knows.
    return bytes(font.getmask(text)) != bytes(font.getmask("\uffff"))
