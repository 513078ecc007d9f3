"""Sharded models: in one process here, in two in `two_processes.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from anyones import quiet_trainer
from conftest import in_one_process
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from test_anyones_campaign import Everywhere, differences
from torch import nn
from two_processes import STAGES, Sharded, fit, local

from tinygpt_lightning import ExactResume, Stage, StagedTraining
from tinygpt_lightning.callbacks.sharded import SafeModelParallelStrategy
from tinygpt_lightning.callbacks.stage_files import StageFiles
from tinygpt_lightning.callbacks.stages import StageError

WARNINGS = (
    "Be aware that when using `ckpt_path`",
    "Checkpoint directory .* exists",
    "It is recommended to use `self.log",
    "You're resuming from a checkpoint that ended before the epoch",
)
pytestmark = [pytest.mark.filterwarnings(f"ignore:{of}") for of in WARNINGS]  # Lightning's


@pytest.fixture(scope="module", autouse=True)
def _one_process() -> Iterator[None]:
    with in_one_process():
        yield


def in_two_processes(function: str, folder: Path) -> None:
    file = Path(__file__).with_name("two_processes.py")
    done = subprocess.run([sys.executable, file, function, folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_two_processes_are_resumed_exactly_and_together(tmp_path: Path) -> None:
    in_two_processes("quick", tmp_path)
    with pytest.raises(MisconfigurationException, match="expected 2 processes, which wrote the checkpoint, got 1"):
        fit(tmp_path / "one", ckpt_path=tmp_path / "stage-1.ckpt", devices=1)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["sharded", "consolidated"])
def test_a_killed_or_stopped_run_equals_the_run_that_was_not(tmp_path: Path, form: str) -> None:
    in_two_processes(form, tmp_path)


@pytest.mark.parametrize("distributed", [True, False])
def test_a_run_in_one_process_is_resumed_exactly(tmp_path: Path, distributed: bool) -> None:
    saved = Everywhere(tmp_path / "every", ["on_train_start", "on_train_batch_start"])
    expected = fit(tmp_path, saved, devices=1, distributed=distributed)
    for file in sorted((tmp_path / "every").iterdir())[::8]:
        assert file.is_dir() == distributed
        assert not list(differences(fit(tmp_path, ckpt_path=file, devices=1, distributed=distributed), expected))


class Watches(Callback):
    """The weights of a layer at each epoch's start and each step's end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.starts: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.starts.append(local(pl_module.state_dict()[self.name]))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights.append(local(pl_module.state_dict()[self.name]))


def test_a_layer_that_is_frozen_after_a_validation_is_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As where the stage's checkpoint is there already: to save one shards the parameters again.
    monkeypatch.setattr(StageFiles, "save", lambda *_: None)
    watches = Watches("body.weight")
    fit(tmp_path, watches, devices=1, stages=STAGES[:2], accumulate_grad_batches=1)
    moved = [not torch.equal(*pair) for pair in zip(watches.weights, watches.weights[1:], strict=False)]
    assert all(moved[:9])
    assert len(moved) > 9
    assert not any(moved[9:])


class Zeroes(StagedTraining):
    def on_stage_start(self, trainer: Any, pl_module: Any, index: int) -> None:
        if index:
            nn.init.zeros_(pl_module.head.weight)


def test_what_a_stage_changes_after_a_validation_stays_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StageFiles, "save", lambda *_: None)
    watches = Watches("head.weight")
    fit(tmp_path, watches, devices=1, stages=[Stage(1), Stage(1)], staged=Zeroes)
    assert [bool(weight.any()) for weight in watches.starts] == [True, False]


def test_saving_a_new_optimizer_does_not_change_it(tmp_path: Path) -> None:
    """PyTorch's function for the state of an optimizer takes a step with it, which Adam counts."""
    saved = Everywhere(tmp_path / "every", ["on_train_start"])
    with_checkpoint = fit(tmp_path, saved, devices=1, stages=[Stage(1)])
    assert not list(differences(fit(tmp_path, devices=1, stages=[Stage(1)]), with_checkpoint))
    steps = {state["step"].item() for state in with_checkpoint[0][1]["state"].values()}
    assert steps == {3}


def plain_fit(folder: Path, *callbacks: Callback, strategy: Any = SafeModelParallelStrategy, **settings: Any) -> Any:
    """Without the other callbacks, under the strategy that is named."""
    distributed, ckpt_path = settings.pop("distributed", True), settings.pop("ckpt_path", None)
    module = settings.pop("module", Sharded)()
    strategy = strategy(1, 1, save_distributed_checkpoint=distributed)
    trainer = quiet_trainer(folder, *callbacks, strategy=strategy, devices=1, **{"max_epochs": 1, **settings})
    trainer.fit(module, ckpt_path=ckpt_path)
    return local([module.state_dict(), trainer.optimizers[0].state_dict()["state"]])


@pytest.mark.parametrize("distributed", [True, False])
@pytest.mark.parametrize("strategy", [ModelParallelStrategy, SafeModelParallelStrategy])
def test_lightning_reads_what_this_strategy_writes_and_the_other_way_round(
    tmp_path: Path, strategy: type[ModelParallelStrategy], distributed: bool
) -> None:
    other = ModelParallelStrategy if strategy is SafeModelParallelStrategy else SafeModelParallelStrategy
    end = plain_fit(tmp_path, ModelCheckpoint(tmp_path, "end"), strategy=strategy, distributed=distributed)
    assert (tmp_path / "end.ckpt").is_dir() == distributed
    read = plain_fit(tmp_path, strategy=other, ckpt_path=tmp_path / "end.ckpt", enable_checkpointing=False)
    assert not list(differences(read, end))


@pytest.mark.parametrize("strategy", [ModelParallelStrategy, SafeModelParallelStrategy])
def test_a_folder_is_validated(tmp_path: Path, strategy: type[ModelParallelStrategy]) -> None:
    end = plain_fit(tmp_path, ModelCheckpoint(tmp_path, "end"))
    trainer, module = quiet_trainer(tmp_path, ExactResume(), strategy=strategy(1, 1), devices=1), Sharded()
    trainer.validate(module, ckpt_path=tmp_path / "end.ckpt", verbose=False)
    assert not list(differences(local(module.state_dict()), end[0]))


def test_a_folder_is_replaced_and_removed_whole(tmp_path: Path) -> None:
    plain_fit(tmp_path, ModelCheckpoint(tmp_path, "{epoch}", save_last=True), max_epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch=2.ckpt", "last.ckpt"]


def test_fsdp_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(StageError, match="expected a single device, DDP or ModelParallelStrategy, got FSDPStrategy"):
        StagedTraining([Stage(1)]).setup(trainer, Sharded(), "fit")


def test_tensor_parallelism_is_refused(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, strategy=ModelParallelStrategy(1, 2))
    trainer.strategy._device_mesh = {"tensor_parallel": SimpleNamespace(size=lambda: 2)}
    with pytest.raises(MisconfigurationException, match="expected tensor_parallel_size 1, .* got 2"):
        ExactResume().setup(trainer, Sharded(), "fit")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("distributed", [True, False])
def test_a_run_on_a_gpu_is_resumed_exactly(tmp_path: Path, distributed: bool) -> None:
    settings: dict[str, Any] = {"devices": 1, "distributed": distributed, "accelerator": "gpu"}
    expected = fit(tmp_path, Everywhere(tmp_path / "every", ["on_train_batch_start"]), **settings)
    for file in sorted((tmp_path / "every").iterdir())[::5]:
        assert not list(differences(fit(tmp_path, ckpt_path=file, **settings), expected))


@pytest.mark.filterwarnings("ignore:DTensor random operators may not")  # which the checkpoint's weights replace
def test_a_model_without_memory_is_filled_from_a_checkpoint(tmp_path: Path) -> None:
    class Empty(Sharded):
        def configure_model(self) -> None:
            super().configure_model()
            self.to("meta")

    end = plain_fit(tmp_path, ModelCheckpoint(tmp_path, "end"))
    read = plain_fit(tmp_path, ckpt_path=tmp_path / "end.ckpt", enable_checkpointing=False, module=Empty)
    assert not list(differences(read, end))
