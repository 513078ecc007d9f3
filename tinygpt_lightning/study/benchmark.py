"""How fast replicates train together, and one after another: `python -m tinygpt_lightning.study.benchmark`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from jsonargparse import auto_cli
from torch.nn import functional as F

from tinygpt_lightning.gpt.memory import keep_freed_memory
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.study.design.recipe import read_recipe
from tinygpt_lightning.study.engine.ensemble import Ensemble


def compare(
    width: int = 3, heads: int = 1, inner: int | None = None, dropout: float = 0.0, seeds: int = 128, threads: int = 1,
    rounds: int = 5,
) -> str:  # fmt: skip
    """Time one step of a plain loop and of an ensemble, in turns, and say both and their ratio.

    Args:
        width: Of the model, ``n_embd``.
        heads: Of its attention.
        inner: Of its MLP; null means 4 × width.
        dropout: At all of its places.
        seeds: Replicates trained together.
        threads: Of the CPU, for both. A study runs one process with one thread on each core.
        rounds: Turns; the median counts.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    size = {"n_embd": width, "n_head": heads, "n_inner": inner, "n_positions": 64}
    pdrop = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
    recipe = read_recipe({"model": {"config": {**size, **pdrop}}})
    together = Ensemble(recipe, range(seeds), torch.device("cpu"), measure_updates=False)
    model = TinyGPT(recipe.config)
    optimizer, _ = recipe.build_optimizer(0, list(model.parameters()))
    lesson = together.lesson

    def alone() -> None:
        loss = F.cross_entropy(model(lesson.inputs[None])[0], lesson.targets)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()

    plain, stacked = _in_turns([(alone, 50), (together.train_epoch, 5)], rounds=rounds)
    return (
        f"width {width}, {threads} threads, replicate-steps per second: {1 / plain:.0f} one after another, "
        f"{seeds / stacked:.0f} together ({seeds}); ratio {plain * seeds / stacked:.1f}"
    )


def _in_turns(jobs: Sequence[tuple[Callable[[], None], int]], rounds: int) -> list[float]:
    """Median seconds of one call of each job, with so many calls in a turn."""
    seconds: list[list[float]] = [[] for _ in jobs]
    for job, _ in jobs:
        job()  # the first call allocates
    for _ in range(rounds):
        for times, (job, calls) in zip(seconds, jobs, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                job()
            times.append((time.perf_counter() - start) / calls)
    return [median(times) for times in seconds]


if __name__ == "__main__":
    print(auto_cli(compare, as_positional=False))
