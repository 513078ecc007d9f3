"""Parts of a model taken out for a while, and a pass recorded: for pages whose model is too large to compute there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tinygpt_lightning.gpt.generation import evaluating
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT


def parts(config: GPTConfig) -> list[str]:
    """The parts that can be taken out: both embeddings, attention, the MLP and, where there are several, each head."""
    heads = [f"head {h}" for h in range(config.n_head)] if config.n_head > 1 else []
    return ["attn", "mlp", "wte", "wpe", *heads]


@contextmanager
def taken_out(model: TinyGPT, *names: str) -> Iterator[None]:
    """Let parts of ``model`` add nothing while the block runs.

    Args:
        model: The model; its weights stay as they are, so a tied ``lm_head`` does not lose the token embedding.
        names: Names among `parts`.

    Raises:
        ValueError: If a name is not among them.
    """
    known = parts(model.config)
    with ExitStack() as stack:
        for name in names:
            if name not in known:
                raise ValueError(f"expected one of {', '.join(known)}, got {name!r}")
            if name.startswith("head "):
                projection: nn.Module = model.h.attn.c_proj
                stack.enter_context(projection.register_forward_pre_hook(_without_head(model.config, int(name[5:]))))
            else:
                part = {"attn": model.h.attn.c_proj, "mlp": model.h.mlp, "wte": model.wte, "wpe": model.wpe}[name]
                stack.enter_context(part.register_forward_hook(lambda _module, _inputs, output: output * 0))
        yield


def _without_head(config: GPTConfig, h: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    size = config.n_embd // config.n_head
    kept = torch.ones(config.n_embd)
    kept[h * size : (h + 1) * size] = 0
    return lambda _module, inputs: (inputs[0] * kept,)


def record(model: TinyGPT, ids: Tensor) -> dict[str, Tensor]:
    """What the model computes on its way from characters to probabilities.

    Args:
        model: The model.
        ids: The text, ``(T,)``.

    Returns:
        By the names in ``model.js``: one row for each position, ``(T, C)``, ``(T, n_inner)`` or ``(T, V)``; the scores
        before softmax and the attention of each head, ``(T, H, T)``. What is a sum or a softmax of these is not among
        them.
    """
    h = model.h
    rows: dict[str, Tensor] = {}

    def keep(*names: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            rows.update(zip(names, output.view(len(ids), len(names), -1).unbind(1), strict=True))

        return hook

    def keep_input(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda _module, inputs: rows.update({name: inputs[0].view(len(ids), -1)})

    with ExitStack() as stack, torch.no_grad(), evaluating(model):
        for part, names in (
            (model.wte, ["wte"]), (model.wpe, ["wpe"]), (h.ln_1, ["ln_1"]), (h.attn.c_attn, ["q", "k", "v"]),
            (h.attn.c_proj, ["attn"]), (h.ln_2, ["ln_2"]), (h.mlp.c_fc, ["c_fc"]), (h.mlp, ["mlp"]),
            (model.ln_f, ["ln_f"]),
        ):  # fmt: skip
            stack.enter_context(part.register_forward_hook(keep(*names)))
        stack.enter_context(h.attn.c_proj.register_forward_pre_hook(keep_input("y")))
        stack.enter_context(h.mlp.c_proj.register_forward_pre_hook(keep_input("gelu")))
        rows["logits"] = model(ids.unsqueeze(0))[0]
        rows["att"] = model.attention_weights(ids.unsqueeze(0))[0].transpose(0, 1)  # (T, H, T)
    return rows
