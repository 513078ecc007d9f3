"""Runs a study from its first row to its report, in one process or several."""

from __future__ import annotations

import os
import platform
from contextlib import ExitStack
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.main import keep_freed_memory
from tinygpt_lightning.commands.progress import WorkProgress
from tinygpt_lightning.gpt.files import locked
from tinygpt_lightning.study import rows
from tinygpt_lightning.study.chunks import ChunkRunner, epochs_needed
from tinygpt_lightning.study.design import Cell, FabricSettings, Study
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.report import write_report


class Runner:
    """Computes the rows that are missing, and writes the report.

    Every process takes its share of the chunks and writes its rows to its own file; the first process joins the files
    before the work and after it.

    Args:
        study: The design.
        folder: Folder of the results.
        command: The command that was typed, for the report.

    Raises:
        UsageError: If Fabric cannot use these settings.
    """

    def __init__(self, study: Study, folder: Path, command: str) -> None:
        self.study = study
        self.plan = study.plan
        self.folder = folder
        self.command = command
        self.finished: set[tuple[str, int]] = set()
        self.fabric = _fabric(study.plan.fabric)

    def run(self) -> bool:
        """Run all chunks, then write rows and report.

        Returns:
            Whether every run of the design has a row, and not all of them diverged.

        Raises:
            RowsError: If the folder holds rows of another study.
            FolderLockedError: If another study writes there.
            OSError: If the folder cannot be used.
        """
        with ExitStack() as resources:
            existing, _ = rows.load(self.folder)  # before the folder is created: a refused study leaves none
            rows.check_same_study(existing, self.study, self.folder)
            if self.fabric.is_global_zero:
                self.folder.mkdir(parents=True, exist_ok=True)
                resources.enter_context(locked(self.folder))
            done, messages = rows.load(self.folder)
            self.finished = {row.key for row in done}
            self.fabric.launch()
            torch.set_num_threads(self.plan.threads)
            keep_freed_memory()
            if self.fabric.is_global_zero:
                for message in messages:
                    say(message)
                rows.save(self.folder, done)
            self.fabric.barrier()
            self._work()
            self.fabric.barrier()
            return self._gather() if self.fabric.is_global_zero else True

    def _work(self) -> None:
        share = [
            (seeds, [cell for cell in self.study.cells if self._unfinished(cell, seeds)])
            for seeds in self.plan.chunks[self.fabric.global_rank :: self.fabric.world_size]
        ]
        total = sum(len(seeds) * epochs_needed(cells, self.plan.share) for seeds, cells in share)
        progress = WorkProgress("study", "seed-epochs", total) if self.fabric.is_global_zero else None
        parent = os.getppid()

        def tick(units: int) -> None:
            if progress:
                progress.advance(units)
            elif os.getppid() != parent:
                # The parent was killed: no process is left to join the rows.
                raise SystemExit(1)

        self._writer = rows.RowWriter(self.folder / f"rows-{self.fabric.global_rank}.jsonl")
        for seeds, cells in share:
            if cells:
                ChunkRunner(self.plan, self.fabric.device, seeds, self._keep, _report_failure, tick).run(cells)

    def _unfinished(self, cell: Cell, seeds: list[int]) -> list[int]:
        return [seed for seed in seeds if (cell.recipe.key, seed) not in self.finished]

    def _keep(self, cell: Cell, outcomes: dict[int, Outcome]) -> None:
        # All seeds of the chunk were trained, since a stack of another size may round differently.
        common = rows.Common(cell.recipe.settings, {"engine": self._engine, "versions": _versions()})
        self._writer.write(
            rows.Row(common, seed, outcomes[seed].pop("seconds"), outcomes[seed])
            for seed in self._unfinished(cell, list(outcomes))
        )

    @property
    def _engine(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "device": self.fabric.device.type, "threads": plan.threads, "chunk": plan.chunk, "share": plan.share,
        }  # fmt: skip

    def _gather(self) -> bool:
        finished, _ = rows.load(self.folder)
        places = [(cell.recipe.key, seed) for cell in self.study.cells for seed in self.plan.seed_list]
        order = {place: number for number, place in enumerate(places)}
        # Rows of an earlier, larger design are kept, after those of this one.
        finished.sort(key=lambda row: (order.get(row.key, len(order)), row.key))
        rows.save(self.folder, finished)
        print(write_report(self.study, finished, self.folder, self.command))
        say(f"report: {self.folder / 'report.md'}")
        results = rows.Results(self.study, finished)
        if results.missing:
            say(f"{results.missing} runs are missing: the same command repeats them")
        if results.diverged:
            say(f"{results.diverged} runs diverged")
        return not results.missing and results.diverged < len(results.runs)


def _versions() -> dict[str, str]:
    names = ("tinygpt-lightning", "torch", "lightning")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _fabric(settings: FabricSettings) -> Fabric:
    several = settings.devices * settings.num_nodes > 1
    try:
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.num_nodes,
            # The barrier at the end waits for the slowest process.
            strategy=DDPStrategy(timeout=timedelta(days=30)) if several else "auto",
        )
    except (RuntimeError, ValueError) as error:  # Fabric's message lists the choices
        raise UsageError(f"fabric.accelerator, fabric.devices: {error}") from None


def _report_failure(cell: Cell, seeds: list[int], error: Exception) -> None:
    reason = (str(error).splitlines() or [""])[0]
    say(f"failed: {cell.name}, seeds {seeds}: {type(error).__name__}: {reason}")
