"""``chat`` as a person types it: in a terminal, and through a pipe."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from networks import learnt

from tinygpt_lightning.trained import save

GREETING = "/quit ends the chat."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat") / "last.ckpt"
    save(learnt(), path)
    return path


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, checkpoint: Path, **variables: str) -> None:
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            env = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "COLUMNS": "80", **variables}
            args = [sys.executable, "-m", "tinygpt_lightning", "chat", "--ckpt_path", str(checkpoint)]
            os.execve(sys.executable, args, env)  # noqa: S606
        self.read("> ")

    def read(self, end: str) -> str:
        """What appears, as far as ``end``."""
        text, deadline = "", time.monotonic() + 120
        while not text.endswith(end) and time.monotonic() < deadline:
            if select.select([self.file], [], [], 1)[0]:
                text += os.read(self.file, 1).decode(errors="replace") if not text else self._more()
        assert text.endswith(end), text
        return text

    def type(self, keys: str) -> str:
        os.write(self.file, keys.encode())
        return self.read("> ").replace("\r\n", "\n")

    def end(self, keys: str) -> int:
        # Python notices a Ctrl-C that comes just before it waits for a key only at the next key: people press again.
        for _ in range(20):
            os.write(self.file, keys.encode())
            deadline = time.monotonic() + 6
            while time.monotonic() < deadline:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.02)
        raise AssertionError(f"it does not end with {keys!r}")

    def _more(self) -> str:
        return os.read(self.file, 4096).decode(errors="replace")


@pytest.fixture
def terminal(checkpoint: Path) -> Iterator[Terminal]:
    terminal = Terminal(checkpoint)
    yield terminal
    os.close(terminal.file)


def test_in_a_terminal_answers_are_shaded_mistakes_said_and_control_d_ends_it(terminal: Terminal) -> None:
    assert "\nChào bạn!\n" in terminal.type("Xin chào\r")
    assert "'Z' (U+005A) at position 1" in terminal.type("Z\r")
    assert "temperature is 9.0" in terminal.type("/temperature 9\r")
    terminal.type("/seed 1\r")
    assert re.search(r"\x1b\[[0-9;]*48;2;\d+;\d+;\d+m", terminal.type("Xin chào\r"))
    assert "When " in terminal.type("/look 1\r")
    assert "Chào" in terminal.type("/temperature 0\r") + terminal.type("\x1b[A\x1b[A\x1b[A\r")  # the history
    assert terminal.end("\x04") == 0


@pytest.mark.parametrize("keys", ["\x03", "/quit\r"], ids=["Ctrl-C", "quit"])
def test_it_ends_quietly(terminal: Terminal, keys: str) -> None:
    assert terminal.end(keys) == 0
    assert "Traceback" not in terminal.read("\n")


def chat(*args: str | Path, stdin: str, **options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tinygpt_lightning", "chat", *map(str, args)],
        input=stdin, capture_output=True, text=True, encoding="utf-8", check=False, env={**os.environ, **options},
    )  # fmt: skip


def test_through_a_pipe_the_answer_comes_alone(checkpoint: Path) -> None:
    done = chat("--ckpt_path", checkpoint, stdin="Xin chào\nZ\n你好\n/quit\nXin chào\n", FORCE_COLOR="1")
    assert (done.returncode, done.stdout) == (1, "Chào bạn!\n\n我们很好。\n")
    assert done.stderr.startswith("character 'Z'")
    assert done.stderr.count("\n") == 2


def test_no_trainer_is_loaded(checkpoint: Path) -> None:
    program = (
        "import sys\nfrom tinygpt_lightning.commands.main import main\n"
        f"main(['chat', '--ckpt_path', {str(checkpoint)!r}])\nprint(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], input="Xin chào\n/top\n/look\n", capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"torch", "tinygpt_lightning.commands.chat"} <= loaded
    # The compiler is as slow to load as all the rest.
    absent = {"lightning", "pytorch_lightning", "torchmetrics", "jsonargparse", "tensorboard", "torch._dynamo", "scipy"}
    assert not loaded & absent


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("Xin chào\n".encode())))


def test_a_configuration_names_its_newest_finished_run(
    trained: Path, typed: None, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    answer = "Công ty BICweb kính chào quý khách!\n"
    assert command("chat", "--config", "small.yaml") == (0, answer, "")


def test_without_anything_the_newest_run_of_all_answers(
    trained: Path, typed: None, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    assert command("chat") == (0, "Công ty BICweb kính chào quý khách!\n", "")


def test_the_folder_of_a_configurations_runs_is_read_from_it(home: Path, typed: None, command: Command) -> None:
    (home / "elsewhere.yaml").write_text("trainer: {default_root_dir: there}", encoding="utf-8")
    result = command("chat", "--config", "small.yaml", "--config", "elsewhere.yaml")
    assert result == (
        2, "",
        "error: no finished run in there/small-elsewhere: train one with `python -m tinygpt_lightning fit --config "
        "small.yaml --config elsewhere.yaml`\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ((), "no finished run in checkpoints: expected --ckpt_path FILE, or --config FILE, got neither"),
        (("--ckpt_path", "none.ckpt"), "none.ckpt: cannot be read: No such file or directory"),
        (("--ckpt_path", "small.yaml"), "small.yaml: expected a file"),
        (("--config", "none.yaml"), "none.yaml: No such file or directory"),
        (("--config", "broken.yaml"), "broken.yaml: expected YAML"),
        (("--ckpt", "none.ckpt"), "unrecognized arguments: --ckpt none.ckpt"),
    ],
)
def test_a_mistake_is_said_in_a_line(
    home: Path, typed: None, command: Command, args: tuple[str, ...], reason: str
) -> None:
    (home / "broken.yaml").write_text("{", encoding="utf-8")
    result = command("chat", *args)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {reason}")
    assert result.err.count("\n") == 1


def test_somebody_has_to_ask(checkpoint: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert command("chat", "--ckpt_path", checkpoint).err == "error: stdin is closed; expected questions\n"
