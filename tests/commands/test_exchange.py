"""``export`` and ``import``, as a person types them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import SENTENCE, Command
from networks import untrained

from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.trained import load, save

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a checkpoint in it."""
    monkeypatch.chdir(tmp_path)
    save(untrained(), "a.ckpt")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_run_goes_out_and_comes_back_as_it_was(trained: Path, home: Path, command: Command) -> None:
    run = trained / "checkpoints/small/version_0"
    result = command("export", "--ckpt_path", run, "--output", "out")
    assert (result.code, result.out, result.err.count("\n")) == (0, "", 1)
    assert "out" in result.err
    assert names(home / "out") == FILES
    assert command("import", "--from", "out", "--output", "back.ckpt").code == 0
    before, after = load(run), load("back.ckpt")
    assert (after.tokenizer.vocab, after.taught, after.model.config) == (
        before.tokenizer.vocab, before.taught, before.model.config,
    )  # fmt: skip
    for name, weight in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], weight)
    # It is a checkpoint as all others.
    assert command("predict", "--ckpt_path", "back.ckpt") == (0, SENTENCE + "\n", "")
    assert command("validate", "--ckpt_path", "back.ckpt").code == 0
    result = command("fit", "--config", "small.yaml", "--ckpt_path", "back.ckpt")
    assert result == (
        2,
        "",
        "error: back.ckpt: expected a checkpoint of a fit, to continue from, got one of weights alone\n",
    )


def test_a_checkpoint_to_share_has_the_weights_alone(here: Path, command: Command) -> None:
    assert command("export", "--ckpt_path", "a.ckpt", "--weights", "shared.ckpt") == (0, "", "")
    trained, shared = load("a.ckpt"), load("shared.ckpt")
    assert shared.taught == trained.taught
    assert all(map(torch.equal, shared.model.state_dict().values(), trained.model.state_dict().values()))
    assert "optimizer_states" not in read_checkpoint("shared.ckpt")
    result = command("export", "--ckpt_path", "a.ckpt", "--weights", "no/shared.ckpt")
    assert result == (2, "", "error: --weights no/shared.ckpt: No such file or directory\n")


def test_an_earlier_export_is_replaced_whole(here: Path, command: Command) -> None:
    for n_embd in (32, 48):
        save(untrained(n_embd=n_embd), "a.ckpt")
        assert command("export", "--ckpt_path", "a.ckpt", "--output", "out").code == 0
        assert json.loads(Path("out/config.json").read_text(encoding="utf-8"))["n_embd"] == n_embd
    assert names(here) == ["a.ckpt", "out"]


def test_an_empty_folder_and_a_link_to_one_are_filled(here: Path, command: Command) -> None:
    Path("out").mkdir()
    Path("link").symlink_to("out")
    assert command("export", "--ckpt_path", "a.ckpt", "--output", "link").code == 0
    assert Path("link").is_symlink()
    assert names(here / "out") == FILES


def test_the_originals_folder_comes_in(here: Path, command: Command) -> None:
    network = untrained(n_head=1, n_embd=24)
    Path("theirs").mkdir()
    torch.save(network.model.state_dict(), "theirs/single_block_model_state_dict.pth")
    network.tokenizer.save("theirs/vocab.json")
    assert command("import", "--from", "theirs", "--output", "b.ckpt").code == 0
    assert list(load("b.ckpt").tokenizer.vocab) == sorted(network.tokenizer.vocab)


MISTAKES = {
    "somebody else's folder": (
        ("export", "--ckpt_path", "a.ckpt", "--output", "mine"),
        "--output mine: expected a new folder or an earlier export, got one that holds 'diary.txt'",
    ),
    "a file": (("export", "--ckpt_path", "a.ckpt", "--output", "a.ckpt"), "a.ckpt: expected a folder, got a file"),
    "nowhere": (("export", "--ckpt_path", "a.ckpt", "--output", "no/where"), "no/where: No such file or directory"),
    "no checkpoint": (("export", "--ckpt_path", "b.ckpt", "--output", "out"), "b.ckpt: cannot be read"),
    "no biases": (
        ("export", "--ckpt_path", "unbiased.ckpt", "--output", "out"),
        "unbiased.ckpt: cannot be expressed: bias: expected true",
    ),
    "no output": (("export", "--ckpt_path", "a.ckpt"), "one of the arguments --output --weights is required"),
    "neither of the two": (
        ("import", "--from", "mine", "--output", "b.ckpt"),
        "--from mine: expected a folder with config.json, or with single_block_model_state_dict.pth, found neither",
    ),
    "no folder": (("import", "--from", "none", "--output", "b.ckpt"), "--from none: expected a folder"),
    "a folder as output": (
        ("import", "--from", "exported", "--output", "mine"), "--output mine: expected a file, got something else",
    ),
    "a device": (
        ("import", "--from", "exported", "--output", "/dev/null"),
        "--output /dev/null: expected a file, got something else",
    ),
    "a file nowhere": (
        ("import", "--from", "exported", "--output", "no/b.ckpt"), "--output no/b.ckpt: No such file or directory",
    ),
    "more layers": (
        ("import", "--from", "deep", "--output", "b.ckpt"), "config.json: cannot be expressed: expected 1 as n_layer",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_in_a_line_and_leaves_nothing_behind(here: Path, command: Command, name: str) -> None:
    Path("mine").mkdir()
    Path("mine/diary.txt").touch()
    save(untrained(bias=False), "unbiased.ckpt")
    assert command("export", "--ckpt_path", "a.ckpt", "--output", "exported").code == 0
    assert command("export", "--ckpt_path", "a.ckpt", "--output", "deep").code == 0
    config = json.loads(Path("deep/config.json").read_text(encoding="utf-8"))
    Path("deep/config.json").write_text(json.dumps({**config, "n_layer": 2}), encoding="utf-8")
    before = sorted(here.rglob("*"))
    args, reason = MISTAKES[name]
    result = command(*args)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err
    assert result.err.count("\n") == 1
    assert sorted(here.rglob("*")) == before


def test_without_the_extra_it_is_said_how_to_get_it(
    here: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("export", "--ckpt_path", "a.ckpt", "--output", "out").code == 0
    find = importlib.util.find_spec
    missing = ("safetensors", "transformers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    for args in (("export", "--ckpt_path", "a.ckpt", "--output", "b"), ("import", "--from", "out", "--output", "b")):
        assert command(*args) == (
            2, "", f"error: {args[0]} needs {' and '.join(missing)}: pip install -e '.[export]'\n",
        )  # fmt: skip
