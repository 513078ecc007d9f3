"""Replicates of one model that differ in their seed, trained together as one program.

`TinyGPT`'s forward pass with a seed dimension in front: each weight of the stack is a tensor whose first dimension is
the seed, and a matrix product becomes one product for each seed. First weights and dropout are functions of the seed,
the stage and the epoch. One generator for the whole stack would make a replicate depend on its neighbours.

Shapes: ``S`` seeds, ``T`` time, ``C`` channels, ``H`` heads, ``V`` vocabulary, ``N`` dropout factors of a forward pass.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tinygpt_lightning.data.batches import Collate
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.study.recipe import Recipe
from tinygpt_lightning.study.steps import Steps

# Distance between the random streams of two seeds, larger than the number of epochs or stages of any run.
_STRIDE = 1_000_003

Parameters = Mapping[str, Tensor]


class Lesson(NamedTuple):
    """The sentence of a run, as ids."""

    inputs: Tensor  # all characters but the last one, (T,)
    targets: Tensor  # the next character at each position, (T,)
    answer: int  # index of the first target that belongs to the answer
    loss: int  # index of the first target of the loss

    @classmethod
    def of(cls, recipe: Recipe, stage: int, device: torch.device) -> Lesson:
        """The sentence of ``recipe`` in the vocabulary of ``stage``."""
        batch = Collate(recipe.tokenizer(stage), recipe.taught)([(0, recipe.taught.pairs[0])])
        answer = int((~batch.mask).sum())
        loss = answer if recipe.loss_on == "answer" else 0
        return cls(batch.ids[0].to(device), batch.targets[0].to(device), answer, loss)


class Ensemble:
    """One `TinyGPT` for each seed, all on the same text, with their optimizer and their history.

    Args:
        recipe: How to train. Recipes that agree in the stages so far may share an ensemble.
        seeds: One for each replicate; a seed determines first weights and dropout.
        device: Where to compute.
        measure_updates: Whether to measure the length of each update.
    """

    def __init__(self, recipe: Recipe, seeds: Sequence[int], device: torch.device, measure_updates: bool) -> None:
        self.config = recipe.config
        self.seeds = list(seeds)
        self.device = device
        self.losses: list[Tensor] = []  # of each epoch, dropout on, before the update, in nats, (S,) each
        # Epochs of the present stage, and of the run, after which each seed was exact for the first time.
        self.exact_after: list[int | None] = [None] * len(self.seeds)
        self.exact_in_run = list(self.exact_after)
        self.seconds = 0.0  # of computing so far, shared beginnings included
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
        """An independent copy."""
        other = copy.copy(self)
        other.losses = list(self.losses)
        other.exact_after, other.exact_in_run = list(self.exact_after), list(self.exact_in_run)
        other.parameters = {name: p.detach().clone().requires_grad_() for name, p in self.parameters.items()}
        other.steps = self.steps.fork(other.parameters.values())
        return other

    def begin_stage(self, recipe: Recipe, stage: int) -> None:
        """Cross the boundary before ``stage``, from 1."""
        self.note_exactness()
        if recipe.stages[stage].weights == "redrawn":
            self.parameters = draw_parameters(self.config, self.seeds, stage, self.device)
        self.steps = self.steps.following(recipe, stage, self.parameters.values())
        self.lesson = Lesson.of(recipe, stage, self.device)
        self.exact_after = [None] * len(self.seeds)
        self._stage_start = self.epoch

    def train_epoch(self) -> None:
        """One update of every replicate on the whole text as one batch."""
        start = time.perf_counter()
        loss, exact = self._forward(self._noise.factors(self.seeds, self.epoch))
        if self._noise.is_off:
            self._note(exact)  # without dropout, this pass also evaluates the update before
        for parameter in self.parameters.values():
            parameter.grad = None
        # Each replicate's loss depends on its own parameters only, so the gradient of the sum is theirs.
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.steps.take()
        self.losses.append(loss.detach())
        if not self._noise.is_off:
            self.note_exactness()
        self.seconds += time.perf_counter() - start

    def note_exactness(self) -> None:
        """Record which seeds are exact after the last update."""
        if None in self.exact_after:
            self._note(self.evaluate()[1])

    def loss_with_dropout(self) -> Tensor:
        """The loss with the next epoch's dropout, in nats, ``(S,)``."""
        return self._forward(self._noise.factors(self.seeds, self.epoch))[0]

    @torch.no_grad()
    def evaluate(self) -> tuple[Tensor, Tensor]:
        """Without dropout: the loss in nats, and whether the whole answer is an exact match; both ``(S,)``.

        If each character of the answer is the likeliest one after the true beginning, then greedy decoding gives the
        answer, by induction over the characters: one forward pass decides it.
        """
        return self._forward(None)

    @torch.no_grad()
    def copy_weights(self, index: int, model: TinyGPT) -> None:
        """Copy the weights of one replicate into ``model``."""
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

    def _note(self, exact: Tensor) -> None:
        done = self.epoch - self._stage_start
        if done and None in self.exact_after:
            for times, epochs in ((self.exact_after, done), (self.exact_in_run, self.epoch)):
                for i in exact.nonzero().flatten().tolist():
                    times[i] = times[i] or epochs


def draw_parameters(config: GPTConfig, seeds: Sequence[int], stage: int, device: torch.device) -> dict[str, Tensor]:
    """Draw the weights that a ``stage``, from 0, begins with; those of stage 0 are the ones of `fit` with that seed.

    They are drawn on the CPU, whatever the ``device`` of the result. The global generator stays as it is.

    Returns:
        By the names of `TinyGPT`'s parameters, ``(S, ...)`` each. Tied weights appear once.
    """
    models = []
    with torch.random.fork_rng(devices=[]):
        for seed in seeds:
            torch.manual_seed(seed + _STRIDE * stage)
            models.append(dict(TinyGPT(config).named_parameters()))
    return {
        name: torch.stack([model[name].detach() for model in models]).to(device).requires_grad_() for name in models[0]
    }


class DropoutNoise:
    """Dropout that depends on the seed and the epoch only, not on the chunk, process, branch or device.

    Runs of a seed that differ in one factor are therefore paired: they have the same dropout, drawn on the CPU.
    """

    def __init__(self, config: GPTConfig, length: int, device: torch.device) -> None:
        stream = length * config.n_embd
        sites = [  # in the order of `TinyGPT.forward`
            (stream, config.embd_pdrop),
            (config.n_head * length**2, config.attn_pdrop),
            (stream, config.resid_pdrop),
            (stream, config.resid_pdrop),
        ]
        self.is_off = not any(p for _, p in sites)
        self.keep = torch.cat([torch.full((size,), 1 - p) for size, p in sites]).to(device)  # (N,)
        self.device = device
        self._generator = torch.Generator()

    def factors(self, seeds: Sequence[int], epoch: int) -> Tensor | None:
        """The factors of dropout at ``epoch``, 0 or 1/(1-p), ``(S, N)``; None if dropout is off."""
        if self.is_off:
            return None
        N = len(self.keep)
        # Four 16-bit numbers a draw: three times as fast as uniform floats, and p is off by 1e-5 at most.
        bits = torch.empty(len(seeds), -(-N // 4), dtype=torch.int64)
        for row, seed in zip(bits, seeds, strict=True):
            row.random_(-(2**63), None, generator=self._generator.manual_seed(seed * _STRIDE + epoch))
        uniform = bits.view(torch.int16)[:, :N].to(self.device)  # (S, N), from -2^15 to 2^15 - 1
        return (uniform < self.keep * 2**16 - 2**15) / self.keep


def stacked_logits(parameters: Parameters, config: GPTConfig, ids: Tensor, dropout: Tensor | None = None) -> Tensor:
    """Score every possible next character with each model of the stack.

    Args:
        parameters: By the names of `TinyGPT`'s parameters, ``(S, ...)`` each; tied weights appear once.
        config: Sizes of the model.
        ids: Character ids, the same for all seeds, ``(T,)``.
        dropout: The factors of `DropoutNoise`, ``(S, N)``; None turns dropout off.

    Returns:
        ``(S, T, V)``.
    """
    drop = _dropper(dropout)
    x = drop(parameters["wte.weight"][:, ids] + parameters["wpe.weight"][:, : len(ids)])  # (S, T, C)
    attended = _attention(_layer_norm(x, parameters, "h.ln_1", config), parameters, config, drop)
    x = x + drop(_linear(attended, parameters, "h.attn.c_proj"))
    inner = _linear(_layer_norm(x, parameters, "h.ln_2", config), parameters, "h.mlp.c_fc")
    x = x + drop(_linear(F.gelu(inner, approximate="tanh"), parameters, "h.mlp.c_proj"))
    x = _layer_norm(x, parameters, "ln_f", config)
    head = parameters["wte.weight" if config.tie_weights else "lm_head.weight"]  # (S, V, C)
    return torch.bmm(x, head.transpose(1, 2))


def _attention(x: Tensor, parameters: Parameters, config: GPTConfig, drop: Callable[[Tensor], Tensor]) -> Tensor:
    S, T, C = x.shape
    qkv = _linear(x, parameters, "h.attn.c_attn").view(S, T, 3, config.n_head, C // config.n_head)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (S, H, T, C/H) each
    # Scaled before the product: q has fewer numbers than the product.
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (S, H, T, T)
    future = torch.full((T, T), -torch.inf, device=x.device).triu(1)
    y: Tensor = drop((scores + future).softmax(dim=-1)) @ v  # (S, H, T, C/H)
    return y.transpose(1, 2).reshape(S, T, C)


def _linear(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    # Not `baddbmm`, which rounds differently: the released rows must be reproducible bit-for-bit.
    return _add_bias(x @ parameters[f"{name}.weight"].transpose(1, 2), parameters, name)


def _layer_norm(x: Tensor, parameters: Parameters, name: str, config: GPTConfig) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], eps=config.layer_norm_epsilon) * parameters[f"{name}.weight"].unsqueeze(1)
    return _add_bias(y, parameters, name)


def _add_bias(y: Tensor, parameters: Parameters, name: str) -> Tensor:
    bias = parameters.get(f"{name}.bias")
    return y if bias is None else y + bias.unsqueeze(1)


def _dropper(factors: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function that multiplies by the given factors, ``(S, N)``, each factor once; None turns dropout off."""
    used = 0

    def drop(x: Tensor) -> Tensor:
        nonlocal used
        if factors is None:
            return x
        start, used = used, used + x[0].numel()
        return x * factors[:, start:used].view(x.shape)

    return drop
