"""A model small enough for tests, and the command line as a function."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is imported, and for the programs that tests start: tensors this small gain nothing from a second
# thread, and two threads that wait for each other on a busy machine take fifty times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from lightning.pytorch import Trainer

from tinygpt_lightning.commands.main import main

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
SMALL = """
stages:
  - epochs: 30
  - epochs: 30
rebuild: true
model:
  config: {n_embd: 64, n_head: 4}
  optimizer: {class_path: AdamW, init_args: {lr: 1e-2}}
trainer: {accelerator: cpu}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=12, help="how often the campaign kills a fit")
    parser.addoption("--campaign-seed", type=int, default=0, help="where the campaign's random instants come from")


def quiet_trainer(**settings: Any) -> Trainer:
    """A trainer on the CPU that writes nothing, unless it is told otherwise."""
    return Trainer(
        **{
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


@contextmanager
def in_one_process() -> Iterator[None]:
    """For a distributed strategy on one device: forget the process group, and the variables for later processes."""
    before = dict(os.environ)
    os.environ.pop("MASTER_PORT", None)  # of an earlier spawn: its port would still be in use at a later one
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Result(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """Type a command: exit code, stdout and stderr come back."""

    def run(*args: str | Path) -> Result:
        capfd.readouterr()
        code = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own to work in, with a configuration ``small.yaml``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``fit`` has been typed, in a process of its own."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "tinygpt_lightning", "fit", "--config", "small.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "out.txt").write_text(done.stdout, encoding="utf-8")
    (folder / "err.txt").write_text(done.stderr, encoding="utf-8")
    return folder
