"""What is measured, as a line of a table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
import torch

Versus = Callable[..., None]
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


class Row(NamedTuple):
    """A line of the table.

    Args:
        work: What was measured.
        ours: Ours, with its unit and its spread.
        against: The reference.
        reference: The same of the reference.
        ratio: Ours divided by the reference, or by how much it is more.
        goal: What was aimed at.
    """

    work: str
    ours: str
    against: str
    reference: str
    ratio: str
    goal: str


def seconds(work: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def spread(times: Sequence[float], per: int = 1) -> str:
    """Median and quartiles of seconds, each divided by ``per``."""
    low, median, high = (1e3 * q / per for q in statistics.quantiles(times, n=4, method="inclusive"))
    if median >= 1000:
        return f"{median / 1e3:.2f} s ({low / 1e3:.2f}–{high / 1e3:.2f})"
    return f"{median:.3g} ms ({low:.3g}–{high:.3g})"
