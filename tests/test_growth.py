"""A trained model that begins a new fit, with new characters and positions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Command
from networks import learnt

from tinygpt_lightning import load, save
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.growth import grow_from, more_symbols

ROOT = Path(__file__).parents[1]
CONFIG = GPTConfig(10, 8, 16, 2)


def test_known_symbols_keep_their_ids() -> None:
    known, needed = CharTokenizer.from_text("xyz", end_symbol=True), CharTokenizer.from_text("axb", end_symbol=True)
    more = more_symbols(known, needed)
    assert {symbol: more.vocab[symbol] for symbol in known.vocab} == known.vocab
    assert more.vocab.keys() == known.vocab.keys() | needed.vocab.keys()


def test_old_rows_are_bit_equal_and_only_they_change() -> None:
    trained, grown = TinyGPT(CONFIG), TinyGPT(replace(CONFIG, vocab_size=13, n_positions=11))
    drawn = {name: weight.clone() for name, weight in grown.state_dict().items()}
    grow_from(grown, trained)
    for name, weight in grown.state_dict().items():
        old = trained.state_dict()[name]
        assert weight[: len(old)].equal(old)
        assert weight[len(old) :].equal(drawn[name][len(old) :])
    ids = torch.randint(10, (2, 8))
    torch.testing.assert_close(grown.eval()(ids)[..., :10], trained.eval()(ids), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", ["n_embd", "n_inner", "n_positions", "vocab_size", "bias"])
def test_what_cannot_grow_is_refused(size: str) -> None:
    values = {"n_embd": 32, "n_inner": 100, "n_positions": 4, "vocab_size": 5, "bias": False}
    trained, other = TinyGPT(replace(CONFIG, bias=size != "bias")), TinyGPT(replace(CONFIG, **{size: values[size]}))
    if size == "bias":
        trained, other = TinyGPT(replace(CONFIG, bias=False)), TinyGPT(CONFIG)
    with pytest.raises(ValueError, match="only symbols and positions can be added"):
        grow_from(other, trained)


def test_a_model_with_weights_that_the_new_one_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.config\.bias"):
        grow_from(TinyGPT(replace(CONFIG, bias=False)), TinyGPT(CONFIG))


def rows(pairs: dict[str, str]) -> str:
    return "".join(json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in pairs.items())


def test_a_model_is_taught_more(home: Path, command: Command) -> None:
    trained = learnt()
    (home / "run").mkdir()
    save(trained, home / "run/last.ckpt")
    more = {"Xin": "Ω new character, and a longer answer than all others so far, to the 80th one", "你好": "new"}
    (home / "more.jsonl").write_text(rows(more), encoding="utf-8")
    own = ("fit", "--config", ROOT / "configs/own.yaml", "--data.path", "more.jsonl", "--data.rehearse", "run")
    result = command(*own)
    assert result.code == 0, result.err
    assert "replaces the one that was taught: 2\n" in result.err
    taught = load("checkpoints/own/version_0")
    expected = {**dict(trained.taught.pairs), **more}
    assert taught.answer_all(list(expected)) == list(expected.values())
    assert taught.taught.template == trained.taught.template
    config = taught.model.config
    assert (config.n_embd, config.n_head) == (trained.model.config.n_embd, trained.model.config.n_head)
    assert config.n_positions > trained.model.config.n_positions
    settings = yaml.safe_load(Path("checkpoints/own/version_0/config.yaml").read_text(encoding="utf-8"))
    assert settings["stages"][-1]["until"]["for_epochs"] == 1
    refused = command(*own, "--model.config.n_embd", "64")
    assert (refused.code, refused.out) == (2, "")
    assert "leave out --data.rehearse" in refused.err
    assert not Path("checkpoints/own/version_1").exists()


def test_a_checkpoint_is_a_file_of_the_pairs_that_it_was_taught(home: Path, command: Command) -> None:
    save(learnt(), home / "a.ckpt")
    result = command(
        "fit", "--config", "small.yaml", "--data.path", "a.ckpt", "--stages", '[{"epochs": 1}]', "--rebuild", "false"
    )
    assert result.code == 0, result.err
    assert load("checkpoints/small/version_0").taught.pairs == load("a.ckpt").taught.pairs
