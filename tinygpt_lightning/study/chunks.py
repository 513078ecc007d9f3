"""Runs all cells for a chunk of seeds, and computes every shared beginning once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tinygpt_lightning.study.design import Cell, Plan
from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.outcome import Outcome, outcomes


@dataclass(frozen=True)
class ChunkRunner:
    """Runs cells for a chunk of seeds and reports each outcome as soon as it is there.

    Args:
        plan: The design.
        device: Where to compute.
        seeds: The chunk.
        finished: Called with a cell and the outcome of each seed.
        failed: Called with a cell, the seeds and the error; the other cells continue.
        tick: Called after every epoch with the number of seeds that trained.
    """

    plan: Plan
    device: torch.device
    seeds: list[int]
    finished: Callable[[Cell, dict[int, Outcome]], None]
    failed: Callable[[Cell, list[int], Exception], None]
    tick: Callable[[int], None]

    def run(self, cells: Sequence[Cell], parent: Ensemble | None = None, stage: int = 0) -> None:
        """Run ``cells``, from the first stage or from ``stage`` on, where they continue ``parent``."""
        for group in branches(cells, stage, self.plan.share):
            pending = list(group)
            # An error in one cell (memory, arithmetic) must not cost the other cells their outcomes.
            try:
                branch = self._begin(parent, group[0], stage)
                start = branch.epoch
                for length in sorted({_length(cell, stage) for cell in group}):
                    while branch.epoch - start < length:
                        branch.train_epoch()
                        self.tick(len(branch.seeds))
                    here = [cell for cell in pending if _length(cell, stage) == length]
                    pending = [cell for cell in pending if cell not in here]
                    self.run(_continuing(here, stage, length), branch, stage + 1)
                    for cell in here:
                        if len(cell.recipe.stages) == stage + 1:
                            self._finish(branch, cell)
            except Exception as error:
                for cell in pending:
                    self.failed(cell, self.seeds, error)

    def _begin(self, parent: Ensemble | None, cell: Cell, stage: int) -> Ensemble:
        if parent is None:
            return Ensemble(cell.recipe, self.seeds, self.device, self.plan.measure_updates)
        branch = parent.fork()
        branch.begin_stage(cell.recipe, stage)
        return branch

    def _finish(self, branch: Ensemble, cell: Cell) -> None:
        try:
            self.finished(cell, outcomes(branch, cell.recipe, self.plan.curve_points))
        except Exception as error:
            self.failed(cell, self.seeds, error)


def branches(cells: Sequence[Cell], stage: int, share: bool) -> list[list[Cell]]:
    """Groups of cells that compute ``stage`` together, given that they share all stages before it.

    Cells whose stage has another length are in one group: they share it until the shortest one ends.
    """
    if not share:
        return [[cell] for cell in cells]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe.beginning(stage), []).append(cell)
    return list(groups.values())


def epochs_needed(cells: Sequence[Cell], share: bool, stage: int = 0) -> int:
    """Epochs that one seed trains for all of ``cells``."""
    total = 0
    for group in branches(cells, stage, share):
        lengths = {_length(cell, stage) for cell in group}
        total += max(lengths)
        total += sum(epochs_needed(_continuing(group, stage, length), share, stage + 1) for length in lengths)
    return total


def _length(cell: Cell, stage: int) -> int:
    return cell.recipe.stages[stage].epochs


def _continuing(cells: Sequence[Cell], stage: int, length: int) -> list[Cell]:
    """Cells whose ``stage`` has this length and is not the last one."""
    return [cell for cell in cells if _length(cell, stage) == length and len(cell.recipe.stages) > stage + 1]
