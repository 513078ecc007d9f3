"""Training in stages: new optimizers and schedulers at each boundary, in the middle of one fit."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from tinygpt_lightning.callbacks._lightning import averaging_start, then
from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import try_saving
from tinygpt_lightning.callbacks.stage_optimizers import build, keep_state, settings_of_optimizers, try_all
from tinygpt_lightning.callbacks.stages import Position, Stage, StageError, Until


class StagedTraining(Callback):
    """Trains in stages: at each boundary, in the middle of one fit, optimizers and schedulers are rebuilt.

    It works with any LightningModule and needs no other callback, plugin or argument: a boundary calls the module's
    own ``configure_optimizers`` again, or the stage's factories where it has some. ``max_epochs`` follows from the
    stages, ``stage`` is logged (from 1), and each stage ends with a checkpoint ``stage-N.ckpt``, which is written when
    its last epoch is over, after all callbacks, the module, schedulers and loggers. For something of your own at a
    boundary, override :meth:`on_stage_start`; any callback with a method ``on_stage_end(trainer, pl_module, index)``
    is called at each stage's end, after the module's ``on_train_epoch_end`` and before checkpoints are saved.

    **Covered**: one device or DDP (processes agree on a stage's end; what a hook freezes or adds is wrapped again);
    several optimizers, manual optimization, accumulated gradients; ``estimated_stepping_batches`` and ``max_epochs``,
    which are the stage's own while its optimizers are built; a resume from any checkpoint with the optimizers, the
    schedulers and the decisions (``until``) of the run that wrote it. On resume, :meth:`on_stage_start` of all stages
    begun so far is called again, in order, before weights are loaded and optimizers built: it must do the same to the
    module each time (freezing, new layers), and cannot rely on weights or on the trainer's progress. Dropout and
    shuffled data are exact on resume with `ExactResume` beside it.

    **Refused** when the fit starts: FSDP, DeepSpeed and ModelParallel, which load optimizers before a callback can
    choose the stage; ReduceLROnPlateau, which steps after the checkpoint is written; ``max_steps``, and a
    ``max_epochs`` other than the stages'; weights averaged (``StochasticWeightAveraging``) across a boundary;
    ``configure_optimizers`` that returns None or the same object again; a kept state (``reset_optimizer``) for an
    optimizer of another class; other stages than those that a resumed run began with; with `SafeCheckpointIO`, values
    that no checkpoint may hold.

    **Not covered**: a function as ``until`` that keeps its own state (read it from the trainer or the module);
    ``validate``, ``test`` and ``predict`` of a checkpoint whose stages added layers, into a module that has none (no
    stage begins there).

    Source: Lightning issues #9982 (declined), #2006, #3095, #5314, #18279.

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
        if not stages:
            raise StageError("stages: expected at least one stage, got none")
        self.stages = list(stages)
        self.dirpath = dirpath
        self._hooks = ExitStack()  # at moments for which Lightning has none
        self._begin()

    def _begin(self) -> None:
        self._hooks.close()
        self.position = Position()
        self._optimizer: dict[str, str] = {}  # settings of the current optimizers when they were new
        self._watched: dict[str, Any] = {}  # what `Until.judge` has seen in this stage
        self._validated: dict[str, Any] = {}  # the last epoch with a validation, and the monitored value
        self._resumed: dict[str, Any] = {}  # this callback's state in the checkpoint

    @property
    def state_key(self) -> str:
        """One key for all subclasses: each resumes what another one began."""
        return StagedTraining.__qualname__

    def _hook(self, instance: object, method: str, hook: Callable[[Any], None]) -> None:
        self._hooks.enter_context(then(instance, method, hook))

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
        _check_strategy(trainer)
        # A callback's `on_load_checkpoint` comes after the weights are loaded, too late to add layers.
        self._hook(trainer.strategy, "load_checkpoint", lambda read: self._resume(trainer, pl_module, read))
        if _is_trial(trainer):  # Lightning sets its own max_steps, and saves nothing
            return
        _check_trainer(trainer, self.stages)
        trainer.fit_loop.max_epochs = self.position.last_epoch(self.stages, 0)
        # After the module's last values and before checkpoints, Lightning calls only subclasses of `EarlyStopping` and
        # `Checkpoint`, and users find such callbacks in `trainer.early_stopping_callback` instead of their own.
        self._hook(pl_module, "on_train_epoch_end", lambda _: self._end_epoch(trainer, pl_module))
        self._hook(trainer.fit_loop, "on_advance_end", lambda _: self._save_stage(trainer))

    def _resume(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Choose the stage and repeat what the begun stages did to the module; weights come afterwards."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        if state is None:
            return
        if "begun" not in state:
            raise StageError(
                f"ckpt_path: expected a checkpoint that this version wrote, got {trainer.ckpt_path} of an earlier one; "
                "resume it with that version, or start a new run"
            )
        if state["built"] >= len(self.stages):
            raise StageError(
                f"stages: expected at least the {state['built'] + 1} that this run began, got {len(self.stages)}"
            )
        self._watched, self._validated, self._resumed = state["watched"], state["validated"], state
        done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
        self.position = Position(state["built"], state["begun"], state["is_over"])
        if self.position.ends(self.stages, done):  # saved at the epoch's end, but before the decision
            self.position = self.position.over()
        # For a trial just enough, since Lightning refuses a checkpoint of a later epoch.
        trainer.fit_loop.max_epochs = done + 1 if _is_trial(trainer) else self.position.last_epoch(self.stages, done)
        for index in range(1, self.position.index + 1):
            self.on_stage_resume(trainer, pl_module, index)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the optimizers of the stage that training starts in, or resumes in."""
        try_all(trainer, pl_module, self.stages)
        # Lightning loads the checkpoint's optimizer states into these after this hook.
        self._build(trainer, pl_module)
        if self._resumed:
            _check_resumed(self._resumed, self.state_dict())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that a resumed checkpoint may lie on."""
        try_saving(trainer)
        self._save_missing_stage(trainer)
        # `on_train_epoch_start` is skipped when a checkpoint was saved in mid-epoch.
        self._cross_boundary(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that may lie before this epoch."""
        self._cross_boundary(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage with every step, so that its curve shows the boundaries."""
        pl_module.log("stage", self.position.index + 1.0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the monitored value: a run that is resumed between here and the epoch's end has no logged values."""
        until = self.stages[self.position.index].until
        if isinstance(until, Until) and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            value = trainer.callback_metrics.get(until.monitor)
            self._validated = {"epoch": trainer.current_epoch, "value": None if value is None else float(value)}

    def _end_epoch(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether the stage ends with this epoch: the module has logged its last values, nothing is saved."""
        done = trainer.current_epoch + 1
        # The condition is always evaluated, so that it has seen every epoch.
        if self._until_holds(trainer, pl_module) or self.position.ends(self.stages, done):
            self.position = self.position.over()
            self._watched = {}
            trainer.fit_loop.max_epochs = self.position.last_epoch(self.stages, done)
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if on_stage_end := getattr(callback, "on_stage_end", None):
                    on_stage_end(trainer, pl_module, self.position.index)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the last stage's checkpoint if a resumed run lacked nothing else, and leave the trainer as it was."""
        self._save_missing_stage(trainer)
        self._hooks.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave trainer and module as they were."""
        self._hooks.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the position, the settings of the stages begun so far, and what ``until`` has seen."""
        return {
            # Not derived from the epoch: the checkpoint of a stage's last epoch holds the old optimizers.
            "built": self.position.index,
            "begun": self.position.begun,
            "is_over": self.position.is_over,
            "stages": [stage.as_text() for stage in self.stages[: self.position.index + 1]],
            "optimizer": self._optimizer,
            "watched": self._watched,
            "validated": self._validated,
        }

    # A stage's end

    def _until_holds(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        until = self.stages[self.position.index].until
        if until is None:
            return False
        holds = self._judge(trainer, until) if isinstance(until, Until) else until(trainer, pl_module)
        return trainer.strategy.reduce_boolean_decision(bool(holds), all=False)

    def _judge(self, trainer: Trainer, until: Until) -> bool:
        is_validated = self._validated.get("epoch") == trainer.current_epoch
        if trainer.enable_validation and not is_validated:
            return False  # the logged values may belong to an earlier epoch
        logged = trainer.callback_metrics
        # The first process's value, so that all processes decide alike, and again on resume.
        value = trainer.strategy.broadcast(
            float(logged[until.monitor]) if until.monitor in logged else self._validated.get("value")
        )
        if value is None:
            raise StageError(
                f"stages[{self.position.index}].until.monitor: expected a logged value, one of "
                f"{', '.join(sorted(logged))}, got {until.monitor!r}"
            )
        holds, self._watched = until.judge(value, self._watched)
        return holds

    def _save_stage(self, trainer: Trainer) -> None:
        if self.position.is_over:
            trainer.save_checkpoint(self._file(trainer), weights_only=False)

    def _save_missing_stage(self, trainer: Trainer) -> None:
        """Write the checkpoint of a stage that ended in a process that was killed before it could write it."""
        if self.position.is_over and not _is_trial(trainer):
            file = self._file(trainer)
            is_resumed_from_it = trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == file.name
            if not trainer.strategy.broadcast(file.exists() or is_resumed_from_it):
                trainer.save_checkpoint(file, weights_only=False)

    def _file(self, trainer: Trainer) -> Path:
        folder = Path(self.dirpath or trainer.log_dir or trainer.default_root_dir)
        return folder / f"stage-{self.position.index + 1}.ckpt"

    # A boundary

    def _cross_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.position.is_over or self.position.index + 1 == len(self.stages):
            return
        self.position = self.position.next(trainer.current_epoch)
        index = self.position.index
        before = trainer.optimizers
        exact = [callback for callback in trainer.callbacks if isinstance(callback, ExactResume)]  # type: ignore[attr-defined]
        # New layers get the same weights, wherever the run that crosses the boundary was resumed.
        with exact[0].seeded(trainer, "stage", index) if exact else nullcontext():
            self.on_stage_start(trainer, pl_module, index)
        if isinstance(trainer.strategy, DDPStrategy):
            # DDP waits for gradients of the parameters that required one when it was set up.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        self._build(trainer, pl_module)
        if not self.stages[index].reset_optimizer:
            keep_state(before, trainer.optimizers)

    def _build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        build(trainer, pl_module, self.stages[self.position.index])
        self._optimizer = settings_of_optimizers(trainer)


def _is_trial(trainer: Trainer) -> bool:
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def _check_strategy(trainer: Trainer) -> None:
    if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
        raise StageError(
            f"strategy: expected a single device or DDP, got {type(trainer.strategy).__name__}, which loads the "
            "optimizers' state before a callback can choose the stage that they belong to"
        )


def _check_trainer(trainer: Trainer, stages: Sequence[Stage]) -> None:
    """Refuse settings of the trainer, and callbacks, that contradict the stages."""
    if trainer.max_steps != -1:
        raise StageError(f"max_steps: expected -1, since the stages end the run, got {trainer.max_steps}")
    epochs = Position().last_epoch(stages, 0)
    # -1 means no limit, and 1000 is Lightning's own default.
    if trainer.max_epochs not in (None, -1, 1000, epochs):
        raise StageError(f"max_epochs: expected -1, or the sum of the stages {epochs}, got {trainer.max_epochs}")
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            if any(stage.until is not None for stage in stages):
                raise StageError("until: expected no StochasticWeightAveraging, which needs to know the last epoch")
            start, last_stage = averaging_start(callback), epochs - stages[-1].epochs
            # Counted from 1, or a share of all epochs.
            if max(start if isinstance(start, int) else int(epochs * start), 1) <= last_stage:
                raise StageError(
                    f"StochasticWeightAveraging.swa_epoch_start: expected {last_stage + 1} or more, so that it "
                    f"averages within the last stage, got {start}; a boundary would replace its learning rates"
                )


def _check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a resume with other stages than the run began with; each argument is a callback's state."""
    pairs = [*zip(before["stages"], now["stages"], strict=True)]
    # The optimizer of a stage that is over plays no role any more.
    pairs[-1] = ({**pairs[-1][0], **before["optimizer"]}, {**pairs[-1][1], **now["optimizer"]})
    for i, (old, new) in enumerate(pairs):
        for name in [*new, *old]:
            if old.get(name) != new.get(name):
                expected, got = (textwrap.shorten(str(stage.get(name)), 80) for stage in (old, new))
                raise StageError(
                    f"stages[{i}].{name}: expected {expected}, with which this run began the stage, got {got}; "
                    "only stages still to come may change"
                )
