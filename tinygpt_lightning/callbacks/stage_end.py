"""Where a stage ends: when that is, who is told, and the checkpoint that is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from typing_extensions import override

from tinygpt_lightning.callbacks.stages import Schedule, StageError
from tinygpt_lightning.callbacks.until import Until, Watch


def add_companions(trainer: Trainer, end: StageEnd, saver: StageCheckpoint) -> None:
    """Add the two callbacks to the trainer's, each where its turn comes, in the place of those of an earlier fit."""
    callbacks = [c for c in trainer.callbacks if not isinstance(c, StageEnd | StageCheckpoint)]  # type: ignore[attr-defined]
    ordinary = [callback for callback in callbacks if not isinstance(callback, Checkpoint)]
    savers = [callback for callback in callbacks if isinstance(callback, Checkpoint)]
    # A new list, since Lightning is going through the old one.
    trainer.callbacks = [*ordinary, end, *savers, saver]  # type: ignore[attr-defined]


def ended_early(checkpoint: Mapping[str, Any]) -> dict[int, int]:
    """Epochs of the stages that ended before theirs were over, by index, as a run's checkpoint knows of them."""
    state: dict[str, Any] = checkpoint.get("callbacks", {}).get(StageEnd.__qualname__, {})
    return dict(state.get("ended_early", {}))


class StageEnd(EarlyStopping):
    """Ends stages early, and tells every callback that has a method ``on_stage_end`` of the end of each.

    An `EarlyStopping` by name alone: Lightning calls what derives from it at an epoch's end after the module, whose
    last values can so be monitored, and here before all that saves a checkpoint, which so holds the decision.

    Args:
        schedule: Which epoch belongs to which stage.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__("stage")
        self.schedule = schedule
        self._seen: dict[str, Any] = {}  # by the watch of this stage
        self._validated: dict[str, Any] = {}  # the last epoch with a validation, and what was monitored then

    @property
    @override
    def state_key(self) -> str:
        return StageEnd.__qualname__

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        pass

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        until = self.schedule.stages[self.schedule.stage_at(trainer.current_epoch)].until
        if isinstance(until, Until) and not self._should_skip_check(trainer):
            # Noted, since a run that is resumed between here and the epoch's end knows of no values.
            value = trainer.callback_metrics.get(until.monitor)
            self._validated = {"epoch": trainer.current_epoch, "value": None if value is None else float(value)}

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        index = self.schedule.stage_at(epoch)
        if self._is_over(trainer, pl_module, index) and not self.schedule.ends_stage(epoch):
            self.schedule.end_stage(epoch)
            trainer.fit_loop.max_epochs = self.schedule.epochs
        if self.schedule.ends_stage(epoch):
            self._seen = {}
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if told := getattr(callback, "on_stage_end", None):
                    told(trainer, pl_module, index)

    @override
    def state_dict(self) -> dict[str, Any]:
        state = {"ended_early": self.schedule.ended_early, "seen": self._seen, "validated": self._validated}
        return state if any(state.values()) else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen, self._validated = state_dict["seen"], state_dict["validated"]

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.schedule.ended_early.update(ended_early(checkpoint))
        trainer.fit_loop.max_epochs = self.schedule.epochs

    def _is_over(self, trainer: Trainer, pl_module: LightningModule, index: int) -> bool:
        until = self.schedule.stages[index].until
        if until is None:
            return False
        if isinstance(until, Until):
            decided = self._is_over_for_watch(trainer, index, until)
        else:
            decided = until(trainer, pl_module)
        return trainer.strategy.reduce_boolean_decision(bool(decided), all=False)

    def _is_over_for_watch(self, trainer: Trainer, index: int, until: Until) -> bool:
        is_validated = self._validated.get("epoch") == trainer.current_epoch
        if trainer.enable_validation and not is_validated:
            return False  # what there is may be of an earlier epoch
        names = trainer.callback_metrics
        # As the first process has it, so that all processes judge alike, and go on alike when they are resumed.
        value = trainer.strategy.broadcast(
            float(names[until.monitor]) if until.monitor in names else self._validated.get("value")
        )
        if value is None:
            raise StageError(
                f"stages[{index}].until.monitor: expected a value that is logged, one of "
                f"{', '.join(sorted(names))}, got {until.monitor!r}"
            )
        watch = Watch(until)
        watch.load_state_dict(self._seen)
        is_over = watch.is_over(value)
        self._seen = watch.state_dict()
        return is_over


class StageCheckpoint(Checkpoint):
    """Keeps a stage's last checkpoint.

    Lightning calls what derives from `Checkpoint` after all other callbacks at an epoch's end, and after the module.

    Args:
        schedule: Which epoch belongs to which stage.
        folder: Where the ``stage-N.ckpt`` go; none means the trainer's log folder.
    """

    def __init__(self, schedule: Schedule, folder: str | Path | None) -> None:
        self.schedule = schedule
        self.folder = folder

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.schedule.ends_stage(trainer.current_epoch):
            trainer.save_checkpoint(self._file(trainer, trainer.current_epoch))

    def catch_up(self, trainer: Trainer) -> None:
        """Write the checkpoint of a stage that has ended, where the process that ended it did not come to it."""
        epoch = trainer.current_epoch - 1
        if epoch >= 0 and self.schedule.ends_stage(epoch):
            file = self._file(trainer, epoch)
            is_resumed_from_it = trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == file.name
            if not trainer.strategy.broadcast(file.exists() or is_resumed_from_it):
                trainer.save_checkpoint(file)

    def _file(self, trainer: Trainer, epoch: int) -> Path:
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        return folder / f"stage-{self.schedule.stage_at(epoch) + 1}.ckpt"
