"""The folders of runs, ``checkpoints/<config name>/version_N``, and the files in them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.table import PROGRAM
from tinygpt_lightning.gpt.checkpoint import CheckpointError, read_state
from tinygpt_lightning.trained import LAST

RUNS = "checkpoints"  # the folder of all runs, by default
FILES_KEY = "RunFiles"  # under which a checkpoint holds what the callback of that name knows of its run


@dataclass(frozen=True)
class Run:
    """One run's folder and its files.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting of the run."""
        return self.path / "config.yaml"

    @property
    def vocab(self) -> Path:
        """The vocabulary, symbol to id."""
        return self.path / "vocab.json"

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.path / LAST

    def stage(self, number: int) -> Path:
        """The checkpoint at the end of stage ``number``, from 1."""
        return self.path / f"stage-{number}.ckpt"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that it was begun with.

        Raises:
            UsageError: If it has none: it was killed before it began to train, or is no run.
        """
        if not self.config.is_file():
            raise UsageError(f"{self.path}: expected the folder of a run, with a config.yaml in it, found none")
        settings = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        if not isinstance(settings, dict) or not isinstance(settings.get("stages"), list):
            raise UsageError(f"{self.config}: expected the settings of a run, with stages, found none")
        return settings

    def is_finished(self, stages: int | None = None) -> bool:
        """Whether so many stages are done; null means as many as the run's own settings have."""
        return self._end(stages) is not None

    def ended_early(self) -> bool:
        """Whether it ended by itself before its stages did: by a time limit, say, and not by a signal."""
        try:
            return bool(read_state(self.last)["callbacks"][FILES_KEY]["ended_early"])
        except (CheckpointError, KeyError):
            return False

    def newest(self) -> Path | None:
        """The checkpoint to use if the run is over; none if it is not."""
        return self._end() or (self.last if self.ended_early() else None)

    def _end(self, stages: int | None = None) -> Path | None:
        if not self.config.is_file():
            return None
        end = self.stage(len(self.settings["stages"]) if stages is None else stages)
        return end if end.exists() else None


def list_runs(folder: Path) -> list[Run]:
    """The runs below ``folder``, oldest first."""
    numbers = {int(path.name.removeprefix("version_")): path for path in folder.glob("version_*") if _is_run(path)}
    return [Run(numbers[number]) for number in sorted(numbers)]


def runs_folder(configs: Sequence[Path], root: str | Path = RUNS) -> Path:
    """Where the runs of a configuration lie: named after its files.

    >>> runs_folder([Path("configs/staged.yaml"), Path("configs/small.yaml")]).as_posix()
    'checkpoints/staged-small'
    """
    return Path(root) / ("-".join(config.stem for config in configs) or "default")


def newest_checkpoint(configs: Sequence[Path], folder: Path) -> Path:
    """The checkpoint of the newest finished run of a configuration.

    Args:
        configs: Its files.
        folder: Where its runs lie.

    Raises:
        UsageError: If none is finished; the message says how to train one.
    """
    newest_first = (run.newest() for run in reversed(list_runs(folder)))
    if not (checkpoint := next(filter(None, newest_first), None)):
        words = [word for config in configs for word in ("--config", str(config))]
        fit = shlex.join([*PROGRAM.split(), "fit", *words])
        raise UsageError(f"no finished run in {folder}: train one with `{fit}`")
    return checkpoint


def newest_of_all(root: str | Path = RUNS) -> Path:
    """The checkpoint of the run that was finished last, whatever its configuration.

    Raises:
        UsageError: If there is none.
    """
    over = []
    for run in (run for folder in sorted(Path(root).glob("*/")) for run in list_runs(folder)):
        with suppress(UsageError):  # what other programs leave there is no run
            over += [checkpoint] if (checkpoint := run.newest()) else []
    if not over:
        raise UsageError(f"no finished run in {root}: expected --ckpt_path FILE, or --config FILE, got neither")
    return max(over, key=lambda checkpoint: checkpoint.stat().st_mtime_ns)


def configured_root(configs: Sequence[Path]) -> str:
    """Where some configurations put their runs, read from their files alone.

    Raises:
        UsageError: If a file is no YAML.
        OSError: If it cannot be read.
    """
    root = RUNS
    for config in configs:
        try:
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UsageError(f"{config}: expected YAML, got {str(error).splitlines()[0]}") from None
        trainer = settings.get("trainer") if isinstance(settings, dict) else None
        root = trainer.get("default_root_dir", root) if isinstance(trainer, dict) else root
    return str(root)


def new_run(folder: Path) -> Run:
    """Make the folder of the next run; two processes that ask at once get two.

    Raises:
        OSError: If it cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs = list_runs(folder)
    for number in count(int(runs[-1].path.name.removeprefix("version_")) + 1 if runs else 0):
        path = folder / f"version_{number}"
        try:
            path.mkdir()
            break
        except FileExistsError:
            continue
    return Run(path)


def _is_run(path: Path) -> bool:
    return path.is_dir() and path.name.removeprefix("version_").isdecimal()
