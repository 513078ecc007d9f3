"""Weights that a stage freezes, and the best ones, which it restores."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import FORKED, Anyones, OnlyTrainable, forked, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from tinygpt_lightning import Stage, StagedTraining, Until, current_stage, read_checkpoint
from tinygpt_lightning.callbacks.stages import StageError


class Learning(Callback):
    """Writes down which parameters each epoch changed."""

    def __init__(self) -> None:
        self.changed: list[set[str]] = []
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.before = {name: tensor.clone() for name, tensor in pl_module.state_dict().items()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = pl_module.state_dict()
        self.changed.append({name for name, tensor in self.before.items() if not torch.equal(tensor, now[name])})


EVERY = {"body.weight", "body.bias", "head.weight", "head.bias"}


@pytest.mark.parametrize("kind", [Anyones, OnlyTrainable])
def test_what_a_stage_freezes_does_not_learn_in_it_and_learns_again_after_it(
    tmp_path: Path, kind: type[Anyones]
) -> None:
    stages = [Stage(1, freeze="body.*"), Stage(1), Stage(1, freeze=["*.bias", "head.weight"], reset_optimizer=False)]
    learning, module = Learning(), kind()
    quiet_trainer(tmp_path, StagedTraining(stages, tmp_path), learning).fit(module)
    assert learning.changed == [{"head.weight", "head.bias"}, EVERY, {"body.weight"}]
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_what_is_frozen_by_the_module_stays_so(tmp_path: Path) -> None:
    learning, module = Learning(), Anyones()
    module.head.requires_grad_(False)
    quiet_trainer(tmp_path, StagedTraining([Stage(1, freeze="*.bias"), Stage(1)], tmp_path), learning).fit(module)
    assert learning.changed == [{"body.weight"}, {"body.weight", "body.bias"}]


def test_a_pattern_that_no_name_matches_is_refused_before_the_first_step(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, StagedTraining([Stage(1), Stage(1, freeze=["head.*", "encoder"])], tmp_path))
    with pytest.raises(StageError, match=r"stages\[1\]: freeze: .*body.weight, got 'encoder'"):
        trainer.fit(Anyones())
    assert trainer.global_step == 0


class AddsLayer(StagedTraining):
    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        if index:
            pl_module.added = torch.nn.Linear(2, 2)


def test_a_stage_may_freeze_a_layer_that_its_start_adds(tmp_path: Path) -> None:
    trainer = quiet_trainer(tmp_path, AddsLayer([Stage(1), Stage(1, freeze="added.*")], tmp_path))
    trainer.fit(Anyones())
    assert trainer.current_epoch == 2


class Rises(Anyones):
    """Its score is best after the second epoch."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", -abs(self.current_epoch - 1.0))


class Keeps(Callback):
    def __init__(self) -> None:
        self.ends: list[Tensor] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ends.append(pl_module.body.weight.detach().clone())


@pytest.mark.parametrize("until", [Until("val/score", "max", patience=2), Until("val/score", "max", patience=9)])
def test_a_stage_ends_with_its_best_weights(tmp_path: Path, until: Until) -> None:
    keeps, module = Keeps(), Rises()
    stages = [Stage(4, until=until, restore_best=True), Stage(1, freeze="body.*")]
    quiet_trainer(tmp_path, StagedTraining(stages, tmp_path), keeps).fit(module)
    assert len(keeps.ends) == 5
    assert not torch.equal(keeps.ends[1], keeps.ends[3])
    saved = read_checkpoint(tmp_path / "stage-1.ckpt")
    for weight in (saved["state_dict"]["body.weight"], module.body.weight):
        assert torch.equal(weight, keeps.ends[1])
    assert not saved["callbacks"]["StagedTraining"]["best"]


def test_the_best_weights_need_a_monitored_value() -> None:
    with pytest.raises(ValueError, match="restore_best: expected until.*got until: None"):
        Stage(1, restore_best=True)


class InStep(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()])
        every = pl_module.all_gather(mine)
        assert torch.equal(every[0], every[1])


@FORKED
def test_two_processes_freeze_and_restore_alike(tmp_path: Path) -> None:
    stages = [
        Stage(2, freeze="body.*", until=Until("val/score", "max", patience=1), restore_best=True),
        Stage(1, freeze="head.*"),
        Stage(1),
    ]
    trainer = quiet_trainer(tmp_path, StagedTraining(stages, tmp_path), InStep(), **forked())
    trainer.fit(Rises())
    first, second = (read_checkpoint(tmp_path / f"stage-{n}.ckpt")["state_dict"] for n in (1, 2))
    assert torch.equal(first["head.weight"], second["head.weight"])
    assert not torch.equal(first["body.weight"], second["body.weight"])


def test_fast_dev_run_begins_every_stage(tmp_path: Path) -> None:
    class Fails(StagedTraining):
        def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
            assert index < 2, "a mistake in the last stage"

    stages = [Stage(9), Stage(9), Stage(9)]
    quiet_trainer(tmp_path, Fails(stages[:2], tmp_path), fast_dev_run=True, max_epochs=None).fit(Anyones())
    with pytest.raises(AssertionError, match="a mistake in the last stage"):
        quiet_trainer(tmp_path, Fails(stages, tmp_path), fast_dev_run=True, max_epochs=None).fit(Anyones())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("settings", [{}, {"fast_dev_run": True, "max_epochs": None}])
def test_a_misspelt_monitor_is_told_after_the_first_epoch(tmp_path: Path, settings: dict[str, Any]) -> None:
    stages = [Stage(2, until=Until("val/loss", patience=9)), Stage(2, until=Until("val/los", patience=1)), Stage(1)]
    trainer = quiet_trainer(tmp_path, StagedTraining(stages, tmp_path), **settings)
    with pytest.raises(UserWarning, match=r"stages\[1\].until.monitor: 'val/los' .*: .*val/loss"):
        trainer.fit(Anyones())
    assert trainer.current_epoch == 0


class Endless(Anyones):
    def training_step(self, batch: Tensor) -> Tensor:
        self.log("train/all", batch.sum(), on_step=False, on_epoch=True)
        return super().training_step(batch)

    def train_dataloader(self) -> Any:
        class Stream(IterableDataset[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                return repeat(torch.ones(4))

        return DataLoader(Stream(), batch_size=2)


@pytest.mark.parametrize(
    ("monitor", "settings", "step"),
    [("train/los", {"limit_val_batches": 0}, 1), ("val/los", {"val_check_interval": 3}, 3), ("train/all", {}, None)],
)
@pytest.mark.parametrize("misspelt_first", [True, False])
def test_a_misspelt_monitor_on_an_endless_stream_is_told_where_something_was_logged_first(
    tmp_path: Path, monitor: str, settings: dict[str, Any], step: int | None, misspelt_first: bool
) -> None:
    stages = [Stage(steps=5, until=Until(monitor, patience=9)), Stage(steps=2)][:: 1 if misspelt_first else -1]
    trainer = quiet_trainer(tmp_path, StagedTraining(stages, tmp_path), **{"limit_val_batches": 1, **settings})
    if step is None:
        trainer.fit(Endless())
        assert trainer.global_step == 7
    else:
        # The value of the stage that is asked is refused by the validation itself.
        with pytest.raises((UserWarning, StageError), match=rf"until.monitor: .*{monitor}"):
            trainer.fit(Endless())
        assert trainer.global_step == step


def test_a_module_finds_its_stage_by_its_trainer(tmp_path: Path) -> None:
    class Asks(Anyones):
        seen: list[int] = []  # noqa: RUF012, of this test alone

        def on_train_epoch_start(self) -> None:
            self.seen.append(current_stage(self.trainer))

    trainer = quiet_trainer(tmp_path, StagedTraining([Stage(2), Stage(1)], tmp_path))
    trainer.fit(Asks())
    assert Asks.seen == [0, 0, 1]
    assert current_stage(quiet_trainer(tmp_path)) == 0
