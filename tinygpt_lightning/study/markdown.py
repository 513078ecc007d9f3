"""Words, numbers and tables as a report has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(table(["cell", "n"], [["1×30", "20"]]))
    | cell | n |
    |---|---|
    | 1×30 | 20 |
    """
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def listed(words: Sequence[str]) -> str:
    """Words as a sentence has them.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def shown(value: float | None) -> str:
    """A number with four digits, or a dash where there is none.

    >>> shown(0.0012345), shown(237.0), shown(None)
    ('0.001234', '237', '–')
    """
    return "–" if value is None else f"{value:.4g}"


def spread(values: Iterable[float | None]) -> str:
    """Median and range, with the number of missing values if there are any.

    >>> spread([1, 2, 6]), spread([2, 2]), spread([None, 1.23456]), spread([])
    ('2 (1–6)', '2', '1.235; 1 missing', '–')
    """
    values = list(values)
    known = [value for value in values if value is not None]
    missing = f"{len(values) - len(known)} missing" if len(known) < len(values) else ""
    if not known:
        return missing or "–"
    middle, low, high = (shown(value) for value in (median(known), min(known), max(known)))
    return (middle if low == high else f"{middle} ({low}–{high})") + (f"; {missing}" if missing else "")
