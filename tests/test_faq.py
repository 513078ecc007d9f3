"""The project's own questions and answers: what the file holds, and that a network learns all of it."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import Command

from tinygpt_lightning import load
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.noise import KINDS

ROOT = Path(__file__).parents[1]
SETTINGS = yaml.safe_load((ROOT / "configs/faq.yaml").read_text(encoding="utf-8"))
VIETNAMESE = set("ăâđêôơưáàảãạắằẳẵặấầẩẫậéèẻẽẹếềểễệíìỉĩịóòỏõọốồổỗộớờởỡợúùủũụứừửữựýỳỷỹỵ")


@pytest.fixture(scope="module")
def data() -> QADataModule:
    return QADataModule(path=str(ROOT / SETTINGS["data"]["path"]))


def test_there_are_200_pairs_half_of_them_vietnamese_none_said_twice(data: QADataModule) -> None:
    pairs = data.taught.pairs
    assert len(pairs) == 200
    assert data.file.repeated == []
    assert sum(bool(VIETNAMESE & set("".join(pair).lower())) for pair in pairs) >= 100
    assert len({pair.answer for pair in pairs}) >= 195


def test_no_pair_is_empty_talk_or_ends_twice(data: QADataModule) -> None:
    for question, answer in data.taught.pairs:
        assert question == question.strip()
        assert answer == answer.strip()
        assert len(answer) >= 30, answer
        assert not answer.endswith((".", "?")), "the template ends the sentence"


def test_what_it_says_of_the_project_is_there(data: QADataModule) -> None:
    answers = " ".join(pair.answer for pair in data.taught.pairs)
    named = {word.strip("',;.()") for word in answers.split() if word.startswith(("configs/", "tinygpt_lightning/"))}
    assert len(named) >= 5
    for path in named:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_all_200_are_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    result = command("fit", "--config", "configs/faq.yaml")
    assert result.code == 0, result.err
    assert "200/200 exact" in result.err
    trained = load("checkpoints/faq/version_0")
    questions, answers = zip(*trained.taught.pairs, strict=True)
    assert trained.answer_all(questions) == list(answers)
    source = random.Random(7)
    for kind, share in {"case": 1, "punctuation": 1, "spaces": 1, "diacritics": 0.98, "typo": 0.9}.items():
        asked = [(KINDS[kind](question, source), answer) for question, answer in trained.taught.pairs[::5]]
        right = [trained.ask(question).text == answer for question, answer in asked]
        assert sum(right) >= share * 40, kind
