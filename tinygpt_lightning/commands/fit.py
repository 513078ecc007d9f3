"""``fit``: open the run, train, report."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, Timer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim.swa_utils import SWALR

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.parser import trainers_mistakes
from tinygpt_lightning.commands.progress import StageProgress
from tinygpt_lightning.commands.resume import Opened, check_pairs, how_to_go_on, opened
from tinygpt_lightning.commands.run_files import RunFiles
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.commands.tensorboard import RunLogger, TensorBoardReport
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.pair_files import MOST_MISTAKES
from tinygpt_lightning.gpt.memory import keep_freed_memory
from tinygpt_lightning.original import OriginalStages
from tinygpt_lightning.trained import load


@trainers_mistakes()
def fit(args: Sequence[str]) -> None:
    """Train in stages, and show what was learnt.

    Args:
        args: What was typed behind ``fit``.
    """
    keep_freed_memory()
    with opened(Settings("fit", args)) as it:
        made = it.settings.instantiate()
        _check_optimizer(made)
        _check_averaging(made)
        check_pairs(it, made.data)
        _warn_of_repetitions(made.data)
        stop = GracefulStop()
        trainer = it.settings.make_trainer(
            made,
            _callbacks(it, made, stop),
            logger=_logger(it, made),
            plugins=[*_listed(made.trainer.plugins), SafeCheckpointIO()],
        )
        with suppress(SIGTERMException):  # Lightning's, where the signal comes before it starts to train
            trainer.fit(made.model, made.data, ckpt_path=it.checkpoint)
        if trainer.is_global_zero:
            _report(it, trainer, stop)
        if stop.received:
            sys.exit(128 + stop.received)


@rank_zero_only
def _warn_of_repetitions(data: QADataModule) -> None:
    if lines := data.repeated:
        more = f" and {len(lines) - MOST_MISTAKES} more" if len(lines) > MOST_MISTAKES else ""
        named = ", ".join(map(str, lines[:MOST_MISTAKES])) + more
        say(f"warning: {data.path}: these lines repeat an earlier pair, which counts once: {named}")


def _callbacks(it: Opened, made: Namespace, stop: GracefulStop) -> list[Callback]:
    """The run's own callbacks. Those of the user come before them; Lightning moves what saves checkpoints to the end.

    At an epoch's end the order matters: `stop` decides whether it is the last one, before anybody saves it; the
    text for TensorBoard is generated before a stage's end may renumber the vocabulary (`OriginalStages`); and all
    that is logged is on the disk before `RunFiles`, and then the stages, save their checkpoints.
    """
    if made.renumber and not made.rebuild:
        raise UsageError("renumber: expected rebuild: true beside it, since ids change where files are read, got false")
    if made.rebuild:
        staged: StagedTraining = OriginalStages(made.stages, it.run.path, made.renumber)
    else:
        staged = StagedTraining(made.stages, it.run.path)
    return [
        stop,
        TensorBoardReport(staged, it.settings.plain, stop),
        staged,
        StageProgress(staged, len(made.data.taught.pairs)),
        ExactResume(),
        RunFiles(it.run, it.settings.text, made.save_every_n_seconds, stop),
    ]


def _logger(it: Opened, made: Namespace) -> object:
    if made.trainer.logger is not None:
        return made.trainer.logger
    folder, name, version = it.run.path.parent.parent, it.run.path.parent.name, it.run.path.name
    return RunLogger(folder, name=name, version=version, default_hp_metric=False)


def _check_optimizer(made: Namespace) -> None:
    """Refuse an optimizer that cannot be made."""
    try:
        made.model.configure_optimizers()
    except ValueError as error:
        raise UsageError(f"model.optimizer: {error}") from error


def _check_averaging(made: Namespace) -> None:
    """Refuse stochastic weight averaging where its state could not be saved."""
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in _listed(made.trainer.callbacks))
    if averages and "state_dict" not in vars(SWALR):
        raise UsageError(
            "StochasticWeightAveraging: expected torch 2.10 or newer, whose learning rates for it can be saved as "
            f"plain values, got {torch.__version__}"
        )


def _report(it: Opened, trainer: Trainer, stop: GracefulStop) -> None:
    """Say what came of it; and where not all stages are done, why, and how to go on."""
    if it.settings.config.trainer.fast_dev_run:
        say(f"fast_dev_run: {trainer.global_step} steps, validation and a checkpoint went well; nothing is left behind")
        return
    if trainer.current_epoch == trainer.max_epochs:
        _print_result(it.run.stage(len(it.settings.config.stages)), it.run.path)
        return
    reason, changes = _ending(it.settings, trainer, stop)
    if not it.run.last.exists():
        raise UsageError(f"{reason} before the first epoch was done; nothing is kept")
    if not stop.interrupted:
        _print_result(it.run.last, it.run.path)
    at_most = "at most " if any(stage.until for stage in it.settings.config.stages) else ""
    so_far = f"{reason} after epoch {trainer.current_epoch} of {at_most}{trainer.max_epochs}"
    say(f"{so_far}; go on with: {how_to_go_on(it.run, *changes)}")


def _ending(settings: Settings, trainer: Trainer, stop: GracefulStop) -> tuple[str, list[str]]:
    """Why training ended before its last epoch, and the flags without which going on would end at once again."""
    if stop.interrupted:
        return "stopped", []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            if settings.config.trainer.max_time is not None:
                return "ended early by max_time", ["--trainer.max_time", "null"]
            return "ended early by Timer", _without(Timer, settings)
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return f"ended early by EarlyStopping on {callback.monitor}", _without(EarlyStopping, settings)
    return "ended early by a callback", []


def _without(kind: type[Callback], settings: Settings) -> list[str]:
    asked = _listed(settings.plain["trainer"]["callbacks"])
    others = [callback for callback in asked if callback["class_path"].rpartition(".")[2] != kind.__name__]
    return ["--trainer.callbacks", json.dumps(others) if others else "null"]


def _print_result(checkpoint: Path, run: Path) -> None:
    """Say on stdout what the run has learnt, as it is read back from its checkpoint, and where to look further."""
    trained = load(checkpoint)
    taught = trained.taught
    if len(taught.pairs) == 1:
        text = trained.complete(taught.prompts[0])
        indented = text.replace("\n", "\n           ")
        print(f"prompt     {taught.prompts[0]}")
        print(f"generated  {indented}")
        print(f"exact      {'yes' if text == taught.text(taught.pairs[0]) else 'no'}")
    else:
        print(f"pairs      {len(taught.pairs)}")
        print(f"exact      {sum(trained.knows(taught.pairs))}")
    print(f"run        {run}")
    print(f"look       tensorboard --logdir {run.parent.parent}")


def _listed(asked: Any) -> list[Any]:
    """One or several, as Lightning's settings have it, as a list."""
    return asked if isinstance(asked, list) else [] if asked is None else [asked]
