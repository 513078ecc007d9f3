"""Stages: optimizers and schedulers made anew in the middle of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import try_saving
from tinygpt_lightning.callbacks.stage_checks import check_resumed, check_settings, check_strategy
from tinygpt_lightning.callbacks.stage_end import StageCheckpoint, StageEnd, add_companions
from tinygpt_lightning.callbacks.stage_optimizers import build, describe, keep_state, replaced, try_all
from tinygpt_lightning.callbacks.stages import Schedule, Stage, StageError


class StagedTraining(Callback):
    """Trains in stages: at each boundary, in the middle of one fit, optimizers and schedulers are made anew.

    It works with any LightningModule and needs no other callback, plugin or argument: a boundary calls the module's
    own ``configure_optimizers`` again, or the stage's factories where it has some. ``max_epochs`` follows from the
    stages, ``stage`` is logged (from 1), and each stage ends with a checkpoint ``stage-N.ckpt`` of what its last epoch
    left behind, after all other callbacks and the module. For something of your own at a boundary, override
    :meth:`on_stage_start`; any callback with a method ``on_stage_end(trainer, pl_module, index)`` is told of each end.

    **Covered**: one device or DDP (processes agree on a stage's end; what a hook freezes or adds is wrapped anew);
    several optimizers, manual optimization, accumulated gradients; ``estimated_stepping_batches`` and ``max_epochs``,
    which are the stage's own while its optimizers are made; going on from any checkpoint with the optimizers, the
    schedulers and the decisions (``until``) of the run that wrote it. Where a run is resumed, :meth:`on_stage_start`
    of all stages begun so far is called again, in order, before weights are loaded and optimizers made: so it should
    do to the module whatever it does, freezing or new layers, each time alike, and may not count on weights, or on
    where training is. Dropout and shuffled data go on exactly with `ExactResume` beside it.

    **Refused** when the fit starts: FSDP, DeepSpeed and ModelParallel, which load optimizers before a callback can
    choose the stage; ReduceLROnPlateau, which steps after the checkpoint is written; ``max_steps``, and a
    ``max_epochs`` other than the stages'; weights averaged (``StochasticWeightAveraging``) across a boundary;
    ``configure_optimizers`` that returns None or the same object again; a kept state (``reset_optimizer``) for an
    optimizer of another kind; other stages than those that a resumed run began with; with `SafeCheckpointIO`, what no
    checkpoint may hold.

    **Not covered**: a function as ``until`` that keeps a state of its own (ask what the trainer or the module knows);
    ``validate``, ``test`` and ``predict`` of a checkpoint whose stages added layers, into a module that has none (no
    stage is begun there).

    Lightning declined to offer this (issue 9982); users ask for it in 2006, 3095, 5314 and 18279.

    Args:
        stages: The stages, in order.
        dirpath: Folder of the ``stage-N.ckpt``; null means the trainer's log folder.

    Attributes:
        schedule: Which epoch belongs to which stage. A subclass may put another `Schedule` here, and all
            follows it: boundaries, checkpoints, ``max_epochs``.

    Raises:
        StageError: If there is no stage; when a fit starts, if the trainer's settings contradict the stages,
            its strategy is not supported, a stage cannot be built as asked, or the run that is resumed began
            otherwise.

    >>> StagedTraining(stages=[Stage(epochs=30), Stage(epochs=30)]).schedule.stage_at(30)
    1
    """

    def __init__(self, stages: Sequence[Stage], dirpath: str | Path | None = None) -> None:
        self.schedule = Schedule(stages)
        self.dirpath = dirpath
        self._built = 0  # index of the stage that the existing optimizers belong to
        self._description: dict[str, str] = {}  # of those optimizers, when they were new
        self._resumed: dict[str, Any] = {}  # the state in the checkpoint
        self._saver = StageCheckpoint(self.schedule, dirpath)
        self._replay = ExitStack()

    @property
    def state_key(self) -> str:
        """One for all subclasses: each goes on with what another one began."""
        return StagedTraining.__qualname__

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called at each boundary, before the optimizers of stage ``index`` (from 1, the second) are made.

        And where a run is resumed, see :meth:`on_stage_resume`.
        """

    def on_stage_resume(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called where a run is resumed, before weights are loaded, for each stage ``index`` that it has begun.

        In order, from 1. Override it where what `on_stage_start` does is all in the checkpoint.
        """
        self.on_stage_start(trainer, pl_module, index)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called where stage ``index`` (from 0) ends, before any checkpoint of its last epoch is written."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer and set its ``max_epochs``."""
        if stage != "fit":
            return
        self._built, self._resumed = 0, {}
        self.schedule.ended_early.clear()
        check_strategy(trainer)
        self._replay_before_weights(trainer, pl_module)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # it brings its own max_steps, and saves nothing
            return
        check_settings(trainer, self.schedule)
        trainer.fit_loop.max_epochs = self.schedule.epochs
        self._saver = StageCheckpoint(self.schedule, self.dirpath)
        add_companions(trainer, StageEnd(self.schedule), self._saver)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the optimizers of the stage that training starts in, or resumes in."""
        self._replay.close()
        try_all(trainer, pl_module, self.schedule.stages)
        # Lightning loads the checkpoint's optimizer states into these when this hook has ended.
        self._build(trainer, pl_module)
        if self._resumed:
            check_resumed(self._resumed, self.state_dict())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that a resumed checkpoint may lie on."""
        try_saving(trainer)
        self._catch_up(trainer)
        # `on_train_epoch_start` is skipped when a checkpoint was saved in mid-epoch.
        self._cross_boundary(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that may lie before this epoch."""
        self._cross_boundary(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage with every step, so that its curve shows where the boundaries are."""
        pl_module.log("stage", self._built + 1.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the last stage's checkpoint where a run was resumed that lacked nothing else."""
        self._catch_up(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._replay.close()

    def state_dict(self) -> dict[str, Any]:
        """Which stage's optimizers the checkpoint holds, how they were made, and what the stages so far are."""
        # Not to be worked out from the epoch: the checkpoint of a stage's last epoch holds the old optimizers.
        begun = self.schedule.stages[: self._built + 1]
        return {"built": self._built, "stages": [stage.describe() for stage in begun], "optimizer": self._description}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Choose the stage; this comes before Lightning loads the optimizers' states."""
        if state_dict["built"] >= len(self.schedule.stages):
            raise StageError(
                f"stages: expected at least the {state_dict['built'] + 1} that this run began, "
                f"got {len(self.schedule.stages)}"
            )
        self._built, self._resumed = state_dict["built"], state_dict

    def _replay_before_weights(self, trainer: Trainer, pl_module: LightningModule) -> None:
        load = pl_module.on_load_checkpoint

        def replay_and_load(checkpoint: dict[str, Any]) -> None:
            for index in range(1, checkpoint.get("callbacks", {}).get(self.state_key, {"built": 0})["built"] + 1):
                self.on_stage_resume(trainer, pl_module, index)
            load(checkpoint)

        # The first that Lightning calls with a checkpoint: what hooks do to weights, the checkpoint then overwrites.
        self._replay.enter_context(replaced(pl_module, "on_load_checkpoint", replay_and_load))

    def _catch_up(self, trainer: Trainer) -> None:
        is_trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if not is_trial and self._built == self.schedule.stage_at(max(trainer.current_epoch - 1, 0)):
            self._saver.catch_up(trainer)

    def _cross_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index = self.schedule.stage_at(trainer.current_epoch)
        if index == self._built:
            return
        before = trainer.optimizers
        exact = [callback for callback in trainer.callbacks if isinstance(callback, ExactResume)]  # type: ignore[attr-defined]
        # New layers are drawn alike, wherever the run that comes to them was resumed.
        with exact[0].seeded(trainer, "stage", index) if exact else nullcontext():
            self.on_stage_start(trainer, pl_module, index)
        if isinstance(trainer.strategy, DDPStrategy):
            # It waits for the gradients of those parameters that wanted one when it was made.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()
        self._built = index
        self._build(trainer, pl_module)
        if not self.schedule.stages[index].reset_optimizer:
            keep_state(before, trainer.optimizers)

    def _build(self, trainer: Trainer, pl_module: LightningModule) -> None:
        build(trainer, pl_module, self.schedule.stages[self._built])
        self._description = describe(trainer)
