"""Runs a study from its first row to its report; any number of processes may share the work."""

from __future__ import annotations

import fcntl
import math
import multiprocessing
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.fabric import Fabric

from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.main import keep_freed_memory
from tinygpt_lightning.commands.progress import WorkProgress
from tinygpt_lightning.study import rows
from tinygpt_lightning.study.chunks import train
from tinygpt_lightning.study.design import LARGEST_SEED, Cell, FabricSettings, Plan, Study
from tinygpt_lightning.study.findings import LOSS, MEASURES, OUTCOMES
from tinygpt_lightning.study.fits import fit_outcome
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.paths import Settings
from tinygpt_lightning.study.report import write_report

POLL_SECONDS = 0.2


class Claims:
    """Which process computes which seeds: a lock on one byte of a file for each seed, which ends with its process.

    Args:
        folder: Folder of the results; all processes must see it.
    """

    def __init__(self, folder: Path) -> None:
        self._file = (folder / ".lock").open("ab")
        self.close = self._file.close  # which releases every claim

    def take(self, seeds: Sequence[int]) -> bool:
        """Claim ``seeds``, unless another process has one of them."""
        if all(self._lock(1, seed) for seed in seeds):
            return True
        self.release(seeds)
        return False

    def take_all(self) -> bool:
        """Claim every seed, unless another process has one."""
        return self._lock(LARGEST_SEED, 0)

    def release(self, seeds: Sequence[int] | None = None) -> None:
        """Release ``seeds``; None means all."""
        for start, length in ((seed, 1) for seed in seeds) if seeds is not None else ((0, LARGEST_SEED),):
            fcntl.lockf(self._file, fcntl.LOCK_UN, length, start)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the processes that are in this block."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, LARGEST_SEED)
        yield
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, LARGEST_SEED)

    def _lock(self, length: int, start: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
        except (BlockingIOError, PermissionError):  # by POSIX either
            return False
        return True


class Runner:
    """Computes the rows that are missing, and writes the report.

    A process claims a chunk of seeds, computes its missing runs, and appends rows to its own file. The process that
    finds no work and no claim left joins the files and writes the report. A process that is killed loses its claim,
    and another one takes over; processes on other machines join by the same command.

    Args:
        study: The design.
        folder: Folder of the results.
        rank: Number of this process among those of one command, from 0.

    Raises:
        UsageError: If Fabric cannot use the plan's settings.
    """

    def __init__(self, study: Study, folder: Path, rank: int = 0) -> None:
        self.study = study
        self.plan = study.plan
        self.folder = folder
        self.rank = rank
        self.device = _device(study.plan.fabric, rank)
        self.commons = {cell: rows.Common(cell.recipe.settings, self._made_with(cell)) for cell in study.cells}
        # All runs in the order of their rows; those without a row yet, and without an error in this process, are left.
        self.runs = [(cell.recipe.key, seed) for cell in study.cells for seed in study.plan.seed_list]
        self.left = set(self.runs)
        self.progress: WorkProgress | None = None

    def run(self, command: str | None = None) -> bool:
        """Run everything that is missing, then write rows and, if a ``command`` was typed, the report that names it.

        Returns:
            Whether every run of the design has a row, and not all of them diverged.

        Raises:
            RowsError: If the folder holds rows of another study.
            OSError: If the folder cannot be used.
        """
        existing, messages = rows.load(self.folder)
        rows.check_same_study((row.common for row in existing), self.study, self.folder)
        for message in messages:
            say(message)
        self.folder.mkdir(parents=True, exist_ok=True)  # only now: a refused study leaves no folder
        with closing(Claims(self.folder)) as claims:
            with claims.alone():
                rows.save_settings(self.folder, self.commons.values())
            others = self._start_others() if self._read() else {}
            self.work(claims)
            while not claims.take_all() or self._read():
                claims.release()
                _report_deaths(others)
                time.sleep(POLL_SECONDS)
                self.work(claims)
            _report_deaths(others)
            return self._gather(command)

    def work(self, claims: Claims) -> None:
        """Compute the chunks that no other process computes, until there is none left."""
        torch.set_num_threads(self.plan.threads)
        keep_freed_memory()
        writer = rows.RowWriter(self.folder / f"rows-{platform.node()}-{os.getpid()}.jsonl")
        parent = os.getppid()
        for seeds in self.plan.chunks:
            if self._unfinished(seeds) and claims.take(seeds):
                self._read()
                for cell, trained, found in self._train(seeds):
                    self._keep(cell, trained, found, writer)
                    if self.rank and os.getppid() != parent:
                        raise SystemExit(1)  # the command was killed
                writer.write()
                claims.release(seeds)

    def _train(self, seeds: list[int]) -> Iterator[tuple[Cell, list[int], dict[int, Outcome] | Exception]]:
        """The outcomes of the cells that lack a row, as soon as they are there, or the errors that ended them."""
        cells = self._unfinished(seeds)
        for cell, found in train([c for c in cells if not self._is_alone(c)], seeds, self.plan, self.device):
            yield cell, seeds, found
        for cell, seed in product([c for c in cells if self._is_alone(c)], seeds):
            if (cell.recipe.key, seed) in self.left:
                try:
                    yield cell, [seed], {seed: fit_outcome(cell.recipe, seed, self.device, self.plan.curve_points)}
                except Exception as error:  # it must not cost the other cells their outcomes
                    yield cell, [seed], error

    def _keep(
        self, cell: Cell, seeds: list[int], found: dict[int, Outcome] | Exception, writer: rows.RowWriter
    ) -> None:
        """Write the rows of a cell, or report its error."""
        if isinstance(found, Exception):
            reason = (str(found).splitlines() or [""])[0]
            say(f"failed: {cell.name}, seeds {seeds}: {type(found).__name__}: {reason}")
        else:
            common = self.commons[cell]
            made = [rows.Row(common, cell.name, cell.levels, seed, o.pop("seconds"), o) for seed, o in found.items()]
            try:
                # All seeds of the chunk were trained, since a stack of another size may round differently.
                writer.write(row for row in made if row.key in self.left)
            except OSError as error:
                say(f"{writer.path}: {error.strerror}; its rows are written with the next ones")
        self._done((cell.recipe.key, seed) for seed in seeds)

    def _read(self) -> int:
        """Read which runs are finished, those of other processes included; returns how many are left."""
        self._done(row.key for row in rows.load(self.folder)[0])
        return len(self.left)

    def _done(self, runs: Iterable[tuple[str, int]]) -> None:
        self.left -= set(runs)
        if self.progress and (units := self.progress.total - len(self.left) - self.progress.done):
            self.progress.advance(units)

    def _unfinished(self, seeds: Sequence[int]) -> list[Cell]:
        return [cell for cell in self.study.cells if any((cell.recipe.key, seed) in self.left for seed in seeds)]

    def _is_alone(self, cell: Cell) -> bool:
        return self.plan.engine == "fit" or cell.recipe.alone is not None

    def _made_with(self, cell: Cell) -> dict[str, Any]:
        plan = self.plan
        engine: dict[str, Any] = {"device": self.device.type, "threads": plan.threads}
        engine |= {"one fit at a time": True} if self._is_alone(cell) else {"chunk": plan.chunk}
        versions = {name: metadata.version(name) for name in ("tinygpt-lightning", "torch", "lightning")}
        return {"engine": engine, "versions": {"python": platform.python_version(), **versions}}

    def _start_others(self) -> dict[int, BaseProcess]:
        self.progress = WorkProgress("study", "runs", len(self.left))
        make, arguments = multiprocessing.get_context("spawn").Process, (self.plan, self.study.base, self.study.tuned)
        others: dict[int, BaseProcess] = {}
        for rank in range(1, self.plan.fabric.devices):
            others[rank] = make(target=_other_process, args=(*arguments, self.folder, rank), daemon=True)
            others[rank].start()
        return others

    def _gather(self, command: str | None) -> bool:
        finished, _ = rows.load(self.folder)
        order = {run: number for number, run in enumerate(self.runs)}
        # Rows of an earlier, larger design are kept, after those of this one.
        finished.sort(key=lambda row: (order.get(row.key, len(order)), row.key))
        rows.save(self.folder, finished)
        if command:
            print(write_report(self.study, finished, self.folder, command))
            say(f"report: {self.folder / 'report.md'}")
        results = rows.Results(self.study, finished)
        if results.missing:
            say(f"{results.missing} runs are missing: the same command repeats them")
        if results.diverged:
            say(f"{results.diverged} runs diverged")
        return not results.missing and results.diverged < len(results.runs)


def tuned(study: Study, folder: Path) -> Study:
    """Choose the tuned setting of each cell, on the seeds of the tuning, and return the study with it.

    The results of the tuning are in a folder ``tuning`` in the ``folder`` of the results.
    """
    measures = [MEASURES[name] for name in (OUTCOMES[study.plan.outcome], LOSS) if name]
    found: dict[str, list[tuple[float, ...]]] = {}  # of each cell: its medians, and the index of the value
    candidates = study.tuning()
    for index, (_, candidate) in enumerate(candidates):
        place = folder / "tuning" / str(index)
        Runner(candidate, place).run()
        for cell, by_seed in rows.Results(candidate, rows.load(place)[0]).by_cell.items():
            values = [[measure(outcome) for outcome in by_seed.values()] for measure in measures]
            medians = (median([math.inf if v is None else v for v in each] or [math.inf]) for each in values)
            found.setdefault(cell.name, []).append((*medians, index))
    best = {name: candidates[int(min(tried)[-1])][0] for name, tried in found.items()}
    return Study(study.plan, study.base, best) if best else study


def _other_process(plan: Plan, base: Settings, tuned: Mapping[str, Any] | None, folder: Path, rank: int) -> None:
    """The work of a process that another one has started."""
    with suppress(KeyboardInterrupt), closing(Claims(folder)) as claims:  # the process that started this one says so
        Runner(Study(plan, base, tuned), folder, rank).work(claims)


def _report_deaths(others: dict[int, BaseProcess]) -> None:
    for rank, process in list(others.items()):
        if code := process.exitcode:
            how = f"was killed (signal {-code})" if code < 0 else f"failed (exit code {code})"
            say(f"process {rank} {how}: the others take over its runs")
            del others[rank]


def _device(settings: FabricSettings, rank: int) -> torch.device:
    devices = 1 if settings.devices == 1 or settings.accelerator == "cpu" else [rank]
    try:
        return Fabric(accelerator=settings.accelerator, devices=devices).device
    except (RuntimeError, ValueError) as error:  # Fabric's message lists the choices
        raise UsageError(f"fabric.accelerator, fabric.devices: {error}") from None
