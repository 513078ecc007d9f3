"""What cannot be saved is told when a fit starts."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyones import BATCHES, FORKED, Anyones, quiet_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from tinygpt_lightning import CheckpointError, ExactResume, SafeCheckpointIO, Stage, StagedTraining, read_checkpoint


class Colour(enum.Enum):
    RED = 1


class Told(Anyones):
    def __init__(self, setting: object) -> None:
        super().__init__()
        self.save_hyperparameters()


class Keeps(Callback):
    def __init__(self, value: object) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}


@pytest.mark.parametrize("setting", [Path("a"), Colour.RED, np.zeros(2), {"deep": [Path("a")]}])
@pytest.mark.parametrize("exact", [True, False])
def test_a_hyperparameter_that_no_checkpoint_may_hold_is_refused_when_the_fit_starts(
    tmp_path: Path, setting: object, exact: bool
) -> None:
    callback = ExactResume() if exact else StagedTraining([Stage(1)], tmp_path)
    trainer = quiet_trainer(tmp_path, callback, plugins=[SafeCheckpointIO()], max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"hyper_parameters.setting.*expected tensors and plain values"):
        trainer.fit(Told(setting))
    assert trainer.global_step == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("value", "kind"), [(Colour.RED, "Colour"), (np.zeros(2), "ndarray")])
def test_an_unsafe_callback_state_is_refused(tmp_path: Path, value: object, kind: str) -> None:
    trainer = quiet_trainer(tmp_path, Keeps(value), ExactResume(), plugins=[SafeCheckpointIO()], max_epochs=1)
    with pytest.raises(MisconfigurationException, match=rf"Keeps.value: .*got {kind}, which is read by running \S+"):
        trainer.fit(Anyones())


def test_a_callback_state_that_cannot_be_pickled_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, Keeps(lambda: 0), ExactResume(), plugins=[SafeCheckpointIO()], max_epochs=1)
    with pytest.raises(MisconfigurationException, match=r"Keeps.value: .*got function, which cannot be written"):
        trainer.fit(Anyones())


def test_numpy_scalars_become_python_numbers(tmp_path: Path) -> None:
    files = ModelCheckpoint(tmp_path, "end")
    trainer = quiet_trainer(tmp_path, Keeps(np.float64(0.5)), files, plugins=[SafeCheckpointIO()], max_epochs=1)
    module = Told({"sizes": (np.int64(3), 4)})
    trainer.fit(module)
    saved = read_checkpoint(tmp_path / "end.ckpt")
    assert saved["callbacks"]["Keeps"] == {"value": 0.5}
    assert saved["hyper_parameters"]["setting"] == {"sizes": (3, 4)}
    assert type(saved["hyper_parameters"]["setting"]["sizes"][0]) is int
    assert type(module.hparams["setting"]["sizes"][0]) is np.int64  # what is saved changes, not what there is


def test_without_the_other_callbacks_the_first_checkpoint_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, ModelCheckpoint(tmp_path), plugins=[SafeCheckpointIO()], max_epochs=1)
    with pytest.raises(CheckpointError, match="not written, since pathlib"):
        trainer.fit(Told(Path("a")))
    assert not list(tmp_path.iterdir())


def test_other_plugins_are_not_restricted(tmp_path: Path) -> None:
    quiet_trainer(tmp_path, StagedTraining([Stage(1)], tmp_path)).fit(Told(Path("a")))
    assert (tmp_path / "stage-1.ckpt").exists()


@FORKED
@pytest.mark.skipif(torch.cuda.is_available(), reason="a process that has used a GPU cannot be forked")
@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_notebook", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_a_process_that_lightning_starts_hands_its_weights_to_the_main_one(tmp_path: Path, strategy: str) -> None:
    settings = {"strategy": strategy, "devices": 2, "limit_val_batches": 0}
    before, module = Anyones(), Anyones()
    quiet_trainer(tmp_path, plugins=[SafeCheckpointIO()], max_epochs=1, **settings).fit(module)
    assert not torch.equal(module.body.weight, before.body.weight)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("step", [3, 5, 7, 10])
def test_a_plain_checkpoint_is_adopted_with_one_warning(tmp_path: Path, step: int) -> None:
    plain = ModelCheckpoint(tmp_path / "plain", "{step}", save_top_k=-1, every_n_train_steps=1)
    quiet_trainer(tmp_path, plain, max_epochs=2).fit(Anyones())
    ours = StagedTraining([Stage(2), Stage(1)], tmp_path), ExactResume()
    trainer = quiet_trainer(tmp_path, *ours, plugins=[SafeCheckpointIO()])
    with pytest.warns(UserWarning, match="not exact") as warned:
        trainer.fit(Anyones(), ckpt_path=tmp_path / "plain" / f"step={step}.ckpt", weights_only=False)
    assert (trainer.current_epoch, trainer.global_step) == (3, 3 * BATCHES)
    assert len([warning for warning in warned if "not exact" in str(warning.message)]) == 1


def test_nothing_in_a_plain_checkpoint_is_executed(tmp_path: Path) -> None:
    quiet_trainer(tmp_path, ModelCheckpoint(tmp_path, "end"), max_epochs=1).fit(Told(Colour.RED))
    trainer = quiet_trainer(tmp_path, plugins=[SafeCheckpointIO()], max_epochs=2)
    with pytest.raises(CheckpointError, match="refused, since it holds .*Colour"):
        trainer.fit(Anyones(), ckpt_path=tmp_path / "end.ckpt", weights_only=False)
