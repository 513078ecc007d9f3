"""The run that ``fit`` trains in: a new one or one to resume, its settings, and the callback that writes its files."""

from __future__ import annotations

import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.launch import share_folder
from tinygpt_lightning.commands.runs import FILES_KEY, Run, list_runs, new_run
from tinygpt_lightning.commands.settings import Settings, decisive
from tinygpt_lightning.commands.table import PROGRAM
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.description import read_description
from tinygpt_lightning.gpt.checkpoint import CheckpointError, newest_whole, read_checkpoint, read_state
from tinygpt_lightning.gpt.files import link_whole, locked, remove_leftovers, write_whole
from tinygpt_lightning.module import TinyGPTModule


@dataclass(frozen=True)
class OpenRun:
    """A run that is ready to be trained.

    Args:
        run: The run.
        settings: All its settings.
        checkpoint: The checkpoint to continue from; None at a run's beginning.
    """

    run: Run
    settings: Settings
    checkpoint: Path | None

    @property
    def pairs(self) -> Path | None:
        """The checkpoint to take the pairs from, where their file is not there: in another folder, for example."""
        path = self.settings.config.data.path
        return self.checkpoint if self._is_resumed and path is not None and not Path(path).exists() else None

    @property
    def _is_resumed(self) -> bool:
        return self.checkpoint is not None and self.checkpoint.parent == self.run.path

    def check_pairs(self, data: QADataModule) -> None:
        """Refuse to resume a run if its file of pairs has changed.

        Raises:
            UsageError: The message names the first pair that differs.
        """
        if not self._is_resumed or self.pairs:
            return
        assert self.checkpoint is not None  # noqa: S101
        begun = read_description(read_state(self.checkpoint), self.checkpoint)[2].pairs
        for number, (before, now) in enumerate(zip_longest(begun, data.taught.pairs), 1):
            if before != now:
                raise UsageError(
                    f"data.path: expected the pairs with which {self.run.path} was begun, but {data.path} has changed: "
                    f"pair {number} was {_shown(before)} and is {_shown(now)}"
                )


@contextmanager
def open_run(settings: Settings) -> Iterator[OpenRun]:
    """Open the run that ``settings`` ask for, and keep other processes out of it.

    A new run that ends with an error before its first step leaves no folder. For a finished run the program exits,
    since there is nothing to do. With ``fast_dev_run`` the folder is temporary.

    Raises:
        UsageError: If there is no such run, or a setting would change what it computes.
        CheckpointError: If a checkpoint is refused, or none of the run's is whole.
        FolderLockedError: If another process trains in the folder.
    """
    is_trial = bool(settings.config.trainer.fast_dev_run)
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # among the processes of a distributed fit
    if not settings.config.stages:
        raise UsageError("stages: expected at least one stage, got none")
    with ExitStack() as resources:
        resumed = _run_to_resume(settings)
        if resumed:
            is_owner = is_first and not is_trial
            if is_owner:
                resources.enter_context(locked(resumed.path))
                remove_leftovers(resumed.path)
            settings, checkpoint = _where_to_continue(resumed, settings, repair=is_owner)
        else:
            checkpoint = _checkpoint_to_begin_with(settings)
        if not is_first:
            run = Run(Path(share_folder(None)[0]))
        elif is_trial:
            run = Run(Path(resources.enter_context(tempfile.TemporaryDirectory())))
        elif resumed:
            run = resumed
        else:
            created = [folder for folder in (settings.folder, *settings.folder.parents) if not folder.exists()]
            run = new_run(settings.folder)
            resources.enter_context(_removed_unless_begun(run, created))
            resources.enter_context(locked(run.path))
        if is_first:
            _, store = share_folder(str(run.path))
            resources.callback(lambda: store)  # kept open until the end
        yield OpenRun(run, settings, checkpoint)


def resume_command(run: Run, *changes: str) -> str:
    """The command that resumes a run; it needs none of the flags that the run was begun with."""
    return shlex.join([*PROGRAM.split(), "fit", "--ckpt_path", str(run.path), *changes])


def _run_to_resume(settings: Settings) -> Run | None:
    """The run to continue in place, if the settings ask for one."""
    path = settings.config.ckpt_path
    if path != "last":
        return Run(Path(path)) if path is not None and Path(path).is_dir() else None
    if rank_zero_only.rank != 0 and not settings.config.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return Run(Path(share_folder(None)[0]))
    runs = list_runs(settings.folder)
    if not runs:
        raise UsageError(f"--ckpt_path last: expected a run in {settings.folder} to resume, found none")
    unfinished = [run for run in runs if not run.is_finished(len(settings.config.stages))]
    return (unfinished or runs)[-1]


def _where_to_continue(run: Run, settings: Settings, *, repair: bool) -> tuple[Settings, Path | None]:
    """The settings of a run to resume, and its newest whole checkpoint; None if it was killed before the first."""
    newest, damaged = newest_whole(run.path)
    if newest is None and damaged:
        raise damaged[0]
    for error in damaged:
        say(f"{error}; resuming from {newest}")
    if newest is None and not run.config.is_file() and settings.config.ckpt_path == "last":
        return settings, None  # killed before it had written anything
    begun, settings = run.settings, settings.on_top_of(run.config)
    checkpoint = read_state(newest) if newest else {}  # `newest_whole` has checked its content
    _check_unchanged(begun, settings.plain, _stages_begun(checkpoint), run)
    if newest and _is_at_the_end(checkpoint, settings):
        if repair:
            # One of the two files is missing, damaged or older if the run was killed between them.
            for path in (run.stage(len(settings.config.stages)), run.last):
                if not _is_at_step(path, checkpoint["global_step"]):
                    link_whole(newest, path)
        say(f"{run.path} is finished: there is nothing to resume")
        sys.exit(0)
    return settings, newest


def _checkpoint_to_begin_with(settings: Settings) -> Path | None:
    path = settings.config.ckpt_path
    if path is None:
        return None
    checkpoint = read_checkpoint(path)  # before the folder is created
    if "optimizer_states" not in checkpoint:
        raise UsageError(f"{path}: expected a checkpoint of a fit, to continue from, got one of weights alone")
    if _is_at_the_end(checkpoint, settings):
        raise UsageError(f"{path}: all stages are done; append another one to continue")
    return Path(path)


def _check_unchanged(begun: Mapping[str, Any], now: Mapping[str, Any], stages_begun: int, run: Run) -> None:
    """Refuse settings that change what a run computes; stages that are not begun may change, and be appended."""
    if len(now["stages"]) < stages_begun:
        raise UsageError(
            f"stages: expected at least the {stages_begun} that {run.path} began, got {len(now['stages'])}"
        )
    before, after = (decisive(settings, stages_begun) for settings in (begun, now))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise UsageError(
                f"{name}: expected {before.get(name)!r}, with which {run.path} was begun, got {after.get(name)!r}\n"
                f"To resume it as it was begun: {resume_command(run)}"
            )


def _stages_begun(checkpoint: Mapping[str, Any]) -> int:
    return int(_stages_state(checkpoint).get("built", -1)) + 1


def _is_at_the_end(checkpoint: Mapping[str, Any], settings: Settings) -> bool:
    is_over = bool(_stages_state(checkpoint).get("is_over"))
    return is_over and _stages_begun(checkpoint) >= len(settings.config.stages)


def _stages_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = checkpoint.get("callbacks", {}).get(StagedTraining.__qualname__, {})
    return state


def _is_at_step(path: Path, global_step: int) -> bool:
    try:
        return bool(read_checkpoint(path)["global_step"] == global_step)
    except CheckpointError:
        return False


@contextmanager
def _removed_unless_begun(run: Run, created: Sequence[Path]) -> Iterator[None]:
    """Remove the folder of a new run that ends with an error before it begins to train, and folders ``created``."""
    try:
        yield
    except (Exception, SystemExit):
        if not run.config.exists():
            shutil.rmtree(run.path, ignore_errors=True)
            for folder in created:
                with suppress(OSError):  # another run may be in it by now
                    folder.rmdir()
        raise


def _shown(pair: QAPair | None) -> str:
    return "not there" if pair is None else f"{' → '.join(pair)!r:.120}"


class RunFiles(Checkpoint):
    """Writes the settings and the vocabulary when a fit begins, and ``last.ckpt`` while it trains.

    Args:
        run: The run.
        config: Its settings, as YAML.
        save_every_n_seconds: How often ``last.ckpt`` is written; also at a stage's end, and when training stops.
        stop: The callback that notes signals.
    """

    def __init__(self, run: Run, config: str, save_every_n_seconds: float, stop: GracefulStop) -> None:
        self.run = run
        self.config = config
        self.save_every_n_seconds = save_every_n_seconds
        self.stop = stop
        self.has_begun = False
        self._ended_early = False  # by a time limit or a callback, and not by a signal
        self._saved = time.monotonic()
        self._stage_file: Path | None = None  # of a stage that has just ended

    @property
    @override
    def state_key(self) -> str:
        return FILES_KEY

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, TinyGPTModule)  # noqa: S101
        if trainer.is_global_zero and (trainer.ckpt_path is None or not self.run.vocab.exists()):
            pl_module.tokenizer.save(self.run.vocab)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: another callback may still refuse the settings.
        if trainer.is_global_zero:
            write_whole(self.run.config, self.config.encode())
        self.has_begun = True
        self._saved = time.monotonic()

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._link_last(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._link_last(trainer)  # where a stage ended in the middle of an epoch

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Note that the stage's own checkpoint, which is written after this hook, will be the run's last one too."""
        self._stage_file = self.run.stage(index + 1)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        done = trainer.current_epoch + 1
        self._ended_early = trainer.should_stop and not self.stop.interrupted and done != trainer.max_epochs
        # The first process's clock decides, since all processes take part in a checkpoint.
        is_due = trainer.strategy.broadcast(time.monotonic() - self._saved >= self.save_every_n_seconds)
        if not (self._stage_file or is_due or trainer.should_stop):
            return
        # Before the checkpoint: a run that is killed between the two would never log these values again.
        for logger in trainer.loggers:
            logger.save()
        if not self._stage_file:
            trainer.save_checkpoint(self.run.last, weights_only=False)
            self._saved = time.monotonic()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._link_last(trainer)
        # `StochasticWeightAveraging` copies its averages into the module after the last checkpoint.
        averaging = any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        (staged,) = (callback for callback in trainer.callbacks if isinstance(callback, StagedTraining))  # type: ignore[attr-defined]
        if averaging and staged.is_finished:
            self._stage_file = self.run.stage(len(self.run.settings["stages"]))
            trainer.save_checkpoint(self._stage_file, weights_only=False)
            self._link_last(trainer)
        elif not (staged.is_finished or trainer.should_stop):  # a limit of epochs or steps before the stages' end
            self._ended_early = True
            trainer.save_checkpoint(self.run.last, weights_only=False)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"ended_early": self._ended_early}

    def _link_last(self, trainer: Trainer) -> None:
        if self._stage_file and trainer.is_global_zero:
            link_whole(self._stage_file, self.run.last)
            self._saved = time.monotonic()
        self._stage_file = None
