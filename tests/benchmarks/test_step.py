"""A training step of the default model, and what threads, bfloat16 and the compiler bring."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from beside import DEVICES, Versus
from original import SENTENCE, Original, encode
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from tinygpt_lightning.commands.main import keep_freed_memory
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.module import next_token_loss

Step = Callable[[], object]
IDS = torch.randint(34, (1, 64), generator=torch.Generator().manual_seed(0))
STEPS = 20


def step_of(loss: Callable[[], torch.Tensor], parameters: list[nn.Parameter], *, fused: bool = True) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, fused=fused or None)

    def step() -> None:
        for _ in range(STEPS):
            value = loss()
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        value.item()

    return step


def ours(width: int, device: str, *, bf16: bool = False, compiled: bool = False) -> Step:
    model = TinyGPT(GPTConfig(n_embd=width, n_head=max(1, width // 64))).to(device)
    forward = torch.compile(model) if compiled else model
    ids = IDS.to(device)

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits = forward(ids[:, :-1])
        return next_token_loss(logits.float(), ids[:, 1:])

    return step_of(loss, list(model.parameters()))


def hugging_face(device: str) -> Step:
    config = GPT2Config(vocab_size=34, n_layer=1, bos_token_id=0, eos_token_id=0)
    model, ids = GPT2LMHeadModel(config).to(device).train(), IDS.to(device)
    return step_of(lambda: model(ids, labels=ids).loss, list(model.parameters()))


def original(device: str) -> Step:
    model, ids = Original().to(device), encode(SENTENCE).to(device)
    # As the original has it: without the fused step.
    return step_of(lambda: model.loss(ids), list(model.parameters()), fused=False)


def floor(device: str) -> Step:
    """The matrix products of a step, forward and backward, and one fused pass of AdamW; nothing else."""
    model = TinyGPT(GPTConfig()).to(device)
    products = []
    for layer in (m for m in model.modules() if isinstance(m, nn.Linear)):
        x = torch.randn(63, layer.in_features, device=device)
        products.append((x, layer.weight.detach(), torch.randn(63, layer.out_features, device=device)))
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        for _ in range(STEPS):
            for x, weight, gradient in products:
                F.linear(x, weight)
                gradient @ weight
                gradient.T @ x
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def as_in_fit(device: str) -> Step:
    """Ours, with memory kept between the steps as `fit` has it: a setting of the whole process."""
    keep_freed_memory()
    return ours(768, device)


class Elsewhere:
    """A contestant in a process of its own."""

    def __init__(self, make: Callable[[str], Step], device: str) -> None:
        command = [sys.executable, __file__, make.__name__, device, str(torch.get_num_threads())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        print("go", file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "done\n"


@pytest.mark.parametrize("device", DEVICES)
def test_a_step(versus: Versus, device: str) -> None:
    references = {
        "the original's": Elsewhere(original, device),
        "Hugging Face's": Elsewhere(hugging_face, device),
        "floor: products, AdamW": Elsewhere(floor, device),
    }
    step = Elsewhere(as_in_fit, device)
    versus(f"training step, width 768, {device}", step, references, ["≤ 0.55", "–", "≤ 1.25"], rounds=11, per=STEPS)
    for contestant in (step, *references.values()):
        contestant.process.communicate()


@pytest.mark.parametrize("width", [64, 768])
@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_and_the_compiler(versus: Versus, width: int, device: str) -> None:
    variants = {"bf16-mixed": ours(width, device, bf16=True), "torch.compile": ours(width, device, compiled=True)}
    versus(f"training step in float32, width {width}, {device}", ours(width, device), variants, per=STEPS)


@pytest.mark.parametrize("width", [64, 768])
def test_threads(versus: Versus, width: int) -> None:
    step, all_threads = ours(width, "cpu"), torch.get_num_threads()

    def with_threads(count: int) -> Step:
        def run() -> None:
            torch.set_num_threads(count)
            step()

        return run

    versus(
        f"training step on {all_threads} threads, width {width}", with_threads(all_threads),
        {"on one thread": with_threads(1)}, per=STEPS,
    )  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    contest = {make.__name__: make for make in (as_in_fit, original, hugging_face, floor)}[sys.argv[1]](sys.argv[2])
    for _ in sys.stdin:
        contest()
        print("done", flush=True)
