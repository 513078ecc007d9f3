"""Training in stages: new optimizers and schedulers at each boundary, in the middle of one fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from tinygpt_lightning.callbacks import _lightning, stage_optimizers
from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import try_saving
from tinygpt_lightning.callbacks.stage_condition import StageCondition
from tinygpt_lightning.callbacks.stages import Position, Stage, check_stages
from tinygpt_lightning.callbacks.unfinished_epoch import gradients_are_in_use


class StagedTraining(Callback):
    """Trains in stages: at each boundary, in the middle of one fit, optimizers and schedulers are rebuilt.

    It works with any LightningModule and needs no other callback, plugin or argument: a boundary calls the module's
    own ``configure_optimizers`` again, or the stage's factories where it has some. A stage is so many epochs long, or
    so many optimizer steps, and then a boundary may lie in the middle of an epoch. The stages end the run (an earlier
    ``max_epochs`` or ``max_steps`` of the trainer ends it before, to be resumed), ``stage`` is logged (from 1), and
    each stage leaves a checkpoint ``stage-N.ckpt``, which is written when its last epoch or batch is over, after all
    callbacks, the module, schedulers and loggers. For something of your own at a boundary, override
    :meth:`on_stage_start`; any callback with a method ``on_stage_end(trainer, pl_module, index)`` is called at each
    stage's end: after the module's ``on_train_epoch_end`` and before checkpoints of the epoch are saved; in the middle
    of an epoch, before the ``stage-N.ckpt``.

    On resume from any checkpoint, :meth:`on_stage_start` of all stages begun so far is called again, in order, before
    weights are loaded and optimizers built: it must do the same to the module each time (freezing, new layers), and
    cannot rely on weights or on the trainer's progress. ``README.md`` in this folder has the table of what is covered,
    refused when the fit starts, and not covered.

    Source: Lightning issues #7629, #9982 (declined), #2006, #3095, #5314, #18279, #19764.

    Args:
        stages: The stages, in order.
        dirpath: Folder of the ``stage-N.ckpt``; null means the trainer's log folder.

    Attributes:
        stages: The stages.
        position: Where the run is in them.

    Raises:
        StageError: If there is no stage; when a fit starts, if the trainer's settings contradict the stages, its
            strategy is not supported, a stage cannot be built as configured, or the resumed run began with other
            stages.

    >>> StagedTraining(stages=[Stage(epochs=30), Stage(epochs=30)]).position.index
    0
    """

    def __init__(self, stages: Sequence[Stage], dirpath: str | Path | None = None) -> None:
        self.stages = check_stages(stages)
        self.dirpath = dirpath
        self._hooks, self._until_fit_start = ExitStack(), ExitStack()  # at moments for which Lightning has none
        self._begin()

    def _begin(self) -> None:
        self._until_fit_start.close()
        self._hooks.close()
        self.position = Position()
        self._is_saved = True  # whether the current stage, if it is over, has its checkpoint
        self._max_epochs = -1  # the trainer's own limit
        self._progress: Any = SimpleNamespace(started=0, processed=0)  # epochs of the run when the fit started
        self._optimizer: dict[str, str] = {}  # settings of the current optimizers when they were new
        self._condition = StageCondition()
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
        def hook_of_callback(result: Any) -> None:
            if self in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning's tuner runs without them meanwhile
                hook(result)

        self._hooks.enter_context(_lightning.then(instance, method, hook_of_callback))

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called at each boundary, before the optimizers of stage ``index`` (from 1, the second) are built.

        And on resume, see :meth:`on_stage_resume`.
        """

    def on_stage_resume(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called on resume, before weights are loaded, for each stage ``index`` that has begun, in order, from 1.

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
        _lightning.check_package(trainer, self)
        stage_optimizers.check_strategy(trainer)
        # A callback's `on_load_checkpoint` comes after the weights are loaded, too late to add layers.
        self._hook(trainer, trainer.strategy, "load_checkpoint", lambda read: self._resume(trainer, pl_module, read))
        if _is_trial(trainer):  # Lightning sets its own max_steps, and saves nothing
            return
        stage_optimizers.check_averaging(trainer, self.stages)
        loop = trainer.fit_loop
        # 1000 is Lightning's own default where nobody set a limit.
        self._max_epochs = loop.max_epochs if loop.max_epochs not in (None, 1000) else -1
        self._hooks.enter_context(_lightning.replaced(loop, "max_epochs", loop.max_epochs))
        self._hooks.enter_context(_lightning.replaced(loop.epoch_loop, "max_steps", loop.epoch_loop.max_steps))
        self._limit_epochs(trainer, self._progress)
        # Lightning builds optimizers, too, before `on_fit_start`.
        setup_optimizers = trainer.strategy.setup_optimizers

        def setup_for_stage(trainer: Trainer) -> None:
            with stage_optimizers.length_of(trainer, self._stage):
                setup_optimizers(trainer)

        self._until_fit_start.enter_context(_lightning.replaced(trainer.strategy, "setup_optimizers", setup_for_stage))
        # After the module's last values and before checkpoints, Lightning calls only `EarlyStopping` and `Checkpoint`,
        # which users would find in `trainer.early_stopping_callback` instead of their own.
        self._hook(trainer, pl_module, "on_train_epoch_end", lambda _: self._end_epoch(trainer, pl_module))
        self._hook(trainer, loop, "on_advance_end", lambda _: self._save_stage(trainer))
        self._hook(trainer, loop.epoch_loop, "on_run_start", lambda _: self._end_run(trainer))
        self._hook(trainer, loop.epoch_loop, "on_advance_end", lambda _: self._end_batch(trainer, pl_module))

    def _resume(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Choose the stage and repeat what the begun stages did to the module; weights come afterwards."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            return
        stage_optimizers.check_state(state, self.stages, trainer.ckpt_path)
        self._condition.load_state_dict(state)
        self._resumed = state
        self.position = Position(state["built"], state["epoch"], state["step"], state["is_over"])
        self._is_saved = not self.position.is_over
        self._progress = SimpleNamespace(**checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"])
        if _is_trial(trainer):  # just enough, since Lightning refuses a checkpoint of a later epoch
            trainer.fit_loop.max_epochs = self._progress.processed + 1
        else:
            self._limit_epochs(trainer, self._progress)
        for index in range(1, self.position.index + 1):
            self.on_stage_resume(trainer, pl_module, index)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the optimizers of the stage that training starts in, or resumes in."""
        self._until_fit_start.close()
        stage_optimizers.try_all(trainer, pl_module, self.stages)
        # Lightning loads the checkpoint's optimizer states into these after this hook.
        self._build(trainer, pl_module)
        if self._resumed:
            stage_optimizers.check_resumed(self._resumed, self.state_dict())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the stage, and cross the boundary, that a resumed checkpoint may lie on."""
        try_saving(trainer)
        if exact := self._exact_resume(trainer):
            exact.restore(trainer, pl_module)  # first, so that what is pending belongs to the stage that is over
        self._find_checkpoint(trainer)
        if not _lightning.finishes_batch_or_epoch_first(trainer):
            self._arrive(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that may lie before this epoch."""
        self._arrive(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage where loggers take values, so that its curve shows the boundaries; each step costs more."""
        if batch_idx == 0 or _lightning.is_logged(trainer):
            pl_module.log("stage", self.position.index + 1.0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the monitored value; in a stage with steps, decide whether it ends."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or self.position.is_over:
            return
        self._condition.note(trainer, self._stage)
        if self._counts_steps and self._until_holds(trainer, pl_module):
            self._end_stage(trainer, pl_module)

    def _end_batch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the stage ends in the middle of an epoch, when a batch and its validation are over."""
        if self._counts_steps and not _lightning.is_last_batch(trainer):
            if exact := self._exact_resume(trainer):
                exact.end_batch(trainer)
            self._arrive(trainer, pl_module)
            self._end_run(trainer)

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the stage ends with this epoch: the module has logged its last values, nothing is saved."""
        if not self.position.is_over:
            is_asked = not self._counts_steps or not trainer.enable_validation
            # The condition is evaluated first, so that it sees every epoch.
            holds = is_asked and self._until_holds(trainer, pl_module)
            if holds or self.position.reaches_end(self.stages, trainer.current_epoch + 1, trainer.global_step):
                self._end_stage(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last stage's checkpoint if a resumed run lacked nothing else, and leave the trainer as it was."""
        if exact := self._exact_resume(trainer):
            exact.restore(trainer, pl_module)
        self._end_if_reached(trainer, pl_module)
        self._find_checkpoint(trainer)
        self._save_stage(trainer)
        self._hooks.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave trainer and module as they were."""
        self._until_fit_start.close()
        self._hooks.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the settings of the stages begun so far, and what ``until`` has seen."""
        return {
            # Not derived from the epoch: the checkpoint of a stage's last epoch holds the old optimizers.
            "built": self.position.index,
            "epoch": self.position.epoch,
            "step": self.position.step,
            "is_over": self.position.is_over,
            "stages": [stage.as_text() for stage in self.stages[: self.position.index + 1]],
            "optimizer": self._optimizer,
            **self._condition.state_dict(),
        }

    @property
    def _stage(self) -> Stage:
        return self.stages[self.position.index]

    @property
    def _counts_steps(self) -> bool:
        return self._stage.steps is not None

    def _until_holds(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        return self._condition.holds(trainer, pl_module, self._stage, self.position.index)

    def _arrive(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Between two batches or epochs: end the stage if it has its length, and cross the boundary if it is over."""
        self._end_if_reached(trainer, pl_module)
        # Gradients that a step still needs belong to the stage.
        waits = self._counts_steps and pl_module.automatic_optimization and gradients_are_in_use(trainer)
        if self.position.is_over and not waits:
            self._save_stage(trainer)
            self._cross_boundary(trainer, pl_module)

    def _end_if_reached(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs, steps = trainer.current_epoch, trainer.global_step
        if not self.position.is_over and self.position.reaches_end(self.stages, epochs, steps):
            self._end_stage(trainer, pl_module)

    def _end_stage(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.position, self._is_saved = replace(self.position, is_over=True), False
        self._condition.begin_stage()
        self._limit_epochs(trainer, trainer.fit_loop.epoch_progress.current)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if on_stage_end := getattr(callback, "on_stage_end", None):
                on_stage_end(trainer, pl_module, self.position.index)

    def _limit_epochs(self, trainer: Trainer, progress: Any) -> None:
        """Set Lightning's ``max_epochs`` to the end of the stages, as far as that is known, or the user's limit."""
        epochs = progress.processed + (progress.started > progress.processed)  # an epoch that is cut counts
        limits = [self.position.last_epoch(self.stages, epochs), self._max_epochs]
        trainer.fit_loop.max_epochs = min((limit for limit in limits if limit != -1), default=-1)

    def _end_run(self, trainer: Trainer) -> None:
        """End the run if the last stage is over in the middle of an epoch; Lightning then ends that epoch."""
        if self.is_finished and self._is_saved:
            _lightning.end_epoch_at_once(trainer)

    def _save_stage(self, trainer: Trainer) -> None:
        if not self._is_saved and not _is_trial(trainer):
            self._is_saved = True
            trainer.save_checkpoint(self._file(trainer), weights_only=False)

    def _find_checkpoint(self, trainer: Trainer) -> None:
        """Find out whether the killed process that ended the stage came to write its checkpoint."""
        if not self._is_saved:
            file = self._file(trainer)
            is_resumed_from_it = trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == file.name
            self._is_saved = trainer.strategy.broadcast(file.exists() or is_resumed_from_it)

    def _file(self, trainer: Trainer) -> Path:
        folder = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)
        return folder / f"stage-{self.position.index + 1}.ckpt"

    def _cross_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.position.index + 1 == len(self.stages):
            return
        self.position = self.position.next(trainer.current_epoch, trainer.global_step)
        self._limit_epochs(trainer, trainer.fit_loop.epoch_progress.current)
        index = self.position.index
        before = trainer.optimizers
        exact = self._exact_resume(trainer)
        # New layers get the same weights, wherever the run that crosses the boundary was resumed.
        with exact.seeded(trainer, "stage", index) if exact else nullcontext():
            with stage_optimizers.changing(trainer, pl_module):
                self.on_stage_start(trainer, pl_module, index)
            self._build(trainer, pl_module)
        if not self.stages[index].reset_optimizer:
            stage_optimizers.keep_state(before, trainer.optimizers)

    def _exact_resume(self, trainer: Trainer) -> ExactResume | None:
        return next((c for c in trainer.callbacks if isinstance(c, ExactResume)), None)  # type: ignore[attr-defined]

    def _build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage_optimizers.build(trainer, pl_module, self._stage)
        self._optimizer = stage_optimizers.settings_of_optimizers(trainer)


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
