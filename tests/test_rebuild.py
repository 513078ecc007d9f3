"""Stages from the run's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

from tinygpt_lightning import GPTConfig, QADataModule, SafeCheckpointIO, Stage, StagedTraining, TinyGPTModule
from tinygpt_lightning.original import RebuiltStages

STAGES = [Stage(epochs=3), Stage(epochs=3), Stage(epochs=3, reset_optimizer=False)]


class Watched(RebuiltStages):
    """Compares model and tokenizer before and after they are made anew."""

    boundaries = 0

    def on_stage_start(self, trainer: Trainer, pl_module: TinyGPTModule, index: int) -> None:  # type: ignore[override]
        model, tokenizer = pl_module.model, pl_module.tokenizer
        super().on_stage_start(trainer, pl_module, index)
        assert pl_module.model is not model
        assert pl_module.tokenizer is not tokenizer
        new = pl_module.model.state_dict()
        assert all(torch.equal(weight, new[name]) for name, weight in model.state_dict().items())
        assert pl_module.tokenizer.vocab == tokenizer.vocab
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


def test_training_goes_on_to_the_bit_as_if_nothing_was_made_anew(tmp_path: Path) -> None:
    rebuilt, plain = (train(kind(STAGES, tmp_path), tmp_path) for kind in (RebuiltStages, StagedTraining))
    expected = plain.state_dict()
    assert all(torch.equal(weight, expected[name]) for name, weight in rebuilt.state_dict().items())


def test_what_is_read_is_the_file(tmp_path: Path) -> None:
    class Tampered(RebuiltStages):
        def on_stage_start(self, trainer: Trainer, pl_module: TinyGPTModule, index: int) -> None:  # type: ignore[override]
            with torch.no_grad():
                pl_module.model.wte.weight.zero_()
            pl_module.tokenizer.resorted().save(tmp_path / "vocab.json")
            super().on_stage_start(trainer, pl_module, index)
            assert pl_module.model.wte.weight.count_nonzero() > 0
            assert pl_module.tokenizer.vocab["<pad>"] == 5

    train(Tampered(STAGES[:2], tmp_path), tmp_path)
