"""Where a fit goes on: in which run, with which settings, from which checkpoint."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.run import Run, list_runs, new_run
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.commands.table import PROGRAM
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.description import read_description
from tinygpt_lightning.gpt.checkpoint import CheckpointError, newest_whole, read_checkpoint, read_state
from tinygpt_lightning.gpt.files import link_whole, locked, remove_leftovers

RUN_VARIABLE = "TINYGPT_RUN"  # tells the other processes of a distributed fit which folder the first one made
# What may change on a run's way, since it changes nothing that is computed: what is shown, logged and saved, and
# for how long the run goes on. Whatever is not named here may not.
FREE_SETTINGS = (
    "data.prompts",
    "data.questions",
    "generation",
    "save_every_n_seconds",
    "trainer.default_root_dir",
    "trainer.detect_anomaly",
    "trainer.enable_autolog_hparams",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.fast_dev_run",
    "trainer.limit_predict_batches",
    "trainer.limit_test_batches",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.max_time",
    "trainer.model_registry",
    "trainer.profiler",
)
FREE_CALLBACKS = (
    "DeviceStatsMonitor",
    "EarlyStopping",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "OnExceptionCheckpoint",
    "RichModelSummary",
    "RichProgressBar",
    "ThroughputMonitor",
    "Timer",
    "TQDMProgressBar",
)


@dataclass(frozen=True)
class Opened:
    """A run that is ready to be trained.

    Args:
        run: The run.
        settings: All its settings.
        checkpoint: What to go on from; none at a run's beginning.
    """

    run: Run
    settings: Settings
    checkpoint: Path | None


@contextmanager
def opened(settings: Settings) -> Iterator[Opened]:
    """Open the run that ``settings`` ask for, and keep other processes out of it.

    A new run that ends with an error before its first step leaves no folder. A run that is finished ends the
    program, since there is nothing to do. ``fast_dev_run`` gets a folder that goes away again.

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
        going_on = _run_to_go_on_with(settings)
        if going_on:
            owned = is_first and not is_trial
            if owned:
                resources.enter_context(locked(going_on.path))
                remove_leftovers(going_on.path)
            settings, checkpoint = _where_to_go_on(going_on, settings, repair=owned)
        else:
            checkpoint = _checkpoint_to_begin_with(settings)
        if not is_first:
            run = Run(Path(os.environ[RUN_VARIABLE]))
        elif is_trial:
            run = Run(Path(resources.enter_context(tempfile.TemporaryDirectory())))
        elif going_on:
            run = going_on
        else:
            run = new_run(settings.folder)
            resources.enter_context(locked(run.path))
            resources.enter_context(_discarded_unless_begun(run))
        os.environ[RUN_VARIABLE] = str(run.path)
        yield Opened(run, settings, checkpoint)


def check_pairs(it: Opened, data: QADataModule) -> None:
    """Refuse to go on with a run if the file that it learns from has changed since.

    Raises:
        UsageError: The message names the first pair that differs.
    """
    if it.checkpoint is None or it.checkpoint.parent != it.run.path:
        return
    begun = read_description(read_state(it.checkpoint), it.checkpoint)[2].pairs
    for number, (before, now) in enumerate(zip_longest(begun, data.taught.pairs), 1):
        if before != now:
            raise UsageError(
                f"data.path: expected the pairs with which {it.run.path} was begun, but {data.path} has changed: pair "
                f"{number} was {_shown(before)} and is {_shown(now)}"
            )


def _shown(pair: QAPair | None) -> str:
    return "not there" if pair is None else f"{' → '.join(pair)!r:.120}"


def how_to_go_on(run: Run, *changes: str) -> str:
    """The command that goes on with a run; it needs none of the flags that the run was begun with."""
    return shlex.join([*PROGRAM.split(), "fit", "--ckpt_path", str(run.path), *changes])


def check_settings(begun: Mapping[str, Any], now: Mapping[str, Any], stages_begun: int, run: Run) -> None:
    """Refuse settings that change what a run computes.

    Args:
        begun: The settings that the run was begun with.
        now: Those that it is to go on with.
        stages_begun: How many stages are begun; later ones may change, and more may be appended.
        run: The run, to be named.

    Raises:
        UsageError: The message names the first setting that differs, with both values.
    """
    if len(now["stages"]) < stages_begun:
        raise UsageError(
            f"stages: expected at least the {stages_begun} that {run.path} began, got {len(now['stages'])}"
        )
    before, after = (_decisive(settings, stages_begun) for settings in (begun, now))
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            raise UsageError(
                f"{name}: expected {before.get(name)!r}, with which {run.path} was begun, got {after.get(name)!r}\n"
                f"To go on as it was begun: {how_to_go_on(run)}"
            )


def _decisive(settings: Mapping[str, Any], stages_begun: int) -> dict[str, Any]:
    """What decides what is computed, flat: names with dots to values."""
    begun = {f"stages[{i}]": stage for i, stage in enumerate(settings["stages"][:stages_begun])}
    flat = _flatten({**{name: value for name, value in settings.items() if name != "stages"}, **begun})
    flat = {name: value for name, value in flat.items() if not _is_free(name)}
    callbacks = flat.get("trainer.callbacks") or []
    flat["trainer.callbacks"] = [
        callback
        for callback in (callbacks if isinstance(callbacks, list) else [callbacks])
        if callback["class_path"].rpartition(".")[2] not in FREE_CALLBACKS
    ]
    return flat


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in FREE_SETTINGS)


def _flatten(settings: Mapping[Any, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat.update({f"{name}.{inner}": leaf for inner, leaf in _flatten(value).items()})
        else:
            flat[str(name)] = value
    return flat


def _run_to_go_on_with(settings: Settings) -> Run | None:
    """The run to go on with in place, if one is asked for."""
    path = settings.config.ckpt_path
    if path is not None and path != "last":
        return Run(Path(path)) if Path(path).is_dir() else None
    if path is None:
        return None
    if rank_zero_only.rank != 0 and not settings.config.trainer.fast_dev_run:  # type: ignore[attr-defined]
        return Run(Path(os.environ[RUN_VARIABLE]))
    runs = list_runs(settings.folder)
    if not runs:
        raise UsageError(f"--ckpt_path last: expected a run in {settings.folder} to go on with, found none")
    unfinished = [run for run in runs if not run.is_finished(len(settings.config.stages))]
    return (unfinished or runs)[-1]


def _where_to_go_on(run: Run, settings: Settings, *, repair: bool) -> tuple[Settings, Path | None]:
    """The settings of a run to go on with, and its newest whole checkpoint; none if it was stopped before that."""
    newest, damaged = newest_whole(run.path)
    if newest is None and damaged:
        raise damaged[0]
    for error in damaged:
        say(f"{error}; going on from {newest}")
    if newest is None and not run.config.is_file() and settings.config.ckpt_path == "last":
        return settings, None  # killed before it had written anything
    begun, settings = run.settings, settings.on_top_of(run.config)
    checkpoint = read_state(newest) if newest else {}  # it is whole, as was just seen
    check_settings(begun, settings.plain, _stages_begun(checkpoint), run)
    if newest and _is_at_the_end(checkpoint, settings):
        if repair:
            # One of the two may be damaged, or older: the run was killed between them.
            for path in (run.stage(len(settings.config.stages)), run.last):
                if not _is_at_step(path, checkpoint["global_step"]):
                    link_whole(newest, path)
        say(f"{run.path} is finished: there is nothing to go on with")
        sys.exit(0)
    return settings, newest


def _checkpoint_to_begin_with(settings: Settings) -> Path | None:
    path = settings.config.ckpt_path
    if path is None:
        return None
    checkpoint = read_checkpoint(path)  # a file that is refused should not cost a folder
    if "optimizer_states" not in checkpoint:
        raise UsageError(f"{path}: expected a checkpoint of a fit, to go on with, got one of weights alone")
    if _is_at_the_end(checkpoint, settings):
        raise UsageError(f"{path}: all stages are done; append another one to go on")
    return Path(path)


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
def _discarded_unless_begun(run: Run) -> Iterator[None]:
    """Remove the folder of a new run that ends with an error before it begins to train."""
    try:
        yield
    except (Exception, SystemExit):
        if not run.config.exists():
            shutil.rmtree(run.path, ignore_errors=True)
        raise
