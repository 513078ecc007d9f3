"""Text from a model: greedy or sampled, one character at a time, with the past cached."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinygpt_lightning.gpt.model import KVCache, TinyGPT, evaluating


@dataclass(frozen=True)
class GenerationConfig:
    """How `generate` continues a prompt.

    Args:
        max_length: Length of the text in characters, the prompt included.
        temperature: 0 takes the likeliest character (greedy); 1 samples from the model's own distribution,
            less than 1 sharpens it, more flattens it.
        top_k: Sample only from the so many likeliest characters; null means all.
        top_p: Sample only from the fewest characters whose probabilities add up to this; null means all
            (Holtzman et al. 2020).
        seed: Seed of the sampling: the same seed gives the same text; null draws a new one.

    Raises:
        ValueError: If a number is out of range.
    """

    max_length: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_length < 1:
            raise ValueError(f"max_length: expected 1 or more, got {self.max_length}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, or null, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, or null, got {self.top_p}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2^63 - 1, or null, got {self.seed}")


def check_lengths(prompt_length: int, max_length: int, n_positions: int) -> None:
    """Refuse what cannot be generated.

    Raises:
        ValueError: If the prompt is empty or longer than ``max_length``, or ``max_length`` is beyond
            the model's ``n_positions``.
    """
    # The last character is written and not read, so it needs no position.
    if max_length > n_positions + 1:
        raise ValueError(f"max_length: expected at most {n_positions + 1}, n_positions + 1, got {max_length}")
    if prompt_length < 1:
        raise ValueError("prompt: expected at least one character, got none")
    if prompt_length > max_length:
        raise ValueError(f"prompt: expected at most max_length={max_length} characters, got {prompt_length}")


def next_character_probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """The distribution to sample from: temperature first, then top-k, then top-p.

    Args:
        logits: Scores before softmax, ``(..., V)``.
        config: Its temperature is above 0.

    Returns:
        Probabilities, ``(..., V)``.

    >>> logits = torch.tensor([0.5, 0.3, 0.2]).log()
    >>> next_character_probabilities(logits, GenerationConfig(temperature=1.0, top_k=2))
    tensor([0.6250, 0.3750, 0.0000])
    >>> next_character_probabilities(logits, GenerationConfig(temperature=1.0, top_p=0.5))
    tensor([1., 0., 0.])
    """
    ranked, order = logits.double().sort(dim=-1, descending=True, stable=True)
    # Relative to the best one, so that a tiny temperature overflows nothing but the hopeless.
    ranked = (ranked - ranked[..., :1]) / config.temperature
    if config.top_k is not None:
        ranked[..., config.top_k :] = -torch.inf
    if config.top_p is not None:
        probabilities = ranked.softmax(dim=-1)
        # A character stays while those before it have not reached top_p: the best one always does. The
        # slack of 1e-9 keeps rounding from letting in one more where they reach it exactly.
        before = probabilities.cumsum(dim=-1) - probabilities
        ranked[before >= config.top_p - 1e-9] = -torch.inf
        ranked[..., 0] = 0.0
    probabilities = ranked.softmax(dim=-1)
    return torch.empty_like(probabilities).scatter_(-1, order, probabilities).to(logits.dtype)


@torch.inference_mode()
def generate(model: TinyGPT, ids: Tensor, config: GenerationConfig | None = None, *, use_cache: bool = True) -> Tensor:
    """Continue prompts up to ``config.max_length`` characters.

    Dropout is off while it runs, and the global random generators are left as they are.

    Args:
        model: The model; its training mode is restored.
        ids: Prompts of one length, ``(B, T)``.
        config: Greedy and 64 characters long by default.
        use_cache: Whether to keep keys and values instead of computing them again for each new character;
            the text is the same either way.

    Returns:
        Prompt and continuation, ``(B, max_length)``.

    Raises:
        ValueError: If the prompt is empty or too long, or ``max_length`` is beyond ``n_positions``.

    Source: Radford et al. 2019; caching as in Shazeer 2019, section 2.4.
    """
    config = config or GenerationConfig()
    check_lengths(ids.size(1), config.max_length, model.config.n_positions)
    generator = torch.Generator()  # on the CPU, so that a seed means the same on every device
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)
    cache = KVCache(config.max_length) if use_cache else None
    new = ids  # (B, T): what the cache has not seen yet
    with evaluating(model):
        while ids.size(1) < config.max_length:
            logits = model(new if cache else ids, cache)[:, -1]  # (B, V)
            if config.temperature == 0:
                new = logits.argmax(dim=-1, keepdim=True)  # (B, 1)
            else:
                probabilities = next_character_probabilities(logits.cpu(), config)
                new = torch.multinomial(probabilities, 1, generator=generator).to(ids.device)
            ids = torch.cat([ids, new], dim=1)
    return ids
