"""The README says what is: its commands, its example, its file tree, its pictures."""

from __future__ import annotations

import doctest
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command

from tinygpt_lightning import read_checkpoint
from tinygpt_lightning.commands import exchange
from tinygpt_lightning.commands.chat import command as chat_command

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(
    {
        command.strip()
        for block in re.findall(r"```(?:bash|console)\n(.*?)```", README, flags=re.DOTALL)
        for line in block.splitlines()
        for command in line.removeprefix("$ ").split("&&")
        if command.strip().startswith("python -m tinygpt_lightning")
    }
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10


PARSERS = {"chat": chat_command.parser, "export": exchange.export_parser, "import": exchange.import_parser}


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_parses(text: str, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    args = shlex.split(text)[3:]
    if args[0] in PARSERS:
        PARSERS[args[0]]().parse_args(args[1:])
        return
    result = command(*args, "--print_config")
    assert result.code == 0, result.err
    assert yaml.safe_load(result.out)


def test_the_example_of_stages_runs_and_goes_on(tmp_path: Path) -> None:
    for kind, name, lines in (("python", "line.py", 20), ("yaml", "line.yaml", 15)):
        text = re.findall(rf"```{kind}\n(.*?)```", README, flags=re.DOTALL)[-1]
        assert len([line for line in text.splitlines() if line]) <= lines
        (tmp_path / name).write_text(text, encoding="utf-8")
    ends = []
    for more in ([], ["--ckpt_path", "checkpoints/line/stage-1.ckpt"]):
        command = [sys.executable, "-W", "ignore", "line.py", "fit", "--config", "line.yaml", *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        files = sorted((tmp_path / "checkpoints/line").iterdir())
        assert [file.name for file in files] == [f"stage-{number}.ckpt" for number in range(1, 4)]
        ends.append(read_checkpoint(files[-1]))
        files[-1].unlink()
    assert ends[0]["epoch"] < 100
    assert all(torch.equal(weight, ends[1]["state_dict"][name]) for name, weight in ends[0]["state_dict"].items())


def test_ones_own_pairs_are_learnt_in_python(tmp_path: Path) -> None:
    text = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)[0]
    assert len([line for line in text.splitlines() if line]) <= 6
    command = [sys.executable, "-W", "ignore", "-c", text]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "A unit of information"


def test_what_is_shown_of_python_is_what_python_says(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = re.findall(r"```pycon\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(trained)
    session = session.replace("checkpoints/staged/", "checkpoints/small/")  # the same sentence, learnt in a second
    results = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(session, {}, "README", None, None))
    assert (results.failed, results.attempted) == (0, 3)


def test_the_file_tree_is_the_package() -> None:
    (tree,) = re.findall(r"```\ntinygpt_lightning/\n(.*?)```", README, flags=re.DOTALL)
    named = {name for name in (line.split()[0] for line in tree.splitlines()) if not name.endswith("/")}
    package = ROOT / "tinygpt_lightning"
    assert named == {path.name for path in package.rglob("*.py") if not path.name.startswith("__")}


def test_every_picture_and_link_is_there() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    files = [target for target in targets if not target.startswith("https://")]
    assert len(files) >= 5
    for file in files:
        assert (ROOT / file).is_file(), file


def test_every_configuration_is_in_the_table_and_names_its_command() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for file in files:
        assert f"`{file.name}`" in README
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# python -m tinygpt_lightning ")
        assert first.endswith(f"configs/{file.name}")


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.name)
def test_every_configuration_parses_by_its_own_command(
    file: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    args = shlex.split(file.read_text(encoding="utf-8").splitlines()[0])[4:]
    result = command(*args, "--print_config")
    assert result.code == 0, result.err
