"""Optimizers and schedulers as a stage gets them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import BATCHES, Anyones, Drawn, OneCycle, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from tinygpt_lightning import ExactResume, Stage, StagedTraining
from tinygpt_lightning.callbacks.stages import StageError


class Groups(Callback):
    """Writes down the optimizer's options before each batch."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        (group,) = trainer.optimizers[0].param_groups
        self.options.append({name: value for name, value in group.items() if name != "params"})

    def rates(self) -> list[float]:
        return [options["lr"] for options in self.options]


def one_cycle(steps: int) -> list[float]:
    """The learning rates of a cycle, by a plain loop."""
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = OneCycleLR(optimizer, 0.1, total_steps=steps, cycle_momentum=False)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_a_cycle_lasts_as_long_as_its_stage(tmp_path: Path) -> None:
    groups = Groups()
    quiet_trainer(tmp_path, StagedTraining([Stage(2), Stage(3)], tmp_path), groups).fit(OneCycle())
    assert groups.rates() == pytest.approx([*one_cycle(2 * BATCHES), *one_cycle(3 * BATCHES)])


def test_a_stage_can_be_appended_where_the_scheduler_depends_on_the_length(tmp_path: Path) -> None:
    quiet_trainer(tmp_path, StagedTraining([Stage(2)], tmp_path)).fit(OneCycle())
    trainer = quiet_trainer(tmp_path, StagedTraining([Stage(2), Stage(1)], tmp_path))
    trainer.fit(OneCycle(), ckpt_path=tmp_path / "stage-1.ckpt")
    assert trainer.current_epoch == 3


def test_a_changed_scheduler_is_refused_in_one_line(tmp_path: Path) -> None:
    class Longer(Anyones):
        def configure_optimizers(self) -> Any:
            optimizer = AdamW(self.parameters(), lr=0.05)
            return [optimizer], [OneCycleLR(optimizer, 0.1, total_steps=99)]

    quiet_trainer(tmp_path, StagedTraining([Stage(2)], tmp_path)).fit(OneCycle())
    trainer = quiet_trainer(tmp_path, StagedTraining([Stage(2), Stage(1)], tmp_path))
    with pytest.raises(StageError) as error:
        trainer.fit(Longer(), ckpt_path=tmp_path / "stage-1.ckpt")
    assert str(error.value) == (
        "stages[0].lr_scheduler.total_steps: expected 10, with which this run began the stage, got 99; "
        "only stages still to come may change"
    )


def test_a_stages_own_scheduler_gets_the_optimizer_as_the_module_built_it(tmp_path: Path) -> None:
    groups = Groups()
    own = partial(ConstantLR, factor=1.0)
    quiet_trainer(tmp_path, StagedTraining([Stage(1, lr_scheduler=own)], tmp_path), groups).fit(OneCycle())
    made = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1).param_groups[0]
    expected = {name: value for name, value in made.items() if name != "params"} | {"initial_lr": 0.1}
    assert groups.options == [expected] * BATCHES


@pytest.mark.filterwarnings("ignore:.*configure_optimizers. returned .None.")  # Lightning's words for it
def test_a_module_without_an_optimizer_is_refused(tmp_path: Path) -> None:
    class Without(Anyones):
        def configure_optimizers(self) -> Any:
            return None

    with pytest.raises(StageError, match="configure_optimizers: expected an optimizer.*got None"):
        quiet_trainer(tmp_path, StagedTraining([Stage(1)], tmp_path)).fit(Without())


def test_a_module_that_returns_the_same_optimizer_again_is_refused(tmp_path: Path) -> None:
    class Same(Anyones):
        made: Optimizer | None = None

        def configure_optimizers(self) -> Any:
            self.made = self.made or SGD(self.parameters(), lr=0.1)
            return self.made

    with pytest.raises(StageError, match=r"stages\[1\]: expected a new optimizer each time.*OptimizerCallable"):
        quiet_trainer(tmp_path, StagedTraining([Stage(1), Stage(1)], tmp_path)).fit(Same())


def test_a_stages_own_scheduler_can_step_with_each_step(tmp_path: Path) -> None:
    groups = Groups()
    cycle = partial(OneCycleLR, max_lr=0.1, total_steps=2 * BATCHES, cycle_momentum=False)
    stage = Stage(2, optimizer=partial(SGD, lr=0.1), lr_scheduler=cycle, interval="step")
    quiet_trainer(tmp_path, StagedTraining([stage], tmp_path), groups).fit(Anyones())
    assert groups.rates() == pytest.approx(one_cycle(2 * BATCHES))


def test_a_stages_own_scheduler_can_step_every_second_epoch(tmp_path: Path) -> None:
    groups = Groups()
    halve = partial(StepLR, step_size=1, gamma=0.5)
    stage = Stage(4, optimizer=partial(SGD, lr=0.4), lr_scheduler=halve, frequency=2)
    quiet_trainer(tmp_path, StagedTraining([stage], tmp_path), groups).fit(Anyones())
    assert groups.rates()[::BATCHES] == pytest.approx([0.4, 0.4, 0.2, 0.2])


def test_a_stages_own_scheduler_can_monitor_a_value(tmp_path: Path) -> None:
    groups = Groups()
    plateau = partial(ReduceLROnPlateau, patience=0, threshold=1e9)  # no value is good enough
    stage = Stage(3, optimizer=partial(SGD, lr=0.4), lr_scheduler=plateau, monitor="train/loss")
    quiet_trainer(tmp_path, StagedTraining([stage], tmp_path), groups).fit(Anyones())
    assert groups.rates()[::BATCHES] == pytest.approx([0.4, 0.04, 0.004])


class TwoGroups(Anyones):
    """No decay on biases, a rate of its own for the head, and a scheduler that changes the options."""

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(
            [
                {"params": [self.body.weight]},
                {"params": [self.body.bias, self.head.bias], "weight_decay": 0.0},
                {"params": [self.head.weight], "lr": 0.3},
            ],
            lr=0.05,
        )
        return [optimizer], [OneCycleLR(optimizer, [0.1, 0.1, 0.6], total_steps=99)]


def test_a_stages_own_optimizer_keeps_the_modules_parameter_groups(tmp_path: Path) -> None:
    stage = Stage(1, optimizer=partial(SGD, lr=0.2, momentum=0.5, weight_decay=0.1))
    trainer, module = quiet_trainer(tmp_path, StagedTraining([stage], tmp_path)), TwoGroups()
    trainer.fit(module)
    groups = trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [1, 2, 1]
    assert [(group["lr"], group["weight_decay"], group["momentum"]) for group in groups] == [
        (0.2, 0.1, 0.5),
        (0.2, 0.0, 0.5),
        (0.3, 0.1, 0.5),
    ]


class Tunable(Anyones):
    def __init__(self) -> None:
        super().__init__()
        self.lr, self.batch_size = 0.05, 2

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=self.lr)

    def train_dataloader(self) -> Any:
        return DataLoader(Drawn(), batch_size=self.batch_size)


@pytest.mark.filterwarnings("ignore:.*num_workers")
def test_the_tuner_works_as_without_the_callbacks(tmp_path: Path) -> None:
    found = []
    for callbacks in ([], [StagedTraining([Stage(4)], tmp_path), ExactResume()]):
        trainer, module = quiet_trainer(tmp_path, *callbacks), Tunable()
        finder = Tuner(trainer).lr_find(module, num_training=20, early_stop_threshold=None, update_attr=False)
        assert finder is not None
        found.append(len(finder.results["lr"]))
        assert Tuner(trainer).scale_batch_size(module, max_trials=2, steps_per_trial=1) == 4
        if callbacks:
            trainer.fit(module)
            assert trainer.current_epoch == 4
            assert (tmp_path / "stage-1.ckpt").exists()
    assert found[0] == found[1]
