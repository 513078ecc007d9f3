"""A file of one's own with the recipe: what follows from it, what a run is judged by, and what is never lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from conftest import Command

from tinygpt_lightning import load, read_checkpoint
from tinygpt_lightning.commands.main import main

ROOT = Path(__file__).parents[2]
PAIRS = {
    "Mấy giờ mở cửa?": "Từ 8 giờ sáng",
    "Can I bring my dog": "Yes, on a lead",
    "Где касса?": "У входа слева",
    "7 + 5": "12",
    "7 + 6": "13",
}
OTHER = {"Can I bring my dog": "Yes", "7 + 5": "12"}


def write(path: Path, pairs: dict[str, str]) -> Path:
    rows = [{"question": question, "answer": answer} for question, answer in pairs.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the recipe was used for `PAIRS`, and whose configuration names another file."""
    folder = tmp_path_factory.mktemp("recipe")
    settings = yaml.safe_load((ROOT / "configs/own.yaml").read_text(encoding="utf-8"))
    settings["data"]["path"] = "other.jsonl"
    (folder / "own.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    write(folder / "other.jsonl", OTHER)
    write(folder / "pairs.jsonl", PAIRS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", "--config", "own.yaml", "--data.path", "pairs.jsonl"])
    return folder


@pytest.fixture
def there(taught: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(taught)
    return taught


def test_every_pair_is_exact_and_the_values_stand_in_the_runs_settings(there: Path) -> None:
    trained = load("checkpoints/own/version_0")
    assert trained.answer_all(list(PAIRS)) == list(PAIRS.values())
    settings = yaml.safe_load(Path("checkpoints/own/version_0/config.yaml").read_text(encoding="utf-8"))
    config = trained.model.config
    for name in ("n_positions", "n_embd", "n_head"):
        assert settings["model"]["config"][name] == getattr(config, name)
    assert settings["data"]["template"] == trained.taught.template.pattern
    assert settings["auto"] is True
    assert settings["stages"][-1]["until"]["for_epochs"] == 3
    assert settings["data"]["repeat"] == 3
    assert "Repetition" in read_checkpoint("checkpoints/own/version_0/last.ckpt")["callbacks"]


def test_a_run_is_judged_by_what_it_was_taught(there: Path, command: Command) -> None:
    result = command("validate", "--config", "own.yaml")
    assert "val/exact_match        1\n" in result.out, "not by the file in the configuration"
    typed = command("validate", "--config", "own.yaml", "--data.path", "other.jsonl")
    assert "val/exact_match        0.5\n" in typed.out
    asked = command("predict", "--config", "own.yaml")
    assert asked.code == 0
    assert [line for line in asked.out.splitlines() if line.strip() in PAIRS.values()] == list(PAIRS.values())
    assert len(command("predict", "--config", "own.yaml", "--data.path", "other.jsonl").out.splitlines()) == 4


def test_predict_says_what_it_knows(there: Path, command: Command) -> None:
    questions = json.dumps(["can i bring my dog?", "Can my dog bring I"])
    asked = ("predict", "--config", "own.yaml", "--data.questions", questions)
    result = command(*asked, "--output", "rows.jsonl")
    assert result.code == 0
    assert "1 of 2 questions" in result.err
    assert "--output" in command(*asked).err
    known, foreign = map(json.loads, Path("rows.jsonl").read_text(encoding="utf-8").splitlines())
    assert (known["answer"], known["known"], known["confidence"]) == ("Yes, on a lead", True, 1.0)
    assert foreign["known"] is False
    assert foreign["confidence"] < 0.9


def test_a_question_is_answered_as_people_type_it(there: Path) -> None:
    trained = load("checkpoints/own/version_0")
    for question in ("can i bring my dog?", " Can I bring my dog", "Can I bring my dg"):
        assert trained.ask(question)[0] == "Yes, on a lead"
        assert trained.ask(question).known
    assert not trained.ask("Who won the match last night?").known


def test_a_recipe_needs_pairs(home: Path, command: Command) -> None:
    result = command("fit", "--config", ROOT / "configs/own.yaml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: data.path: ")
    assert not Path("checkpoints").exists()


@pytest.mark.parametrize("setting", [("data.repeat", -1), ("data.batch_size", 0), ("data.template", "abc")])
def test_a_wrong_setting_is_refused_before_a_recipe(home: Path, command: Command, setting: tuple[str, object]) -> None:
    Path("pairs.jsonl").write_text('{"question": "Q", "answer": "A"}\n', encoding="utf-8")
    name, value = setting
    result = command("fit", "--config", ROOT / "configs/own.yaml", "--data.path", "pairs.jsonl", f"--{name}", value)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert name.removeprefix("data.") in result.err
    assert len(result.err.splitlines()) == 1


def test_the_file_of_a_configuration_is_found_from_any_folder(home: Path, command: Command) -> None:
    (home / "project/configs").mkdir(parents=True)
    settings = yaml.safe_load((ROOT / "configs/own.yaml").read_text(encoding="utf-8"))
    settings["data"]["path"] = "configs/pairs.jsonl"
    config = home / "project/configs/mine.yaml"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    write(home / "project/configs/pairs.jsonl", PAIRS)
    assert command("fit", "--config", config, "--stages", '[{"epochs": 1}]').err.startswith("auto: 5 pairs, ")
    assert len(load("checkpoints/mine/version_0").taught.pairs) == len(PAIRS)


def test_a_setting_that_is_given_wins_and_the_rest_follows(home: Path, command: Command) -> None:
    write(home / "pairs.jsonl", PAIRS)
    settings = ("--model.config.n_embd", "24", "--model.config.n_head", "2", "--stages", '[{"epochs": 1}]')
    result = command("fit", "--config", ROOT / "configs/own.yaml", "--data.path", "pairs.jsonl", *settings)
    assert result.code == 1, "the pairs are not exact after one epoch"
    assert result.err.splitlines()[0].startswith("auto: 5 pairs, ")
    assert "n_embd 24, n_head 2" in result.err
    assert all(question in result.err for question in PAIRS)
    config = load("checkpoints/own/version_0").model.config
    assert (config.n_embd, config.n_head) == (24, 2)
    assert config.n_positions < 64


BASE = """
data: {path: pairs.jsonl, batch_size: 5, end_symbol: true}
stages: [{epochs: 2}, {epochs: 1, reset_optimizer: false}]
model:
  config: {n_embd: 32, n_head: 4, n_positions: 64, embd_pdrop: 0, attn_pdrop: 0, resid_pdrop: 0}
  optimizer: {class_path: AdamW, init_args: {lr: 1e-2}}
trainer: {accelerator: cpu}
"""
THIRD = '[{"epochs": 2}, {"epochs": 1, "reset_optimizer": false}, {"epochs": 1}]'


@pytest.fixture
def finished(home: Path, command: Command) -> Path:
    """The folder of a run with two stages."""
    (home / "base.yaml").write_text(BASE, encoding="utf-8")
    write(home / "pairs.jsonl", PAIRS)
    assert command("fit", "--config", "base.yaml").code == 0
    return home / "checkpoints/base/version_0"


def test_a_run_is_resumed_from_another_folder(
    finished: Path, command: Command, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    result = command("fit", "--ckpt_path", finished, "--stages", THIRD)
    assert result.code == 0, result.err
    assert (finished / "stage-3.ckpt").exists()
    assert [tuple(pair) for pair in load(finished).taught.pairs] == list(PAIRS.items())


def test_another_spelling_of_the_path_is_no_other_file(finished: Path, command: Command) -> None:
    spelt = str(Path.cwd() / "pairs.jsonl")
    result = command("fit", "--ckpt_path", finished, "--data.path", spelt, "--stages", THIRD)
    assert result.code == 0, result.err
    write(Path("pairs.jsonl"), {**PAIRS, "7 + 5": "11"})
    result = command("fit", "--ckpt_path", finished, "--stages", THIRD.replace("]", ', {"epochs": 1}]'))
    assert result.code == 2
    assert "pair 4 was '7 + 5 → 12' and is '7 + 5 → 11'" in result.err


def test_a_good_model_is_kept_where_a_further_stage_ends_worse(there: Path, command: Command) -> None:
    run = Path("checkpoints/own/version_0")
    stages = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["stages"]
    worse = {"epochs": 1, "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1.0}}}
    result = command("fit", "--ckpt_path", run, "--stages", json.dumps([*stages, worse]))
    assert result.code == 0, result.err
    assert str(run / "best.ckpt") in result.err
    assert "exact      5\n" in result.out
    assert "val/exact_match        1\n" in command("validate", "--config", "own.yaml").out
    assert not all(load(run).knows(load(run).taught.pairs)), "the last one is as it came"
    # A further stage that mends it leaves nothing to keep apart.
    mended = {"epochs": 300, "until": {"monitor": "val/exact_match", "mode": "max", "stopping_threshold": 1.0}}
    result = command("fit", "--ckpt_path", run, "--stages", json.dumps([*stages, worse, mended]))
    assert (run / "best.ckpt").exists() == ("exact      5\n" not in result.out or "best.ckpt" in result.err)
