"""What a stage does to the weights: some are frozen while it lasts, and the best ones are restored when it ends."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from tinygpt_lightning.callbacks.sharded import reshard, whole
from tinygpt_lightning.callbacks.stages import Stage, StageError


class Frozen:
    """The parameters that the current stage has frozen; those that were frozen before it stay so after it."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def begin(self, pl_module: LightningModule, stage: Stage, *, strict: bool = True) -> None:
        """Freeze the parameters whose names match ``stage.freeze``; without a gradient, optimizers leave them alone.

        Raises:
            StageError: If no parameter matches one of the patterns, unless it is not ``strict``.
        """
        self.end(pl_module)
        parameters = dict(pl_module.named_parameters())
        for pattern in stage.patterns:
            matching = [name for name in parameters if fnmatchcase(name, pattern)]
            if strict and not matching:
                raise StageError(
                    f"freeze: expected a pattern that names of parameters match, such as {next(iter(parameters), '')}, "
                    f"got {pattern!r}"
                )
            self._names += [name for name in matching if parameters[name].requires_grad]
            for name in matching:
                parameters[name].requires_grad_(False).grad = None

    def end(self, pl_module: LightningModule) -> None:
        """Unfreeze them."""
        if self._names:
            reshard(pl_module)
        for name, parameter in pl_module.named_parameters():
            if name in self._names:
                parameter.requires_grad_(True)
        self._names = []


def weights(pl_module: LightningModule) -> dict[str, Any]:
    """Return a copy of the module's state dict on the CPU, whole in each process."""
    return dict(apply_to_collection(dict(pl_module.state_dict()), Tensor, lambda tensor: whole(tensor).clone()))
