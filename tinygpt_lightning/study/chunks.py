"""Trains cells for a chunk of seeds, and computes every beginning that they share once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from tinygpt_lightning.study.design import Cell, Plan
from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.outcome import Outcome, outcomes


def train(
    cells: Sequence[Cell],
    seeds: list[int],
    plan: Plan,
    device: torch.device,
    parent: Ensemble | None = None,
    stage: int = 0,
) -> Iterator[tuple[Cell, dict[int, Outcome] | Exception]]:
    """Train ``cells``, from the first stage or from ``stage`` on, where they continue ``parent``.

    Cells that agree in the stage share it until the shortest one ends.

    Yields:
        Each cell with the outcome of each seed, as soon as it is there, or with the error that ended it: an error in
        one cell (memory, arithmetic) must not cost the other cells their outcomes.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.recipe.beginning(stage), []).append(cell)
    for group in groups.values():
        pending = sorted(group, key=lambda cell: cell.recipe.stages[stage].epochs)
        try:
            recipe = pending[0].recipe
            if parent:
                branch = parent.fork()
                branch.begin_stage(recipe, stage)
            else:
                branch = Ensemble(recipe, seeds, device, plan.measure_updates)
            start = branch.epoch
            while pending:
                length = pending[0].recipe.stages[stage].epochs
                while branch.epoch - start < length:
                    branch.train_epoch()
                ended = [cell for cell in pending if cell.recipe.stages[stage].epochs == length]
                pending = pending[len(ended) :]
                finished = [cell for cell in ended if len(cell.recipe.stages) == stage + 1]
                others = [cell for cell in ended if cell not in finished]
                yield from train(others, seeds, plan, device, branch, stage + 1)
                for cell in finished:
                    try:
                        yield cell, outcomes(branch, cell.recipe, plan.curve_points)
                    except Exception as error:
                        yield cell, error
        except Exception as error:
            for cell in pending:
                yield cell, error
