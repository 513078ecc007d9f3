"""Greedy decoding of the default model's sentence: 18 characters given, 46 to find."""

from __future__ import annotations

import pytest
import torch
from beside import DEVICES, Versus
from original import Original
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from tinygpt_lightning.gpt.generation import GenerationConfig, generate
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT

GIVEN, LENGTH = 18, 64


@pytest.mark.parametrize("device", DEVICES)
def test_one_prompt(versus: Versus, device: str) -> None:
    model, prompt = TinyGPT(GPTConfig()).to(device).eval(), torch.randint(34, (1, GIVEN), device=device)
    config = GPT2Config(vocab_size=34, n_layer=1, bos_token_id=0, eos_token_id=0)
    peer, original = GPT2LMHeadModel(config).to(device).eval(), Original().to(device)
    peer.generation_config.eos_token_id = None
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]

    @torch.inference_mode()
    def floor() -> None:
        """Read the weights, once for the prompt and once for each character."""
        for rows in [GIVEN, *[1] * (LENGTH - GIVEN - 1)]:
            for layer in linears:
                F.linear(torch.ones(rows, layer.in_features, device=device), layer.weight, layer.bias)
        if device == "cuda":
            torch.cuda.synchronize()

    def hugging_face() -> None:
        mask = torch.ones_like(prompt)
        peer.generate(prompt, attention_mask=mask, max_length=LENGTH, do_sample=False, pad_token_id=0)

    versus(
        f"greedy {GIVEN} → {LENGTH}, width 768, {device}",
        lambda: generate(model, prompt, GenerationConfig(max_length=LENGTH)).tolist(),
        {
            "the original's": lambda: original.generate(prompt, LENGTH).tolist(),
            "Hugging Face's, cached": hugging_face,
            "floor: reading the weights": floor,
        },
        ["≤ 0.23", "≤ 0.58", "≤ 1.15"],
        rounds=11,
    )
