"""The study's README: its commands parse, its example is a study, its links exist, its table names every config."""

import re
import shlex

import pytest
import yaml

from tinygpt_lightning.study.command import parse

from .tiny import ROOT

FOLDER = ROOT / "tinygpt_lightning" / "study"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
PREFIX = "python -m tinygpt_lightning study "
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
    if line.startswith(PREFIX)
]
[EXAMPLE] = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("text", COMMANDS)
def test_every_command_parses(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads.yaml").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    study, _ = parse(shlex.split(text.removeprefix(PREFIX)))
    assert study.cells
    if "heads.yaml" in text:
        assert len(study.cells) == 2 * 2
        assert study.plan.title == yaml.safe_load(EXAMPLE)["title"]


def test_there_are_commands():
    assert len(COMMANDS) >= 3


def test_every_link_and_figure_exists():
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert len(targets) >= 5
    for target in targets:
        assert (FOLDER / target).is_file(), target


def test_every_config_of_a_study_is_in_the_table():
    for path in (ROOT / "configs").glob("*.yaml"):
        if PREFIX in path.read_text(encoding="utf-8").splitlines()[0] + " ":
            assert f"| `{path.name}` |" in README
