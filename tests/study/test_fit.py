"""A replicate of the study against a `fit` of the same weights."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tinygpt_lightning import CharTokenizer, GPTConfig, QADataModule, Stage, StagedTraining, TinyGPTModule
from tinygpt_lightning.study.engine.ensemble import Ensemble

CONFIG = GPTConfig(n_embd=32, n_head=2, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(outputs["loss"].item())


@pytest.mark.parametrize("reset", [True, False])
def test_a_replicate_is_a_fit_of_the_same_weights(tmp_path, reset):
    seeds, epochs = [4, 0, 9], 30
    text = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
    ids = torch.tensor([CharTokenizer.from_text(text).encode(text)])
    together = Ensemble(CONFIG, seeds, len(text) - 1, 1e-3, torch.device("cpu"))
    for stage in range(2):
        if stage:
            together.begin_stage(stage, reset_optimizer=reset, redraw_weights=False)
        for _ in range(epochs):
            together.train_epoch(ids, len("Question: Xin chào"))
    for index, seed in enumerate(seeds):
        torch.manual_seed(seed)
        module = TinyGPTModule(CONFIG, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
        losses = Losses()
        trainer = Trainer(
            accelerator="cpu", max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, limit_val_batches=0, default_root_dir=tmp_path,
            callbacks=[StagedTraining([Stage(epochs), Stage(epochs, reset_optimizer=reset)]), losses],
        )  # fmt: skip
        trainer.fit(module, QADataModule())
        assert torch.stack(together.losses)[:, index].tolist() == pytest.approx(losses.values, abs=1e-5)
        replicate = TinyGPTModule(CONFIG).model
        together.copy_weights(index, replicate)
        torch.testing.assert_close(replicate(ids), module.model(ids), atol=1e-5, rtol=0)
