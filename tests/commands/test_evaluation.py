"""Where the texts of `predict` go, and what it reads."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import SENTENCE, Command

PREDICT = ("predict", "--config", "small.yaml")
ROW = json.dumps({"prompt": "Question: Xin chào", "text": SENTENCE}, ensure_ascii=False) + "\n"


@pytest.fixture
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    predict = f"{sys.executable} -m tinygpt_lightning {' '.join(PREDICT)}"
    return subprocess.run(
        ["bash", "-c", command.replace("PREDICT", predict)],  # noqa: S607
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_run_is_named_by_its_folder(trained: Path, home: Path, command: Command) -> None:
    folder = trained / "checkpoints/small/version_0"
    assert command("predict", "--ckpt_path", folder) == (0, SENTENCE + "\n", "")
    assert command("validate", "--ckpt_path", folder).code == 0


@pytest.mark.parametrize(
    "config",
    [
        "stages: [1]\n",
        "stages: [{epochs: 1}]\nmodel: {class_path: Other}\ndata: null\n",
        "trainer: {max_epochs: 3}\nmodel: {hidden: 5}\n",
        "- a list\n",
        "{",
        "!!python/object:os.system []\n",
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("verb", ["predict", "validate"])
def test_a_checkpoint_suffices_whatever_lies_beside_it(
    trained: Path, home: Path, command: Command, config: str | bytes, verb: str
) -> None:
    shutil.copy(trained / "checkpoints/small/version_0/last.ckpt", home / "m.ckpt")
    (home / "config.yaml").write_bytes(config if isinstance(config, bytes) else config.encode())
    result = command(verb, "--ckpt_path", "m.ckpt")
    assert result.code == 0
    assert result.out == SENTENCE + "\n" if verb == "predict" else "val/exact_match        1\n" in result.out
    assert result.err.startswith("warning: config.yaml: ")
    assert result.err.count("\n") == 1


def test_threads_are_as_many_as_asked_for(in_trained: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    assert command(*PREDICT).out == SENTENCE + "\n"
    assert asked == []
    assert command(*PREDICT, "--threads", "3").out == SENTENCE + "\n"
    assert asked == [3]


def test_callbacks_of_a_fit_play_no_part(in_trained: Path, command: Command) -> None:
    early = '[{"class_path": "EarlyStopping", "init_args": {"monitor": "x"}}, {"class_path": "ModelCheckpoint"}]'
    assert command(*PREDICT, "--trainer.callbacks", early) == (0, SENTENCE + "\n", "")


def test_a_link_keeps_pointing_where_it_does(in_trained: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "link").symlink_to("target")
    for _ in range(2):  # to nothing at first
        assert command(*PREDICT, "--output", tmp_path / "link").code == 0
        assert (tmp_path / "link").readlink() == Path("target")
        assert (tmp_path / "target").read_text(encoding="utf-8") == ROW
        assert len(list(tmp_path.iterdir())) == 2


def test_a_pipe_is_written_to(in_trained: Path, tmp_path: Path, command: Command) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_text(encoding="utf-8")))
    reader.start()
    assert command(*PREDICT, "--output", pipe).code == 0
    reader.join()
    assert received == [ROW]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_stdout_by_its_name_is_stdout(trained: Path, tmp_path: Path) -> None:
    for name, where in (("/dev/stdout", "| cat"), ("-", f"> {tmp_path}/all.txt; cat {tmp_path}/all.txt")):
        before = Path("/dev/stdout").readlink()
        result = shell(f"PREDICT --output {name} {where}", trained)
        assert (result.stdout, result.stderr) == (ROW + SENTENCE + "\n", "")
        assert Path("/dev/stdout").readlink() == before


def test_a_reader_who_has_seen_enough_is_no_failure(trained: Path) -> None:
    result = shell("PREDICT | true; echo ${PIPESTATUS[0]}", trained)
    assert (result.stdout, result.stderr) == ("141\n", "")


def test_a_closed_stdout_is_refused_and_a_closed_stderr_is_not(trained: Path) -> None:
    result = shell("PREDICT >&-", trained)
    assert result.returncode == 2
    assert result.stderr == "error: stdout is closed; expected a place for the results\n"
    result = shell("PREDICT 2>&-", trained)
    assert (result.returncode, result.stdout) == (0, SENTENCE + "\n")
