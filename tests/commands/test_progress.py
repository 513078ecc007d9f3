"""What a person sees, in a terminal that is none."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Command


def test_a_terminal_shows_one_line_for_each_stage(home: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tinygpt_lightning", "fit", "--config", "small.yaml"]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(command, cwd=home, stderr=theirs, stdout=subprocess.DEVNULL, env=environment) as fit:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
    assert fit.returncode == 0
    final = shown.decode().split("\r\n")[-3:]
    assert shown.startswith(b"fit: importing")
    assert "stage 1/2" in final[0]
    assert "stage 2/2" in final[1]
    assert all("30/30" in line and "exact" in line for line in final[:2])


def test_exactness_that_was_not_measured_is_unknown(home: Path, command: Command) -> None:
    result = command("fit", "--config", "small.yaml", "--trainer.limit_val_batches", "0")
    assert "exact      yes" in result.out
    assert all("not measured" in line for line in result.err.splitlines())
    assert "not exact" not in result.err


@pytest.mark.parametrize("limit", ["limit_val_batches", "overfit_batches"])
def test_one_batch_is_not_all_pairs(home: Path, command: Command, limit: str) -> None:
    rows = [f'{{"question": "{i}", "answer": "{"no" * i}"}}\n' for i in range(1, 5)]
    Path("pairs.jsonl").write_text("".join(rows), encoding="utf-8")
    pairs = ("--data.path", "pairs.jsonl", "--data.batch_size", 2, "--model.config.n_positions", 40)
    result = command("fit", "--config", "small.yaml", *pairs, f"--trainer.{limit}", 1, "--stages", "[{epochs: 1}]")
    assert "of the measured pairs" in result.err


def test_a_run_that_has_not_learnt_the_sentence_says_so(home: Path, command: Command) -> None:
    result = command("fit", "--config", "small.yaml", "--stages", '[{"epochs": 1}]')
    assert "exact      no" in result.out
    assert result.err.startswith("stage 1/1: 1 epochs, loss ")
    assert result.err.endswith("not exact yet\n")
