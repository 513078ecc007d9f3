"""The question of a study: its plan, and the cells that factors and controls make of the base settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.study.paths import Patch, Settings, change
from tinygpt_lightning.study.recipe import Recipe, as_key, read_recipe

MOST_SEEDS = 1_000_000
LARGEST_SEED = 2**31  # multiplied by the stride between seeds, it is still a valid seed of PyTorch


@dataclass(frozen=True)
class FabricSettings:
    """Where the study runs. The same command on other machines that see the output folder shares the work.

    Args:
        accelerator: cpu, cuda, or another accelerator that Lightning Fabric supports.
        devices: Processes (and devices) on this machine.
    """

    accelerator: str = "cpu"
    devices: int = 1

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"fabric.devices: expected 1 or more, got {self.devices}")


@dataclass(frozen=True)
class Tuning:
    """A setting that each cell has at its best value, chosen on other seeds than those that are reported.

    The tuning is a study of its own, in the folder ``tuning`` of the results; the best value has the lowest median of
    the plan's outcome over its seeds: the epochs, or else the final loss, dropout off, which also decides a tie.

    Args:
        setting: Path of the setting.
        choices: Values to choose from.
        seeds: Seeds to choose on; none of them may be a seed of the plan.
    """

    setting: str
    choices: list[Any]
    seeds: list[int]


@dataclass(frozen=True)
class Plan:
    """The design of a study and how to run it.

    Args:
        title: Title of the report; null means the name of the output folder.
        factors: The settings that vary: a setting with a list of its values, or any name with its levels, each with
            the settings that make it. ``stages[1:]`` means every stage but the first. Later factors see the changes
            of earlier ones.
        controls: Cells beside the combinations of levels: a name, and the settings that make it.
        outcome: The outcome that the question is about; the title of the report says whether a factor changes it.
            "epochs" are those of the last stage to exactness, "epochs_of_run" those of all stages.
        confirm: A factor of two levels whose effect on the outcome is the one hypothesis, stated before there are rows:
            one test over all its matched cells. All other comparisons are secondary. Null means that every comparison
            on the outcome counts, corrected together.
        claims: The claims that the report judges; null means none beyond the statistical tests.
        seeds: Number of seeds, counted from 0, or a list of seeds.
        tune: A setting that each cell has at its best value, chosen on other seeds; null means none.
        chunk: Seeds that train together. More seeds need more memory, 0.3 GiB each at full size.
        threads: CPU threads of each process. The last bits of a result depend on it, and on the chunk of a very
            small model; they never depend on the number of processes.
        engine: auto trains the seeds of a chunk together where that is possible (one pair, elementwise optimizers);
            fit trains every run alone, as the command `fit` does.
        measure_updates: Whether to measure the length of each weight update; it changes no result.
        curve_points: Number of epochs of a long curve that a row keeps.
        fabric: Where the study runs.
        output: Folder of the results; null means checkpoints/ and the config's name.

    Raises:
        ValueError: If a setting is out of range; the message names the setting, the expected range and the value.
    """

    title: str | None = None
    factors: dict[str, list[Any] | dict[str, dict[str, Any]]] = field(default_factory=dict)
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcome: Literal["exactness", "loss", "epochs", "epochs_of_run"] = "exactness"
    confirm: str | None = None
    claims: Literal["riddle", "reset", "frontier", "many"] | None = None
    seeds: int | list[int] = 20
    tune: Tuning | None = None
    chunk: int = 2
    threads: int = 1
    engine: Literal["auto", "fit"] = "auto"
    measure_updates: bool = False
    curve_points: int = 400
    fabric: FabricSettings = field(default_factory=FabricSettings)
    output: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise ValueError(f"seeds: expected at most {MOST_SEEDS}, got {self.seeds}")
        seeds = self.seed_list
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: expected one or more different seeds, got {self.seeds}")
        if not 0 <= min(seeds) <= max(seeds) < LARGEST_SEED:
            raise ValueError(f"seeds: expected 0 to {LARGEST_SEED - 1}, got {self.seeds}")
        if self.confirm and len(self.factors.get(self.confirm, ())) != 2:
            raise ValueError(f"confirm: expected a factor of two levels, got {self.confirm}")
        if self.tune and not self.tune.choices:
            raise ValueError("tune.choices: expected one or more values, got none")
        if self.tune and (both := sorted({*seeds} & {*self.tune.seeds})):
            raise ValueError(f"tune.seeds: expected other seeds than those of the plan, got {both} in both")
        for name, least in (("chunk", 1), ("threads", 1), ("curve_points", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")

    @property
    def seed_list(self) -> list[int]:
        """All seeds of the study."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def chunks(self) -> list[list[int]]:
        """Groups of seeds that train together; a chunk is the unit of work of a process."""
        seeds = self.seed_list
        return [seeds[i : i + self.chunk] for i in range(0, len(seeds), self.chunk)]


@dataclass(frozen=True)
class Factor:
    """A factor of the design: its name, and the settings that make each level."""

    name: str
    levels: Mapping[str, Patch]

    @classmethod
    def read(cls, name: str, levels: list[Any] | Mapping[str, Patch]) -> Factor:
        """Make a factor of an entry of the config: a list of values of the setting ``name``, or named levels.

        Raises:
            UsageError: If there are no levels, or two of one name.

        >>> Factor.read("model.config.n_head", [1, 2]).levels
        {'1': {'model.config.n_head': 1}, '2': {'model.config.n_head': 2}}
        """
        named = [(value, {name: value}) for value in levels] if isinstance(levels, list) else [*levels.items()]
        # YAML reads the name 500 as a number.
        pairs = [(level if isinstance(level, str) else as_key(level), patch) for level, patch in named]
        if not pairs:
            raise UsageError(f"factors.{name}: expected one or more levels, got none")
        if len(dict(pairs)) < len(pairs):
            raise UsageError(f"factors.{name}: expected different levels, got {', '.join(name for name, _ in pairs)}")
        return cls(name, dict(pairs))

    @property
    def paths(self) -> list[str]:
        """The settings that the levels set."""
        return sorted({path for patch in self.levels.values() for path in patch})

    def applies(self, settings: Settings) -> bool:
        """Whether a run with ``settings`` has the settings of the levels; UsageError if it has only some of them."""
        dead = {path for patch in self.levels.values() for path in change(copy.deepcopy(settings), patch)}
        if dead and dead != set(self.paths):
            raise UsageError(
                f"factors.{self.name}: expected settings that the run has, all or none of them, "
                f"got {', '.join(sorted(dead))}, which it lacks"
            )
        return not dead


@dataclass(frozen=True, eq=False)
class Cell:
    """A condition that every seed runs through: a combination of levels, or a control."""

    levels: Mapping[str, str]  # factor to level, without factors that change nothing (one stage has no boundary)
    recipe: Recipe
    control: str | None = None  # name of the control

    @property
    def name(self) -> str:
        """Name in reports and messages."""
        return self.control or level_names(self.levels) or "base"


def level_names(levels: Mapping[str, str]) -> str:
    """Levels as reports and messages name them: schedule 2×30, weights redrawn."""
    return ", ".join(f"{factor} {level}" for factor, level in levels.items())


class Study:
    """A full factorial over a plan's factors, then its controls, with the same seeds in every cell.

    Args:
        plan: The design.
        base: The complete settings of a run, which factors and controls change.
        tuned: The value of the plan's tuned setting, by the name of the cell; None before it is chosen.

    Raises:
        UsageError: If a cell cannot be trained, two cells are the same run, or a factor changes nothing anywhere.
    """

    def __init__(self, plan: Plan, base: Settings, tuned: Mapping[str, Any] | None = None) -> None:
        self.plan = plan
        self.base = base
        self.tuned = tuned
        self.factors = [Factor.read(name, levels) for name, levels in plan.factors.items()]
        self.cells = [*self._combinations(), *(self._control(*control) for control in plan.controls.items())]
        for factor in self.factors:
            if not any(factor.name in cell.levels for cell in self.cells):
                paths = ", ".join(factor.paths)
                raise UsageError(f"factors.{factor.name}: expected settings that some run has, got {paths}")
        names: dict[str, str] = {}
        for cell in self.cells:
            other = names.setdefault(cell.recipe.key, cell.name)
            if other != cell.name:
                raise UsageError(f"factors: expected different runs, got the same in '{other}' and '{cell.name}'")

    def neutral(self, settings: Settings) -> Settings:
        """A copy with a fixed value at every setting that this study varies: equal for all runs of one study."""
        settings = copy.deepcopy(settings)
        patches = [patch for factor in self.factors for patch in factor.levels.values()]
        tuned = [{self.plan.tune.setting: None}] if self.plan.tune else []
        for patch in [*patches, *self.plan.controls.values(), *tuned]:
            for path, value in patch.items():
                change(settings, {path: None})  # so that nothing is merged with what the run has there
                change(settings, {path: value})
        return settings

    def _combinations(self) -> list[Cell]:
        cells: dict[str, Cell] = {}
        for combination in product(*(factor.levels for factor in self.factors)):
            settings, levels = copy.deepcopy(self.base), {}
            for factor, level in zip(self.factors, combination, strict=True):
                try:
                    if factor.applies(settings):
                        change(settings, factor.levels[level])
                        levels[factor.name] = level
                except UsageError as error:
                    raise UsageError(f"{level_names(levels)}: {error}" if levels else str(error)) from None
            if as_key(levels) not in cells:
                cells[as_key(levels)] = self._cell(settings, levels)
        return list(cells.values())

    def _control(self, name: str, patch: Patch) -> Cell:
        settings = copy.deepcopy(self.base)
        if dead := change(settings, patch):
            raise UsageError(f"controls.{name}: expected settings that the base has, got {', '.join(dead)}")
        return self._cell(settings, {}, name)

    def _cell(self, settings: Settings, levels: Mapping[str, str], control: str | None = None) -> Cell:
        name = control or level_names(levels) or "base"
        try:
            if self.plan.tune and self.tuned and change(settings, {self.plan.tune.setting: self.tuned[name]}):
                raise UsageError(f"tune.setting: expected a setting that the cell has, got {self.plan.tune.setting}")
            return Cell(levels, read_recipe(settings), control)
        except UsageError as error:
            raise UsageError(f"{name}: {error}" if name != "base" else str(error)) from None

    def tuning(self) -> list[tuple[Any, Study]]:
        """The studies that the tuned setting is chosen by: this one at each value, on the seeds of the tuning."""
        if self.plan.tune is None:
            return []
        names, tune = [cell.name for cell in self.cells], self.plan.tune
        plan = replace(self.plan, seeds=tune.seeds, tune=replace(tune, seeds=[]))
        return [(value, Study(plan, self.base, dict.fromkeys(names, value))) for value in tune.choices]
