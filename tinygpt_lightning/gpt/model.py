"""GPT-2 with one transformer block, in plain PyTorch, to be read from top to bottom.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the names of the
parameters are those of OpenAI's release, linear weights are ``(out, in)``.

Shapes: ``B`` batch, ``T`` time, ``C`` channels (``n_embd``), ``H`` heads, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class GPTConfig:
    """Size and regularisation of a `TinyGPT`; the defaults are GPT-2 small's with one block.

    Args:
        vocab_size: Symbols the model knows.
        n_positions: Longest sequence, in characters.
        n_embd: Width: channels of each position's vector.
        n_head: Attention heads; they share the width evenly.
        n_inner: Width of the MLP's hidden layer, in channels; null means 4 × n_embd.
        bias: Whether linear layers and LayerNorms have a bias; lm_head never has one.
        tie_weights: Whether lm_head shares the token embedding's weights.
        initializer_range: Standard deviation of the initial weights, GPT-2's is 0.02; null keeps PyTorch's
            own layer defaults, as the original project does.
        embd_pdrop: Dropout probability of the embeddings.
        attn_pdrop: Dropout probability of the attention weights.
        resid_pdrop: Dropout probability of what attention and MLP add to the stream.
        layer_norm_epsilon: What LayerNorm adds to the variance.

    Raises:
        ValueError: If a size is below 1, ``n_head`` does not divide ``n_embd``, or a number is out of range.
    """

    vocab_size: int = 34
    n_positions: int = 1024
    n_embd: int = 768
    n_head: int = 12
    n_inner: int | None = None
    bias: bool = True
    tie_weights: bool = False
    initializer_range: float | None = None
    embd_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_head", "n_inner"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected 1 or more, got {value}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_head: expected a divisor of n_embd={self.n_embd}, got {self.n_head}")
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a probability from 0 to below 1, got {getattr(self, name)}")
        if self.initializer_range is not None and self.initializer_range <= 0:
            raise ValueError(f"initializer_range: expected more than 0, or null, got {self.initializer_range}")
        if self.layer_norm_epsilon <= 0:
            raise ValueError(f"layer_norm_epsilon: expected more than 0, got {self.layer_norm_epsilon}")


class KVCache:
    """The keys and values of the positions seen so far, so that a new one need not compute them again.

    Every call takes the next slots, the same ones in all rows. Where a row is shorter than others, the slots that
    hold its padding are masked.

    Args:
        max_length: Room for so many slots.

    Attributes:
        lengths: How many positions of each row are seen, ``(B,)``; none before the first ones.
    """

    def __init__(self, max_length: int) -> None:
        self.max_length = max_length
        self.lengths: Tensor | None = None
        self._filled = 0
        self._mask: Tensor | None = None  # which slots count, (B, 1, 1, max_length); null where all do
        self._keys = self._values = torch.empty(0)

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append ``(B, H, T, C/H)`` keys and values.

        Returns:
            Those of all slots so far, ``(B, H, S, C/H)``, and which of them each row has, ``(B, 1, 1, S)``; null
            where all rows have all.
        """
        B, H, T, D = k.shape
        if self.lengths is None:
            self.lengths = torch.zeros(B, dtype=torch.long, device=k.device)
            self._keys, self._values = k.new_empty(B, H, self.max_length, D), v.new_empty(B, H, self.max_length, D)
        S = self._filled + T
        self._keys[:, :, self._filled : S], self._values[:, :, self._filled : S] = k, v
        self.lengths, self._filled = self.lengths + T, S
        return self._keys[:, :, :S], self._values[:, :, :S], None if self._mask is None else self._mask[..., :S]

    def mask_padding(self, lengths: Tensor) -> None:
        """Forget the padding on the right of what was seen: only the beginning of each row counts.

        Args:
            lengths: How many positions of each row those are, ``(B,)``.
        """
        self.lengths = lengths
        if (lengths < self._filled).any():
            slots = torch.arange(self.max_length, device=lengths.device)
            self._mask = ((slots < lengths.unsqueeze(1)) | (slots >= self._filled)).view(-1, 1, 1, self.max_length)

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows.

        Args:
            rows: Which ones, truth values, ``(B,)``.
        """
        assert self.lengths is not None  # noqa: S101  # there are rows
        self.lengths, self._keys, self._values = self.lengths[rows], self._keys[rows], self._values[rows]
        if self._mask is not None:
            self._mask = self._mask[rows]


class CausalSelfAttention(nn.Module):
    """Every position gathers from itself and the positions before it (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T, C)``."""
        B, T, C = x.shape
        q, k, v = self._heads(x)  # (B, H, T, C/H) each
        mask = None
        if cache is not None:
            k, v, mask = cache.extend(k, v)  # (B, H, S, C/H): S positions so far
        # A single position after the cached ones may see them all: there is no future to mask.
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.attn_pdrop if self.training else 0.0,
            is_causal=k.size(2) == T and mask is None,
        )
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, H, T, C/H) -> (B, T, C)
        x = self.resid_dropout(self.c_proj(y))
        return x

    def weights(self, x: Tensor) -> Tensor:
        """How much each position (row) looks at each other one (column): ``(B, T, C)`` to ``(B, H, T, T)``."""
        q, k, _ = self._heads(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(dim=-1)

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, C/H)
        return q, k, v


class MLP(nn.Module):
    """Two linear layers with GPT-2's GELU between them, on each position by itself."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = nn.Linear(config.n_embd, n_inner, bias=config.bias)
        self.c_proj = nn.Linear(n_inner, config.n_embd, bias=config.bias)
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T, C)``."""
        # GPT-2 uses the tanh approximation of GELU (Hendrycks and Gimpel 2016, section 2).
        x = F.gelu(self.c_fc(x), approximate="tanh")
        x = self.dropout(self.c_proj(x))
        return x


class Block(nn.Module):
    """Attention, then MLP; each reads the normalised stream and adds to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: KVCache | None = None) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T, C)``."""
        x = x + self.attn(self.ln_1(x), cache)
        x = x + self.mlp(self.ln_2(x))
        return x


class TinyGPT(nn.Module):
    """The language model: character ids in, scores of the next character out.

    Args:
        config: Its size.

    >>> model = TinyGPT(GPTConfig())
    >>> sum(p.numel() for p in model.parameters())
    7928064
    >>> model(torch.zeros(1, 5, dtype=torch.long)).shape
    torch.Size([1, 5, 34])
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = Block(config)
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.initializer_range is not None:
            self._init_weights(config.initializer_range)
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Score every possible next character at every position.

        Args:
            ids: Character ids, ``(B, T)``.
            cache: What earlier calls left behind. Give it all of the prompt first, then one position a call.

        Returns:
            Logits, ``(B, T, V)``.

        Raises:
            ValueError: If the sequence is empty or longer than ``n_positions``, or an id is outside the
                vocabulary; or if a cache that holds positions is given more than one new position.
        """
        x = self._embed(ids, cache)  # (B, T, C)
        x = self.h(x, cache)
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, T, V)
        return logits

    @torch.no_grad()
    def attention_weights(self, ids: Tensor) -> Tensor:
        """What each head looks at: ``(B, T)`` ids to ``(B, H, T, T)`` weights; each row sums to 1."""
        with evaluating(self):
            return self.h.attn.weights(self.h.ln_1(self._embed(ids)))

    def _embed(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        T = ids.size(-1)
        positions, last = torch.arange(T, device=ids.device), T - 1  # (T,)
        if cache and cache.lengths is not None:
            positions, last = cache.lengths.unsqueeze(1), int(cache.lengths.max())  # (B, 1)
            if T > 1:
                raise ValueError(f"expected one new position after the {last} cached ones, got {T}")
        if not T or last >= self.config.n_positions:
            raise ValueError(
                f"expected a sequence of 1 to n_positions={self.config.n_positions} characters, got "
                f"{last + 1 if T else 0}"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(
                f"expected ids from 0 to {self.config.vocab_size - 1} (vocab_size - 1), "
                f"got {ids.min().item()} to {ids.max().item()}"
            )
        x: Tensor = self.drop(self.wte(ids) + self.wpe(positions))  # (B, T, C)
        return x

    @torch.no_grad()
    def _init_weights(self, std: float) -> None:
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("c_proj.weight"):
                # Each block adds twice to the residual stream: scaled by 1/√(2 · blocks) (Radford, section 2.3).
                parameter.normal_(std=std / math.sqrt(2))
            elif parameter.dim() == 2:
                parameter.normal_(std=std)


class _Undrawn(TorchFunctionMode):
    """Leaves parameters as they are made: to draw them on no device would load PyTorch's compiler, a second's work."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, nn.init.kaiming_uniform_, nn.init.uniform_, Tensor.normal_):
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


def without_weights(config: GPTConfig) -> TinyGPT:
    """A model that has only shapes, on PyTorch's meta device: it takes no memory, whatever its size.

    Raises:
        RuntimeError: If the sizes are beyond what a tensor can have.
    """
    with torch.device("meta"), _Undrawn():
        return TinyGPT(config)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for a while; the mode is put back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
