"""Stages: optimizers and schedulers made anew in the middle of a fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim import Optimizer
from typing_extensions import override

from tinygpt_lightning.callbacks.stages import Schedule, Stage, StageError


class StagedTraining(Callback):
    """Trains in stages: at each boundary, in the middle of one fit, optimizers and schedulers are made anew.

    It works with any LightningModule: a boundary calls the module's own ``configure_optimizers`` again, or the
    stage's factories where it has some. ``max_epochs`` follows from the stages, ``stage`` is logged (from 1),
    and each stage ends with a checkpoint ``stage-N.ckpt``.

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
        self._descriptions: list[dict[str, str]] = []
        self._resumed: list[dict[str, str]] = []  # the descriptions in the checkpoint
        self._saver = _StageCheckpoint(self)

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Called at each boundary, before the optimizers of stage ``index`` (from 1, the second) are made."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the trainer and set its ``max_epochs``."""
        if stage != "fit":
            return
        self._built, self._resumed = 0, []
        if isinstance(trainer.strategy, DeepSpeedStrategy | FSDPStrategy | ModelParallelStrategy):
            raise StageError(
                f"strategy: expected a single device or DDP, got {type(trainer.strategy).__name__}, which loads the "
                "optimizers' state before a callback can choose the stage that they belong to"
            )
        # Last of all, so that what it saves is what the epoch left behind, whoever else took part in it.
        if self._saver not in trainer.callbacks:  # type: ignore[attr-defined]
            trainer.callbacks.append(self._saver)  # type: ignore[attr-defined]
        if _is_trial_run(trainer):
            return
        if trainer.max_steps != -1:
            raise StageError(f"max_steps: expected none, since the stages say when to stop, got {trainer.max_steps}")
        epochs = self.schedule.epochs
        # -1 means no limit, and 1000 is what Lightning sets where nobody asked for anything.
        if trainer.max_epochs not in (None, -1, 1000, epochs):
            raise StageError(f"max_epochs: expected none, or the stages' sum {epochs}, got {trainer.max_epochs}")
        trainer.fit_loop.max_epochs = epochs
        _check_weight_averaging(trainer, self.schedule)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Build the optimizers of the stage that training starts in, or resumes in."""
        # Every stage is built once, so that a mistake in the last one shows now and not after hours.
        self._descriptions = []
        kinds: list[list[type]] = []
        for i, stage in enumerate(self.schedule.stages):
            try:
                self._build_optimizers(trainer, pl_module, stage)
            except ValueError as error:  # a learning rate below 0, say
                raise StageError(f"stages[{i}]: {error}") from error
            kinds.append([type(optimizer) for optimizer in trainer.optimizers])
            if i and not stage.reset_optimizer and kinds[i] != kinds[i - 1]:
                raise StageError(
                    f"stages[{i}]: expected an optimizer like the one before, whose state it is to keep "
                    f"(reset_optimizer: false), got {kinds[i][0].__name__} after {kinds[i - 1][0].__name__}"
                )
            if any(config.reduce_on_plateau for config in trainer.strategy.lr_scheduler_configs):
                raise StageError(
                    f"stages[{i}].lr_scheduler: expected any but ReduceLROnPlateau, which steps after the "
                    "checkpoint is written, so that no run could be resumed exactly"
                )
            _check_clipping(trainer, i)
            self._descriptions.append(_describe(stage, trainer))
        self._check_resumed()
        # Lightning loads the checkpoint's optimizer states into these when this hook has ended.
        self._build_optimizers(trainer, pl_module, self.schedule.stages[self._built])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that a resumed checkpoint may lie on."""
        # `on_train_epoch_start` is skipped when a checkpoint was saved in mid-epoch.
        self._cross_boundary(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Cross the boundary that may lie before this epoch."""
        self._cross_boundary(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Log the stage with every step, so that its curve shows where the boundaries are."""
        pl_module.log("stage", self._built + 1.0)

    def state_dict(self) -> dict[str, Any]:
        """Which stage's optimizers the checkpoint holds, and how the stages were built."""
        # Not to be worked out from the epoch: the checkpoint of a stage's last epoch holds the old optimizers.
        return {"built": self._built, "stages": self._descriptions}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Choose the stage; this comes before Lightning loads the optimizers' states."""
        self._built = state_dict["built"]
        self._resumed = state_dict["stages"]

    def _check_resumed(self) -> None:
        for i, before in enumerate(self._resumed[: self._built + 1]):
            if i >= len(self.schedule.stages):
                raise StageError(f"stages: expected at least the {self._built + 1} that this run began, got {i}")
            for field, value in before.items():
                if self._descriptions[i][field] != value:
                    raise StageError(
                        f"stages[{i}].{field}: expected {value}, with which this run began the stage, "
                        f"got {self._descriptions[i][field]}; only stages still to come may change"
                    )

    def _cross_boundary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        index = self.schedule.stage_at(trainer.current_epoch)
        if index == self._built:
            return
        states = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        self.on_stage_start(trainer, pl_module, index)
        self._built = index
        self._build_optimizers(trainer, pl_module, self.schedule.stages[index])
        if not self.schedule.stages[index].reset_optimizer:
            for optimizer, state in zip(trainer.optimizers, states, strict=True):
                # The state alone: with the old param_groups the new scheduler would inherit a stale learning rate.
                optimizer.load_state_dict({**optimizer.state_dict(), "state": state})

    def _build_optimizers(self, trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
        # The strategy's method also replaces Lightning's wrappers and the scheduler configurations.
        trainer.strategy.setup_optimizers(trainer)
        if stage.optimizer is None and stage.lr_scheduler is None:
            return
        if len(trainer.optimizers) != 1:
            raise StageError(
                "expected a module with one optimizer where a stage has an optimizer or lr_scheduler of its own, "
                f"got one with {len(trainer.optimizers)}"
            )
        configured: dict[str, Any] = {"optimizer": _own_optimizer(stage, trainer.optimizers[0])}
        if stage.lr_scheduler is not None:
            configured["lr_scheduler"] = stage.lr_scheduler(configured["optimizer"])
        with _replaced(pl_module, "configure_optimizers", lambda: configured):
            trainer.strategy.setup_optimizers(trainer)


class _StageCheckpoint(Checkpoint):
    """Keeps a stage's last checkpoint.

    A callback of its own, since Lightning calls what derives from `Checkpoint` after all others at an epoch's end,
    and after the module.
    """

    def __init__(self, staged: StagedTraining) -> None:
        self.staged = staged

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        schedule, epoch = self.staged.schedule, trainer.current_epoch
        if schedule.ends_stage(epoch) and not _is_trial_run(trainer):
            folder = Path(self.staged.dirpath or trainer.log_dir or trainer.default_root_dir)
            trainer.save_checkpoint(folder / f"stage-{schedule.stage_at(epoch) + 1}.ckpt")


def _own_optimizer(stage: Stage, configured: Optimizer) -> Optimizer:
    if stage.optimizer is not None:
        return stage.optimizer([p for group in configured.param_groups for p in group["params"]])
    for group in configured.param_groups:
        # The module's own scheduler, which is dropped here, has left its mark on the learning rate.
        group["lr"] = group.pop("initial_lr", group["lr"])
    return configured


def _describe(stage: Stage, trainer: Trainer) -> dict[str, str]:
    """What a stage amounts to, as text: it tells whether a resumed run still means the same."""
    schedulers = [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
    # Without the parameters themselves, and without what a scheduler adds.
    options = [
        [{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in o.param_groups]
        for o in trainer.optimizers
    ]
    return {
        "epochs": str(stage.epochs),
        "reset_optimizer": str(stage.reset_optimizer),
        "optimizer": ", ".join(f"{type(o).__name__}{g}" for o, g in zip(trainer.optimizers, options, strict=True)),
        "lr_scheduler": ", ".join(f"{type(s).__name__}{s.state_dict()}" for s in schedulers),
    }


def _check_weight_averaging(trainer: Trainer, schedule: Schedule) -> None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            start: int | float = callback._swa_epoch_start
            # Counted from 1, or a share of all epochs, as Lightning works it out.
            first = max((start if isinstance(start, int) else int(schedule.epochs * start)) - 1, 0)
            last_stage = schedule.start_of_stage(schedule.epochs - 1)
            if first < last_stage:
                raise StageError(
                    f"StochasticWeightAveraging.swa_epoch_start: expected {last_stage + 1} or more, so that it "
                    f"averages within the last stage, got {start}; a boundary would replace its learning rates"
                )


def _check_clipping(trainer: Trainer, index: int) -> None:
    mixed = isinstance(trainer.precision_plugin, MixedPrecision)
    if mixed and trainer.gradient_clip_val and trainer.lightning_module.automatic_optimization:
        for optimizer in trainer.optimizers:
            if getattr(optimizer, "_step_supports_amp_scaling", False):  # what Lightning's own check asks
                raise StageError(
                    f"stages[{index}]: expected an optimizer with fused: false, whose gradients can be clipped "
                    f"(gradient_clip_val) in mixed precision, got a fused {type(optimizer).__name__}"
                )


def _is_trial_run(trainer: Trainer) -> bool:
    # `fast_dev_run` brings its own max_steps, and saves nothing.
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


@contextmanager
def _replaced(instance: object, name: str, value: object) -> Iterator[None]:
    before = vars(instance).copy()
    setattr(instance, name, value)
    try:
        yield
    finally:
        if name in before:
            setattr(instance, name, before[name])
        else:
            delattr(instance, name)
