"""Text from a model: greedy or sampled, one character at a time, with the past cached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinygpt_lightning.gpt.model import TinyGPT


@dataclass(frozen=True)
class GenerationConfig:
    """How `generate` continues a prompt.

    Args:
        max_length: Length of the text in characters, the prompt included; None means up to its end symbol, or the
            length of the longest text that was taught.
        temperature: 0 takes the likeliest character (greedy); 1 samples from the model's own distribution,
            less than 1 sharpens it, more flattens it.
        top_k: Sample only from this many of the likeliest characters; None means all.
        top_p: Sample only from the fewest characters whose probabilities add up to this; None means all
            (Holtzman et al. 2020).
        seed: Seed of the sampling: the same seed gives the same text for a prompt; None draws a new one each time.

    Raises:
        ValueError: If a number is out of range.
    """

    max_length: int | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length: expected 1 or more, or null, got {self.max_length}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: expected 0 or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: expected 1 or more, or null, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: expected more than 0 and at most 1, or null, got {self.top_p}")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2^63 - 1, or null, got {self.seed}")


def check_lengths(config: GenerationConfig, n_positions: int, *prompt_lengths: int) -> int:
    """Check the lengths of prompts before generation.

    Args:
        config: How the prompts are continued.
        n_positions: Number of positions of the model.
        prompt_lengths: Length of each prompt, in characters.

    Returns:
        The greatest length of the text, prompt included.

    Raises:
        ValueError: If a prompt is empty or longer than ``max_length``, or ``max_length`` is beyond ``n_positions``.
    """
    max_length = config.max_length or n_positions + 1
    # The last character is written and not read, so it needs no position.
    if max_length > n_positions + 1:
        raise ValueError(f"max_length: expected at most {n_positions + 1}, n_positions + 1, got {max_length}")
    if min(prompt_lengths) < 1:
        raise ValueError("prompt: expected at least one character, got none")
    if (longest := max(prompt_lengths)) > max_length:
        raise ValueError(f"prompt: expected at most max_length={max_length} characters, got {longest}")
    return max_length


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


class KVCache:
    """Keys and values of the positions seen so far, so that a new position need not compute them again.

    Every call takes the next slots, the same ones in all rows. In rows that are shorter than others, the slots that
    hold their padding are masked.

    Args:
        max_length: Number of slots.

    Attributes:
        lengths: Number of positions that each row has seen, ``(B,)``; None before the first call.

    Source: Shazeer 2019, section 2.4.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.lengths: Tensor | None = None
        self._filled = 0
        self._mask: Tensor | None = None  # slots that count, (B, 1, 1, max_length); None where all do
        self._keys = self._values = torch.empty(0)

    def logits(self, model: TinyGPT, ids: Tensor) -> Tensor:
        """Score the next characters, as ``model(ids)`` does, and keep the keys and values of ``ids``.

        Args:
            model: The model, in evaluation mode.
            ids: All of the prompts in the first call, then one new character of each text a call, ``(B, T)``.

        Returns:
            Logits of the new positions, ``(B, T, V)``.

        Raises:
            ValueError: If a cache that holds positions is given more than one new position, or a text is longer than
                ``n_positions``.
        """
        positions = torch.arange(ids.size(1), device=ids.device)  # (T,)
        if self.lengths is not None:
            positions = self.lengths.unsqueeze(1)  # (B, 1)
            if ids.size(1) > 1:
                raise ValueError(f"expected one new position after {self._filled} cached ones, got {ids.size(1)}")
        # The model's own forward pass, but for the keys and values of earlier positions.
        x = model.embed(ids, positions)  # (B, T, C)
        attention = model.h.attn
        q, k, v = attention.heads(model.h.ln_1(x))  # (B, H, T, C/H) each
        k, v, mask = self._extend(k, v)  # (B, H, S, C/H): S positions so far
        # A single position after the cached ones may see them all: there is no future to mask.
        is_causal = k.size(2) == q.size(2) and mask is None
        x = x + attention.merge(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal))
        x = x + model.h.mlp(model.h.ln_2(x))
        logits: Tensor = model.lm_head(model.ln_f(x))
        return logits

    def mask_padding(self, lengths: Tensor) -> None:
        """Mask the padding on the right of the prompts.

        Args:
            lengths: Number of characters of each prompt, ``(B,)``.
        """
        self.lengths = lengths
        if (lengths < self._filled).any():
            slots = torch.arange(self.max_length, device=lengths.device)
            self._mask = ((slots < lengths.unsqueeze(1)) | (slots >= self._filled)).view(-1, 1, 1, self.max_length)

    def keep(self, rows: Tensor) -> None:
        """Drop the texts that have ended.

        Args:
            rows: Whether each text continues, ``(B,)``.
        """
        assert self.lengths is not None  # noqa: S101  # there are rows
        self.lengths, self._keys, self._values = self.lengths[rows], self._keys[rows], self._values[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]

    def _extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append ``(B, H, T, C/H)`` keys and values; return those of all slots so far, and the mask of each row."""
        B, H, T, D = k.shape
        if self.lengths is None:
            self.lengths = torch.zeros(B, dtype=torch.long, device=k.device)
            self._keys, self._values = k.new_empty(B, H, self.max_length, D), v.new_empty(B, H, self.max_length, D)
        S = self._filled + T
        self._keys[:, :, self._filled : S], self._values[:, :, self._filled : S] = k, v
        self.lengths, self._filled = self.lengths + T, S
        return self._keys[:, :, :S], self._values[:, :, :S], None if self._mask is None else self._mask[..., :S]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off within the block; afterwards the model is in the mode that it had before."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Step(NamedTuple):
    """One more character of each text that continues.

    Args:
        rows: Indices of these texts among all prompts, ``(R,)``.
        ids: Their new characters, ``(R,)``.
        logits: The scores that the characters were chosen by, ``(R, V)``.
    """

    rows: Tensor
    ids: Tensor
    logits: Tensor


@torch.inference_mode()
def stream(
    model: TinyGPT,
    ids: Tensor,
    config: GenerationConfig | None = None,
    *,
    lengths: Tensor | None = None,
    end: int | None = None,
    use_cache: bool = True,
) -> Iterator[Step]:
    """Continue prompts as `generate` does, and raise as it does, a character at a time."""
    config = config or GenerationConfig()
    lengths = _lengths(ids) if lengths is None else lengths
    limit = check_lengths(config, model.config.n_positions, *lengths.tolist())
    generator = torch.Generator()  # on the CPU, so that a seed means the same on every device
    if config.seed is None:
        generator.seed()
    else:
        generator.manual_seed(config.seed)
    rows = (lengths < limit).nonzero().squeeze(1)  # (R,): the texts that continue
    texts, lengths = ids[rows], lengths[rows]
    # The longest prompt, and behind it as many slots as the shortest one still needs.
    cache = KVCache(int(lengths.max()) + limit - int(lengths.min())) if use_cache and rows.numel() else None
    new = None  # (R,): the characters that the cache has not seen
    with evaluating(model):
        while rows.numel():
            if cache and new is not None:
                logits = cache.logits(model, new.unsqueeze(1))[:, 0]  # (R, V)
            else:
                # The padding is on the right, where no character before it attends to it.
                texts = texts[:, : int(lengths.max())]
                scores = cache.logits(model, texts) if cache else model(texts)  # (R, T, V)
                logits = scores[torch.arange(len(rows)), lengths - 1]
                if cache:
                    cache.mask_padding(lengths)
            new = _choose(logits, config, generator)
            yield Step(rows, new, logits)
            if not cache:
                texts = F.pad(texts, (0, 1)).scatter(1, lengths.unsqueeze(1), new.unsqueeze(1))
            lengths = lengths + 1
            continues = lengths < limit if end is None else (lengths < limit) & (new != end)
            if not continues.all():
                rows, texts, lengths, new = rows[continues], texts[continues], lengths[continues], new[continues]
                if cache:
                    cache.keep(continues)


def generate(
    model: TinyGPT,
    ids: Tensor,
    config: GenerationConfig | None = None,
    *,
    lengths: Tensor | None = None,
    end: int | None = None,
    use_cache: bool = True,
) -> Tensor:
    """Continue prompts up to ``config.max_length`` characters, or their end symbol.

    Each text equals the text of its prompt alone. Dropout is off meanwhile, and the global random generators are left
    as they are.

    Args:
        model: The model; its training mode is restored.
        ids: Prompts, ``(B, T)``; shorter ones are padded on the right.
        config: Greedy by default; without a ``max_length`` the texts continue as far as the model has positions.
        lengths: Length of each prompt, ``(B,)``; None means that all have the same length.
        end: Id of the symbol that ends a text; None means that there is no such symbol.
        use_cache: Whether to keep keys and values for the next characters; the text is the same either way.

    Returns:
        Prompts and continuations, ``(B, L)`` with the longest one's length. Behind the end of a text its end symbol
        is repeated.

    Raises:
        ValueError: If a prompt is empty or too long, or ``max_length`` is beyond ``n_positions``.

    Source: Radford et al. 2019; caching as in Shazeer 2019, section 2.4.
    """
    config = config or GenerationConfig()
    lengths = _lengths(ids) if lengths is None else lengths.clone()
    fill = 0 if end is None else end
    limit = check_lengths(config, model.config.n_positions, *lengths.tolist())
    texts = F.pad(ids, (0, limit - ids.size(1)))
    texts = texts.masked_fill(torch.arange(limit, device=ids.device) >= lengths.unsqueeze(1), fill)
    for step in stream(model, ids, config, lengths=lengths.clone(), end=end, use_cache=use_cache):
        texts[step.rows, lengths[step.rows]] = step.ids
        lengths[step.rows] += 1
    return texts[:, : int(lengths.max())]


def _lengths(ids: Tensor) -> Tensor:
    return torch.full((ids.size(0),), ids.size(1), device=ids.device)


def _choose(logits: Tensor, config: GenerationConfig, generator: torch.Generator) -> Tensor:
    """The next character of each text, ``(R, V)`` to ``(R,)``."""
    if config.temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = next_character_probabilities(logits.cpu(), config)
    # A race: each character arrives after an exponential time, sooner the likelier it is, and the first one is a
    # draw from the distribution; `torch.multinomial` does the same. With a seed all texts use the same numbers, so
    # that each gets the character that it would get alone.
    runs = len(logits) if config.seed is None else 1
    times = torch.empty(runs, logits.size(-1)).exponential_(generator=generator)
    return (probabilities / times).argmax(dim=-1).to(logits.device)
