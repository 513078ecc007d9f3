"""GPT-2 with one transformer block, in plain PyTorch, to be read from top to bottom.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the names of the
parameters are those of OpenAI's release, linear weights are ``(out, in)``.

Shapes: ``B`` batch, ``T`` time, ``C`` channels (``n_embd``), ``H`` heads, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class GPTConfig:
    """Sizes and dropout of a `TinyGPT`; the defaults are GPT-2 small's with one block.

    Args:
        vocab_size: Number of symbols in the vocabulary.
        n_positions: Longest sequence, in characters.
        n_embd: Width: channels of each position's vector.
        n_head: Attention heads; they share the width evenly.
        n_inner: Width of the MLP's hidden layer, in channels; None means 4 × n_embd.
        bias: Whether linear layers and LayerNorms have a bias; lm_head never has one.
        tie_weights: Whether lm_head shares the token embedding's weights.
        initializer_range: Standard deviation of the initial weights, GPT-2's is 0.02; None keeps PyTorch's
            own layer defaults, as the original project does.
        embd_pdrop: Dropout probability of the embeddings.
        attn_pdrop: Dropout probability of the attention weights.
        resid_pdrop: Dropout probability of the outputs of attention and MLP.
        layer_norm_epsilon: The number that LayerNorm adds to the variance.

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


class CausalSelfAttention(nn.Module):
    """Every position gathers from itself and the positions before it (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.attn_pdrop = config.attn_pdrop
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T - start, C)``: only the positions from ``start`` on gather."""
        q, k, v = self.heads(x)  # (B, H, T, C/H) each
        T = x.size(1)
        past = torch.ones(T - start, T, dtype=torch.bool, device=x.device).tril(start) if start else None
        dropout = self.attn_pdrop if self.training else 0.0
        return self.merge(
            F.scaled_dot_product_attention(
                q[:, :, start:], k, v, attn_mask=past, dropout_p=dropout, is_causal=past is None
            )
        )

    def weights(self, x: Tensor) -> Tensor:
        """How much each position (row) attends to each other one (column): ``(B, T, C)`` to ``(B, H, T, T)``."""
        q, k, _ = self.heads(x)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, T)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(dim=-1)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of each head: ``(B, T, C)`` to ``(B, H, T, C/H)`` each."""
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (3, B, H, T, C/H)
        return q, k, v

    def merge(self, y: Tensor) -> Tensor:
        """Bring the heads' outputs together: ``(B, H, T, C/H)`` to ``(B, T, C)``."""
        y = y.transpose(1, 2).flatten(2)  # (B, H, T, C/H) -> (B, T, C)
        y = self.resid_dropout(self.c_proj(y))
        return y


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
    """Attention, then MLP; each reads the normalised residual stream and adds to it."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """Map ``(B, T, C)`` to ``(B, T - start, C)``."""
        x = x[:, start:] + self.attn(self.ln_1(x), start)
        x = x + self.mlp(self.ln_2(x))
        return x


class TinyGPT(nn.Module):
    """The language model: character ids in, scores of the next character out.

    Args:
        config: Sizes of the model.

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

    def forward(self, ids: Tensor, start: int = 0) -> Tensor:
        """Score every possible next character at every position.

        Args:
            ids: Character ids, ``(B, T)``.
            start: The first position to score; those before it are read only, which takes a third of the time.

        Returns:
            Logits, ``(B, T - start, V)``.

        Raises:
            ValueError: If the sequence is empty or longer than ``n_positions``, or an id is outside the vocabulary.
        """
        x = self.embed(ids, torch.arange(ids.size(-1), device=ids.device))  # (B, T, C)
        x = self.h(x, start)  # (B, T - start, C)
        logits: Tensor = self.lm_head(self.ln_f(x))  # (B, T - start, V)
        return logits

    def embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Add the embeddings of characters and positions.

        Args:
            ids: Character ids, ``(B, T)``.
            positions: Where they stand in their text, from 0, ``(T,)`` or ``(B, T)``.

        Returns:
            The beginning of the residual stream, ``(B, T, C)``.

        Raises:
            ValueError: If there are no ids, or an id or a position is out of range.
        """
        if not torch.compiler.is_compiling():  # a traced model has no values to check
            self._check(ids, positions)
        x: Tensor = self.drop(self.wte(ids) + self.wpe(positions))  # (B, T, C)
        return x

    @torch.no_grad()
    def attention_weights(self, ids: Tensor) -> Tensor:
        """How much each head attends to each position: ``(B, T)`` ids to ``(B, H, T, T)``; each row sums to 1."""
        x = self.wte(ids) + self.wpe.weight[: ids.size(1)]  # (B, T, C), without dropout
        return self.h.attn.weights(self.h.ln_1(x))

    def _check(self, ids: Tensor, positions: Tensor) -> None:
        length = int(positions.max()) + 1 if ids.numel() else 0
        if not 1 <= length <= self.config.n_positions:
            raise ValueError(
                f"expected a sequence of 1 to n_positions={self.config.n_positions} characters, got {length}"
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(
                f"expected ids from 0 to {self.config.vocab_size - 1} (vocab_size - 1), "
                f"got {ids.min().item()} to {ids.max().item()}"
            )

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
