"""Whether a stage's ``until`` holds, decided alike by all processes, and again on resume."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from tinygpt_lightning.callbacks.stages import Stage, StageError, Until


class StageCondition:
    """Asks the ``until`` of the current stage, and keeps what it has seen for checkpoints."""

    def __init__(self) -> None:
        self._watched: dict[str, Any] = {}  # what `Until.judge` has seen in this stage
        self._validated: dict[str, Any] = {}  # the last epoch with a validation, and the monitored value

    def note(self, trainer: Trainer, stage: Stage) -> None:
        """Note the monitored value at a validation's end; a run resumed after it has no logged values."""
        if isinstance(stage.until, Until):
            value = trainer.callback_metrics.get(stage.until.monitor)
            self._validated = {"epoch": trainer.current_epoch, "value": None if value is None else float(value)}

    def holds(self, trainer: Trainer, pl_module: LightningModule, stage: Stage, index: int) -> bool:
        """Whether the condition of ``stage``, the one at ``index``, holds in any process."""
        if stage.until is None:
            return False
        is_watched = isinstance(stage.until, Until)
        holds = self._judge(trainer, stage.until, index) if is_watched else stage.until(trainer, pl_module)  # type: ignore[arg-type, operator]
        return trainer.strategy.reduce_boolean_decision(bool(holds), all=False)

    def begin_stage(self) -> None:
        """Forget the values of the last stage."""
        self._watched = {}

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen, as plain values."""
        return {"watched": self._watched, "validated": self._validated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from such a state; other entries are ignored."""
        self._watched, self._validated = state["watched"], state["validated"]

    def _judge(self, trainer: Trainer, until: Until, index: int) -> bool:
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
        return holds
