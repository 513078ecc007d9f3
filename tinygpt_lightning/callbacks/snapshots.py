"""Weights kept while a model learns, for whoever wants to see how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tinygpt_lightning.callbacks.sharded import whole

MOST_BYTES = 5_000_000  # of all moments together: they travel in every checkpoint


class Snapshots(Callback):
    """Keeps the weights at some moments of a training, about evenly spaced in the logarithm of the loss.

    It works with any LightningModule whose ``training_step`` returns its loss, and needs nothing else of this project.
    The moments are the callback's state, so they are in each checkpoint, under ``callbacks`` and the key
    ``Snapshots``, and a resumed run continues them: ``moments``, each with ``step`` (optimizer steps so far),
    ``loss`` (of the step that begins there) and ``weights`` (the module's state dict before that step); and
    ``boundaries``, the steps after which `StagedTraining` ended a stage. The first moment is the model before
    training. A later one is kept when its loss is the lowest so far; when there are too many, the one that the others
    represent best goes. The final weights are not among them: a checkpoint has them anyway.

    Copying the weights at every step and reading the loss costs some time; under DDP every process does it.

    Args:
        count: Moments to keep, 2 or more.

    Raises:
        ValueError: If ``count`` is below 2.
        MisconfigurationException: When a fit starts, if so many moments take more than `MOST_BYTES`.
    """

    def __init__(self, count: int = 40) -> None:
        if count < 2:
            raise ValueError(f"count: expected 2 moments or more, got {count}")
        self.count = count
        self.moments: list[dict[str, Any]] = []
        self.boundaries: list[int] = []
        self._weights: dict[str, Tensor] = {}  # before the step that is being taken
        self._step = 0

    @property
    def state_key(self) -> str:
        """The same for all subclasses and settings: whoever reads a checkpoint finds the moments under it."""
        return Snapshots.__qualname__

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a model that is too large."""
        size = sum(tensor.nbytes for tensor in pl_module.state_dict().values())
        if size * self.count > MOST_BYTES:
            raise MisconfigurationException(
                f"Snapshots: expected at most {MOST_BYTES:,} bytes of weights, got {self.count} moments of {size:,} "
                "bytes; keep fewer moments, or train a smaller model"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Copy the weights: whether the moment is worth keeping is known when its loss is."""
        self._step = trainer.global_step
        self._weights = {name: whole(tensor).clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the moment if no loss was as low."""
        loss = outputs["loss"] if isinstance(outputs, Mapping) else outputs
        value = math.nan if loss is None else float(loss)
        if math.isfinite(value) and (not self.moments or value < self.moments[-1]["loss"]):
            self.moments.append({"step": self._step, "loss": value, "weights": self._weights})
            if len(self.moments) > self.count:
                del self.moments[_dispensable([moment["loss"] for moment in self.moments])]

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Note where a stage ended."""
        if trainer.global_step not in self.boundaries:
            self.boundaries.append(trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """The moments so far."""
        return {"moments": list(self.moments), "boundaries": list(self.boundaries)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from them."""
        self.moments, self.boundaries = list(state_dict["moments"]), list(state_dict["boundaries"])


def _dispensable(losses: list[float]) -> int:
    """Which of falling losses, neither first nor last, has the closest neighbours in the logarithm.

    >>> _dispensable([8.0, 4.0, 3.9, 1.0])
    1
    """
    gaps = [_log(losses[i - 1]) - _log(losses[i + 1]) for i in range(1, len(losses) - 1)]
    return 1 + gaps.index(min(gaps))


def _log(loss: float) -> float:
    return math.log(max(loss, 1e-45))  # a loss may be 0
