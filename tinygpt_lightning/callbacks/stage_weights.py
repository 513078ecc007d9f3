"""What a stage does to the weights: some are frozen while it lasts, and the best ones are restored when it ends."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.nn import Parameter

from tinygpt_lightning.callbacks.stages import Stage, StageError


class Frozen:
    """The parameters that the current stage has frozen; those that were frozen before it stay so after it."""

    def __init__(self) -> None:
        self._parameters: list[Parameter] = []

    def begin(self, pl_module: LightningModule, stage: Stage, *, strict: bool = True) -> None:
        """Freeze the parameters whose names match ``stage.freeze``; without a gradient, optimizers leave them alone.

        Raises:
            StageError: If no parameter matches one of the patterns, unless it is not ``strict``.
        """
        self.end()
        parameters = dict(pl_module.named_parameters())
        for pattern in stage.patterns:
            matching = [parameter for name, parameter in parameters.items() if fnmatchcase(name, pattern)]
            if strict and not matching:
                raise StageError(
                    f"freeze: expected a pattern that names of parameters match, such as {next(iter(parameters), '')}, "
                    f"got {pattern!r}"
                )
            for parameter in matching:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self._parameters.append(parameter)
                parameter.grad = None

    def end(self) -> None:
        """Unfreeze them."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._parameters = []


def weights(pl_module: LightningModule) -> dict[str, Any]:
    """Return a copy of the module's state dict on the CPU."""
    state = dict(pl_module.state_dict())
    return dict(apply_to_collection(state, Tensor, lambda tensor: tensor.detach().cpu().clone()))
