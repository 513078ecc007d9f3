"""Whether a stage's ``until`` holds, decided alike by all processes, and again on resume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from tinygpt_lightning.callbacks._lightning import logged_names
from tinygpt_lightning.callbacks.stage_weights import weights
from tinygpt_lightning.callbacks.stages import Stage, StageError, Until


class StageCondition:
    """Asks the ``until`` of the current stage, and keeps what it has seen for checkpoints."""

    def __init__(self) -> None:
        self._watched: dict[str, Any] = {}  # what `Until.judge` has seen in this stage
        self._validated: dict[str, Any] = {}  # the last epoch with a validation, and the monitored value
        self._best: dict[str, Any] = {}  # the weights for which it was best, if they are to be restored
        self._has_told = False  # which values are missing; a resumed run may not know all names again

    def note(self, trainer: Trainer, stage: Stage) -> None:
        """Note the monitored value at a validation's end; a run resumed after it has no logged values."""
        value = trainer.callback_metrics.get(stage.until.monitor) if isinstance(stage.until, Until) else None
        self._validated = {"epoch": trainer.current_epoch, "value": None if value is None else float(value)}

    def holds(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, index: int) -> bool:
        """Whether the condition of ``stage``, the one at ``index``, holds in any process."""
        if stage.until is None:
            return False
        if isinstance(stage.until, Until):
            holds = self._judge(trainer, pl_module, stage, index)
        else:
            holds = stage.until(trainer, pl_module)
        return trainer.strategy.reduce_boolean_decision(bool(holds), all=False)

    def begin_stage(self) -> None:
        """Forget the values of the last stage."""
        self._watched = {}

    def restore_best(self, trainer: Trainer) -> None:
        """Restore the best weights of a stage that is over, once."""
        if self._best:
            trainer.strategy.load_model_state_dict({"state_dict": self._best})
            self._best = {}

    def warn_of_missing(
        self, trainer: Trainer, stages: Sequence[Stage], index: int, *, is_epoch_end: bool = False
    ) -> None:
        """Warn once, hours before they are needed, of values that stages monitor and that are not logged.

        That shows at the first epoch's end, or its validation if there is one. A loader without length may never come
        to an epoch's end: there it is the first validation or, without one, the first batch. At an epoch's end the
        stage at ``index`` is left out, which is refused if its value is missing.
        """
        is_validated = not trainer.enable_validation or self._validated.get("epoch") == trainer.current_epoch
        if self._has_told or not is_validated or not (is_epoch_end or trainer.num_training_batches == float("inf")):
            return
        self._has_told = True
        logged = {*trainer.callback_metrics, *([] if is_epoch_end else logged_names(trainer))}
        for i, stage in enumerate(stages):
            is_asked_now = is_epoch_end and i == index
            if isinstance(stage.until, Until) and not is_asked_now and stage.until.monitor not in logged:
                rank_zero_warn(
                    f"stages[{i}].until.monitor: {stage.until.monitor!r} is not among the values logged so far: "
                    f"{', '.join(sorted(logged))}"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen, as plain values."""
        return {"watched": self._watched, "validated": self._validated, "best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from such a state; other entries are ignored."""
        self._watched, self._validated = state["watched"], state["validated"]
        self._best = state.get("best", {})  # earlier versions had none
        self._has_told = True

    def _judge(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, index: int) -> bool:
        until: Any = stage.until
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
                f"stages[{index}].until.monitor: expected a logged value, one of {', '.join(sorted(logged))}, "
                f"got {until.monitor!r}"
            )
        holds, self._watched = until.judge(value, self._watched)
        if stage.restore_best and not self._watched["waited"]:
            self._best = weights(pl_module)
        return bool(holds)
