"""The rows of a study: one flat JSON object a line for each run, on the disk as soon as the run is finished.

``pandas.read_json(path, lines=True)`` opens ``rows.jsonl`` as a table: ``cell``, one column ``level.<factor>`` for each
factor, ``seed``, ``settings`` (a key of ``settings.json``, which has settings and versions), ``seconds``, the outcome.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.study.design import Cell, Study
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.paths import Settings
from tinygpt_lightning.study.recipe import as_key, read_recipe

LEVEL = "level."  # prefix of the column of a factor


class RowsError(UsageError):
    """The rows in the output folder belong to another study, or are damaged."""


@dataclass(frozen=True)
class Common:
    """What the runs of a cell share."""

    settings: Settings  # everything that determines a run, except its seed
    made_with: dict[str, Any]  # engine and versions, on which the last bits of an outcome depend

    @functools.cached_property
    def key(self) -> str:
        """Identifies the cell."""
        return as_key(self.settings)

    @property
    def content(self) -> dict[str, Any]:
        """Its entry in ``settings.json``."""
        return {"settings": self.settings, **self.made_with}

    @functools.cached_property
    def name(self) -> str:
        """Key in ``settings.json``: a hash of the content, of 48 bits."""
        return hashlib.sha256(as_key(self.content).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Row:
    """A finished run."""

    common: Common
    cell: str  # the cell's name
    levels: Mapping[str, str]  # factor to level
    seed: int
    seconds: float  # of computing, shared beginnings included
    outcome: Outcome

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the run."""
        return self.common.key, self.seed

    @property
    def line(self) -> bytes:
        """Its line, with the newline.

        Raises:
            ValueError: If a number is NaN or inf, which are no JSON: a missing number is null.
        """
        levels = {f"{LEVEL}{factor}": level for factor, level in self.levels.items()}
        about = {"cell": self.cell, **levels, "seed": self.seed, "settings": self.common.name, "seconds": self.seconds}
        return (json.dumps({**about, **self.outcome}, ensure_ascii=False, allow_nan=False) + "\n").encode()

    @classmethod
    def read(cls, line: bytes, commons: Mapping[str, Common]) -> Row:
        """The row of a line; raises ValueError, TypeError or KeyError if it is none."""
        entry = json.loads(line)
        levels = {name.removeprefix(LEVEL): entry.pop(name) for name in list(entry) if name.startswith(LEVEL)}
        cell, seed, settings, seconds = (entry.pop(name) for name in ("cell", "seed", "settings", "seconds"))
        return cls(commons[settings], cell, levels, seed, seconds, entry)


class Results:
    """The outcomes of a study, by cell and seed; rows of other cells or seeds are ignored."""

    def __init__(self, study: Study, rows: Iterable[Row]) -> None:
        outcomes = {row.key: row.outcome for row in rows}
        self.study = study
        self.seeds = study.plan.seed_list
        self.by_cell: dict[Cell, dict[int, Outcome]] = {}
        for cell in study.cells:
            keys = {seed: (cell.recipe.key, seed) for seed in self.seeds}
            self.by_cell[cell] = {seed: outcomes[key] for seed, key in keys.items() if key in outcomes}
        self.runs = [(cell, seed, outcome) for cell, seeds in self.by_cell.items() for seed, outcome in seeds.items()]

    @property
    def missing(self) -> int:
        """Number of runs of the design that have no row."""
        return len(self.study.cells) * len(self.seeds) - len(self.runs)

    @property
    def diverged(self) -> int:
        """Number of runs whose final loss is NaN or inf."""
        return sum(outcome["final_loss_dropout_off"] is None for _, _, outcome in self.runs)


def load(folder: Path) -> tuple[list[Row], list[str]]:
    """Read all rows in ``folder``, those of other processes included, each run once.

    Returns:
        The rows, and a message for each unfinished last line, which is dropped.

    Raises:
        RowsError: If a line in the middle of a file is damaged.
    """
    rows: dict[tuple[str, int], Row] = {}
    messages, commons = [], load_settings(folder)
    for path in [folder / "rows.jsonl", *sorted(folder.glob("rows-*.jsonl"))]:
        # A line ends with its newline; what follows the last newline is unfinished.
        *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if torn:
            messages.append(f"{path}: dropped the unfinished last line; its run will be repeated")
        for number, line in enumerate(lines, start=1):
            try:
                row = Row.read(line, commons)
            except (ValueError, TypeError, KeyError):
                expected = "a row whose settings are in settings.json"
                raise RowsError(f"{path}, line {number}: expected {expected}, got {line[:60]!r}") from None
            rows.setdefault(row.key, row)
    return list(rows.values()), messages


def load_settings(folder: Path) -> dict[str, Common]:
    """Read ``settings.json``; empty if there is none.

    Raises:
        RowsError: If it is damaged.
    """
    path = folder / "settings.json"
    try:
        entries = json.loads(path.read_bytes()) if path.exists() else {}
        # A setting that is newer than the row has its default: the behaviour before that setting.
        return {name: Common(read_recipe(entry.pop("settings")).settings, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise RowsError(f"{path}: expected the settings of a study's rows, got {error}") from None


def save_settings(folder: Path, commons: Iterable[Common]) -> None:
    """Add entries to ``settings.json``, all or nothing."""
    path = folder / "settings.json"
    before = json.loads(path.read_bytes()) if path.exists() else {}
    entries = {**{common.name: common.content for common in commons}, **before}
    write_whole(path, (json.dumps(entries, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode())


def check_same_study(commons: Iterable[Common], study: Study, folder: Path) -> None:
    """Refuse a folder whose rows differ from this study in a setting that it does not vary.

    Raises:
        RowsError: The message names the first setting that differs.
    """
    expected = study.neutral(study.base)
    for settings in {common.key: common.settings for common in commons}.values():
        if difference := first_difference(expected, study.neutral(settings)):
            path, ours, theirs = difference
            got = f"expected rows made with {path}={ours!r}, got one made with {theirs!r}"
            raise RowsError(f"{folder}: {got}; give --output another folder or remove this one")


def first_difference(settings: Any, others: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that differs: its path and both values; None stands for a missing value.

    >>> first_difference({"model": {"n_embd": 8}, "renumber": True}, {"model": {"n_embd": 4}})
    ('model.n_embd', 8, 4)
    """
    if not (isinstance(settings, dict) and isinstance(others, dict)):
        return None if settings == others else (path, settings, others)
    start = f"{path}." if path else ""
    parts = (first_difference(settings.get(n), others.get(n), start + n) for n in sorted({*settings, *others}))
    return next((difference for difference in parts if difference), None)


class RowWriter:
    """Appends rows to a file of this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: list[bytes] = []

    def write(self, rows: Iterable[Row] = ()) -> None:
        """Append rows, and those of a write that failed, and return when they are on the disk.

        Raises:
            OSError: If it fails; the file is as before, and the rows are kept for the next write.
        """
        self._pending += [row.line for row in rows]
        if not (content := b"".join(self._pending)):
            return
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(content) < len(content):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)  # half a line would spoil the rows behind it
                raise
        self._pending.clear()


def save(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` into ``rows.jsonl``, all or nothing, and remove the files of the processes."""
    rows = list(rows)
    # First, and once more: completed by a setting that is newer than the row, its settings have another key.
    save_settings(folder, {row.common.name: row.common for row in rows}.values())
    write_whole(folder / "rows.jsonl", b"".join(row.line for row in rows))
    for part in folder.glob("rows-*.jsonl"):
        part.unlink()
