"""The forward pass of many networks of one shape as one program: `TinyGPT`'s arithmetic, with a seed in front.

Each weight of the stack is a tensor whose first dimension is the seed, and a matrix product becomes one product
for each seed. Dropout is given instead of drawn: what one generator draws for a whole stack would make a
replicate's noise depend on which others run beside it.

Shapes: ``S`` seeds, ``T`` time, ``C`` channels, ``H`` heads, ``V`` vocabulary, ``N`` numbers that dropout
multiplies in one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from tinygpt_lightning.gpt.model import GPTConfig

Parameters = Mapping[str, Tensor]


def stacked_logits(parameters: Parameters, config: GPTConfig, ids: Tensor, dropout: Tensor | None = None) -> Tensor:
    """Score every possible next character, with each network of the stack.

    Args:
        parameters: By the names of `TinyGPT`'s parameters, ``(S, ...)`` each; tied weights appear once.
        config: Of the networks.
        ids: Character ids, the same for all, ``(T,)``.
        dropout: What dropout multiplies by, 0 or 1/(1-p), in the order in which `TinyGPT` drops, ``(S, N)``;
            null switches dropout off.

    Returns:
        ``(S, T, V)``.
    """
    drop = _Dropout(dropout)
    x = drop(parameters["wte.weight"][:, ids] + parameters["wpe.weight"][:, : len(ids)])  # (S, T, C)
    attended = _attention(_layer_norm(x, parameters, "h.ln_1", config), parameters, config, drop)
    x = x + drop(_linear(attended, parameters, "h.attn.c_proj"))
    inner = _linear(_layer_norm(x, parameters, "h.ln_2", config), parameters, "h.mlp.c_fc")
    x = x + drop(_linear(F.gelu(inner, approximate="tanh"), parameters, "h.mlp.c_proj"))
    x = _layer_norm(x, parameters, "ln_f", config)
    head = parameters["wte.weight" if config.tie_weights else "lm_head.weight"]  # (S, V, C)
    return torch.bmm(x, head.transpose(1, 2))


def _attention(x: Tensor, parameters: Parameters, config: GPTConfig, drop: _Dropout) -> Tensor:
    S, T, C = x.shape
    qkv = _linear(x, parameters, "h.attn.c_attn").view(S, T, 3, config.n_head, C // config.n_head)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (S, H, T, C/H) each
    # Scaled before the product: it has fewer numbers than the product.
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (S, H, T, T)
    future = torch.full((T, T), -torch.inf, device=x.device).triu(1)
    y: Tensor = drop((scores + future).softmax(dim=-1)) @ v  # (S, H, T, C/H)
    return y.transpose(1, 2).reshape(S, T, C)


def _linear(x: Tensor, parameters: Parameters, name: str) -> Tensor:
    # Not `baddbmm`, which rounds otherwise: the released rows can be made again to the bit.
    y = x @ parameters[f"{name}.weight"].transpose(1, 2)
    bias = parameters.get(f"{name}.bias")
    return y if bias is None else y + bias.unsqueeze(1)


def _layer_norm(x: Tensor, parameters: Parameters, name: str, config: GPTConfig) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], eps=config.layer_norm_epsilon) * parameters[f"{name}.weight"].unsqueeze(1)
    bias = parameters.get(f"{name}.bias")
    return y if bias is None else y + bias.unsqueeze(1)


class _Dropout:
    """Multiplies by the factors it was given, each of them once.

    Args:
        factors: ``(S, N)``; null means that nothing is dropped.
    """

    def __init__(self, factors: Tensor | None) -> None:
        self.factors = factors
        self.used = 0

    def __call__(self, x: Tensor) -> Tensor:
        if self.factors is None:
            return x
        start, self.used = self.used, self.used + x[0].numel()
        return x * self.factors[:, start : self.used].view(x.shape)
