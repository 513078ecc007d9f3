"""Ours beside its references: measured in turn, on the same threads, in one process tree; and the table of it all.

Name this folder to run it: ``python -m pytest tests/benchmarks -n0 --benchmark-enable``. What is measured beside a
reference passes however long it takes; `test_growth` alone asserts ratios, of the processor's time on one thread.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version

import pytest
import torch
from beside import Row, Versus, seconds, spread
from pytest_benchmark.fixture import BenchmarkFixture

VERSIONS = ("torch", "lightning", "transformers")

ROWS = pytest.StashKey[list[Row]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("ignore"))  # a compiler's and a peer's own


@pytest.fixture
def table(request: pytest.FixtureRequest) -> list[Row]:
    """The lines that are printed at the end."""
    return request.config.stash[ROWS]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """All cores, as torch has it by itself; the test suite's own choice is one."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def versus(benchmark: BenchmarkFixture, table: list[Row]) -> Versus:
    """Measure ours and its references in turn: medians, quartiles, and the median of the ratios."""

    def measure(
        work: str,
        ours: Callable[[], object],
        references: Mapping[str, Callable[[], object]],
        goals: Sequence[str] = (),
        rounds: int = 7,
        per: int = 1,
    ) -> None:
        times: dict[str, list[float]] = {name: [] for name in references}

        def turn() -> None:
            for name, reference in references.items():
                times[name].append(seconds(reference))

        benchmark.pedantic(ours, setup=turn, rounds=rounds, warmup_rounds=1)
        if benchmark.stats is None:  # --benchmark-disable: all of it has run once
            return
        own = benchmark.stats.stats.data
        for (name, all_times), goal in zip(times.items(), [*goals, *["–"] * len(times)], strict=False):
            other = all_times[-len(own) :]  # without the turn that warms up
            ratios = [a / b for a, b in zip(own, other, strict=True)]
            table.append(
                Row(work, spread(own, per), name, spread(other, per), f"{statistics.median(ratios):.2f}", goal)
            )

    return measure


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section("ours beside its references: medians (quartiles), and the medians of the ratios")
    header = Row("work", "ours", "against", "reference", "ratio", "goal")
    for row in (header, Row(*["---"] * 6), *rows):
        terminalreporter.write_line(f"| {' | '.join(row)} |")
    machine = "GPU " + torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    terminalreporter.write_line(
        f"\nPython {platform.python_version()}, {versions}; {machine}, {os.cpu_count()} cores, {platform.system()}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
