"""The folders of runs, ``checkpoints/<config name>/version_N``, and the files in them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from tinygpt_lightning.gpt.tokenizer import CharTokenizer


class RunLockedError(ValueError):
    """Two processes would train in one folder."""


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
        return self.path / "last.ckpt"

    def stage(self, number: int) -> Path:
        """The checkpoint at the end of stage ``number``, from 1."""
        return self.path / f"stage-{number}.ckpt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in the folder.

        Raises:
            RunLockedError: If another process trains there.
        """
        # The folder itself is locked: no file is left behind by a process that is killed.
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise RunLockedError(f"{self.path}: another process is training there; wait for its end") from None
        finally:
            os.close(folder)

    def final(self, stages: int | None = None) -> Path:
        """The checkpoint at the end of so many stages; null means as many as the run's own configuration has."""
        if stages is None:
            stages = len(yaml.safe_load(self.config.read_text(encoding="utf-8"))["stages"])
        return self.stage(stages)

    def is_finished(self, stages: int | None = None) -> bool:
        """Whether so many stages are done; null means as many as the run's own configuration has."""
        return self.config.exists() and self.final(stages).exists()


def list_runs(folder: Path) -> list[Run]:
    """The runs below ``folder``, oldest first."""
    numbers = {int(path.name.removeprefix("version_")): path for path in folder.glob("version_*") if _is_run(path)}
    return [Run(numbers[number]) for number in sorted(numbers)]


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


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that appears complete or not at all.

    Raises:
        OSError: If it cannot be written; it names ``path``, and what was there is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _is_run(path: Path) -> bool:
    return path.is_dir() and path.name.removeprefix("version_").isdecimal()


class RunFiles(Callback):
    """Writes settings and vocabulary when a fit begins, and ``last.ckpt`` as it goes on.

    Args:
        run: The run.
        config: Its settings, as YAML.
        tokenizer: Its vocabulary.
        save_every_n_epochs: How often ``last.ckpt`` is written, in epochs; also when training stops.
    """

    def __init__(self, run: Run, config: str, tokenizer: CharTokenizer, save_every_n_epochs: int) -> None:
        self.run = run
        self.config = config
        self.tokenizer = tokenizer
        self.save_every_n_epochs = save_every_n_epochs

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what a reader of the run needs."""
        # The checkpoint is loaded, and the stages' own `on_fit_start` came before: the settings are right.
        if trainer.is_global_zero:
            self.tokenizer.save(self.run.vocab)
            write_whole(self.run.config, self.config.encode())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write ``last.ckpt`` if it is time."""
        done = trainer.current_epoch + 1
        if done % self.save_every_n_epochs == 0 or done == trainer.max_epochs or trainer.should_stop:
            # What was logged goes first: a run killed in between would never log it again.
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.run.last)
