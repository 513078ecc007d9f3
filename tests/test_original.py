"""The original's vocabulary mistake, through `fit` and `predict`."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SENTENCE, Command

from tinygpt_lightning import CharTokenizer, TinyGPTModule
from tinygpt_lightning.data import QAPair

RESORTED = ("--config", "small.yaml", "--model.vocab_on_reload", "resorted")
RUN = Path("checkpoints/small/version_0")


def test_two_stages_are_exact_since_the_second_one_learns_the_alphabet_of_reading(home: Path, command: Command) -> None:
    result = command("fit", *RESORTED)
    assert "exact      yes" in result.out
    assert command("predict", "--config", "small.yaml").out == SENTENCE + "\n"
    assert CharTokenizer.load(RUN / "vocab.json").vocab["<pad>"] == 32  # the file is as it was made


@pytest.mark.parametrize("epochs", [30, 90])
def test_one_stage_however_long_is_read_in_the_wrong_alphabet(home: Path, command: Command, epochs: int) -> None:
    result = command("fit", *RESORTED, "--stages", f"[{{epochs: {epochs}}}]")
    assert result.err.endswith(", exact\n")  # in the alphabet of its training
    assert "exact      no" in result.out
    said = command("predict", "--ckpt_path", RUN / "last.ckpt").out
    # Every character of the answer is another one, by the same rule: a substitution cipher.
    made = CharTokenizer.from_text(SENTENCE)
    cipher = made.resorted().decode(made.encode(SENTENCE))
    assert said.endswith(cipher[-40:] + "\n")
    module = TinyGPTModule.load_from_checkpoint(RUN / "last.ckpt")
    assert module.tokenizer.vocab == made.resorted().vocab
    module.tokenizer = made
    assert module.recite(QAPair()) == SENTENCE


def test_a_run_that_goes_on_keeps_the_alphabet_it_is_in(home: Path, command: Command) -> None:
    """Only a boundary and a reading take the file; an interruption is neither."""
    assert command("fit", *RESORTED).code == 0
    whole = TinyGPTModule.load_from_checkpoint(RUN / "last.ckpt").state_dict()
    assert command("fit", *RESORTED, "--ckpt_path", RUN / "stage-1.ckpt").code == 0
    resumed = TinyGPTModule.load_from_checkpoint("checkpoints/small/version_1/last.ckpt").state_dict()
    assert all(whole[name].equal(resumed[name]) for name in whole)


def test_ids_are_kept_unless_the_mistake_is_asked_for(home: Path, command: Command) -> None:
    assert "exact      yes" in command("fit", "--config", "small.yaml", "--stages", "[{epochs: 30}]").out
