"""Callbacks made by Hydra, as lightning-hydra-template makes them: of a configuration, one by one."""

from __future__ import annotations

from pathlib import Path

from conftest import quiet_trainer
from hydra.utils import instantiate
from lightning.pytorch import seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from omegaconf import OmegaConf

from tinygpt_lightning import ExactResume, StagedTraining, read_checkpoint

CONFIG = """
stages:
  _target_: tinygpt_lightning.StagedTraining
  _convert_: all
  dirpath: ${folder}
  stages:
    - _target_: tinygpt_lightning.Stage
      epochs: 2
      until: {_target_: tinygpt_lightning.Until, monitor: train_loss, patience: 1}
    - _target_: tinygpt_lightning.Stage
      steps: 3
      optimizer: {_target_: torch.optim.Adam, _partial_: true, lr: 0.01}
exact: {_target_: tinygpt_lightning.ExactResume}
"""


class Logs(BoringModel):
    def training_step(self, batch, batch_idx):  # type: ignore[no-untyped-def]  # as the class above
        step = super().training_step(batch, batch_idx)
        self.log("train_loss", step["loss"])
        return step


def test_a_run_of_hydras_callbacks_is_trained_and_resumed(tmp_path: Path) -> None:
    ends = []
    for resumed in (None, tmp_path / "stage-1.ckpt"):
        seed_everything(1, verbose=False)  # the model draws its data when they are loaded
        config = OmegaConf.merge(OmegaConf.create(CONFIG), {"folder": str(tmp_path)})
        callbacks = [instantiate(config[name]) for name in ("stages", "exact")]
        assert [type(callback) for callback in callbacks] == [StagedTraining, ExactResume]
        trainer = quiet_trainer(max_epochs=-1, limit_train_batches=2, limit_val_batches=0, callbacks=callbacks)
        trainer.fit(Logs(), ckpt_path=resumed)
        ends.append(read_checkpoint(tmp_path / "stage-2.ckpt"))
    assert ends[0]["global_step"] == ends[1]["global_step"] == 7
    for name, weight in ends[0]["state_dict"].items():
        assert weight.equal(ends[1]["state_dict"][name])
