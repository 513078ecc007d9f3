"""The READMEs say what is: their commands, examples, file tree, reading path, pictures and links."""

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
from tinygpt_lightning.commands import chat, exchange, show

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinygpt_lightning"
FILES = sorted(path for path in ROOT.rglob("*.md") if not {"checkpoints", ".venv"} & {*path.relative_to(ROOT).parts})
TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
README = TEXTS["README.md"]
STAGES = TEXTS["tinygpt_lightning/callbacks/README.md"]
COMMANDS = sorted(
    {
        command.strip()
        for text in TEXTS.values()
        for block in re.findall(r"```(?:bash|console)\n(.*?)```", text, flags=re.DOTALL)
        for line in block.splitlines()
        for command in re.split(r"&&|\|", line.removeprefix("$ "))
        if command.strip().startswith("python -m tinygpt_lightning") and "heads.yaml" not in command
    }
)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 15


PARSERS = {
    "chat": chat.parser, "export": exchange.export_parser, "import": exchange.import_parser, "show": show.parser,
}  # fmt: skip


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


def test_a_stranger_reads_it_in_three_screens() -> None:
    english, vietnamese = README.split("## Tiếng Việt")
    assert len(english.splitlines()) <= 150
    assert len(vietnamese.splitlines()) <= 60


def test_the_reading_path_is_an_evening() -> None:
    (path,) = re.findall(r"## Read it\n(.*?)\n## ", README, flags=re.DOTALL)
    files = re.findall(r"^\d\. \[[^]]+\]\(([^)]+)\)", path, flags=re.MULTILINE)
    assert len(files) == 8
    assert sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files) <= 1900


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {path: length for path, length in lengths.items() if length > 330} == {}


def test_the_example_of_callbacks_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = [read_checkpoint(tmp_path / f"checkpoints/mine/stage-{n}.ckpt")["global_step"] for n in (1, 2, 3)]
    assert steps == [20, 40, 48]


@pytest.mark.slow
def test_the_example_of_stages_runs_and_resumes(tmp_path: Path) -> None:
    for kind, name, lines in (("python", "line.py", 20), ("yaml", "line.yaml", 15)):
        text = re.findall(rf"```{kind}\n(.*?)```", STAGES, flags=re.DOTALL)[0]
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


@pytest.mark.slow
def test_the_example_of_pairs_in_python_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", TEXTS["configs/README.md"], flags=re.DOTALL)
    assert len([line for line in example.splitlines() if line]) <= 6
    command = [sys.executable, "-W", "ignore", "-c", example]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "A unit of information"


def test_the_python_session_is_what_python_says(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (session,) = re.findall(r"```pycon\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(trained)
    session = session.replace("checkpoints/staged/", "checkpoints/small/")  # the same sentence, memorised in a second
    results = doctest.DocTestRunner().run(doctest.DocTestParser().get_doctest(session, {}, "README", None, None))
    assert (results.failed, results.attempted) == (0, 3)


def test_the_file_tree_is_the_package() -> None:
    (tree,) = re.findall(r"```\ntinygpt_lightning/\n(.*?)```", TEXTS["tinygpt_lightning/README.md"], flags=re.DOTALL)
    named = sorted(name for name in (line.split()[0] for line in tree.splitlines()) if not name.endswith("/"))
    assert named == sorted(path.name for path in PACKAGE.rglob("*.py") if not path.name.startswith("__"))


@pytest.mark.parametrize("file", FILES, ids=list(TEXTS))
def test_every_picture_and_link_is_there(file: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", file.read_text(encoding="utf-8")):
        if not target.startswith("https://"):
            assert (file.parent / target).exists(), target


def test_every_configuration_is_in_the_table_and_names_its_command() -> None:
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for file in files:
        assert f"`{file.name}`" in TEXTS["configs/README.md"]
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
