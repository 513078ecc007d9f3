"""All cells of a chunk of seeds, with every shared beginning computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tinygpt_lightning.study.design import Cell
from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.outcome import Outcome, outcomes
from tinygpt_lightning.study.plan import Plan


def branches(cells: Sequence[Cell], stage: int, share: bool) -> list[list[Cell]]:
    """Cells that go through ``stage`` together, given that they came to it together.

    How long it lasts makes no difference until the shortest one ends.
    """
    if not share:
        return [[cell] for cell in cells]
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe.beginning(stage), []).append(cell)
    return list(groups.values())


def epochs_needed(cells: Sequence[Cell], share: bool, stage: int = 0) -> int:
    """Epochs that a seed trains for all of ``cells``."""
    total = 0
    for group in branches(cells, stage, share):
        lengths = {_length(cell, stage) for cell in group}
        total += max(lengths)
        for length in lengths:
            total += epochs_needed(_going_on(group, stage, length), share, stage + 1)
    return total


def _length(cell: Cell, stage: int) -> int:
    return cell.recipe.stages[stage].epochs


def _going_on(cells: Sequence[Cell], stage: int, length: int) -> list[Cell]:
    return [cell for cell in cells if _length(cell, stage) == length and len(cell.recipe.stages) > stage + 1]


class ChunkRunner:
    """Runs cells on a chunk of seeds and hands out the outcomes as they come.

    Args:
        plan: How it is done.
        device: Where to compute.
        seeds: The chunk.
        finished: Called with a cell and each seed's outcome.
        failed: Called with a cell, the seeds and what went wrong; the other cells go on.
        tick: Called after every epoch with the number of seeds that trained.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device,
        seeds: list[int],
        finished: Callable[[Cell, dict[int, Outcome]], None],
        failed: Callable[[Cell, list[int], Exception], None],
        tick: Callable[[int], None],
    ) -> None:
        self.plan = plan
        self.device = device
        self.seeds = seeds
        self.finished = finished
        self.failed = failed
        self.tick = tick

    def run(self, cells: Sequence[Cell]) -> None:
        """Run all of ``cells``."""
        self._grow(None, cells, 0)

    def _grow(self, parent: Ensemble | None, cells: Sequence[Cell], stage: int) -> None:
        for group in branches(cells, stage, self.plan.share):
            left = list(group)
            # Whatever goes wrong in a cell (memory, arithmetic) must not cost the others their results.
            try:
                branch = self._begin(parent, group[0], stage)
                start = branch.epoch
                for length in sorted({_length(cell, stage) for cell in group}):
                    while branch.epoch - start < length:
                        branch.train_epoch()
                        self.tick(len(branch.seeds))
                    here = [cell for cell in left if _length(cell, stage) == length]
                    left = [cell for cell in left if cell not in here]
                    self._grow(branch, _going_on(here, stage, length), stage + 1)
                    for cell in here:
                        if len(cell.recipe.stages) == stage + 1:
                            self._finish(branch, cell)
            except Exception as error:
                for cell in left:
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
