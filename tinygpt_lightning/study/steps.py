"""The optimizer of a stack of replicates, and how far each of its steps goes.

Shapes: ``S`` seeds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tinygpt_lightning.study.recipe import Recipe


class Steps:
    """One optimizer for each seed: elementwise, so one over the stack is one for each replicate.

    Args:
        recipe: How they are made.
        stage: For which stage, from 0.
        parameters: Of the stack, ``(S, ...)`` each.
        measure: Whether to measure how far each step goes.

    Attributes:
        norms: How far each step so far moved a replicate's weights, ``(S,)`` each; empty if it is not measured.
        rate_factor: What the learning rate is multiplied by, ``(S,)``; null for nothing.
    """

    def __init__(self, recipe: Recipe, stage: int, parameters: Iterable[Tensor], measure: bool) -> None:
        self.recipe = recipe
        self.stage = stage
        self.parameters = list(parameters)
        self.measure = measure
        self.norms: list[Tensor] = []
        self.rate_factor: Tensor | None = None
        self.optimizer, self.lr_scheduler = recipe.build_optimizer(stage, self.parameters)

    def fork(self, parameters: Iterable[Tensor]) -> Steps:
        """A copy for a copy of the parameters."""
        other = Steps(self.recipe, self.stage, parameters, self.measure)
        other.norms, other.rate_factor = list(self.norms), self.rate_factor
        if self.lr_scheduler and other.lr_scheduler:
            other.lr_scheduler.load_state_dict(copy.deepcopy(self.lr_scheduler.state_dict()))
        # After the scheduler, which sets a learning rate when it is made. load_state_dict takes the tensors
        # themselves: without the copy both would write to the same ones.
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return other

    def following(self, recipe: Recipe, stage: int, parameters: Iterable[Tensor]) -> Steps:
        """The optimizer of the next stage, with what it keeps of this one's state."""
        own = recipe.stages[stage]
        other = Steps(recipe, stage, parameters, self.measure)
        other.norms = list(self.norms)
        if not own.keeps_nothing:
            for before, now in zip(self.parameters, other.parameters, strict=True):
                other.optimizer.state[now] = {
                    # Adam's state begins with zeros; others keep all of it or nothing.
                    name: value if own.keeps(name) else torch.zeros_like(value)
                    for name, value in self.optimizer.state[before].items()
                }
        return other

    def take(self) -> None:
        """One step along the parameters' gradients."""
        is_first = self.rate_factor is None and self.recipe.stages[self.stage].first_update == "as_new"
        if not (self.measure or is_first or self.rate_factor is not None):
            self._step()
            return
        before = [p.detach().clone() for p in self.parameters]
        as_new = self._step_of_a_new_optimizer(before) if is_first else None
        self._step()
        moved = [p.detach() - b for p, b in zip(self.parameters, before, strict=True)]
        norm = _norm(moved)
        if as_new is not None:
            self.rate_factor = as_new / norm
        if self.rate_factor is not None:
            # A step is proportional to the learning rate, and one optimizer has one rate for all replicates.
            for parameter, b, m in zip(self.parameters, before, moved, strict=True):
                parameter.detach().copy_(b + self.rate_factor.view(-1, *[1] * (m.dim() - 1)) * m)
            norm = norm * self.rate_factor
        if self.measure:
            self.norms.append(norm)

    def _step(self) -> None:
        self.optimizer.step()
        if self.lr_scheduler:
            self.lr_scheduler.step()

    def _step_of_a_new_optimizer(self, before: Sequence[Tensor]) -> Tensor:
        copies = [b.clone().requires_grad_() for b in before]
        for own, parameter in zip(copies, self.parameters, strict=True):
            own.grad = parameter.grad
        self.recipe.build_optimizer(self.stage, copies)[0].step()
        return _norm([own.detach() - b for own, b in zip(copies, before, strict=True)])


def _norm(moved: Iterable[Tensor]) -> Tensor:
    """Euclidean length over all parameters of each replicate, ``(S,)``."""
    return torch.stack([m.flatten(1).square().sum(dim=1) for m in moved]).sum(dim=0).sqrt()
