"""The rows of a study: one JSON line per run, kept whatever happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tinygpt_lightning.app.errors import UsageError
from tinygpt_lightning.gpt.files import write_whole

Row = dict[str, Any]

FACTORS = ("vocabulary", "schedule", "optimizer", "weights", "seed")


class RowsError(UsageError):
    """The rows in the output folder are not this study's."""


def key(config: Mapping[str, Any]) -> str:
    """A run's whole configuration as one string: what finished rows are known by."""
    return json.dumps(config, sort_keys=True, ensure_ascii=False)


def load(folder: Path) -> tuple[list[Row], list[str]]:
    """All rows in ``folder``, the parts of processes that were killed included, each run once.

    Returns:
        The rows, and a message for each last line that a killed process left unfinished and that is dropped.

    Raises:
        RowsError: If a line in the middle of a file is no row.
    """
    rows: dict[str, Row] = {}
    messages = []
    for path in [folder / "rows.jsonl", *sorted(folder.glob("rows-*.jsonl"))]:
        # A line ends with its newline: what follows the last one was never finished.
        *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if torn:
            messages.append(f"{path}: the last line is not finished and is dropped; its run is made again")
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                rows.setdefault(key(row["config"]), row)
            except (ValueError, TypeError, KeyError):
                raise RowsError(f"{path}, line {number}: expected a row of a study, got {line[:60]!r}") from None
    return list(rows.values()), messages


def check_same_study(rows: Iterable[Row], common: Mapping[str, Any], folder: Path) -> None:
    """Refuse rows that were made with other settings than ``common``, those that all runs of a study share.

    Raises:
        RowsError: The message names the first setting that differs.
    """
    for row in rows:
        theirs = {name: value for name, value in row["config"].items() if name not in FACTORS}
        for name in sorted({*theirs, *common}):
            if theirs.get(name) != common.get(name):
                raise RowsError(
                    f"{folder}: expected rows made with {name}={common.get(name)!r}, "
                    f"got one made with {theirs.get(name)!r}; give --output another folder or remove this one"
                )


def save(folder: Path, rows: Iterable[Row]) -> None:
    """Put ``rows`` into ``rows.jsonl``, whole or not at all, and remove the processes' parts."""
    write_whole(folder / "rows.jsonl", "".join(map(_line, rows)).encode())
    for part in folder.glob("rows-*.jsonl"):
        part.unlink()


def append(path: Path, row: Row) -> None:
    """Add one row and have it on the disk before going on."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(_line(row))
        file.flush()
        os.fsync(file.fileno())


def _line(row: Row) -> str:
    # allow_nan: a missing number is null, never the NaN that other JSON readers refuse.
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
