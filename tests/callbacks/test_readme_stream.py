"""The README's complete example: a stream without length, in stages of steps, killed in the middle and resumed."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningModule
from test_anyones_campaign import differences

import tinygpt_lightning
from tinygpt_lightning import read_checkpoint

README = Path(tinygpt_lightning.__file__).parent / "callbacks" / "README.md"
WARNINGS = (
    "Checkpoint directory .* exists",
    ".*there is no last checkpoint available",
    ".*use of fork.* may lead to deadlocks",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{of}") for of in WARNINGS]


def kill(module: LightningModule, *_: Any) -> None:
    if module.global_step == 45:
        os.kill(os.getpid(), signal.SIGKILL)


def test_the_streaming_example_is_resumed_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL) if "steps=" in code
    )
    assert len([line for line in example.splitlines() if line.strip()]) <= 25

    def run(folder: Path, is_killed: bool = False) -> None:
        monkeypatch.chdir(folder)
        if is_killed:
            LightningModule.on_train_batch_end = kill  # in a process of its own
        exec(compile(example, "stream.py", "exec"), {"__name__": "__main__"})  # noqa: S102, the README's own code

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in killed, whole:
        folder.mkdir()
    process = multiprocessing.get_context("fork").Process(target=run, args=(killed, True))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert read_checkpoint(killed / "run" / "last.ckpt")["global_step"] == 40
    run(killed)
    run(whole)
    for number, steps in enumerate((20, 70, 100), 1):
        ends = [read_checkpoint(folder / "run" / f"stage-{number}.ckpt") for folder in (killed, whole)]
        assert ends[0]["global_step"] == steps
        assert not list(differences(*([end["state_dict"], end["optimizer_states"]] for end in ends)))
