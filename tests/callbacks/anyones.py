"""Small set-ups as other people have them: a LightningModule, its data, and how it is trained.

To add one, add a class and a line to `SETUPS`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, AdamW, lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader
from torchmetrics import MeanMetric

from tinygpt_lightning import Stage, StagedTraining, Until, current_stage

BATCHES = 5  # in an epoch


class Drawn(Dataset[Tensor]):
    """Samples with noise that is drawn anew each time, by three generators."""

    def __len__(self) -> int:
        return 2 * BATCHES

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), index / 4) + torch.randn(4) * float(np.random.rand()) + random.random() / 9


class Streamed(IterableDataset[Tensor]):
    """The same without a length, shared out between workers."""

    def __iter__(self) -> Iterator[Tensor]:
        worker = torch.utils.data.get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        yield from (Drawn()[index] for index in range(first, 2 * BATCHES, step))


class Anyones(LightningModule):
    """Dropout, a scheduler, shuffled noisy data, a validation that draws, values logged by step and by epoch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Linear(4, 8)
            self.head = nn.Linear(8, 1)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(torch.tanh(self.body(x))))

    def loss(self, batch: Tensor) -> Tensor:
        return (self(batch) - batch.sum(1, keepdim=True)).square().mean()

    def training_step(self, batch: Any) -> Any:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True, batch_size=2)
        return loss

    def validation_step(self, batch: Any) -> None:
        self.log("val/loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.05)
        return [optimizer], [lr_scheduler.StepLR(optimizer, 1, 0.5)]

    def train_dataloader(self) -> Any:
        return DataLoader(Drawn(), batch_size=2, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Drawn(), batch_size=5)


def quiet_trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """A plain Trainer on the CPU that says nothing."""
    defaults = {
        "accelerator": "cpu", "default_root_dir": folder, "max_epochs": -1, "num_sanity_val_steps": 0, "logger": False,
        "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **{**defaults, **settings})


def forked() -> dict[str, Any]:
    """Settings of a trainer on two processes: forked, which is ten times as fast as spawned, but not beside a GPU."""
    return {"strategy": "ddp_spawn" if torch.cuda.is_initialized() else "ddp_fork", "devices": 2}


FORKED = pytest.mark.filterwarnings(  # a forked process keeps the filters
    "ignore:It is recommended to use `self.log",
    "ignore:torch.distributed.nn.functional.all_gather is deprecated",
)

# Where a checkpoint is left, after all other callbacks had their turn. Within a step there is none: it would be half
# a step.
TRAINING = (
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end", "on_train_epoch_end",
    "on_train_end", "on_validation_start", "on_validation_end",
)  # fmt: skip
WITHIN_VALIDATION = (
    "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end", "on_validation_epoch_end",
)  # fmt: skip


@dataclass
class Setup:
    """What is trained, and how."""

    module: Callable[[], LightningModule] = Anyones
    stages: Sequence[Stage] = (Stage(2), Stage(2))
    callbacks: Callable[[], list[Callback]] = list
    trainer: dict[str, Any] = field(default_factory=dict)
    staged: type[StagedTraining] = StagedTraining
    hooks: Sequence[str] = TRAINING + WITHIN_VALIDATION


class Adversaries(Anyones):
    """Two optimizers, stepped by hand in turn."""

    automatic_optimization = False

    def training_step(self, batch: Tensor) -> None:
        generator, critic = self.optimizers()
        for optimizer, sign in ((generator, 1), (critic, -0.1)):
            self.toggle_optimizer(optimizer)
            loss = sign * self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
            self.log(f"train/{sign}", loss, on_step=True, on_epoch=True)
        self.log("train/loss", loss)
        if self.trainer.is_last_batch:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def configure_optimizers(self) -> Any:
        optimizers = [AdamW(self.body.parameters(), lr=0.05), torch.optim.Adam(self.head.parameters(), lr=0.02)]
        return optimizers, [lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers]


class AccumulatesByHand(Anyones):
    """A step every third batch, across the ends of epochs."""

    automatic_optimization = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.tensor(0))

    def training_step(self, batch: Tensor) -> None:
        loss = self.loss(batch)
        self.manual_backward(loss / 3)
        self.log("train/loss", loss, on_epoch=True)
        self.batches += 1
        if self.batches % 3 == 0:
            self.optimizers().step()
            self.optimizers().zero_grad()

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.05, momentum=0.9)


class SecondOrder(Anyones):
    def configure_optimizers(self) -> Any:
        return LBFGS(self.parameters(), lr=0.1, max_iter=3)


class OneCycle(Anyones):
    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.1)
        scheduler = lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class WarmUp(Anyones):
    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.05)
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 7)]
        scheduler = lr_scheduler.SequentialLR(optimizer, parts, [3])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Restarts(Anyones):
    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.05)
        return [optimizer], [
            lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2),
            lr_scheduler.MultiStepLR(optimizer, [1, 2], 0.5),
            lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (epoch + 1)),
        ]


class Plateau(Anyones):
    """ReduceLROnPlateau, which Lightning steps after an epoch's checkpoints are saved; it reduces at once."""

    interval = "epoch"

    def configure_optimizers(self) -> Any:
        optimizer = AdamW(self.parameters(), lr=0.05)
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.05)
        monitored = {"scheduler": scheduler, "interval": self.interval, "monitor": "train/loss"}
        return {"optimizer": optimizer, "lr_scheduler": monitored}


class PlateauBySteps(Plateau):
    interval = "step"


class Streams(Anyones):
    def train_dataloader(self) -> Any:
        return DataLoader(Streamed(), batch_size=2, num_workers=2)


class StreamsInProcess(Anyones):
    def train_dataloader(self) -> Any:
        return DataLoader(Streamed(), batch_size=2)


class TwoSources(Anyones):
    """A short loader, started again within an epoch, beside a long one."""

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return super().training_step(batch["long"] + batch["short"].mean())

    def train_dataloader(self) -> Any:
        short = DataLoader(Drawn(), batch_size=6, shuffle=True)
        return CombinedLoader({"long": super().train_dataloader(), "short": short}, "max_size_cycle")


class Weighted(Anyones):
    def train_dataloader(self) -> Any:
        return DataLoader(Drawn(), batch_size=2, sampler=WeightedRandomSampler(range(1, 2 * BATCHES + 1), 2 * BATCHES))


class Workers(Anyones):
    persistent = False

    def train_dataloader(self) -> Any:
        return DataLoader(Drawn(), 2, shuffle=True, num_workers=2, persistent_workers=self.persistent)

    def val_dataloader(self) -> Any:
        return DataLoader(Drawn(), 5, num_workers=1, persistent_workers=self.persistent)


class PersistentWorkers(Workers):
    persistent = True


class Measured(Anyones):
    """torchmetrics: logged as objects, and by hand at the epoch's end; reductions of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.by_hand, self.val_mean = MeanMetric(), MeanMetric(), MeanMetric()

    def training_step(self, batch: Tensor) -> Tensor:
        loss = super().training_step(batch)
        self.mean(loss.detach())
        self.by_hand.update(loss.detach())
        self.log("train/mean", self.mean, on_step=True, on_epoch=True)
        self.log("train/max", loss, on_epoch=True, on_step=False, reduce_fx="max")
        self.log("train/sum", loss, on_epoch=True, on_step=False, reduce_fx=sum)
        if self.trainer.is_last_batch:
            self.log("train/last", loss)
        return loss

    def validation_step(self, batch: Tensor) -> None:
        super().validation_step(batch)
        self.val_mean(self.loss(batch))
        self.log("val/mean", self.val_mean)

    def on_train_epoch_end(self) -> None:
        self.log("train/by_hand", self.by_hand.compute())
        self.by_hand.reset()


class Normalized(Anyones):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.BatchNorm1d(8)


class Counts(Anyones):
    """Counts epochs in hooks that Lightning calls late."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epochs", torch.zeros(()))

    def training_step(self, batch: Tensor) -> Tensor:
        return super().training_step(batch + self.epochs)

    def on_train_epoch_end(self) -> None:
        self.epochs += 1


class CountsToo(Callback):
    count = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class OnlyTrainable(Anyones):
    def configure_optimizers(self) -> Any:
        return AdamW([p for p in self.parameters() if p.requires_grad], lr=0.05)


class Freezes(StagedTraining):
    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        pl_module.body.requires_grad_(index % 2 == 0)


class NewHead(StagedTraining):
    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        pl_module.head = nn.Sequential(nn.Linear(8, 3), nn.Tanh(), nn.Linear(3, 1)).to(pl_module.device)


class ByStage(Anyones):
    """What a step computes depends on the stage, which the module asks the trainer for."""

    def training_step(self, batch: Tensor) -> Tensor:
        return super().training_step(batch * (1 + current_stage(self.trainer)))


class Anneals(Anyones):
    """Attributes set and drawn where training and epochs start; a metric and an option that start again there."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()

    def on_train_start(self) -> None:
        self.order = torch.randperm(4)

    def on_train_epoch_start(self) -> None:
        self.scale = torch.rand(()) / (1 + self.current_epoch)
        self.stage = current_stage(self.trainer)
        self.mean.reset()
        self.optimizers().param_groups[0]["weight_decay"] = 0.0
        self.log("train/scale", self.scale)

    def training_step(self, batch: Tensor) -> Tensor:
        loss = super().training_step(batch[:, self.order] * self.scale + self.stage)
        self.mean.update(loss.detach())
        self.log("train/mean", self.mean.compute())
        self.optimizers().param_groups[0]["weight_decay"] += 0.1
        return loss


class CountsSteps(Callback):
    """A count that each epoch begins anew, and a note that it does not save."""

    def __init__(self) -> None:
        self.count = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count, self.noise = 0, random.random()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.count += 1
        pl_module.log("count", self.count + self.noise)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


class OwnBatches(OneCycle):
    """Each stage has batches of its own size, and as many steps as they make."""

    size = 2

    def train_dataloader(self) -> Any:
        return DataLoader(Drawn(), batch_size=self.size, shuffle=True)


class LargerBatches(StagedTraining):
    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        pl_module.size = 2 + index


class Curriculum(Anyones):
    """The loader depends on the epoch in which it is made."""

    def train_dataloader(self) -> Any:
        return DataLoader([sample + self.current_epoch for sample in torch.ones(10, 4)], batch_size=2, shuffle=True)


class Replays(Anyones):
    """Hooks that Lightning calls behind the callbacks that save fill a list and a buffer, and draw."""

    def __init__(self) -> None:
        super().__init__()
        self.replayed: list[float] = []
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Tensor) -> Tensor:
        return super().training_step(batch + sum(self.replayed[-3:]) + self.seen)

    def on_train_batch_end(self, outputs: Any, batch: Tensor, batch_idx: int) -> None:
        self.replayed.append(batch.mean().item() + random.random())
        self.log("train/replayed", self.replayed[-1])

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.seen += torch.rand(())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["replayed"] = list(self.replayed)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.replayed = checkpoint["replayed"]


class CutsEpochs(Anyones):
    """Skips the rest of an epoch, as Lightning lets a module do."""

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 - self.current_epoch % 2 else None


class Stateful(Anyones):
    def train_dataloader(self) -> Any:
        return StatefulDataLoader(Drawn(), batch_size=2, shuffle=True)


class StatefulWorkers(Anyones):
    def train_dataloader(self) -> Any:
        return StatefulDataLoader(Drawn(), batch_size=2, shuffle=True, num_workers=2)


def second_epoch(trainer: Trainer, pl_module: LightningModule) -> bool:
    return trainer.current_epoch % 2 == 1


SETUPS = {
    "one of each": Setup(),
    "manual optimization, two optimizers": Setup(Adversaries),
    "accumulated by hand": Setup(AccumulatesByHand),
    "accumulated": Setup(trainer={"accumulate_grad_batches": 3}),
    "accumulation by schedule": Setup(callbacks=lambda: [GradientAccumulationScheduler({0: 2, 2: 3})]),
    # While it validates, the average is in the module's place, and Lightning would not exchange them back.
    "averaged weights": Setup(callbacks=lambda: [EMAWeightAveraging(decay=0.5)], hooks=TRAINING),
    "LBFGS": Setup(SecondOrder),
    "OneCycleLR": Setup(OneCycle),
    "warm-up": Setup(WarmUp),
    "three schedulers": Setup(Restarts),
    "streamed by workers": Setup(Streams),
    "streamed": Setup(StreamsInProcess),
    "two loaders": Setup(TwoSources),
    "weighted sampler": Setup(Weighted),
    "workers": Setup(Workers),
    "persistent workers": Setup(PersistentWorkers),
    "validation within the epoch": Setup(Measured, trainer={"val_check_interval": 2}),
    "validation every second epoch": Setup(Measured, trainer={"check_val_every_n_epoch": 2}),
    "metrics": Setup(Measured),
    "batch norm": Setup(Normalized),
    "counts at the end": Setup(Counts, callbacks=lambda: [CountsToo()]),
    "frozen layer": Setup(OnlyTrainable, staged=Freezes, stages=[Stage(1), Stage(2), Stage(1, reset_optimizer=False)]),
    "new layer": Setup(OnlyTrainable, staged=NewHead),
    "own optimizer": Setup(OneCycle, [Stage(2), Stage(2, optimizer=partial(SGD, lr=0.1, momentum=0.9))]),
    "own scheduler": Setup(OneCycle, [Stage(2), Stage(2, lr_scheduler=partial(lr_scheduler.ExponentialLR, gamma=0.5))]),
    "kept state": Setup(stages=[Stage(2), Stage(2, reset_optimizer=False)]),
    "until": Setup(stages=[Stage(4, until=Until("val/loss", patience=1)), Stage(3, until=second_epoch)]),
    "clipped": Setup(trainer={"gradient_clip_val": 0.1}),
    "plateau": Setup(Plateau),
    "plateau by steps": Setup(PlateauBySteps, trainer={"val_check_interval": 2}),
    "plateau, accumulated": Setup(PlateauBySteps, trainer={"accumulate_grad_batches": 2}),
    "steps": Setup(stages=[Stage(steps=7), Stage(steps=6)]),
    "steps at an epoch's end": Setup(stages=[Stage(steps=5), Stage(steps=10)]),
    "steps and epochs": Setup(stages=[Stage(steps=7), Stage(1), Stage(steps=3, reset_optimizer=False)]),
    "steps, accumulated": Setup(stages=[Stage(steps=4), Stage(steps=4)], trainer={"accumulate_grad_batches": 2}),
    "steps, validation within the epoch": Setup(
        Measured, [Stage(steps=6), Stage(steps=2), Stage(steps=5)], trainer={"val_check_interval": 2}
    ),
    "steps, until": Setup(
        stages=[Stage(steps=30, until=Until("val/loss", patience=1)), Stage(steps=4)], trainer={"val_check_interval": 2}
    ),
    "steps, until, accumulated": Setup(
        stages=[Stage(steps=30, until=Until("val/loss", patience=1)), Stage(steps=4)],
        trainer={"val_check_interval": 3, "accumulate_grad_batches": 2},
    ),
    "steps, streamed": Setup(StreamsInProcess, [Stage(steps=7), Stage(steps=6)]),
    "steps, streamed by workers": Setup(Streams, [Stage(steps=7), Stage(steps=6)]),
    "steps, OneCycleLR": Setup(OneCycle, [Stage(steps=7), Stage(steps=6)]),
    "steps, plateau": Setup(PlateauBySteps, [Stage(steps=7), Stage(steps=6)], trainer={"val_check_interval": 2}),
    "steps, plateau, epochs": Setup(Plateau, [Stage(steps=7), Stage(steps=8)]),
    "steps, two optimizers": Setup(Adversaries, [Stage(steps=13), Stage(steps=12)]),
    "steps, new layer": Setup(OnlyTrainable, [Stage(steps=7), Stage(steps=6)], staged=NewHead),
    "steps, frozen layer": Setup(
        OnlyTrainable, [Stage(steps=3), Stage(steps=7), Stage(steps=4, reset_optimizer=False)], staged=Freezes
    ),
    "frozen by name": Setup(
        OnlyTrainable,
        [Stage(1, freeze="body.*"), Stage(2, freeze=["head.bias", "bod?.bias"]), Stage(1, reset_optimizer=False)],
    ),
    "steps, frozen by name": Setup(
        OnlyTrainable, [Stage(steps=7, freeze="head.*"), Stage(steps=4), Stage(1, freeze="body.*")]
    ),
    "best restored": Setup(
        Normalized,
        [
            Stage(4, until=Until("val/loss", patience=2), restore_best=True),
            Stage(3, until=Until("val/loss", patience=2), restore_best=True, reset_optimizer=False),
        ],
    ),
    "steps, best restored, accumulated": Setup(
        stages=[Stage(steps=30, until=Until("val/loss", patience=1), restore_best=True), Stage(steps=4)],
        trainer={"val_check_interval": 3, "accumulate_grad_batches": 2},
    ),
    "current stage": Setup(ByStage, [Stage(steps=7), Stage(2), Stage(steps=3)]),
    "epoch start": Setup(Anneals, [Stage(2), Stage(steps=7), Stage(1)], callbacks=lambda: [CountsSteps()]),
    "loaders by stage": Setup(OwnBatches, [Stage(2), Stage(2, reload_dataloaders=True)], staged=LargerBatches),
    "loaders every second epoch": Setup(
        Curriculum, [Stage(3), Stage(2)], trainer={"reload_dataloaders_every_n_epochs": 2}
    ),
    "replayed": Setup(Replays, trainer={"val_check_interval": 2}),
    "replayed, steps": Setup(Replays, [Stage(steps=7), Stage(steps=6)]),
    "cut epochs": Setup(CutsEpochs, [Stage(3), Stage(2)]),
    "cut epochs, accumulated": Setup(CutsEpochs, [Stage(3), Stage(2)], trainer={"accumulate_grad_batches": 2}),
    "stateful loader": Setup(Stateful),
    "stateful loader, workers": Setup(StatefulWorkers),
    "loaders made anew": Setup(Workers, trainer={"reload_dataloaders_every_n_epochs": 1}),
}
