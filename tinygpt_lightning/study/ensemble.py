"""Replicates of one model that differ in their seed, trained together as one vectorised program.

Source: PyTorch's "Model ensembling" (torch.func): the parameters are stacked, the forward pass is mapped over them.

Shapes: ``S`` seeds, ``T`` time, ``V`` vocabulary, ``N`` numbers that dropout multiplies in one forward pass.
"""

from __future__ import annotations

import copy
import ctypes
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT

# Spreads the seeds far apart, so that no seed's epochs or stages draw another's numbers.
_STRIDE = 1_000_003


class GivenDropout(TorchFunctionMode):
    """Runs a model with the dropout it is given instead of one it draws.

    Under `vmap`, PyTorch's dropout draws from one generator for the whole stack: a replicate's noise would
    depend on which others run beside it. The attention is spelt out because the fused one draws by itself.

    Args:
        factors: What dropout multiplies by, 0 or 1/(1-p), in the order in which the model drops, ``(N,)``;
            null switches dropout off.
    """

    def __init__(self, factors: Tensor | None) -> None:
        super().__init__()
        self.factors = factors
        self.used = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace dropout and attention; run everything else as it is."""
        if func is F.dropout:
            return self._drop(args[0])
        if func is F.scaled_dot_product_attention:
            q, k, v = args  # (B, H, T, C/H) each
            T = q.size(-2)
            # Scaled before the product: it has fewer numbers than the product.
            scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, T)
            future = torch.full((T, T), -torch.inf, device=q.device).triu(1)
            return self._drop((scores + future).softmax(dim=-1)) @ v
        return func(*args, **(kwargs or {}))

    def _drop(self, x: Tensor) -> Tensor:
        if self.factors is None:
            return x
        start, self.used = self.used, self.used + x.numel()
        return x * self.factors[start : self.used].view(x.shape)


class DropoutNoise:
    """Dropout that is a function of the seed and the epoch, and of nothing else.

    Not of the chunk, the process, the branch or the device, so runs that differ in one factor are paired: they
    see the same noise.

    Args:
        config: Of the model: its sizes and probabilities.
        length: Length of the sequence, ``T``.
        device: Where the factors are needed; they are always drawn on the CPU.
    """

    def __init__(self, config: GPTConfig, length: int, device: torch.device) -> None:
        stream = length * config.n_embd
        sites = [  # in the order of `TinyGPT.forward`
            (stream, config.embd_pdrop),
            (config.n_head * length**2, config.attn_pdrop),
            (stream, config.resid_pdrop),
            (stream, config.resid_pdrop),
        ]
        self.keep = torch.cat([torch.full((size,), 1 - p) for size, p in sites]).to(device)  # (N,)
        self.device = device
        self._generator = torch.Generator()

    def factors(self, seeds: Sequence[int], epoch: int) -> Tensor:
        """What dropout multiplies by at ``epoch``, ``(S, N)``."""
        N = len(self.keep)
        # Four 16-bit numbers a draw: three times as fast as uniform floats, and p is off by 1e-5 at most.
        bits = torch.empty(len(seeds), -(-N // 4), dtype=torch.int64)
        for row, seed in zip(bits, seeds, strict=True):
            row.random_(-(2**63), None, generator=self._generator.manual_seed(seed * _STRIDE + epoch))
        uniform = bits.view(torch.int16)[:, :N].to(self.device)  # (S, N), from -2^15 to 2^15 - 1
        return (uniform < self.keep * 2**16 - 2**15) / self.keep


class Ensemble:
    """One `TinyGPT` per seed, all on the same text, with their optimizer and what they did so far.

    Args:
        config: Of the models.
        seeds: One for each; it decides the model's first weights and its dropout.
        length: Characters of a training sequence without the last one, ``T``.
        learning_rate: Of AdamW, whose other settings are PyTorch's defaults.
        device: Where to compute.

    Attributes:
        losses: Of each epoch so far, dropout on and before the epoch's update, in nats, ``(S,)`` each.
        exact_after: Epochs of the present stage until a seed knew the whole answer; null if not yet.
        seconds: Time it took to get here, the shared beginnings included.
    """

    def __init__(
        self, config: GPTConfig, seeds: Sequence[int], length: int, learning_rate: float, device: torch.device
    ) -> None:
        self.config = config
        self.seeds = list(seeds)
        self.learning_rate = learning_rate
        self.device = device
        self.losses: list[Tensor] = []
        self.exact_after: list[int | None] = [None] * len(self.seeds)
        self.seconds = 0.0
        self._stage_start = 0
        self._noise = DropoutNoise(config, length, device)
        with torch.device("meta"):
            self._skeleton = TinyGPT(config)
        self.parameters = self._draw(stage=0)
        self.optimizer = self._new_optimizer()

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
        other.optimizer = other._new_optimizer()
        # load_state_dict takes the tensors themselves: without the copy both would write to the same ones.
        other.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        return other

    def begin_stage(self, stage: int, *, reset_optimizer: bool, redraw_weights: bool) -> None:
        """Cross the boundary before ``stage``, from 1."""
        state = self.optimizer.state_dict()
        if redraw_weights:
            self.parameters = self._draw(stage)
        self.optimizer = self._new_optimizer()
        if not reset_optimizer:
            self.optimizer.load_state_dict(state)
        self._stage_start = self.epoch
        self.exact_after = [None] * len(self.seeds)

    def train_epoch(self, ids: Tensor, answer_start: int) -> None:
        """One update of every replicate on the whole text, ``(1, T + 1)``, as one batch."""
        start = time.perf_counter()
        loss = self.loss_with_dropout(ids)  # (S,)
        self.optimizer.zero_grad()
        # Each replicate's loss depends on its own parameters only: the sum's gradients are theirs.
        loss.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.losses.append(loss.detach())
        if None in self.exact_after:
            right = self.evaluate(ids, answer_start)[1].tolist()
            done = self.epoch - self._stage_start
            self.exact_after = [
                done if after is None and now else after for after, now in zip(self.exact_after, right, strict=True)
            ]
        self.seconds += time.perf_counter() - start

    def loss_with_dropout(self, ids: Tensor) -> Tensor:
        """Mean cross-entropy of the next character with the coming epoch's dropout, in nats, ``(S,)``."""
        return vmap(lambda p, factors: self._loss(p, factors, ids)[0])(
            self.parameters, self._noise.factors(self.seeds, self.epoch)
        )

    @torch.no_grad()
    def evaluate(self, ids: Tensor, answer_start: int) -> tuple[Tensor, Tensor]:
        """Without dropout: the loss in nats, and whether every character of the answer is the likeliest one.

        Given the right beginning, that is; it then holds for the model's own beginning too, character after
        character, so this is what greedy decoding gives, for the price of one forward pass. Both ``(S,)``.
        """
        loss, logits = vmap(lambda p: self._loss(p, None, ids))(self.parameters)
        right = logits.argmax(dim=-1) == ids[0, 1:]  # (S, T)
        return loss, right[:, answer_start - 1 :].all(dim=-1)

    @torch.no_grad()
    def copy_weights(self, index: int, model: TinyGPT) -> None:
        """Give ``model`` the weights of one replicate."""
        for name, parameter in model.named_parameters():
            parameter.copy_(self.parameters[name][index])

    def _draw(self, stage: int) -> dict[str, Tensor]:
        models = []
        with torch.random.fork_rng(devices=[]):
            for seed in self.seeds:
                # The first weights are those of the seed itself, as in a `fit`; a redrawn stage has its own.
                torch.manual_seed(seed + _STRIDE * stage)
                models.append(TinyGPT(self.config).to(self.device))
        parameters: dict[str, Tensor] = stack_module_state(models)[0]
        return parameters

    def _new_optimizer(self) -> torch.optim.Optimizer:
        # Elementwise, so one optimizer over the stack is one for each replicate.
        return torch.optim.AdamW(self.parameters.values(), lr=self.learning_rate, fused=True)

    def _loss(self, parameters: dict[str, Tensor], factors: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        with GivenDropout(factors):
            logits = functional_call(self._skeleton, parameters, (ids[:, :-1],))[0]  # (T, V)
        return F.cross_entropy(logits, ids[0, 1:]), logits


def keep_freed_memory() -> None:
    """Ask glibc to keep what a step frees for the next one.

    By default it returns large blocks to the system, which has to clear them again at every step: a third of
    the time of small models. Other C libraries are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
            libc.mallopt(option, 2**31 - 1)
