"""What is asked: factors with their levels, and the cells that they make of a base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.study.paths import Patch, Settings, change
from tinygpt_lightning.study.plan import Plan
from tinygpt_lightning.study.recipe import Recipe, as_key, read_recipe


@dataclass(frozen=True)
class Factor:
    """What is varied.

    Args:
        name: In the report's words.
        levels: Name of each level to the settings that make it.

    Raises:
        UsageError: If it has no levels.
    """

    name: str
    levels: Mapping[str, Patch]

    def __post_init__(self) -> None:
        if not self.levels:
            raise UsageError(f"factors.{self.name}: expected one or more levels, got none")

    @classmethod
    def read(cls, name: str, levels: list[Any] | Mapping[str, Patch]) -> Factor:
        """Make one of what was typed: values of the setting ``name``, or levels with their settings.

        >>> Factor.read("model.config.n_head", [1, 2]).levels
        {'1': {'model.config.n_head': 1}, '2': {'model.config.n_head': 2}}
        """
        if isinstance(levels, list):
            levels = {value if isinstance(value, str) else as_key(value): {name: value} for value in levels}
        return cls(name, {str(level): patch for level, patch in levels.items()})  # YAML's 500 is a number

    def applies(self, settings: Settings) -> bool:
        """Whether a level of it changes anything in a run of these settings."""
        return any(change(copy.deepcopy(settings), patch) for patch in self.levels.values())


@dataclass(frozen=True, eq=False)
class Cell:
    """What is done to every seed: a combination of levels, or a control.

    Args:
        levels: Factor to level. A factor is left out where it changes nothing, since what it changes is not there.
        recipe: What it amounts to.
        control: Its name, if it is a control.
    """

    levels: Mapping[str, str]
    recipe: Recipe
    control: str | None = None

    @property
    def name(self) -> str:
        """The cell in words."""
        return self.control or in_words(self.levels) or "base"


def in_words(levels: Mapping[str, str]) -> str:
    """Levels as the report and the messages name them.

    >>> in_words({"schedule": "2×30", "weights": "redrawn"})
    'schedule 2×30, weights redrawn'
    """
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


class Study:
    """A full factorial over a plan's factors, and its controls, with the same seeds in every cell.

    Args:
        plan: What is varied, and how it is done.
        base: The settings of a run that are varied, complete.

    Attributes:
        factors: What is varied.
        cells: All combinations of levels, then the controls.

    Raises:
        UsageError: If a cell cannot be trained, two are the same, or a factor changes nothing in any of them.
    """

    def __init__(self, plan: Plan, base: Settings) -> None:
        self.plan = plan
        self.base = base
        self.factors = [Factor.read(name, levels) for name, levels in plan.factors.items()]
        self.cells = [*self._combinations(), *self._controls()]
        for factor in self.factors:
            if not any(factor.name in cell.levels for cell in self.cells):
                paths = ", ".join(sorted({path for patch in factor.levels.values() for path in patch}))
                raise UsageError(f"factors.{factor.name}: expected settings that some run has, got {paths}")
        names: dict[str, str] = {}
        for cell in self.cells:
            other = names.setdefault(cell.recipe.key, cell.name)
            if other != cell.name:
                raise UsageError(
                    f"factors: expected another run in each cell, got the same in '{other}' and '{cell.name}'"
                )

    def neutral(self, settings: Settings) -> Settings:
        """Settings with one value wherever this study varies them: alike for all runs that may stand side by side."""
        settings = copy.deepcopy(settings)
        for patch in [patch for factor in self.factors for patch in factor.levels.values()]:
            change(settings, patch)
        for patch in self.plan.controls.values():
            change(settings, patch)
        return settings

    def _combinations(self) -> list[Cell]:
        cells: dict[str, Cell] = {}
        for combination in product(*(factor.levels for factor in self.factors)):
            settings, levels = copy.deepcopy(self.base), {}
            for factor, level in zip(self.factors, combination, strict=True):
                if factor.applies(settings):
                    change(settings, factor.levels[level])
                    levels[factor.name] = level
            if as_key(levels) not in cells:
                cells[as_key(levels)] = _cell(settings, levels)
        return list(cells.values())

    def _controls(self) -> list[Cell]:
        cells = []
        for name, patch in self.plan.controls.items():
            settings = copy.deepcopy(self.base)
            if not change(settings, patch):
                raise UsageError(f"controls.{name}: expected settings that the base has, got {', '.join(patch)}")
            cells.append(_cell(settings, {}, name))
        return cells


def _cell(settings: Settings, levels: Mapping[str, str], control: str | None = None) -> Cell:
    try:
        return Cell(levels, read_recipe(settings), control)
    except UsageError as error:
        name = control or in_words(levels)
        raise UsageError(f"{name}: {error}" if name else str(error)) from None
