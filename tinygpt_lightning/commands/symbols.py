"""Symbols as a person can see them."""

from __future__ import annotations

from rich.cells import cell_len

SIGNS = {" ": "␣", "\n": "⏎"}


def visible(text: str) -> str:
    r"""A symbol as something that can be seen, and that keeps to its place.

    >>> [visible(symbol) for symbol in ("a", " ", "\n", "\u200d", "\u0301", "<eos>")]
    ['a', '␣', '⏎', '�', '◌́', '<eos>']
    """
    if text in SIGNS:
        return SIGNS[text]
    if not text.isprintable():
        return "�"
    return text if cell_len(text) else f"◌{text}"
