"""The optimizer of a stack of ``S`` replicates, and the length of its updates."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tinygpt_lightning.study.recipe import Recipe


class Steps:
    """One elementwise optimizer over the stack, which equals one optimizer for each replicate.

    Args:
        recipe: How to build the optimizer and its scheduler.
        stage: The stage, from 0.
        parameters: Parameters of the stack, ``(S, ...)`` each.
        measure: Whether to measure the length of each update.
    """

    def __init__(self, recipe: Recipe, stage: int, parameters: Iterable[Tensor], measure: bool) -> None:
        self.recipe = recipe
        self.stage = stage
        self.parameters = list(parameters)
        self.measure = measure
        self.norms: list[Tensor] = []  # Euclidean length of each update so far, if it is measured, (S,) each
        self.rate_factor: Tensor | None = None  # on the learning rate of each seed, (S,); None for no factor
        self.optimizer, self.lr_scheduler = recipe.build_optimizer(stage, self.parameters)

    def fork(self, parameters: Iterable[Tensor]) -> Steps:
        """A copy for ``parameters``, which are a copy of this one's."""
        other = Steps(self.recipe, self.stage, parameters, self.measure)
        other.norms, other.rate_factor = list(self.norms), self.rate_factor
        if self.lr_scheduler and other.lr_scheduler:
            other.lr_scheduler.load_state_dict(copy.deepcopy(self.lr_scheduler.state_dict()))
        # After the scheduler, whose constructor sets a learning rate. load_state_dict does not copy tensors: without
        # deepcopy both optimizers would write to the same ones.
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return other

    def following(self, recipe: Recipe, stage: int, parameters: Iterable[Tensor]) -> Steps:
        """The optimizer of the next stage, with the entries of this one's state that it keeps."""
        own = recipe.stages[stage]
        other = Steps(recipe, stage, parameters, self.measure)
        other.norms = list(self.norms)
        if not own.keeps_nothing:
            for before, now in zip(self.parameters, other.parameters, strict=True):
                other.optimizer.state[now] = {
                    # Adam's state starts from zeros; other optimizers keep all of it or nothing.
                    name: value if own.keeps(name) else torch.zeros_like(value)
                    for name, value in self.optimizer.state[before].items()
                }
        return other

    def take(self) -> None:
        """One optimizer step, with the gradients that the parameters hold."""
        is_first = self.rate_factor is None and self.recipe.stages[self.stage].first_update == "as_new"
        if not (self.measure or is_first or self.rate_factor is not None):
            self._step()
            return
        before = [p.detach().clone() for p in self.parameters]
        as_new = self._new_optimizers_step(before) if is_first else None
        self._step()
        moved = [p.detach() - b for p, b in zip(self.parameters, before, strict=True)]
        norm = _norm(moved)
        if as_new is not None:
            self.rate_factor = as_new / norm
        if self.rate_factor is not None:
            # Updates are proportional to the learning rate, but one optimizer has one rate for all replicates.
            for parameter, b, m in zip(self.parameters, before, moved, strict=True):
                parameter.detach().copy_(b + self.rate_factor.view(-1, *[1] * (m.dim() - 1)) * m)
            norm = norm * self.rate_factor
        if self.measure:
            self.norms.append(norm)

    def _step(self) -> None:
        self.optimizer.step()
        if self.lr_scheduler:
            self.lr_scheduler.step()

    def _new_optimizers_step(self, before: Sequence[Tensor]) -> Tensor:
        """Length of the first update that a new optimizer would make, ``(S,)``."""
        copies = [b.clone().requires_grad_() for b in before]
        for own, parameter in zip(copies, self.parameters, strict=True):
            own.grad = parameter.grad
        self.recipe.build_optimizer(self.stage, copies)[0].step()
        return _norm([own.detach() - b for own, b in zip(copies, before, strict=True)])


def _norm(moved: Iterable[Tensor]) -> Tensor:
    """Euclidean length of an update over all parameters, ``(S,)``."""
    return torch.stack([m.flatten(1).square().sum(dim=1) for m in moved]).sum(dim=0).sqrt()
