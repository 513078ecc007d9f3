"""``fit``: open the run, train, and report the result."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, StochasticWeightAveraging, Timer
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.optim.swa_utils import SWALR

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.callbacks.snapshots import Snapshots
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.errors import UsageError, fail, say
from tinygpt_lightning.commands.launch import is_torchrun
from tinygpt_lightning.commands.main import keep_freed_memory
from tinygpt_lightning.commands.parser import lightning_errors, setting_up
from tinygpt_lightning.commands.progress import StageProgress
from tinygpt_lightning.commands.recipe import apply_recipe
from tinygpt_lightning.commands.resume import OpenRun, RunFiles, open_run, resume_command
from tinygpt_lightning.commands.runs import BEST, judge, keep_best
from tinygpt_lightning.commands.settings import Settings, as_list
from tinygpt_lightning.commands.tensorboard import RunLogger, TensorBoardReport
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.pair_files import MOST_MISTAKES
from tinygpt_lightning.data.sampler import Repetition
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.description import n_parameters
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.growth import grow_from
from tinygpt_lightning.original import OriginalStages
from tinygpt_lightning.trained import TrainedGPT, load

# Ctrl-C, and the signals with which a shell, a system or a cluster announces the end.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

MAX_SHOWN = 20  # pairs
SHARED_FROM = 50_000_000  # parameters times symbols of a step: so many are done sooner by two threads than by one


@lightning_errors()
def fit(args: Sequence[str]) -> None:
    """Train in stages, and print the result.

    Args:
        args: The arguments after ``fit``.
    """
    keep_freed_memory()
    settings = Settings("fit", args)
    if settings.config.auto:
        settings.locate_pairs()
        apply_recipe(settings)
    with open_run(settings) as opened:
        opened.settings.locate_pairs(*opened.run.path.resolve().parents[: 3 if opened.checkpoint else 0])
        objects = opened.settings.instantiate(pairs=opened.pairs)
        _check_optimizer(objects)
        _check_averaging(objects)
        opened.check_pairs(objects.data)
        if settings.config.threads is None:
            _share_among_threads(objects)
        if objects.data.rehearse and opened.checkpoint is None:
            _begin_with(objects.data.rehearse, objects.model.model)
        _warn_of_lines(objects.data)
        stop = GracefulStop(signals=SIGNALS)
        callbacks = _callbacks(opened, objects, stop)
        (files,) = (callback for callback in callbacks if isinstance(callback, RunFiles))
        trainer = opened.settings.make_trainer(
            objects,
            callbacks,
            logger=_logger(opened, objects),
            plugins=[*as_list(objects.trainer.plugins), *_environment(), SafeCheckpointIO()],
            default_root_dir=opened.run.path,  # in SLURM jobs Lightning resumes from any hpc_ckpt_*.ckpt there
        )
        # A SIGTERMException is Lightning's, if the signal comes before training.
        with suppress(SIGTERMException), setting_up(lambda: files.has_begun):
            trainer.fit(objects.model, objects.data, ckpt_path=opened.checkpoint)
        if trainer.is_global_zero:
            _report(opened, trainer, stop)
        if stop.received:
            sys.exit(128 + stop.received)


def _share_among_threads(objects: Namespace) -> None:
    """Take a single thread for steps so small that a second one would mostly wait."""
    taught = objects.data.taught
    symbols = min(objects.data.batch_size, len(taught.pairs)) * taught.max_length
    if symbols * n_parameters(objects.model.model.config) < SHARED_FROM:
        torch.set_num_threads(1)


def _begin_with(checkpoint: str, model: TinyGPT) -> None:
    try:
        grow_from(model, load(checkpoint).model)
    except ValueError as error:
        raise UsageError(f"{error}\nTo train from the beginning instead, leave out --data.rehearse.") from None


def _environment() -> list[SLURMEnvironment]:
    # Lightning would answer USR1 with a checkpoint of its own and a new job.
    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() and not is_torchrun() else []


@rank_zero_only
def _warn_of_lines(data: QADataModule) -> None:
    alike = [" and ".join(map(str, lines)) for lines in data.alike]
    for lines, reason in (
        (data.file.repeated, "these lines repeat an earlier pair, which counts once"),
        (data.replaced, "these lines have a new answer, which replaces the one that was taught"),
        (alike, "these lines differ in case, diacritics, punctuation or spaces alone, and are not varied"),
    ):
        if lines:
            more = f" and {len(lines) - MOST_MISTAKES} more" if len(lines) > MOST_MISTAKES else ""
            named = ", ".join(map(str, lines[:MOST_MISTAKES])) + more
            say(f"warning: {data.path}: {reason}: {named}")


def _callbacks(opened: OpenRun, objects: Namespace, stop: GracefulStop) -> list[Callback]:
    """The run's own callbacks, behind the user's; Lightning moves those that save checkpoints to the end.

    The order matters at an epoch's end: `stop` decides whether this epoch is the last one, before a checkpoint is
    saved; the text for TensorBoard is generated before a stage's end may renumber the vocabulary (`OriginalStages`);
    and everything logged is on the disk before `RunFiles`, and then the stages, save their checkpoints.
    """
    if objects.renumber and not objects.rebuild:
        raise UsageError("renumber: expected rebuild: true beside it, since ids change where files are read, got false")
    if objects.rebuild:
        staged: StagedTraining = OriginalStages(objects.stages, opened.run.path, objects.renumber)
    else:
        staged = StagedTraining(objects.stages, opened.run.path)
    return [
        stop,
        TensorBoardReport(staged, opened.settings.plain, stop),
        staged,
        StageProgress(staged, len(objects.data.taught.pairs)),
        *([Snapshots(objects.snapshots)] if objects.snapshots else []),
        *([Repetition(objects.data.repeat)] if objects.data.repeat and not objects.trainer.overfit_batches else []),
        ExactResume(),
        RunFiles(opened.run, opened.settings.text, objects.save_every_n_seconds, stop),
    ]


def _logger(opened: OpenRun, objects: Namespace) -> object:
    if objects.trainer.logger is not None:
        return objects.trainer.logger
    path = opened.run.path
    return RunLogger(path.parent.parent, name=path.parent.name, version=path.name, default_hp_metric=False)


def _check_optimizer(objects: Namespace) -> None:
    """Refuse an optimizer that cannot be made."""
    try:
        objects.model.configure_optimizers()
    except ValueError as error:
        raise UsageError(f"model.optimizer: {error}") from error


def _check_averaging(objects: Namespace) -> None:
    """Refuse stochastic weight averaging where its state could not be saved."""
    averages = any(isinstance(callback, StochasticWeightAveraging) for callback in as_list(objects.trainer.callbacks))
    if averages and "state_dict" not in vars(SWALR):
        raise UsageError(
            "StochasticWeightAveraging: expected torch 2.10 or newer, whose learning rates for it can be saved as "
            f"plain values, got {torch.__version__}"
        )


def _report(opened: OpenRun, trainer: Trainer, stop: GracefulStop) -> None:
    """Print the result; if not all stages are done, also why, and the command that resumes the run."""
    run, config = opened.run, opened.settings.config
    if config.trainer.fast_dev_run:
        say(f"fast_dev_run: {trainer.global_step} steps, validation and a checkpoint went well; nothing is left behind")
        return
    (staged,) = (callback for callback in trainer.callbacks if isinstance(callback, StagedTraining))  # type: ignore[attr-defined]
    if staged.is_finished:
        wrong = _print_result(run.path, *keep_best(run, len(config.stages)))
        if wrong:
            print("next       train longer, with --stages '[{epochs: …}]', or with a larger --model.config.n_embd")
        if config.auto and wrong:
            _fail_for(wrong)
        return
    reason, changes = _ending(opened.settings, trainer, stop)
    if not run.last.exists():
        raise UsageError(f"{reason} before the first epoch was done; nothing is kept")
    if not stop.interrupted:
        _print_result(run.path, *judge(run.last))
    at_most = "at most " if any(stage.until for stage in config.stages) else ""
    last = staged.position.last_epoch(staged.stages, trainer.current_epoch)
    progress = f"after epoch {trainer.current_epoch}" + (f" of {at_most}{last}" if last != -1 else "")
    say(f"{reason} {progress}; resume with: {resume_command(run, *changes)}")


def _ending(settings: Settings, trainer: Trainer, stop: GracefulStop) -> tuple[str, list[str]]:
    """Why training ended before its last epoch, and the flags without which a resumed run would end again at once."""
    if stop.interrupted:
        return "stopped", []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            if settings.config.trainer.max_time is not None:
                return "ended early by max_time", ["--trainer.max_time", "null"]
            return "ended early by Timer", _without(Timer, settings)
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            return f"ended early by EarlyStopping on {callback.monitor}", _without(EarlyStopping, settings)
    for limit, reached in (("max_steps", trainer.global_step), ("max_epochs", trainer.current_epoch)):
        if reached == settings.config.trainer[limit]:
            return f"ended early by {limit}", [f"--trainer.{limit}", "-1"]
    return "ended early by a callback", []


def _without(kind: type[Callback], settings: Settings) -> list[str]:
    callbacks = as_list(settings.plain["trainer"]["callbacks"])
    others = [callback for callback in callbacks if callback["class_path"].rpartition(".")[2] != kind.__name__]
    return ["--trainer.callbacks", json.dumps(others) if others else "null"]


def _fail_for(wrong: Sequence[QAPair]) -> NoReturn:
    """Name the pairs that are not exact though the recipe's epochs are over."""
    more = (
        f"\nand {len(wrong) - MAX_SHOWN} more, which `validate --output FILE` writes" if len(wrong) > MAX_SHOWN else ""
    )
    shown = "".join(f"\n  {' → '.join(pair)!r:.120}" for pair in wrong[:MAX_SHOWN])
    fail(f"not exact yet: {len(wrong)} pairs; a larger model.config.n_embd or more epochs may do{shown}{more}", 1)


def _print_result(run: Path, checkpoint: Path, trained: TrainedGPT, exact: Sequence[bool]) -> list[QAPair]:
    """Print what the model that was read back from its checkpoint gives back, and where to look further.

    Returns:
        The pairs that are not exact.
    """
    taught = trained.taught
    if checkpoint.name == BEST:
        say(f"the last stage ended worse than an earlier one; {checkpoint} is the best one, which predict and chat use")
    if len(taught.pairs) == 1:
        text = trained.complete(taught.prompts[0])
        indented = text.replace("\n", "\n           ")
        print(f"prompt     {taught.prompts[0]}")
        print(f"generated  {indented}")
        print(f"exact      {'yes' if exact[0] else 'no'}")
    else:
        print(f"pairs      {len(taught.pairs)}")
        print(f"exact      {sum(exact)}")
    print(f"run        {run}")
    if any(run.glob("events.out.tfevents.*")):
        print(f"look       tensorboard --logdir {shlex.quote(str(run.parent.parent))}")
    # last.ckpt may be another name of a stage's file.
    size = sum({file.stat().st_ino: file.stat().st_size for file in run.iterdir() if file.is_file()}.values())
    print(f"size       {size / 1e6:.1f} MB")
    return [pair for pair, is_exact in zip(taught.pairs, exact, strict=True) if not is_exact]
