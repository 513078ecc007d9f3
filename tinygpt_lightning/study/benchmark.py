"""How much faster replicates train together than one after another: `python -m tinygpt_lightning.study.benchmark`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch
from jsonargparse import auto_cli
from torch.nn import functional as F

from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.study.design import ModelSettings, Study
from tinygpt_lightning.study.ensemble import Ensemble, keep_freed_memory


def compare(
    width: int = 4, heads: int = 1, positions: int = 64, seeds: int = 512, threads: int = 2, rounds: int = 5
) -> str:
    """Time one epoch of a plain loop and of an ensemble, in turns, and say both and their ratio.

    Args:
        width: Of the model, ``n_embd``.
        heads: Of its attention.
        positions: Longest sequence, in characters.
        seeds: Replicates trained together.
        threads: Of the CPU, for both.
        rounds: Turns; the median counts.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    study = Study(model=ModelSettings(GPTConfig(n_embd=width, n_head=heads, n_positions=positions)))
    ids = torch.tensor([CharTokenizer.from_text(study.text).encode(study.text)])  # (1, T + 1)
    together = Ensemble(study.model.config, range(seeds), ids.size(1) - 1, study.learning_rate, torch.device("cpu"))
    # The engine looks for exactness after each epoch until it finds it, which the plain loop does not do.
    together.exact_after = [0] * seeds
    model = TinyGPT(study.model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=study.learning_rate)

    def alone() -> None:
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()

    plain, stacked = _in_turns([(alone, 50), (lambda: together.train_epoch(ids, len(study.prompt)), 3)], rounds=rounds)
    return (
        f"width {width}, {threads} threads, ms per epoch and seed: {plain * 1e3:.3f} one after another, "
        f"{stacked / seeds * 1e3:.3f} together ({seeds}); ratio {plain * seeds / stacked:.1f}"
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
