"""The second floor in a LightningCLI that is not ours, by class path."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  max_epochs: -1
  limit_train_batches: 2
  limit_val_batches: 0
  plugins:
    - class_path: tinygpt_lightning.SafeCheckpointIO
  callbacks:
    - class_path: tinygpt_lightning.callbacks.graceful_stop.GracefulStop
    - class_path: tinygpt_lightning.ExactResume
    - class_path: tinygpt_lightning.StagedTraining
      init_args:
        dirpath: stages
        stages:
          - epochs: 2
          - epochs: 1
            optimizer:
              class_path: torch.optim.Adam
              init_args: {lr: 0.1}
"""


class Theirs(BoringModel):
    def train_dataloader(self) -> DataLoader[torch.Tensor]:
        return DataLoader(torch.randn(8, 32, generator=torch.Generator().manual_seed(1)), shuffle=True)  # type: ignore[arg-type]


def test_stages_exact_resume_and_safe_files_are_settings_of_any_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["theirs.py"])
    Path("theirs.yaml").write_text(CONFIG, encoding="utf-8")
    cli = LightningCLI(Theirs, args=["fit", "--config", "theirs.yaml"], save_config_callback=None)
    assert cli.trainer.global_step == 6
    assert type(cli.trainer.optimizers[0]) is torch.optim.Adam
    assert sorted(path.name for path in Path("stages").iterdir()) == ["stage-1.ckpt", "stage-2.ckpt"]
    resumed = ["fit", "--config", "theirs.yaml", "--ckpt_path", "stages/stage-1.ckpt"]
    again = LightningCLI(Theirs, args=resumed, save_config_callback=None)
    assert torch.equal(again.model.layer.weight, cli.model.layer.weight)
