"""Stages that end by themselves, in Trainers with nothing else of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import BATCHES, FORKED, Anyones, forked, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn
from torch.utils.data import DataLoader

from tinygpt_lightning import Stage, StagedTraining, Until
from tinygpt_lightning.callbacks.stages import StageError

GOOD = Until("val/score", "max", stopping_threshold=1.0, for_epochs=2)


pytestmark = pytest.mark.filterwarnings("ignore:The dirpath has changed")


class Scored(Anyones):
    """Draws nothing, and is as good as a list says."""

    scores = (1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0)  # by epoch

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Identity()

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", self.scores[self.current_epoch])

    def train_dataloader(self) -> Any:
        return DataLoader(torch.linspace(-1, 1, 8 * BATCHES).view(-1, 4), batch_size=2)

    def val_dataloader(self) -> Any:
        return DataLoader(torch.ones(2, 4))


class Ends(StagedTraining):
    """Notes where stages end, and what the module's weights are there."""

    def __init__(self, stages: list[Stage], dirpath: Path) -> None:
        super().__init__(stages, dirpath)
        self.ends: list[tuple[int, int]] = []

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        self.ends.append((index, trainer.current_epoch))


def test_a_stage_ends_when_the_value_is_good_enough_several_times_in_a_row(tmp_path: Path) -> None:
    ends, module = Ends([Stage(9, until=GOOD), Stage(2)], tmp_path), Scored()
    trainer = quiet_trainer(tmp_path, ends)
    trainer.fit(module)
    assert ends.ends == [(0, 3), (1, 5)]
    assert (trainer.current_epoch, trainer.max_epochs) == (6, -1)
    saved = [torch.load(tmp_path / f"stage-{number}.ckpt", weights_only=True) for number in (1, 2)]
    steps = [checkpoint["optimizer_states"][0]["state"][0]["step"] for checkpoint in saved]
    assert steps == [4 * BATCHES, 2 * BATCHES]  # the second one's optimizer is new


def test_epochs_are_the_maximum(tmp_path: Path) -> None:
    ends = Ends([Stage(3, until=GOOD), Stage(2)], tmp_path)
    quiet_trainer(tmp_path, ends).fit(Scored())
    assert ends.ends == [(0, 2), (1, 4)]


def test_each_stage_judges_only_its_own_values(tmp_path: Path) -> None:
    ends = Ends([Stage(9, until=Until("val/score", "max", 1.0)), Stage(9, until=GOOD)], tmp_path)
    quiet_trainer(tmp_path, ends).fit(Scored())
    assert ends.ends == [(0, 0), (1, 3)]


def test_any_function_of_trainer_and_module_can_end_a_stage(tmp_path: Path) -> None:
    def until(trainer: Trainer, pl_module: LightningModule) -> bool:
        return isinstance(pl_module, Scored) and trainer.global_step >= 2 * BATCHES

    ends = Ends([Stage(9, until=until), Stage(1)], tmp_path)
    quiet_trainer(tmp_path, ends).fit(Scored())
    assert ends.ends == [(0, 1), (1, 2)]


def test_values_are_judged_only_after_a_validation(tmp_path: Path) -> None:
    ends = Ends([Stage(8, until=Until("val/score", "max", 1.0, for_epochs=2)), Stage(1)], tmp_path)
    module = Scored()
    module.scores = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0)
    quiet_trainer(tmp_path, ends, check_val_every_n_epoch=2).fit(module)
    assert ends.ends == [(0, 7), (1, 8)]  # good in epochs 1, 5 and 7, and not in 3


def test_a_monitor_that_is_not_logged_is_refused_by_name(tmp_path: Path) -> None:
    staged = StagedTraining([Stage(9, until=Until("val/scores", patience=1))], tmp_path)
    with pytest.raises(StageError, match=r"stages\[0\].until.monitor: .*one of .*val/score.*, got 'val/scores'"):
        quiet_trainer(tmp_path, staged).fit(Scored())


@pytest.mark.parametrize("saved_at_epoch_end", [True, False])
def test_a_run_resumed_from_any_checkpoint_ends_its_stages_at_the_same_epochs(
    tmp_path: Path, saved_at_epoch_end: bool
) -> None:
    stages = [Stage(9, until=GOOD), Stage(9, until=Until("val/score", "max", patience=2))]
    files = ModelCheckpoint(tmp_path / "files", save_top_k=-1, save_on_train_epoch_end=saved_at_epoch_end)
    whole, ends = Scored(), Ends(stages, tmp_path)
    quiet_trainer(tmp_path, ends, files).fit(whole)
    assert ends.ends == [(0, 3), (1, 6)]
    paths = sorted((tmp_path / "files").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert len(paths) == 7
    for path in paths:
        for file in tmp_path.glob("stage-*.ckpt"):
            file.unlink()
        resumed, ends = Scored(), Ends(stages, tmp_path)
        again = ModelCheckpoint(tmp_path / f"after {path.stem}", save_on_train_epoch_end=saved_at_epoch_end)
        quiet_trainer(tmp_path, ends, again).fit(resumed, ckpt_path=path)
        assert ends.ends == [end for end in [(0, 3), (1, 6)] if end[1] >= int(path.name[6]) + saved_at_epoch_end]
        assert torch.equal(resumed.body.weight, whole.body.weight)
        assert (tmp_path / "stage-2.ckpt").exists()
        # The one that it ends with is written even where the process that came to its end could not write it.
        assert (tmp_path / "stage-1.ckpt").exists() == (int(path.name[6]) <= 3)


def test_only_stages_to_come_may_change_after_an_early_end(tmp_path: Path) -> None:
    quiet_trainer(tmp_path, StagedTraining([Stage(9, until=GOOD), Stage(2)], tmp_path)).fit(Scored())
    longer = StagedTraining([Stage(9, until=GOOD), Stage(2), Stage(1)], tmp_path)
    trainer = quiet_trainer(tmp_path, longer)
    trainer.fit(Scored(), ckpt_path=tmp_path / "stage-2.ckpt")
    assert trainer.current_epoch == 7
    other = StagedTraining([Stage(9, until=Until("val/score", patience=1)), Stage(2)], tmp_path)
    with pytest.raises(StageError, match=r"stages\[0\].until: expected Until\(.*got Until\("):
        quiet_trainer(tmp_path, other).fit(Scored(), ckpt_path=tmp_path / "stage-1.ckpt")


def test_weight_averaging_which_needs_the_last_epoch_is_refused(tmp_path: Path) -> None:
    stages = [Stage(9, until=GOOD), Stage(2)]
    with pytest.raises(StageError, match="until.*StochasticWeightAveraging"):
        quiet_trainer(tmp_path, StagedTraining(stages, tmp_path), StochasticWeightAveraging(0.1, 10)).fit(Scored())


class OneIsDone(Scored):
    """What the processes measure differs, and only one of them has had enough."""

    def on_validation_epoch_end(self) -> None:
        self.log("val/score", float(self.trainer.global_rank != self.current_epoch))


class SameEnd(Callback):
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()] + [torch.tensor([trainer.max_epochs])])
        every = pl_module.all_gather(mine)
        assert torch.equal(every[0], every[1])


def second_process_has_had_enough(trainer: Trainer, pl_module: LightningModule) -> bool:
    return trainer.global_rank == 1 and trainer.current_epoch == 1


@FORKED
@pytest.mark.parametrize(("until", "epochs"), [(second_process_has_had_enough, 3), (Until("val/score", "max", 1.0), 3)])
def test_all_processes_end_a_stage_together(tmp_path: Path, until: Any, epochs: int) -> None:
    staged = StagedTraining([Stage(5, until=until), Stage(1)], tmp_path)
    quiet_trainer(tmp_path, staged, SameEnd(), **forked()).fit(OneIsDone())
    state = torch.load(tmp_path / "stage-2.ckpt", weights_only=True)
    assert state["epoch"] == epochs
