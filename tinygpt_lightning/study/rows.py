"""The rows of a study: one JSON line for each run, on the disk as soon as the run is finished.

Settings and versions that many runs share have a line of their own before the first of these runs, identified by a
hash of its content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.study.design import Cell, Study
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.recipe import Settings, as_key, read_recipe


class RowsError(UsageError):
    """The rows in the output folder belong to another study, or are damaged."""


@dataclass(frozen=True)
class Common:
    """What the runs of a cell share.

    Args:
        settings: Everything that determines a run, except its seed.
        made_with: Engine and versions, on which the last bits of an outcome depend.
    """

    settings: Settings
    made_with: dict[str, Any]

    @functools.cached_property
    def key(self) -> str:
        """Identifies the cell."""
        return as_key(self.settings)

    @functools.cached_property
    def line(self) -> dict[str, Any]:
        """The content of its line, with a hash as its name."""
        content = {"settings": self.settings, **self.made_with}
        # 48 bits: two of a thousand collide by chance once in half a billion studies.
        return {"run": hashlib.sha256(as_key(content).encode()).hexdigest()[:12], **content}


@dataclass(frozen=True)
class Row:
    """A finished run.

    Args:
        common: What it shares with other runs.
        seed: Its seed.
        seconds: Computing time, shared beginnings included.
        outcome: Its outcome.
    """

    common: Common
    seed: int
    seconds: float
    outcome: Outcome

    @property
    def key(self) -> tuple[str, int]:
        """Identifies the run."""
        return self.common.key, self.seed


class Results:
    """The outcomes of a study, by cell and seed.

    Args:
        study: The design.
        rows: Rows of the study; those of cells or seeds outside the design are ignored.
    """

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
    """Read all rows in ``folder``, those of killed processes included, each run once.

    Returns:
        The rows, and a message for each unfinished last line, which is dropped.

    Raises:
        RowsError: If a line in the middle of a file is damaged.
    """
    rows: dict[tuple[str, int], Row] = {}
    messages = []
    for path in [folder / "rows.jsonl", *sorted(folder.glob("rows-*.jsonl"))]:
        # A line ends with its newline; what follows the last newline is unfinished.
        *lines, torn = path.read_bytes().split(b"\n") if path.exists() else [b""]
        if torn:
            messages.append(f"{path}: dropped the unfinished last line; its run will be repeated")
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
    # A setting that is newer than the row has its default, which stands for the behaviour before that setting.
    return read_recipe(json.loads(settings)).settings


def check_same_study(rows: Iterable[Row], study: Study, folder: Path) -> None:
    """Refuse rows that differ from this study in a setting that it does not vary.

    Raises:
        RowsError: The message names the first setting that differs.
    """
    expected = study.neutral(study.base)
    for settings in {row.common.key: row.common.settings for row in rows}.values():
        if difference := first_difference(expected, study.neutral(settings)):
            path, ours, theirs = difference
            raise RowsError(
                f"{folder}: expected rows made with {path}={ours!r}, got one made with {theirs!r}; "
                "give --output another folder or remove this one"
            )


def first_difference(settings: Any, others: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """The first setting that differs: its path and both values; None stands for a missing value.

    >>> first_difference({"model": {"n_embd": 8}, "renumber": True}, {"model": {"n_embd": 4}})
    ('model.n_embd', 8, 4)
    """
    if not (isinstance(settings, dict) and isinstance(others, dict)):
        return None if settings == others else (path, settings, others)
    names = sorted({*settings, *others})
    differences = (
        first_difference(settings.get(name), others.get(name), f"{path}.{name}" if path else name) for name in names
    )
    return next((difference for difference in differences if difference), None)


class RowWriter:
    """Appends rows to a file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: set[str] = set()

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, and return when they are on the disk."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.writelines(_lines(rows, self._written))
            file.flush()
            os.fsync(file.fileno())


def save(folder: Path, rows: Iterable[Row]) -> None:
    """Write ``rows`` into ``rows.jsonl``, all or nothing, and remove the files of the processes."""
    write_whole(folder / "rows.jsonl", "".join(_lines(rows, set())).encode())
    for part in folder.glob("rows-*.jsonl"):
        part.unlink()


def _lines(rows: Iterable[Row], written: set[str]) -> Iterator[str]:
    """Lines of the rows; the line that a row shares with others comes first unless it is ``written``."""
    for row in rows:
        run = row.common.line["run"]
        entry = {"run": run, "seed": row.seed, "seconds": row.seconds, "outcome": row.outcome}
        for content in (entry,) if run in written else (row.common.line, entry):
            # allow_nan: NaN is no JSON, and other readers refuse it; a missing number is null.
            yield json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"
        written.add(run)
