"""Replicates of one network that differ in their seed, trained together as one program.

Shapes: ``S`` seeds, ``T`` time, ``V`` vocabulary.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tinygpt_lightning.data.batches import Collate
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.study.design.recipe import Recipe
from tinygpt_lightning.study.engine.noise import DropoutNoise, draw_parameters
from tinygpt_lightning.study.engine.stacked import stacked_logits
from tinygpt_lightning.study.engine.steps import Steps


@dataclass(frozen=True)
class Lesson:
    """A sentence to learn, in ids.

    Args:
        inputs: Of its characters but the last one, ``(T,)``.
        targets: Of the character that comes next, ``(T,)``.
        answer: Index of the first target that belongs to the answer.
        loss: Index of the first target that the loss is over.
    """

    inputs: Tensor
    targets: Tensor
    answer: int
    loss: int

    @classmethod
    def of(cls, recipe: Recipe, stage: int, device: torch.device) -> Lesson:
        """What ``recipe`` teaches at ``stage``, in the vocabulary in use there."""
        batch = Collate(recipe.tokenizer(stage), recipe.taught)([(0, recipe.taught.pairs[0])])
        answer = int((~batch.mask).sum())
        loss = answer if recipe.loss_on == "answer" else 0
        return cls(batch.ids[0].to(device), batch.targets[0].to(device), answer, loss)


class Ensemble:
    """One `TinyGPT` for each seed, all on the same text, with their optimizer and what they did so far.

    Args:
        recipe: How they are trained. Others may share it as long as they agree in the stages so far.
        seeds: One for each; it decides the network's first weights and its dropout.
        device: Where to compute.
        measure_updates: Whether to measure how far each update moves the weights.

    Attributes:
        losses: Of each epoch so far, dropout on and before the epoch's update, in nats, ``(S,)`` each.
        exact_after: Epochs of the present stage until a seed knew the whole answer; null if not yet.
        seconds: Time it took to get here, the shared beginnings included.
    """

    def __init__(self, recipe: Recipe, seeds: Sequence[int], device: torch.device, measure_updates: bool) -> None:
        self.config = recipe.config
        self.seeds = list(seeds)
        self.device = device
        self.losses: list[Tensor] = []
        self.exact_after: list[int | None] = [None] * len(self.seeds)
        self.seconds = 0.0
        self.lesson = Lesson.of(recipe, 0, device)
        self.parameters = draw_parameters(recipe.config, self.seeds, 0, device)
        self.steps = Steps(recipe, 0, self.parameters.values(), measure_updates)
        self._noise = DropoutNoise(recipe.config, len(self.lesson.inputs), device)
        self._stage_start = 0

    @property
    def epoch(self) -> int:
        """Epochs done so far."""
        return len(self.losses)

    def fork(self) -> Ensemble:
        """A copy that goes its own way from here."""
        other = copy.copy(self)
        other.losses = list(self.losses)
        other.exact_after = list(self.exact_after)
        other.parameters = {name: p.detach().clone().requires_grad_() for name, p in self.parameters.items()}
        other.steps = self.steps.fork(other.parameters.values())
        return other

    def begin_stage(self, recipe: Recipe, stage: int) -> None:
        """Cross the boundary before ``stage``, from 1."""
        if recipe.stages[stage].weights == "redrawn":
            self.parameters = draw_parameters(self.config, self.seeds, stage, self.device)
        self.steps = self.steps.following(recipe, stage, self.parameters.values())
        self.lesson = Lesson.of(recipe, stage, self.device)
        self.exact_after = [None] * len(self.seeds)
        self._stage_start = self.epoch

    def train_epoch(self) -> None:
        """One update of every replicate on the whole text as one batch."""
        start = time.perf_counter()
        loss, right = self._forward(self._noise.factors(self.seeds, self.epoch))
        if self._noise.is_off:
            self._note(right)  # what the update before has left behind: without dropout both passes are the same
        for parameter in self.parameters.values():
            parameter.grad = None
        # Each replicate's loss depends on its own parameters only: the sum's gradients are theirs.
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.steps.take()
        self.losses.append(loss.detach())
        if not self._noise.is_off:
            self.look()
        self.seconds += time.perf_counter() - start

    def look(self) -> None:
        """Find out who knows the whole answer after the last update."""
        if None in self.exact_after:
            self._note(self.evaluate()[1])

    def loss_with_dropout(self) -> Tensor:
        """The loss with the coming epoch's dropout, in nats, ``(S,)``."""
        return self._forward(self._noise.factors(self.seeds, self.epoch))[0]

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Without dropout: the loss in nats, and whether every character of the answer is the likeliest one.

        Given the right beginning, that is; it then holds for the network's own beginning too, character after
        character, so this is what greedy decoding gives, for the price of one forward pass. Both ``(S,)``.
        """
        return self._forward(None)

    @torch.no_grad()
    def copy_weights(self, index: int, model: TinyGPT) -> None:
        """Give ``model`` the weights of one replicate."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.parameters[name][index])

    def _forward(self, dropout: Tensor | None) -> tuple[Tensor, Tensor]:
        targets = self.lesson.targets
        logits = stacked_logits(self.parameters, self.config, self.lesson.inputs, dropout)  # (S, T, V)
        right = logits.detach().argmax(dim=-1) == targets  # (S, T)
        scored = logits[:, self.lesson.loss :].log_softmax(dim=-1)
        wanted = targets[self.lesson.loss :].view(1, -1, 1).expand(len(scored), -1, 1)
        loss = -scored.gather(2, wanted).squeeze(2).mean(dim=1)
        return loss, right[:, self.lesson.answer :].all(dim=-1)

    def _note(self, right: Tensor) -> None:
        done = self.epoch - self._stage_start
        if done and None in self.exact_after:
            self.exact_after = [
                done if after is None and now else after
                for after, now in zip(self.exact_after, right.tolist(), strict=True)
            ]
