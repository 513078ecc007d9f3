"""The rows of a study: one JSON line for each run, kept whatever happens.

What many runs have in common, their settings and what they were made with, has a line of its own before the first
of them, under a name that its content gives it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.study.design import Study
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.paths import Settings, first_difference
from tinygpt_lightning.study.recipe import as_key, read_recipe


class RowsError(UsageError):
    """The rows in the output folder are not this study's."""


@dataclass(frozen=True)
class Common:
    """What the runs of a cell share.

    Args:
        settings: All that makes a run, but for its seed and the rounding of its last bits.
        made_with: Engine and versions, on which the last bits depend.
    """

    settings: Settings
    made_with: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """What the cell is known by."""
        return as_key(self.settings)

    @functools.cached_property
    def line(self) -> dict[str, Any]:
        """As it is stored, with a name that its content gives it."""
        content = {"settings": self.settings, **self.made_with}
        # 48 bits: by chance, two of a thousand would agree once in half a billion studies.
        return {"run": hashlib.sha256(as_key(content).encode()).hexdigest()[:12], **content}


@dataclass(frozen=True)
class Row:
    """A run that is finished.

    Args:
        common: What it shares with others.
        seed: Its seed.
        seconds: Time it took, the shared beginnings included.
        outcome: What came out.
    """

    common: Common
    seed: int
    seconds: float
    outcome: Outcome

    @property
    def key(self) -> tuple[str, int]:
        """What a finished run is known by."""
        return self.common.key, self.seed


def load(folder: Path) -> tuple[list[Row], list[str]]:
    """All rows in ``folder``, the parts of processes that were killed included, each run once.

    Returns:
        The rows, and a message for each last line that a killed process left unfinished and that is dropped.

    Raises:
        RowsError: If a line in the middle of a file is no row.
    """
    rows: dict[tuple[str, int], Row] = {}
    messages = []
    for path in [folder / "rows.jsonl", *sorted(folder.glob("rows-*.jsonl"))]:
        # A line ends with its newline: what follows the last one was never finished.
        *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if torn:
            messages.append(f"{path}: the last line is not finished and is dropped; its run is made again")
        common: dict[str, Common] = {}
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if "settings" in entry:
                    run, settings = entry.pop("run"), entry.pop("settings")
                    common[run] = Common(_completed(as_key(settings)), entry)
                else:
                    row = Row(common[entry["run"]], entry["seed"], entry["seconds"], entry["outcome"])
                    rows.setdefault(row.key, row)
            except (ValueError, TypeError, KeyError):
                raise RowsError(f"{path}, line {number}: expected a row of a study, got {line[:60]!r}") from None
    return list(rows.values()), messages


@functools.cache
def _completed(settings: str) -> Settings:
    # A setting that is newer than the row has its default: it was made so that nothing changed.
    return read_recipe(json.loads(settings)).settings


def check_same_study(rows: Iterable[Row], study: Study, folder: Path) -> None:
    """Refuse rows that differ from this study's in more than what it varies.

    Raises:
        RowsError: The message names the first setting that differs.
    """
    expected = study.neutral(study.base)
    for settings in {row.common.key: row.common.settings for row in rows}.values():
        found = first_difference(expected, study.neutral(settings))
        if found:
            path, ours, theirs = found
            raise RowsError(
                f"{folder}: expected rows made with {path}={ours!r}, got one made with {theirs!r}; "
                "give --output another folder or remove this one"
            )


class RowWriter:
    """Adds rows to a new file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: set[str] = set()

    def write(self, rows: Iterable[Row]) -> None:
        """Add rows, and have them on the disk before going on."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(rows, self._written))
            file.flush()
            os.fsync(file.fileno())


def save(folder: Path, rows: Iterable[Row]) -> None:
    """Put ``rows`` into ``rows.jsonl``, whole or not at all, and remove the processes' parts."""
    write_whole(folder / "rows.jsonl", "".join(_lines(rows, set())).encode())
    for part in folder.glob("rows-*.jsonl"):
        part.unlink()


def _lines(rows: Iterable[Row], written: set[str]) -> Iterator[str]:
    """The rows, each behind what it shares with others if that is not yet ``written``."""
    for row in rows:
        run = row.common.line["run"]
        if run not in written:
            written.add(run)
            yield _line(row.common.line)
        yield _line({"run": run, "seed": row.seed, "seconds": row.seconds, "outcome": row.outcome})


def _line(content: Mapping[str, Any]) -> str:
    # allow_nan: a missing number is null, never the NaN that other JSON readers refuse.
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
