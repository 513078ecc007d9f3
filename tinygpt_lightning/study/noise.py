"""All that is random in a study: first weights and dropout, each a function of the seed.

Shapes: ``S`` seeds, ``T`` time, ``N`` numbers that dropout multiplies in one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT

# Spreads the seeds far apart, so that no seed's epochs or stages draw another's numbers.
_STRIDE = 1_000_003


def draw_parameters(config: GPTConfig, seeds: Sequence[int], stage: int, device: torch.device) -> dict[str, Tensor]:
    """Draw first weights, one network for each seed; the global generator is left alone.

    Args:
        config: Of the networks.
        seeds: One for each.
        stage: The stage, from 0, that they are drawn for. Those of the first one are the seed's own, as in a `fit`.
        device: Where they are needed; they are always drawn on the CPU.

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
    """Dropout that is a function of the seed and the epoch, and of nothing else.

    Not of the chunk, the process, the branch or the device, so runs that differ in one factor are paired: they
    see the same noise.

    Args:
        config: Of the networks: its sizes and probabilities.
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
        self.is_off = not any(p for _, p in sites)
        self.keep = torch.cat([torch.full((size,), 1 - p) for size, p in sites]).to(device)  # (N,)
        self.device = device
        self._generator = torch.Generator()

    def factors(self, seeds: Sequence[int], epoch: int) -> Tensor | None:
        """What dropout multiplies by at ``epoch``, ``(S, N)``; null where nothing is ever dropped."""
        if self.is_off:
            return None
        N = len(self.keep)
        # Four 16-bit numbers a draw: three times as fast as uniform floats, and p is off by 1e-5 at most.
        bits = torch.empty(len(seeds), -(-N // 4), dtype=torch.int64)
        for row, seed in zip(bits, seeds, strict=True):
            row.random_(-(2**63), None, generator=self._generator.manual_seed(seed * _STRIDE + epoch))
        uniform = bits.view(torch.int16)[:, :N].to(self.device)  # (S, N), from -2^15 to 2^15 - 1
        return (uniform < self.keep * 2**16 - 2**15) / self.keep
