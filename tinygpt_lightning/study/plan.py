"""What a study does, and where it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

MOST_SEEDS = 1_000_000
LARGEST_SEED = 2**31  # times the stride between seeds, it still is a seed of torch's


@dataclass(frozen=True)
class FabricSettings:
    """Where the study runs; every process takes its share of the chunks.

    Args:
        accelerator: cpu, cuda, or whatever else Lightning Fabric knows.
        devices: Processes (and devices) on each machine.
        num_nodes: Machines; all must see the output folder.
    """

    accelerator: str = "cpu"
    devices: int = 1
    num_nodes: int = 1

    def __post_init__(self) -> None:
        for name in ("devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"fabric.{name}: expected 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Plan:
    """What a study does with the settings of a run.

    Args:
        title: What it is about, in the report's words; null means the name of the config.
        factors: What is varied: a setting with a list of its values, or any name with its levels, each with the
            settings that make it. ``stages[1:]`` means every stage but the first. Later ones see what earlier ones
            changed.
        controls: Cells beside the combinations of levels: a name, and the settings that make it.
        claims: Whose claims the report judges; null means none beyond what the tests say.
        seeds: How many seeds, counted from 0, or a list of them.
        chunk: Seeds trained together. More need more memory, 0.3 GiB each at full size.
        threads: CPU threads of each process. A result's last bits depend on it, and on a very small model's
            chunk; they never depend on the number of processes.
        share: Whether runs that share a beginning share its computation; it changes no result.
        measure_updates: Whether to measure how far each update moves the weights; it changes no result.
        curve_points: How many epochs of a long curve are kept in a row.
        fabric: Where the study runs.
        output: Folder of the results; null means checkpoints/ and the config's name.

    Raises:
        ValueError: If a setting is out of range; the message names it, what was expected and what was got.
    """

    title: str | None = None
    factors: dict[str, list[Any] | dict[str, dict[str, Any]]] = field(default_factory=dict)
    controls: dict[str, dict[str, Any]] = field(default_factory=dict)
    claims: Literal["riddle", "reset", "frontier"] | None = None
    seeds: int | list[int] = 20
    chunk: int = 2
    threads: int = 1
    share: bool = True
    measure_updates: bool = False
    curve_points: int = 400
    fabric: FabricSettings = field(default_factory=FabricSettings)
    output: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise ValueError(f"seeds: expected at most {MOST_SEEDS}, got {self.seeds}")
        seeds = self.seed_list
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds: expected one or more different ones, got {self.seeds}")
        if not 0 <= min(seeds) <= max(seeds) < LARGEST_SEED:
            raise ValueError(f"seeds: expected 0 to {LARGEST_SEED - 1}, got {self.seeds}")
        for name, least in (("chunk", 1), ("threads", 1), ("curve_points", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected {least} or more, got {getattr(self, name)}")

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def chunks(self) -> list[list[int]]:
        """The seeds in groups that are trained together: the unit of work of a process.

        >>> Plan(seeds=5, chunk=2).chunks
        [[0, 1], [2, 3], [4]]
        """
        seeds = self.seed_list
        return [seeds[i : i + self.chunk] for i in range(0, len(seeds), self.chunk)]
