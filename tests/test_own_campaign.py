"""The recipe on files as people might have them: all pairs exact, and the README's lines in their order."""

from __future__ import annotations

import io
import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import Command
from own_files import made

from tinygpt_lightning import load
from tinygpt_lightning.commands.table import PROGRAM
from tinygpt_lightning.data.text import QAPair

ROOT = Path(__file__).parents[1]
FILES = 100
LARGE = 20  # a file of 976 pairs; others of its size take up to some minutes


def characters(seed: int) -> int:
    return sum(len(pair.answer) for pair in made(seed))


# A fifth of the files: every third of the smaller ones, and a large one.
TRAINED = [*sorted(range(FILES), key=characters)[:57:3], LARGE]


def write(path: Path, pairs: list[QAPair]) -> None:
    path.write_text("".join(json.dumps(pair._asdict()) + "\n" for pair in pairs), encoding="utf-8")


def test_the_files_are_as_various_as_they_should_be() -> None:
    files = [made(seed) for seed in range(FILES)]
    sizes = [len(pairs) for pairs in files]
    assert min(sizes) == 1
    assert max(sizes) > 1500
    assert {len(pair.answer) for pairs in files for pair in pairs} >= set(range(1, 60))
    assert max(len(pair.answer) for pairs in files for pair in pairs) >= 380
    for pairs in files:
        assert len({question for question, _ in pairs}) == len(pairs)
        assert all(question.strip() and answer for question, answer in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", TRAINED)
def test_every_pair_of_any_file_is_exact(seed: int, home: Path, command: Command) -> None:
    write(home / "pairs.jsonl", made(seed))
    result = command("fit", "--config", ROOT / "configs/own.yaml", "--data.path", "pairs.jsonl", "--threads", "1")
    assert result.code == 0, result.err
    trained = load("checkpoints/own/version_0")
    questions, answers = zip(*trained.taught.pairs, strict=True)
    assert trained.answer_all(questions) == list(answers)
    assert all(trained.judge(*pair).known for pair in trained.taught.pairs)


@pytest.mark.slow
def test_the_lines_of_the_readme_run_in_their_order(
    home: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    shutil.copytree(ROOT / "configs", home / "configs")
    pairs = [QAPair(question[:40], answer[:80]) for question, answer in made(4, pairs=6, kind="sentences")]
    write(home / "configs/faq.jsonl", pairs)  # the real one takes longer
    write(home / "pairs.jsonl", pairs[1:])
    write(home / "questions.jsonl", pairs[1:3])
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Your own questions")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith(PROGRAM)]
    assert len(lines) >= 6
    for line in lines:
        monkeypatch.setattr("sys.stdin", io.StringIO(pairs[0].question + "\n"))  # for the chat
        result = command(*shlex.split(line.removeprefix(PROGRAM)))
        assert result.code == 0, f"{line}\n{result.err}"
    rows = [json.loads(row) for row in (home / "checkpoints/answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in rows] == [pair.answer for pair in pairs[1:3]]
