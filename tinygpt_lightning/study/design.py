"""What is asked: the factors, the cells they make, and the settings of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, Literal

from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize
from tinygpt_lightning.original.vocabulary import renumber

Vocabulary = Literal["stable", "resorted"]
Optimizer = Literal["new", "kept"]
Weights = Literal["carried", "redrawn"]
MOST_SEEDS = 1_000_000
LARGEST_SEED = 2**31  # times the stride between seeds, it still is a seed of torch's


@dataclass(frozen=True)
class Cell:
    """One combination of the factors' levels: what is done to every seed.

    Args:
        vocabulary: Whether the vocabulary keeps its ids when it is read back, or is resorted as in the original.
        schedule: Length of each stage, in epochs.
        optimizer: Whether later stages start with a new optimizer or keep the old one's state; null if there
            is one stage only.
        weights: Whether later stages carry the weights on or draw them anew; null if there is one stage only.

    >>> Cell("resorted", (30, 30), "new", "carried").name
    '2×30, resorted, optimizer new, weights carried'
    """

    vocabulary: Vocabulary
    schedule: tuple[int, ...]
    optimizer: Optimizer | None = None
    weights: Weights | None = None

    @property
    def name(self) -> str:
        """The cell in words."""
        words = [schedule_name(self.schedule), self.vocabulary]
        if self.staged:
            words += [f"optimizer {self.optimizer}", f"weights {self.weights}"]
        return ", ".join(words)

    @property
    def staged(self) -> bool:
        """Whether there is more than one stage."""
        return len(self.schedule) > 1

    @property
    def stages(self) -> list[Stage]:
        """The schedule in the terms of `fit`."""
        return [Stage(epochs=epochs, reset_optimizer=self.optimizer != "kept") for epochs in self.schedule]

    @property
    def same_vocabulary(self) -> bool:
        """Whether the last stage trains on the vocabulary that is used to read: the predicted outcome."""
        return self.vocabulary == "stable" or self.staged

    def tokenizer(self, stage: int, made: CharTokenizer) -> CharTokenizer:
        """The vocabulary in use at ``stage``, from 0; the reading after the last one counts as a stage too.

        The first stage makes the vocabulary, everything later reads it back from its file. Reading it back
        twice changes no more than once.
        """
        return renumber(made) if stage and self.vocabulary == "resorted" else made


def schedule_name(schedule: Sequence[int]) -> str:
    """A schedule in short.

    >>> schedule_name([30, 30]), schedule_name([300]), schedule_name([30, 60])
    ('2×30', '1×300', '30+60')
    """
    if len(set(schedule)) == 1:
        return f"{len(schedule)}×{schedule[0]}"
    return "+".join(map(str, schedule))


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
class ModelSettings:
    """The model, in the words of `fit`.

    Args:
        config: Its size and dropout; vocab_size follows from the text.
    """

    config: GPTConfig = field(default_factory=GPTConfig)


@dataclass(frozen=True)
class Study:
    r"""The settings of a study: a full factorial over its factors, with the same seeds in every cell.

    Args:
        text: The sentence to learn by heart.
        prompt: Its beginning, which is given when it is asked for.
        vocabulary: Levels of the vocabulary on reload: stable keeps the ids, resorted is the original's way.
        schedules: Levels of the schedule, each a list of stage lengths in epochs.
        optimizer: Levels of the optimizer at a boundary between stages: new, kept.
        weights: Levels of the weights at a boundary between stages: carried, redrawn.
        seeds: How many seeds, counted from 0, or a list of them.
        learning_rate: Of AdamW, per epoch; its other settings are PyTorch's defaults.
        model: The model.
        chunk: Seeds trained together. More need more memory, 0.3 GiB each at full size.
        threads: CPU threads of each process. A result's last bits depend on it, and on a very small model's
            chunk; they never depend on the number of processes.
        share: Whether runs that share a beginning share its computation; it changes no result.
        fabric: Where the study runs.
        output: Folder of the results; null means checkpoints/ and the config file's name.

    Raises:
        ValueError: If a setting is out of range; the message names it, what was expected and what was got.
    """

    text: str = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
    prompt: str = "Question: Xin chào"
    vocabulary: list[Vocabulary] = field(default_factory=lambda: ["stable", "resorted"])
    schedules: list[list[int]] = field(default_factory=lambda: [[30], [60], [300], [30, 30]])
    optimizer: list[Optimizer] = field(default_factory=lambda: ["new", "kept"])
    weights: list[Weights] = field(default_factory=lambda: ["carried", "redrawn"])
    seeds: int | list[int] = 20
    learning_rate: float = 3e-4
    model: ModelSettings = field(default_factory=ModelSettings)
    chunk: int = 2
    threads: int = 1
    share: bool = True
    fabric: FabricSettings = field(default_factory=FabricSettings)
    output: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int) and self.seeds > MOST_SEEDS:
            raise ValueError(f"seeds: expected at most {MOST_SEEDS}, got {self.seeds}")
        text, prompt = normalize(self.text), normalize(self.prompt)
        if not prompt or not text.startswith(prompt) or text == prompt:
            raise ValueError(f"prompt: expected the beginning of text={text!r}, got {prompt!r}")
        for name in ("vocabulary", "schedules", "optimizer", "weights", "seed_list"):
            levels = [str(level) for level in getattr(self, name)]
            if not levels or len(set(levels)) < len(levels):
                raise ValueError(
                    f"{name.removesuffix('_list')}: expected one or more different levels, got [{', '.join(levels)}]"
                )
        for schedule in self.schedules:
            if not schedule or min(schedule) < 1:
                raise ValueError(f"schedules: expected stage lengths of 1 epoch or more, got {schedule}")
        if not 0 <= min(self.seed_list) <= max(self.seed_list) < LARGEST_SEED:
            raise ValueError(f"seeds: expected 0 to {LARGEST_SEED - 1}, got {self.seeds}")
        for name in ("chunk", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"learning_rate: expected more than 0, got {self.learning_rate}")
        config = self.model.config
        if config.n_positions < len(text):
            raise ValueError(
                f"model.config.n_positions: expected room for the text's {len(text)} characters, "
                f"got {config.n_positions}"
            )
        model = ModelSettings(replace(config, vocab_size=len(CharTokenizer.from_text(text))))
        for name, value in (("text", text), ("prompt", prompt), ("model", model)):
            object.__setattr__(self, name, value)

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def chunks(self) -> list[list[int]]:
        """The seeds in groups that are trained together: the unit of work of a process.

        >>> Study(seeds=5, chunk=2).chunks
        [[0, 1], [2, 3], [4]]
        """
        seeds = self.seed_list
        return [seeds[i : i + self.chunk] for i in range(0, len(seeds), self.chunk)]

    @property
    def cells(self) -> list[Cell]:
        """All combinations of levels; a boundary's factors only where there is one.

        >>> len(Study().cells)
        14
        """
        cells = []
        for vocabulary, schedule in product(self.vocabulary, self.schedules):
            if len(schedule) == 1:
                cells.append(Cell(vocabulary, tuple(schedule)))
            else:
                for optimizer, weights in product(self.optimizer, self.weights):
                    cells.append(Cell(vocabulary, tuple(schedule), optimizer, weights))
        return cells

    @property
    def common(self) -> dict[str, Any]:
        """The part of a row's configuration that all rows of the study share."""
        return {
            "text": self.text,
            "prompt": self.prompt,
            "learning_rate": self.learning_rate,
            "model": asdict(self.model.config),
        }

    def config(self, cell: Cell, seed: int) -> dict[str, Any]:
        """All that decides a run's result, but for the rounding of its last bits."""
        return {**asdict(cell), "schedule": list(cell.schedule), "seed": seed, **self.common}
