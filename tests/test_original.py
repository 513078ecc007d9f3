"""The original's way with stages, and its mistake: by itself, and through `fit` and `predict`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import SENTENCE, Command
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel

from tinygpt_lightning import (
    CharTokenizer,
    GPTConfig,
    QADataModule,
    SafeCheckpointIO,
    Stage,
    StagedTraining,
    TinyGPTModule,
    load,
    read_checkpoint,
)
from tinygpt_lightning.original import OriginalStages, renumber

SPECIALS = ["<pad>", "<unk>"]

# The vocabulary


def test_renumbering_puts_the_specials_between_colon_and_a() -> None:
    made = CharTokenizer.from_text(SENTENCE)
    renumbered = renumber(made)
    assert renumbered.vocab["<pad>"] == 5
    assert renumbered.vocab["<unk>"] == 6
    for symbol, i in made.vocab.items():
        if symbol not in SPECIALS:
            assert renumbered.vocab[symbol] == (i if symbol < "A" else i + 2)


def test_renumbered_ids_read_a_perfect_answer_as_the_cipher_that_was_observed() -> None:
    made = CharTokenizer.from_text(SENTENCE)
    ids = made.encode("Answer: Công ty BICweb kính chào quý khách!.")
    # What the original project's own code printed after a run of one stage.
    assert renumber(made).decode(ids) == "<pad>iqtbo: Aáic ru <unk>BAtbQ hàie Xewk nsí heyXe!."


@settings(deadline=None)
@given(st.sets(st.characters(codec="utf-8")).flatmap(lambda symbols: st.permutations([*sorted(symbols), *SPECIALS])))
def test_renumbering_again_changes_nothing_more(symbols: list[str]) -> None:
    once = renumber(CharTokenizer({symbol: i for i, symbol in enumerate(symbols)}))
    assert list(once.vocab) == sorted(symbols)
    assert renumber(once).vocab == once.vocab


# Stages from the run's files

STAGES = [Stage(epochs=3), Stage(epochs=3), Stage(epochs=3, reset_optimizer=False)]


class Watched(OriginalStages):
    """Compares model and tokenizer before and after a boundary."""

    boundaries = 0

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        if index == 0:
            return
        assert isinstance(pl_module, TinyGPTModule)
        before = {name: weight.clone() for name, weight in pl_module.state_dict().items()}
        tokenizer = pl_module.tokenizer
        super().on_stage_start(trainer, pl_module, index)
        assert pl_module.tokenizer is not tokenizer
        assert pl_module.tokenizer.vocab == tokenizer.vocab
        assert all(torch.equal(weight, before[name]) for name, weight in pl_module.state_dict().items())
        self.boundaries += 1


def train(staged: StagedTraining, folder: Path, tie_weights: bool = False) -> TinyGPTModule:
    seed_everything(7)
    module = TinyGPTModule(GPTConfig(n_embd=32, n_head=2, tie_weights=tie_weights))  # with dropout
    module.tokenizer.save(folder / "vocab.json")
    trainer = Trainer(
        accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, callbacks=[staged], plugins=[SafeCheckpointIO()],
    )  # fmt: skip
    trainer.fit(module, QADataModule())
    return module


@pytest.mark.parametrize("tie_weights", [False, True])
def test_files_change_no_weight_and_no_id(tmp_path: Path, tie_weights: bool) -> None:
    watched = Watched(STAGES, tmp_path)
    module = train(watched, tmp_path, tie_weights)
    assert (module.model.lm_head.weight is module.model.wte.weight) is tie_weights
    assert watched.boundaries == 2


def test_training_goes_on_to_the_bit_as_if_nothing_had_been_read(tmp_path: Path) -> None:
    rebuilt, plain = (train(kind(STAGES, tmp_path), tmp_path) for kind in (OriginalStages, StagedTraining))
    expected = plain.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in rebuilt.state_dict().items())


def test_what_is_read_is_the_file(tmp_path: Path) -> None:
    class Tampered(OriginalStages):
        def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
            if index == 0:
                return
            assert isinstance(pl_module, TinyGPTModule)
            with torch.no_grad():
                pl_module.model.wte.weight.zero_()
            renumber(pl_module.tokenizer).save(tmp_path / "vocab.json")
            super().on_stage_start(trainer, pl_module, index)
            assert pl_module.model.wte.weight.count_nonzero() > 0
            assert pl_module.tokenizer.vocab["<pad>"] == 5

    train(Tampered(STAGES[:2], tmp_path), tmp_path)


def test_only_this_projects_module_has_a_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a TinyGPTModule, .*, got BoringModel"):
        OriginalStages(STAGES, tmp_path).on_stage_start(Trainer(accelerator="cpu", logger=False), BoringModel(), 1)


# Through `fit` and `predict`

RENUMBERED = ("--config", "small.yaml", "--renumber", "true")
RUN = Path("checkpoints/small/version_0")


def test_two_stages_are_exact_since_the_second_one_learns_the_vocabulary_of_reading(
    home: Path, command: Command
) -> None:
    result = command("fit", *RENUMBERED)
    assert "exact      yes" in result.out
    assert command("predict", "--config", "small.yaml").out == SENTENCE + "\n"
    assert CharTokenizer.load(RUN / "vocab.json").vocab["<pad>"] == 32  # the file is as it was made


@pytest.mark.parametrize("epochs", [30, 90])
def test_one_stage_however_long_is_read_with_the_wrong_vocabulary(home: Path, command: Command, epochs: int) -> None:
    result = command("fit", *RENUMBERED, "--stages", f"[{{epochs: {epochs}}}]")
    assert result.err.endswith(", exact\n")  # with the vocabulary of its training
    assert "exact      no" in result.out
    said = command("predict", "--ckpt_path", RUN / "last.ckpt").out
    # Every character of the answer is another one, by the same rule: a substitution cipher.
    made = CharTokenizer.from_text(SENTENCE)
    cipher = renumber(made).decode(made.encode(SENTENCE))
    assert said.endswith(cipher[-40:] + "\n")
    trained = load(RUN)
    assert trained.complete("Question: Xin chào") + "\n" == said
    assert trained.tokenizer.vocab == renumber(made).vocab
    trained.tokenizer = made
    assert trained.complete("Question: Xin chào") == SENTENCE


def test_before_a_stage_ends_a_checkpoint_is_read_with_the_vocabulary_of_its_training(
    home: Path, command: Command
) -> None:
    command("fit", *RENUMBERED, "--trainer.max_time", "00:00:00:01", "--stages", "[{epochs: 20000}]")
    assert load(RUN).tokenizer.vocab["<pad>"] == 32
    assert "exact      yes" in command("fit", *RENUMBERED, "--stages", "[{epochs: 10}, {epochs: 30}]").out
    first, last = (load(f"checkpoints/small/version_1/stage-{n}.ckpt") for n in (1, 2))
    assert first.tokenizer.vocab["<pad>"] == last.tokenizer.vocab["<pad>"] == 5


def test_a_run_that_goes_on_keeps_the_vocabulary_it_is_in(home: Path, command: Command) -> None:
    """Only a stage's end changes it; an interruption is none."""
    assert command("fit", *RENUMBERED).code == 0
    whole = TinyGPTModule.load_from_checkpoint(RUN / "last.ckpt").state_dict()
    assert command("fit", *RENUMBERED, "--ckpt_path", RUN / "stage-1.ckpt").code == 0
    resumed = TinyGPTModule.load_from_checkpoint("checkpoints/small/version_1/last.ckpt").state_dict()
    assert all(whole[name].equal(resumed[name]) for name in whole)


def test_ids_are_kept_unless_the_mistake_is_asked_for(home: Path, command: Command) -> None:
    assert "exact      yes" in command("fit", "--config", "small.yaml", "--stages", "[{epochs: 30}]").out


def test_the_mistake_needs_the_files_that_it_is_made_with(home: Path, command: Command) -> None:
    result = command("fit", *RENUMBERED, "--rebuild", "false")
    assert (result.code, result.out) == (2, "")
    assert "renumber: expected rebuild: true" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("renumbered", ["false", "true"])
def test_two_processes_end_where_one_does(home: Path, renumbered: str) -> None:
    """They see the same sentence, so that their mean is what each of them has."""
    fit = [sys.executable, "-m", "tinygpt_lightning", "fit", "--config", "small.yaml", "--renumber", renumbered]
    no_dropout = [f"--model.config.{name}_pdrop=0" for name in ("embd", "attn", "resid")]
    for devices in ("1", "2"):
        subprocess.run([*fit, *no_dropout, "--trainer.devices", devices], cwd=home, check=True)
    one, two = (read_checkpoint(f"checkpoints/small/version_{n}/last.ckpt") for n in (0, 1))
    assert one["tinygpt"] == two["tinygpt"]
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, atol=1e-4, rtol=0)
