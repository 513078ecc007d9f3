"""Training in stages: new optimizers and schedulers at each boundary, in the middle of one fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from tinygpt_lightning.callbacks import _lightning, stage_optimizers
from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import try_saving
from tinygpt_lightning.callbacks.stage_condition import StageCondition
from tinygpt_lightning.callbacks.stage_files import StageFiles
from tinygpt_lightning.callbacks.stage_weights import Frozen
from tinygpt_lightning.callbacks.stages import Position, Stage, check_stages
from tinygpt_lightning.callbacks.trainers import check_package, replaced, then
from tinygpt_lightning.callbacks.unfinished_epoch import gradients_are_in_use


class StagedTraining(Callback):
    """Trains in stages: at each boundary, in the middle of one fit, optimizers and schedulers are rebuilt.

    It works with any LightningModule and needs no other callback, plugin or argument: a boundary calls the module's
    own ``configure_optimizers`` again, or the stage's factories where it has some. A stage is so many epochs long, or
    so many optimizer steps, and then a boundary may lie in the middle of an epoch. The stages end the run (an earlier
    ``max_epochs`` or ``max_steps`` of the trainer ends it before, to be resumed), ``stage`` is logged (from 1), and
    each stage leaves a checkpoint ``stage-N.ckpt``, which is written when its last epoch or batch is over, after all
    callbacks, the module, schedulers and loggers. For something of your own in a stage, override
    :meth:`on_stage_start`; any callback with a method ``on_stage_end(trainer, pl_module, index)`` is called at each
    stage's end: after the module's ``on_train_epoch_end`` and before checkpoints of the epoch are saved; in the middle
    of an epoch, before the ``stage-N.ckpt``.

    On resume, :meth:`on_stage_start` of all stages begun so far is called again, in order, before weights are loaded
    and optimizers built: it must do the same to the module each time, and cannot rely on weights or progress.
    ``README.md`` in this folder has the table of what is covered, refused when the fit starts, and not covered.
    Asked for in Lightning issues #7629, #9982 (declined), #2006, #3095, #5314, #18279, #19764.

    Args:
        stages: The stages, in order.
        dirpath: Folder of the ``stage-N.ckpt``; null means the trainer's log folder.

    Attributes:
        position: Where the run is in its stages.

    Raises:
        StageError: If there is no stage; when a fit starts, if trainer, strategy or the resumed run contradict the
            stages, or a stage cannot be built as configured.

    >>> StagedTraining(stages=[Stage(epochs=30), Stage(epochs=30)]).position.index
    0
    """

    repeat_epoch_start = False  # it crosses a boundary once

    def __init__(self, stages: Sequence[Stage], dirpath: str | Path | None = None) -> None:
        self.stages = check_stages(stages)
        self.dirpath = dirpath
        self._hooks, self._until_fit_start = ExitStack(), ExitStack()  # at moments for which Lightning has none
        self._begin()

    def _begin(self) -> None:
        self._until_fit_start.close()
        self._hooks.close()
        self.position = Position()
        self._files, self._frozen, self._condition = StageFiles(self.dirpath), Frozen(), StageCondition()
        self._epoch_began_in = 0  # the stage
        self._max_epochs = -1  # the trainer's own limit
        self._progress: Any = SimpleNamespace(started=0, processed=0)  # epochs of the run when the fit started
        self._optimizer: dict[str, str] = {}  # settings of the current optimizers when they were new
        self._resumed: dict[str, Any] = {}  # this callback's state in the checkpoint

    @property
    def state_key(self) -> str:
        """One key for all subclasses: each resumes what another one began."""
        return StagedTraining.__qualname__

    @property
    def is_finished(self) -> bool:
        """Whether all stages are over."""
        return self.position.is_over and self.position.index + 1 == len(self.stages)

    def _hook(self, trainer: Trainer, instance: object, method: str, hook: Callable[[Any], None]) -> None:
        self._hooks.enter_context(then(trainer, self, instance, method, hook))

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called before the optimizers of stage ``index`` (from 0) are built; on resume see `on_stage_resume`.

        For stage 0 that is when the fit starts, after `configure_model`; for the others, at the boundary.
        """

    def on_stage_resume(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called on resume, before weights are loaded, for each stage ``index`` that has begun, in order, from 0.

        Override it if a checkpoint holds everything that `on_stage_start` changes.
        """
        self.on_stage_start(trainer, pl_module, index)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called where stage ``index`` (from 0) ends, before any checkpoint of its last epoch is saved."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer and set its ``max_epochs``."""
        if stage != "fit":
            return
        self._begin()
        check_package(trainer, self)
        stage_optimizers.check_strategy(trainer)
        callbacks: Sequence[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._exact = next((callback for callback in callbacks if isinstance(callback, ExactResume)), None)
        # A callback's `on_load_checkpoint` comes after the weights are loaded, too late to add layers.
        self._hook(trainer, trainer.strategy, "load_checkpoint", lambda read: self._resume(trainer, pl_module, read))
        stage_optimizers.check_averaging(trainer, self.stages)
        loop = trainer.fit_loop
        self._is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        # 1000 is Lightning's own default where nobody set a limit.
        self._max_epochs = loop.max_epochs if loop.max_epochs not in (None, 1000) else -1
        self._hooks.enter_context(replaced(loop, "max_epochs", loop.max_epochs))
        self._hooks.enter_context(replaced(loop.epoch_loop, "max_steps", loop.epoch_loop.max_steps))
        self._limit_epochs(trainer, self._progress)
        self._set_up_strategy = trainer.strategy.setup
        begin = partial(self._begin_run, pl_module=pl_module)
        self._until_fit_start.enter_context(replaced(trainer.strategy, "setup", begin))
        # After the module's last values and before checkpoints, Lightning calls only `EarlyStopping` and `Checkpoint`,
        # which users would find in `trainer.early_stopping_callback` instead of their own.
        self._hook(trainer, pl_module, "on_train_epoch_end", lambda _: self._end_epoch(trainer, pl_module))
        self._hook(trainer, loop, "on_advance_start", partial(self._begin_training, trainer, pl_module, True))
        self._hook(trainer, loop, "on_advance_end", lambda _: self._files.save(trainer, self.position.index))
        self._hook(trainer, loop.epoch_loop, "on_run_start", lambda _: self._end_run(trainer))
        self._hook(trainer, loop.epoch_loop, "on_advance_end", lambda _: self._end_batch(trainer, pl_module))

    def _begin_run(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin the first stage of a new run before DDP wraps the module and Lightning builds optimizers, by itself."""
        if trainer.ckpt_path is None:
            self._enter_stage(trainer, pl_module, 0, self.on_stage_start)
        with stage_optimizers.length_of(trainer, self._stage):
            self._set_up_strategy(trainer)

    def _resume(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Choose the stage and repeat what the begun stages did to the module; weights come afterwards."""
        if state := checkpoint.get("callbacks", {}).get(self.state_key):
            stage_optimizers.check_state(state, self.stages, trainer.ckpt_path)
            self._condition.load_state_dict(state)
            self._resumed = state
            self.position = Position(state["built"], state["epoch"], state["step"], state["is_over"])
            self._epoch_began_in = state.get("epoch_began_in", 0)  # earlier versions had none
            self._files.is_saved = not self.position.is_over
        self._progress = SimpleNamespace(**checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"])
        self._limit_epochs(trainer, self._progress)
        for index in range(self.position.index + 1):
            self._enter_stage(trainer, pl_module, index, self.on_stage_resume)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the optimizers of the stage that training starts in, or resumes in."""
        self._until_fit_start.close()
        adds_layers = type(self).on_stage_start is not StagedTraining.on_stage_start  # perhaps
        stage_optimizers.try_all(trainer, pl_module, self.stages, self._frozen, strict=not adds_layers)
        self._frozen.begin(pl_module, self._stage)
        # Lightning loads the checkpoint's optimizer states into these after this hook.
        self._build(trainer, pl_module)
        if self._resumed:
            stage_optimizers.check_resumed(self._resumed, self.state_dict())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the stage, and cross the boundary, that a resumed checkpoint may lie on."""
        try_saving(trainer)
        if self._exact:
            self._exact.restore(trainer, pl_module)  # first, so that what is pending belongs to the stage that is over
        self._files.find(trainer, self.position.index)
        while self._is_trial and self.position.index + 1 < len(self.stages):
            self._cross_boundary(trainer, pl_module)
        self._begin_training(trainer, pl_module, within_epoch=False)

    def as_epoch_began(self) -> AbstractContextManager[None]:
        """While hooks of the epoch's start are repeated, let the stage be the one in which it began."""
        return replaced(self, "position", replace(self.position, index=self._epoch_began_in))

    def _begin_training(self, trainer: Trainer, pl_module: LightningModule, within_epoch: bool, _: None = None) -> None:
        if trainer.fit_loop.restarted_mid_epoch == within_epoch:
            if within_epoch and self._exact:
                self._exact.repeat_hooks(trainer, pl_module)  # they belong to the stage that may be over
            if not _lightning.finishes_batch_or_epoch_first(trainer):
                self._arrive(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that may lie before this epoch."""
        self._arrive(trainer, pl_module)
        self._epoch_began_in = self.position.index

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage where loggers take values, so that its curve shows the boundaries; each step costs more."""
        if batch_idx == 0 or _lightning.is_logged(trainer):
            pl_module.log("stage", self.position.index + 1.0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the monitored value; in a stage with steps, decide whether it ends."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or self.position.is_over:
            return
        self._condition.note(trainer, self._stage)
        counts_steps = self._stage.steps is not None
        if counts_steps and self._condition.holds(trainer, pl_module, self._stage, self.position.index):
            self._end_stage(trainer, pl_module)

    def _end_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the stage ends in the middle of an epoch, when a batch and its validation are over."""
        self._condition.warn_of_missing(trainer, self.stages, self.position.index)
        if self._stage.steps is not None and not _lightning.is_last_batch(trainer):
            if self._exact:
                self._exact.end_batch(trainer)
            self._arrive(trainer, pl_module)
            self._end_run(trainer)

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the stage ends with this epoch: the module has logged its last values, nothing is saved."""
        self._condition.warn_of_missing(trainer, self.stages, self.position.index, is_epoch_end=True)
        if not self.position.is_over:
            is_asked = self._stage.steps is None or not trainer.enable_validation
            # The condition is evaluated first, so that it sees every epoch.
            holds = is_asked and self._condition.holds(trainer, pl_module, self._stage, self.position.index)
            if holds or self.position.reaches_end(self.stages, trainer.current_epoch + 1, trainer.global_step):
                self._end_stage(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last stage's checkpoint if a resumed run lacked nothing else, and leave the trainer as it was."""
        if self._exact:
            self._exact.restore(trainer, pl_module)
        self._end_if_reached(trainer, pl_module)
        self._files.find(trainer, self.position.index)
        self._leave_stage(trainer, pl_module)
        self._hooks.close()
        self._frozen.end(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave trainer and module as they were."""
        self._until_fit_start.close()
        self._hooks.close()
        self._frozen.end(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the settings of the stages begun so far, and what ``until`` has seen."""
        return {
            "built": self.position.index,  # the checkpoint of a stage's last epoch holds the old optimizers
            "epoch": self.position.epoch,
            "step": self.position.step,
            "is_over": self.position.is_over,
            "epoch_began_in": self._epoch_began_in,
            "stages": [stage.as_text() for stage in self.stages[: self.position.index + 1]],
            "optimizer": self._optimizer,
            **self._condition.state_dict(),
        }

    @property
    def _stage(self) -> Stage:
        return self.stages[self.position.index]

    def _arrive(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Between batches or epochs: end the stage if it has its length, and cross the boundary if it is over."""
        self._end_if_reached(trainer, pl_module)
        if self.position.is_over and not self._waits(trainer, pl_module):
            self._leave_stage(trainer, pl_module)
            self._cross_boundary(trainer, pl_module)

    def _waits(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether a step still needs gradients, which belong to the stage."""
        return self._stage.steps is not None and pl_module.automatic_optimization and gradients_are_in_use(trainer)

    def _end_if_reached(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, steps = trainer.current_epoch, trainer.global_step
        if not self.position.is_over and self.position.reaches_end(self.stages, epochs, steps):
            self._end_stage(trainer, pl_module)

    def _end_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.position, self._files.is_saved = replace(self.position, is_over=True), False
        if not self._waits(trainer, pl_module):
            self._condition.restore_best(trainer)
        self._condition.begin_stage()
        self._limit_epochs(trainer, trainer.fit_loop.epoch_progress.current)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if on_stage_end := getattr(callback, "on_stage_end", None):
                on_stage_end(trainer, pl_module, self.position.index)

    def _limit_epochs(self, trainer: Trainer, progress: Any) -> None:
        """Set Lightning's ``max_epochs`` to the end of the stages, as far as that is known, or the user's limit."""
        epochs = progress.processed + (progress.started > progress.processed)  # an epoch that is cut counts
        limits = [self.position.last_epoch(self.stages, epochs), self._max_epochs]
        if self._is_trial:  # one epoch, though Lightning refuses a checkpoint of a later one
            limits = [self._progress.processed + 1]
        trainer.fit_loop.max_epochs = min((limit for limit in limits if limit != -1), default=-1)

    def _end_run(self, trainer: Trainer) -> None:
        """End the run if the last stage is over in the middle of an epoch; Lightning then ends that epoch."""
        if self.is_finished and self._files.is_saved:
            _lightning.end_epoch_at_once(trainer)

    def _enter_stage(self, trainer: Trainer, pl_module: LightningModule, index: int, hook: Any) -> None:
        self._frozen.end(pl_module)
        hook(trainer, pl_module, index)
        self._frozen.begin(pl_module, self.stages[index])

    def _leave_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.position.is_over:
            self._condition.restore_best(trainer)
            self._files.save(trainer, self.position.index)

    def _cross_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.position.index + 1 == len(self.stages):
            return
        self.position = self.position.next(trainer.current_epoch, trainer.global_step)
        self._limit_epochs(trainer, trainer.fit_loop.epoch_progress.current)
        index = self.position.index
        before = trainer.optimizers
        # New layers get the same weights, wherever the run that crosses the boundary was resumed.
        with self._exact.seeded(trainer, "stage", index) if self._exact else nullcontext():
            with stage_optimizers.changing(trainer, pl_module):
                self._enter_stage(trainer, pl_module, index, self.on_stage_start)
            if self._stage.reload_dataloaders:
                _lightning.reload_loaders(trainer)
            self._build(trainer, pl_module)
        if not self.stages[index].reset_optimizer:
            stage_optimizers.keep_state(before, trainer.optimizers)

    def _build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage_optimizers.build(trainer, pl_module, self._stage)
        self._optimizer = stage_optimizers.settings_of_optimizers(trainer)
