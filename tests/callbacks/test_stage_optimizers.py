"""Optimizers and schedulers as a stage gets them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import BATCHES, Anyones, OneCycle, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ConstantLR, OneCycleLR

from tinygpt_lightning import Stage, StagedTraining
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
