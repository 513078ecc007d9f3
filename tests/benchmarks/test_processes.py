"""What a user waits for: whole processes, from the command to its end, and the memory that they take."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from beside import Row, Versus

HERE = Path(__file__).resolve()
STAGED = HERE.parents[2] / "configs/staged.yaml"
ORIGINAL = HERE.with_name("original.py")
MIB = 2**20
# Weights, gradients and both moments of AdamW, of the default model's parameters.
TRAINING_STATE = 4 * 4 * 7_928_064 / MIB


def python(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, *map(str, arguments)], check=True, capture_output=True)


def tinygpt(*arguments: str | Path) -> None:
    python("-m", "tinygpt_lightning", *arguments)


@pytest.fixture(autouse=True)
def all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of ours and one of the original's in it."""
    folder = tmp_path_factory.mktemp("processes")
    os.chdir(folder)
    tinygpt("fit", "--config", STAGED)
    python(ORIGINAL, "train", folder / "original")
    return folder


def test_fit(versus: Versus, home: Path) -> None:
    def train() -> None:
        (home / "original/single_block_model_state_dict.pth").unlink()
        python(ORIGINAL, "train", home / "original")

    versus(
        "fit --config configs/staged.yaml",
        lambda: tinygpt("fit", "--config", STAGED),
        {"the original's training": train},
        ["≤ 1.0"],
        rounds=5,
    )


def test_predict(versus: Versus, home: Path) -> None:
    versus(
        "predict --config configs/staged.yaml",
        lambda: tinygpt("predict", "--config", STAGED),
        {
            "import torch, lightning": lambda: python("-c", "import torch, lightning"),
            "the original's generation": lambda: python(ORIGINAL, "generate", home / "original"),
        },
        ["≤ 1.12"],
    )


def test_load(versus: Versus, home: Path) -> None:
    program = "from tinygpt_lightning import load; print(load('checkpoints/staged/version_0').answer('Xin chào'))"
    versus(
        "load(...).answer(...)",
        lambda: python("-c", program),
        {"the original's generation": lambda: python(ORIGINAL, "generate", home / "original")},
        ["≤ 1.0"],
    )


def peak(*arguments: str | Path) -> float:
    """Most memory that a process has had, in MiB."""
    nowhere = subprocess.DEVNULL
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stdout=nowhere, stderr=nowhere)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / MIB


def test_peak_memory_of_fit(table: list[Row], home: Path) -> None:
    rows = [
        (peak("-m", "tinygpt_lightning", "fit", "--config", STAGED), peak("-c", "import torch, lightning"))
        for _ in range(3)
    ]
    ours, imports = (statistics.median(column) for column in zip(*rows, strict=True))
    least = imports + TRAINING_STATE
    table.append(
        Row("peak memory of fit", f"{ours:.0f} MiB", "imports and training state", f"{least:.0f} MiB",
            f"{ours / least:.2f}", "≤ 1.2")
    )  # fmt: skip
