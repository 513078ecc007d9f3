"""The outcomes of a study, cell by cell."""

from __future__ import annotations

from collections.abc import Iterable

from tinygpt_lightning.study.design import Cell, Study
from tinygpt_lightning.study.outcome import Outcome
from tinygpt_lightning.study.rows import Row


class Results:
    """What came out of a study's design.

    Args:
        study: What was asked.
        rows: Rows of it; those of cells or seeds outside the design are left aside.
    """

    def __init__(self, study: Study, rows: Iterable[Row]) -> None:
        outcomes = {row.key: row.outcome for row in rows}
        self.study = study
        self.seeds = study.plan.seed_list
        self.by_cell: dict[Cell, dict[int, Outcome]] = {}
        for cell in study.cells:
            keys = {seed: (cell.recipe.key, seed) for seed in self.seeds}
            self.by_cell[cell] = {seed: outcomes[key] for seed, key in keys.items() if key in outcomes}

    @property
    def runs(self) -> list[tuple[Cell, int, Outcome]]:
        """All runs, cell after cell."""
        return [(cell, seed, outcome) for cell, seeds in self.by_cell.items() for seed, outcome in seeds.items()]

    @property
    def missing(self) -> int:
        """Runs of the design that have no row."""
        return len(self.study.cells) * len(self.seeds) - len(self.runs)

    @property
    def diverged(self) -> int:
        """Runs whose loss is no number at the end."""
        return sum(outcome["final_loss_dropout_off"] is None for _, _, outcome in self.runs)
