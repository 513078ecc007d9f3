"""The commands, as a person types them."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SENTENCE, Command

from tinygpt_lightning import CharTokenizer, TinyGPTModule
from tinygpt_lightning.commands.table import COMMANDS

FIT = ("fit", "--config", "small.yaml")
PREDICT = ("predict", "--config", "small.yaml")


@pytest.fixture
def in_trained(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(trained)
    return trained


def test_fit_shows_the_sentence_and_where_the_run_lies(trained: Path) -> None:
    *lines, size = (trained / "out.txt").read_text(encoding="utf-8").splitlines()
    assert size.split()[0::2] == ["size", "MB"]
    assert lines == [
        "prompt     Question: Xin chào",
        "generated  Question: Xin chào ",
        "           Answer: Công ty BICweb kính chào quý khách!.",
        "exact      yes",
        "run        checkpoints/small/version_0",
        "look       tensorboard --logdir checkpoints",
    ]


def test_fit_says_one_plain_line_a_stage_where_nobody_watches(trained: Path) -> None:
    lines = (trained / "err.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["stage 1/2: 30 epochs", "stage 2/2: 30 epochs"]
    assert all(line.endswith(", exact") for line in lines)


def test_fit_leaves_the_files_of_a_run_and_no_others(trained: Path) -> None:
    files = sorted(path.name for path in (trained / "checkpoints/small/version_0").iterdir())
    assert files[0] == "config.yaml"
    assert files[1].startswith("events.out.tfevents")
    projector = ["projector", "projector_config.pbtxt"]  # TensorBoard's
    assert files[2:] == ["last.ckpt", *projector, "stage-1.ckpt", "stage-2.ckpt", "vocab.json"]
    assert sorted(path.name for path in trained.iterdir()) == ["checkpoints", "err.txt", "out.txt", "small.yaml"]


def test_the_run_keeps_its_vocabulary_and_every_setting(trained: Path) -> None:
    run = trained / "checkpoints/small/version_0"
    assert CharTokenizer.load(run / "vocab.json").vocab == CharTokenizer.from_text(SENTENCE).vocab
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert [stage["epochs"] for stage in config["stages"]] == [30, 30]
    assert config["model"]["config"]["n_embd"] == 64
    assert config["data"]["answer"] == "Công ty BICweb kính chào quý khách!"


def test_the_saved_settings_train_the_same_model(home: Path, trained: Path, command: Command) -> None:
    saved = (trained / "checkpoints/small/version_0/config.yaml").read_text(encoding="utf-8")
    (home / "again.yaml").write_text(saved, encoding="utf-8")
    assert command("fit", "--config", "again.yaml").code == 0
    first, second = (
        TinyGPTModule.load_from_checkpoint(path / "last.ckpt").state_dict()
        for path in (trained / "checkpoints/small/version_0", home / "checkpoints/again/version_0")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_predict_prints_the_sentence_and_nothing_else(in_trained: Path, command: Command) -> None:
    assert command(*PREDICT) == (0, SENTENCE + "\n", "")


def test_predict_needs_nothing_but_a_checkpoint(trained: Path, home: Path, command: Command) -> None:
    checkpoint = trained / "checkpoints/small/version_0/stage-2.ckpt"
    assert command("predict", "--ckpt_path", checkpoint) == (0, SENTENCE + "\n", "")


def test_predict_takes_the_newest_finished_run(in_trained: Path, command: Command) -> None:
    unfinished = in_trained / "checkpoints/small/version_7"
    unfinished.mkdir()
    try:
        assert command(*PREDICT).out == SENTENCE + "\n"
    finally:
        unfinished.rmdir()


def test_decomposed_prompts_work_all_the_same(in_trained: Path, command: Command) -> None:
    prompt = unicodedata.normalize("NFD", "Question: Xin chào")
    assert len(prompt) == 19
    assert command(*PREDICT, "--data.prompts", json.dumps([prompt])).out == SENTENCE + "\n"


def test_predict_continues_several_prompts_and_writes_them_down(in_trained: Path, command: Command) -> None:
    prompts = ["Question: Xin chào", "Question"]
    result = command(*PREDICT, "--data.prompts", json.dumps(prompts), "--output", "checkpoints/texts.jsonl")
    assert result.out == (SENTENCE + "\n") * 2
    rows = [json.loads(line) for line in Path("checkpoints/texts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"prompt": prompt, "text": SENTENCE} for prompt in prompts]


def test_a_file_that_cannot_be_written_is_named_and_the_old_one_kept(in_trained: Path, command: Command) -> None:
    result = command(*PREDICT, "--output", "nowhere/texts.jsonl")
    assert result == (2, "", "error: nowhere/texts.jsonl: No such file or directory\n")


def test_sampling_is_repeated_by_its_seed(in_trained: Path, command: Command) -> None:
    hot = (*PREDICT, "--generation.temperature", "9", "--generation.seed")
    first, again, other = (command(*hot, seed).out for seed in ("1", "1", "2"))
    assert first == again
    assert first != other
    assert first.startswith("Question: Xin chào")


@pytest.mark.parametrize("narrow", [("--generation.top_k", "1"), ("--generation.top_p", "0.01")])
def test_sampling_from_the_best_alone_is_greedy(in_trained: Path, command: Command, narrow: tuple[str, str]) -> None:
    assert command(*PREDICT, "--generation.temperature", "1", *narrow).out == SENTENCE + "\n"


def test_max_length_counts_the_prompt(in_trained: Path, command: Command) -> None:
    assert command(*PREDICT, "--generation.max_length", "25").out == SENTENCE[:25] + "\n"


def test_validate_prints_the_metrics(in_trained: Path, command: Command) -> None:
    result = command("validate", "--config", "small.yaml")
    metrics = dict(line.split() for line in result.out.splitlines())
    assert (result.code, result.err) == (0, "")
    assert metrics.keys() == {"val/loss", "val/exact_match", "val/next_char_error_rate", "val/perplexity"}
    assert (metrics["val/exact_match"], metrics["val/next_char_error_rate"]) == ("1", "0")


def test_a_second_fit_makes_the_next_run(home: Path, command: Command) -> None:
    stages = ("--stages", '[{"epochs": 1}]')
    for number in range(2):
        assert f"checkpoints/small/version_{number}" in command(*FIT, *stages).out
    assert sorted(path.name for path in Path("checkpoints/small").iterdir()) == ["version_0", "version_1"]


def test_several_configurations_name_the_folder_together(home: Path, command: Command) -> None:
    (home / "short.yaml").write_text("stages: [{epochs: 1}]", encoding="utf-8")
    assert "checkpoints/small-short/version_0" in command(*FIT, "--config", "short.yaml").out


def test_a_finished_run_has_nothing_to_go_on_with(in_trained: Path, command: Command) -> None:
    result = command(*FIT, "--ckpt_path", "last")
    assert (result.code, result.out) == (0, "")
    assert "version_0 is finished" in result.err


def test_more_stages_go_on_with_a_finished_run(home: Path, command: Command) -> None:
    assert command(*FIT, "--stages", '[{"epochs": 2}]').code == 0
    result = command(*FIT, "--stages", '[{"epochs": 2}, {"epochs": 3}]', "--ckpt_path", "last")
    assert "checkpoints/small/version_0" in result.out
    assert result.err.startswith("stage 2/2: 3 epochs")
    assert torch.load("checkpoints/small/version_0/last.ckpt", weights_only=True)["global_step"] == 5


def test_help_explains_every_setting_with_its_unit(command: Command) -> None:
    result = command("fit", "--help")
    assert result.code == 0
    for text in ("Width: channels of each position's vector", "in seconds", "The stages, in order", "data.question"):
        assert text in result.out
    assert result.out.index("--model.config.n_embd") < result.out.index("--trainer.accelerator")


def test_help_names_the_commands_and_the_experiment(command: Command) -> None:
    out = " ".join(command("--help").out.split())
    for name, entry in COMMANDS.items():
        assert f" {name} {entry.summary}" in out


def test_print_config_can_be_read_back(home: Path, command: Command) -> None:
    printed = command(*FIT, "--print_config").out
    config = yaml.safe_load(printed)
    assert config["model"]["optimizer"]["init_args"]["lr"] == 0.01
    (home / "printed.yaml").write_text(printed, encoding="utf-8")
    assert command("fit", "--config", "printed.yaml", "--print_config").out == printed


MISTAKES = {
    "unknown option": ((*FIT, "--nonsense", "3"), "--nonsense"),
    "unknown key": ((*FIT, "--data.qestion", "x"), "--data.qestion"),
    "mistyped key in a stage": ((*FIT, "--stages", '[{"epohs": 3}]'), "did you mean 'epochs'"),
    "mistyped key in a stage's optimizer": (
        (*FIT, "--stages", '[{"epochs": 3, "optimizer": {"class_path": "SGD", "init_args": {"rl": 1}}}]'),
        "'rl'",
    ),
    "no stages": ((*FIT, "--stages", "[]"), "at least one stage"),
    "0 epochs": ((*FIT, "--stages", '[{"epochs": 0}]'), "got 0"),
    "negative epochs": ((*FIT, "--stages", '[{"epochs": -3}]'), "got -3"),
    "epochs in words": ((*FIT, "--stages", '[{"epochs": "three"}]'), "epochs"),
    "unknown optimizer": ((*FIT, "--model.optimizer", "Adamm"), "Adamm"),
    "learning rate in words": ((*FIT, "--model.optimizer.lr", "slow"), "slow"),
    "learning rate below 0": ((*FIT, "--model.optimizer.lr", "-1"), "-1"),
    "heads that do not divide the width": ((*FIT, "--model.config.n_head", "7"), "n_head"),
    "no such configuration": (("fit", "--config", "none.yaml"), "none.yaml"),
    "no run to go on with": ((*FIT, "--ckpt_path", "last"), "--ckpt_path last"),
    "no such checkpoint to go on from": ((*FIT, "--ckpt_path", "none.ckpt"), "none.ckpt"),
    "no such checkpoint": (("predict", "--ckpt_path", "none.ckpt"), "none.ckpt"),
    "no finished run": (PREDICT, "no finished run in checkpoints/small"),
    "neither configuration nor checkpoint": (("predict",), "--ckpt_path FILE"),
    "no accelerator of that name": ((*FIT, "--trainer.accelerator", "abacus"), "abacus"),
    "an empty answer": ((*FIT, "--data.answer", ""), "data.answer"),
    "text that is no Unicode": ((*FIT, "--data.answer", "\ud800"), "lone surrogate"),
    "a file where the folder should be": ((*FIT, "--trainer.default_root_dir", "small.yaml"), "small.yaml"),
    "a folder that nobody can write to": ((*FIT, "--trainer.default_root_dir", "/proc/x"), "/proc/x"),
    "no such command": (("frobnicate",), "frobnicate"),
    "no command": ((), "fit"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_explained_in_five_lines_and_leaves_nothing_behind(
    home: Path, command: Command, name: str
) -> None:
    args, reason = MISTAKES[name]
    result = command(*args)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert len(result.err.splitlines()) <= 5
    assert "Traceback" not in result.err
    assert not [path for path in Path("checkpoints").rglob("*") if path.is_file() or "version_" in path.name]


PROMPT_MISTAKES = {
    "an empty prompt": (("--data.prompts", '[""]'), "expected at least one character"),
    "no prompt": (("--data.prompts", "[]"), "data.prompts"),
    "a character that the vocabulary lacks": (("--data.prompts", '["Xin chào?"]'), "'?' (U+003F) at position 9"),
    "a prompt longer than max_length": (("--generation.max_length", "5"), "max_length=5"),
    "max_length beyond n_positions": (("--generation.max_length", "1026"), "at most 1025, n_positions + 1"),
    "max_length 0": (("--generation.max_length", "0"), "max_length: expected 1 or more"),
    "a negative temperature": (("--generation.temperature", "-1"), "temperature"),
    "top_k 0": (("--generation.top_k", "0"), "top_k"),
    "top_p above 1": (("--generation.top_p", "1.5"), "top_p"),
}


@pytest.mark.parametrize("name", PROMPT_MISTAKES)
def test_a_prompt_that_cannot_be_continued_is_refused(in_trained: Path, command: Command, name: str) -> None:
    args, reason = PROMPT_MISTAKES[name]
    result = command(*PREDICT, *args)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert len(result.err.splitlines()) <= 5
