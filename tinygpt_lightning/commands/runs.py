"""The folders of runs, ``checkpoints/<config name>/version_N``: their files, their settings, the newest one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.table import PROGRAM
from tinygpt_lightning.gpt.checkpoint import CheckpointError, local_path, read_state
from tinygpt_lightning.gpt.files import link_whole
from tinygpt_lightning.trained import LAST, TrainedGPT, load

RUNS = "checkpoints"  # the default folder of all runs
BEST = "best.ckpt"  # of a run that ended worse than an earlier stage
FILES_KEY = "RunFiles"  # the state of the callback of that name in a checkpoint


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
        """The settings that the run was begun with.

        Raises:
            UsageError: If there are none: the run was killed before it began to train, or this is no run.
            OSError: If they cannot be read.
        """
        if not self.config.is_file():
            raise UsageError(f"{self.path}: expected the folder of a run, with a config.yaml in it, found none")
        settings = read_yaml(self.config)
        if not isinstance(settings.get("stages"), list):
            raise UsageError(f"{self.config}: expected the settings of a run, with stages, found none")
        return settings

    def is_finished(self, stages: int | None = None) -> bool:
        """Whether this many stages are done; by default, all stages of the run's settings."""
        return self._end(stages) is not None

    def result(self) -> Path | None:
        """The checkpoint to use if the run has ended, at its last stage or early; None if it has not.

        A time limit, for example, ends a run early; a signal interrupts it, so that it has not ended.
        """
        end = self._end()
        if end and self.best.exists():
            return self.best
        return end or (self.last if self._ended_early() else None)

    @property
    def best(self) -> Path:
        """The checkpoint of the best stage, where the last one ended worse."""
        return self.path / BEST

    def _end(self, stages: int | None = None) -> Path | None:
        if not self.config.is_file():
            return None
        end = self.stage(len(self.settings["stages"]) if stages is None else stages)
        return end if end.exists() else None

    def _ended_early(self) -> bool:
        try:
            return bool(read_state(self.last)["callbacks"][FILES_KEY]["ended_early"])
        except (CheckpointError, KeyError):
            return False


class Judged(NamedTuple):
    """A checkpoint, read back, and which of its pairs are exact."""

    checkpoint: Path
    trained: TrainedGPT
    exact: list[bool]


def judge(checkpoint: Path) -> Judged:
    """Read a checkpoint, and find out which of its pairs are exact."""
    trained = load(checkpoint)
    return Judged(checkpoint, trained, trained.knows(trained.taught.pairs))


def keep_best(run: Run, stages: int) -> Judged:
    """Compare the stages of a run that has ended, so that a good model is not lost behind a worse one.

    Args:
        run: The run.
        stages: How many stages it has.

    Returns:
        The last stage's checkpoint; or, if an earlier one has more exact pairs, `Run.best`, which is that one.
    """
    files = [run.stage(number) for number in range(stages, 0, -1) if run.stage(number).exists()]
    last = best = judge(files[0])
    for file in files[1:]:
        if all(best.exact):
            break
        best = max(best, judge(file), key=lambda judged: sum(judged.exact))
    run.best.unlink(missing_ok=True)
    if best is last:
        return last
    link_whole(best.checkpoint, run.best)
    return best._replace(checkpoint=run.best)


def list_runs(folder: Path) -> list[Run]:
    """The runs below ``folder``, oldest first."""
    numbers = {int(path.name.removeprefix("version_")): path for path in folder.glob("version_*") if _is_run(path)}
    return [Run(numbers[number]) for number in sorted(numbers)]


def new_run(folder: Path) -> Run:
    """Create the folder of the next run; two processes that call this at once get two.

    Raises:
        OSError: If it cannot be created.
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


def runs_folder(configs: Sequence[Path], root: str | Path = RUNS) -> Path:
    """The folder of a configuration's runs, named after its files.

    >>> runs_folder([Path("configs/staged.yaml"), Path("configs/small.yaml")]).as_posix()
    'checkpoints/staged-small'
    """
    return Path(root) / ("-".join(config.stem for config in configs) or "default")


def newest_checkpoint(configs: Sequence[Path], folder: Path) -> Path:
    """The checkpoint of the newest finished run of a configuration.

    Args:
        configs: Its files.
        folder: The folder of its runs.

    Raises:
        UsageError: If none is finished; the message says how to train one.
    """
    if not (checkpoint := next(_results(reversed(list_runs(folder))), None)):
        words = [word for config in configs for word in ("--config", str(config))]
        fit = shlex.join([*PROGRAM.split(), "fit", *words])
        raise UsageError(f"no finished run in {folder}: train one with `{fit}`")
    return checkpoint


def newest_of_all(root: str | Path = RUNS) -> Path:
    """The checkpoint of the run that finished last, of any configuration.

    Raises:
        UsageError: If there is none.
    """
    runs = (run for folder in sorted(Path(root).glob("*/")) for run in list_runs(folder))
    newest = max(_results(runs), key=lambda checkpoint: checkpoint.stat().st_mtime_ns, default=None)
    if newest is None:
        raise UsageError(f"no finished run in {root}: expected --ckpt_path FILE, or --config FILE, got neither")
    return newest


def chosen_checkpoint(ckpt_path: str | None, configs: Sequence[Path]) -> str | Path:
    """``ckpt_path``, or else the newest finished run's checkpoint: of a configuration, or of all.

    Raises:
        UsageError: If there is none.
    """
    if ckpt_path:
        return local_path(ckpt_path)
    if not configs:
        return newest_of_all()
    return newest_checkpoint(configs, runs_folder(configs, configured_root(configs)))


def configured_root(configs: Sequence[Path]) -> str:
    """The folder of all runs according to some configuration files, read without LightningCLI.

    Raises:
        UsageError: If a file is not YAML.
        OSError: If it cannot be read.
    """
    root = RUNS
    for config in configs:
        trainer = read_yaml(config).get("trainer")
        root = trainer.get("default_root_dir", root) if isinstance(trainer, dict) else root
    return os.path.expanduser(str(root))  # noqa: PTH111


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings in a file; an empty file has none.

    Raises:
        UsageError: If the file is not YAML in UTF-8, or holds something else than settings by name.
        OSError: If it cannot be read.
    """
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: expected YAML in UTF-8, got {str(error).splitlines()[0]}") from None
    if settings is not None and not isinstance(settings, dict):
        raise UsageError(f"{path}: expected settings by name, got {settings!r:.60}")
    return settings or {}


def _results(runs: Iterator[Run]) -> Iterator[Path]:
    for run in runs:
        try:
            if checkpoint := run.result():
                yield checkpoint
        except (UsageError, OSError) as error:  # one unreadable run does not hide the others
            say(f"warning: {error}; this run is left out")


def _is_run(path: Path) -> bool:
    return path.is_dir() and path.name.removeprefix("version_").isdecimal()
