"""A picture of the attention of all heads, with their numbers and the characters at the edges."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from tinygpt_lightning.commands.terminal import visible

CELL = 10  # side of one attention weight, and of one character, in pixels
DARK, BRIGHT = (13, 8, 64), (255, 230, 77)
# The picture is a palette image, one byte a pixel: a third of the time and memory of RGB.
SHADES, GREYS = 224, 32
# Common system fonts that cover more than the English font that Pillow brings along.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc",
    "PingFang.ttc", "NotoSansArabic-Regular.ttf",
)  # fmt: skip

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def tile_heads(weights: Tensor, symbols: Sequence[str], columns: int = 4, gap: int = 6) -> Image.Image:
    """Draw the heads' attention maps side by side.

    Args:
        weights: Attention of each head, ``(H, T, T)``, from 0 to 1.
        symbols: The ``T`` symbols of the text; they stand above the columns and left of the rows. Above them stand
            the head's number and what rows and columns are.
        columns: Maps in a row.
        gap: Space between maps, in pixels.

    Returns:
        The picture: dark where a row's position (query) ignores a column's (key), bright where it attends to it.

    >>> tile_heads(torch.eye(2).repeat(3, 1, 1), "ab", columns=2, gap=1).size
    (63, 83)
    """
    heads = len(weights)
    rows = -(-heads // columns)
    # The square root makes small weights visible; most weights of a row are small.
    shades = (weights.cpu().sqrt() * (SHADES - 1)).round().byte()
    maps = F.pad(shades, (0, 0, 0, 0, 0, rows * columns - heads))  # (R·columns, T, T)
    maps = maps.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)  # (R·columns, T·CELL, T·CELL)
    white = SHADES + GREYS - 1
    maps = F.pad(maps, (CELL + gap, 0, 2 * CELL + gap, 0), value=white)
    letters = torch.cat([_letter(symbol) for symbol in symbols], dim=1)  # (CELL, T·CELL)
    maps[:heads, gap + CELL : gap + 2 * CELL, gap + CELL :] = letters
    maps[:heads, gap + 2 * CELL :, gap : gap + CELL] = torch.cat(torch.split(letters, CELL, dim=1))
    height, width = maps.shape[1:]
    for h in range(heads):
        maps[h, gap : gap + CELL, gap:] = _drawn(f"head {h}: each row looks at columns", width - gap, anchor="lm")
    tiled = maps.view(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
    picture = Image.fromarray(F.pad(tiled, (0, gap, 0, gap), value=white).numpy())
    colours = [np.linspace(DARK, BRIGHT, SHADES), np.linspace((0, 0, 0), (255, 255, 255), GREYS)]
    picture.putpalette(np.concatenate(colours).round().astype(np.uint8).tobytes())
    return picture


@cache
def _letter(symbol: str) -> Tensor:
    """A symbol in greys, ``(CELL, CELL)``; without its accents, or as a dot, if no font has it."""
    shown = visible(symbol) if len(symbol) == 1 else "·"
    for text in (shown, unicodedata.normalize("NFD", shown)[0], "·"):
        if font := next((font for font in _fonts() if _has(font, text)), None):
            break
    return _drawn(text, CELL, font)


def _drawn(text: str, width: int, font: _Font | None = None, anchor: str = "mm") -> Tensor:
    """A text in greys, ``(CELL, width)``; what does not fit is cut off."""
    image = Image.new("L", (width, CELL), 255)
    place = (CELL / 2 if anchor == "mm" else 0, CELL / 2)
    ImageDraw.Draw(image).text(place, text, fill=0, font=font or _fonts()[-1], anchor=anchor)
    return torch.from_numpy(np.array(image)) // (256 // GREYS) + SHADES


@cache
def _fonts() -> tuple[_Font, ...]:
    fonts: list[_Font] = []
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, CELL - 1))
        except OSError:
            continue
    return (*fonts, ImageFont.load_default(CELL - 1))


def _has(font: _Font, text: str) -> bool:
    # A font draws every character that it lacks alike; no font has U+FFFF.
    return bytes(font.getmask(text)) != bytes(font.getmask("\uffff"))
