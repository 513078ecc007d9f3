"""The smallest network that can say the sentence: the one that is released, and one that is trained anew."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import SENTENCE, Command

from tinygpt_lightning import load

ROOT = Path(__file__).parents[1]
RELEASED = ROOT / "checkpoints" / "smallest" / "last.ckpt"


def n_parameters(path: Path) -> int:
    return sum(parameter.numel() for parameter in load(path).model.parameters())


def test_the_released_network_says_the_sentence(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # it needs nothing but its file
    result = command("predict", "--ckpt_path", RELEASED)
    assert (result.code, result.out) == (0, f"{SENTENCE}\n")
    assert load(RELEASED).answer("Xin chào") == "Công ty BICweb kính chào quý khách!"
    assert n_parameters(RELEASED) == 237


def test_the_released_file_is_small_and_knows_no_machine() -> None:
    data = RELEASED.read_bytes()
    assert len(data) < 30_000
    # All that looks like a folder is the archive's own.
    assert set(re.findall(rb"/\w+/", data)) <= {b"/data/"}


@pytest.mark.slow
def test_the_smallest_network_learns_it(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = command("fit", "--config", ROOT / "configs" / "smallest.yaml", "--trainer.accelerator", "cpu")
    assert result.code == 0, result.err
    run = tmp_path / "checkpoints" / "smallest" / "version_0"
    assert n_parameters(run) == 237
    assert load(run).complete("Question: Xin chào") == SENTENCE
