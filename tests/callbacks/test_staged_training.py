"""StagedTraining on modules that are not ours."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from anyones import FORKED, CountsToo, forked
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel, ManualOptimBoringModel
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import ExponentialLR, StepLR
from torch.utils.data import DataLoader

from tinygpt_lightning import Stage, StagedTraining
from tinygpt_lightning.callbacks.stages import StageError

BATCHES = 4  # in an epoch


class AdamModel(BoringModel):
    """A foreign module whose optimizer has a state, and a scheduler; its data are always the same."""

    def train_dataloader(self) -> Any:
        return DataLoader(torch.randn(64, 32, generator=torch.Generator().manual_seed(1)))

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, step_size=1, gamma=0.5)]


class TwoOptimizers(ManualOptimBoringModel):
    """A foreign module that steps two optimizers by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(32, 2)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer, layer in zip(self.optimizers(), (self.layer, self.other), strict=True):
            optimizer.zero_grad()
            self.manual_backward(self.loss(layer(batch)))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [AdamW(self.layer.parameters(), lr=0.1), Adam(self.other.parameters(), lr=0.2)]


class Recorder(Callback):
    """Writes down what the optimizers look like before every batch."""

    def __init__(self) -> None:
        self.optimizers: list[list[int]] = []  # identities
        self.classes: list[str] = []
        self.steps: list[list[int]] = []  # of each optimizer: steps it has in its state
        self.rates: list[float] = []
        self.keep: list[Any] = []  # alive, so that no identity is used twice

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.keep.append(trainer.optimizers)
        self.optimizers.append([id(o) for o in trainer.optimizers])
        self.classes.append(type(trainer.optimizers[0]).__name__)
        self.steps.append([steps_in_state(o) for o in trainer.optimizers])
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def steps_in_state(optimizer: torch.optim.Optimizer) -> int:
    steps = {int(state["step"]) for state in optimizer.state.values() if "step" in state}
    assert len(steps) <= 1
    return steps.pop() if steps else 0


def train(
    model: LightningModule, stages: list[Stage], folder: Path, callbacks: tuple[Callback, ...] = (), **settings: Any
) -> Trainer:
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        max_epochs=settings.pop("max_epochs", -1),
        limit_train_batches=BATCHES,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[StagedTraining(stages, folder), *callbacks],
        **settings,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def test_optimizers_are_new_and_empty_after_a_boundary_and_untouched_elsewhere(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = train(AdamModel(), [Stage(2), Stage(3)], tmp_path, (recorder,))
    assert trainer.current_epoch == 5
    assert recorder.steps == [[n] for n in [*range(2 * BATCHES), *range(3 * BATCHES)]]
    boundary = 2 * BATCHES
    assert len({o for (o,) in recorder.optimizers[:boundary]}) == 1
    assert len({o for (o,) in recorder.optimizers[boundary:]}) == 1
    assert recorder.optimizers[0] != recorder.optimizers[-1]


def test_schedulers_start_again_with_each_stage(tmp_path: Path) -> None:
    recorder = Recorder()
    train(AdamModel(), [Stage(2), Stage(3)], tmp_path, (recorder,))
    assert recorder.rates[::BATCHES] == [0.1, 0.05, 0.1, 0.05, 0.025]


def test_a_stage_can_keep_the_state(tmp_path: Path) -> None:
    recorder = Recorder()
    train(AdamModel(), [Stage(2), Stage(2, reset_optimizer=False)], tmp_path, (recorder,))
    assert recorder.steps == [[n] for n in range(4 * BATCHES)]
    assert recorder.rates[::BATCHES] == [0.1, 0.05, 0.1, 0.05]  # the scheduler, though, is new


def test_a_kept_state_is_the_state_itself(tmp_path: Path) -> None:
    kept, reset = (
        train(AdamModel(), [Stage(1), Stage(1, reset_optimizer=r, optimizer=partial(Adam, lr=0.0))], tmp_path)
        for r in (False, True)
    )
    # With a learning rate of 0 the weights stand still, and the moments still gather what the stages saw.
    momenta = [t.optimizers[0].state_dict()["state"][0]["exp_avg"] for t in (kept, reset)]
    before = torch.load(tmp_path / "stage-1.ckpt", weights_only=True)
    assert before["optimizer_states"][0]["state"][0]["step"] == BATCHES
    assert not torch.equal(*momenta)
    assert [steps_in_state(t.optimizers[0]) for t in (kept, reset)] == [2 * BATCHES, BATCHES]


def test_each_stage_can_have_its_own_optimizer_and_scheduler(tmp_path: Path) -> None:
    recorder = Recorder()
    stages = [
        Stage(2),
        Stage(2, optimizer=partial(SGD, lr=0.01)),
        Stage(2, optimizer=partial(AdamW, lr=0.4), lr_scheduler=partial(ExponentialLR, gamma=0.1)),
        Stage(2, lr_scheduler=partial(ExponentialLR, gamma=0.25)),  # the module's Adam, without its scheduler
    ]
    train(AdamModel(), stages, tmp_path, (recorder,))
    assert recorder.classes[::BATCHES] == ["Adam"] * 2 + ["SGD"] * 2 + ["AdamW"] * 2 + ["Adam"] * 2
    assert recorder.rates[::BATCHES] == pytest.approx([0.1, 0.05, 0.01, 0.01, 0.4, 0.04, 0.1, 0.025])


def test_the_learning_rate_holds_within_an_epoch(tmp_path: Path) -> None:
    recorder = Recorder()
    train(AdamModel(), [Stage(1), Stage(2)], tmp_path, (recorder,))
    assert recorder.rates == [0.1] * 2 * BATCHES + [0.05] * BATCHES


def test_manual_optimization_with_two_optimizers(tmp_path: Path) -> None:
    recorder = Recorder()
    train(TwoOptimizers(), [Stage(2), Stage(1), Stage(1, reset_optimizer=False)], tmp_path, (recorder,))
    assert recorder.steps == [[n, n] for n in [*range(2 * BATCHES), *range(2 * BATCHES)]]


def test_a_stage_with_its_own_optimizer_needs_a_module_with_one(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="one optimizer.*got one with 2"):
        train(TwoOptimizers(), [Stage(1), Stage(1, optimizer=partial(SGD, lr=0.1))], tmp_path)


def test_gradient_accumulation(tmp_path: Path) -> None:
    recorder = Recorder()
    trainer = train(AdamModel(), [Stage(2), Stage(2)], tmp_path, (recorder,), accumulate_grad_batches=2)
    assert trainer.global_step == 4 * BATCHES // 2
    assert recorder.steps == [[n // 2] for n in [*range(2 * BATCHES), *range(2 * BATCHES)]]


def test_each_stage_leaves_a_checkpoint(tmp_path: Path) -> None:
    model = AdamModel()
    train(model, [Stage(2), Stage(1)], tmp_path)
    first, second = (torch.load(tmp_path / f"stage-{n}.ckpt", weights_only=True) for n in (1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stage-1.ckpt", "stage-2.ckpt"]
    assert (first["global_step"], second["global_step"]) == (2 * BATCHES, 3 * BATCHES)
    assert torch.equal(second["state_dict"]["layer.weight"], model.layer.weight)
    assert not torch.equal(first["state_dict"]["layer.weight"], model.layer.weight)


STAGES = [Stage(2), Stage(2, optimizer=partial(SGD, lr=0.01)), Stage(2, lr_scheduler=partial(ExponentialLR, gamma=0.5))]


@pytest.mark.parametrize("interrupted_after", [1, 2, 3, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, interrupted_after: int) -> None:
    class Interrupt(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            if trainer.current_epoch + 1 == interrupted_after:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")
                trainer.should_stop = True

    whole, parts = Recorder(), Recorder()
    weights = []
    for callbacks in ((whole,), (parts, Interrupt())):
        seed_everything(3)
        model = AdamModel()
        trainer = train(model, STAGES, tmp_path, callbacks)
        weights.append(model.layer.weight)
    assert trainer.current_epoch == interrupted_after
    resumed = AdamModel()
    train(resumed, STAGES, tmp_path, (parts,), ckpt_path=tmp_path / "saved.ckpt")
    assert torch.equal(resumed.layer.weight, weights[0])
    assert (parts.steps, parts.classes, parts.rates) == (whole.steps, whole.classes, whole.rates)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ([Stage(3), *STAGES[1:]], r"stages\[0\]\.epochs: expected 2.*got 3"),
        ([STAGES[0], Stage(2, optimizer=partial(SGD, lr=0.02)), STAGES[2]], r"stages\[1\]\.optimizer"),
        ([STAGES[0], Stage(2, False, partial(Adam, lr=0.01)), STAGES[2]], r"stages\[1\]\.reset_optimizer"),
        ([STAGES[0], Stage(2, True, partial(SGD, lr=0.01), partial(StepLR, step_size=1))], r"stages\[1\]\.lr_sch"),
        (STAGES[:1], "expected at least the 2"),
    ],
)
def test_a_stage_that_has_begun_cannot_change(tmp_path: Path, changed: list[Stage], named: str) -> None:
    train(AdamModel(), STAGES[:2], tmp_path)
    with pytest.raises(StageError, match=named):
        train(AdamModel(), changed, tmp_path, ckpt_path=tmp_path / "stage-2.ckpt")


def test_stages_to_come_may_change_and_more_may_follow(tmp_path: Path) -> None:
    train(AdamModel(), STAGES[:2], tmp_path)
    recorder = Recorder()
    stages = [*STAGES[:2], Stage(1), Stage(1, optimizer=partial(AdamW, lr=0.3))]
    trainer = train(AdamModel(), stages, tmp_path, (recorder,), ckpt_path=tmp_path / "stage-2.ckpt")
    assert trainer.current_epoch == 6
    assert recorder.rates[::BATCHES] == [0.1, 0.3]
    assert (tmp_path / "stage-4.ckpt").exists()


class SavesAtValidationEnd(Callback):
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(trainer.default_root_dir + f"/epoch-{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_a_checkpoint_from_mid_epoch_crosses_each_boundary_once(tmp_path: Path, epoch: int) -> None:
    class Boundaries(StagedTraining):
        crossed: list[tuple[int, int]] = []  # noqa: RUF012, on purpose one for all

        def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
            self.crossed.append((trainer.current_epoch, index))

        def on_stage_resume(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
            pass

    settings: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": -1, "limit_train_batches": BATCHES, "limit_val_batches": 1,
        "num_sanity_val_steps": 0, "default_root_dir": str(tmp_path), "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    stages = [Stage(2), Stage(2)]
    seed_everything(5)
    whole = AdamModel()
    Trainer(callbacks=[Boundaries(stages, tmp_path), SavesAtValidationEnd()], **settings).fit(whole)
    assert Boundaries.crossed == [(0, 0), (2, 1)]
    Boundaries.crossed.clear()
    resumed = AdamModel()
    Trainer(callbacks=[Boundaries(stages, tmp_path)], **settings).fit(
        resumed, ckpt_path=tmp_path / f"epoch-{epoch}.ckpt"
    )
    assert Boundaries.crossed == ([(2, 1)] if epoch < 2 else [])
    assert torch.equal(resumed.layer.weight, whole.layer.weight)


def test_a_callback_can_be_used_again(tmp_path: Path) -> None:
    staged, recorder = StagedTraining([Stage(1), Stage(1, optimizer=partial(SGD, lr=0.3))], tmp_path), Recorder()
    for _ in range(2):
        trainer = Trainer(
            accelerator="cpu", max_epochs=-1, limit_train_batches=1, limit_val_batches=0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            callbacks=[staged, recorder], default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(AdamModel())
    assert recorder.classes == ["Adam", "SGD"] * 2


def test_module_and_trainer_are_left_as_they_were(tmp_path: Path) -> None:
    model = AdamModel()
    trainer = train(model, STAGES, tmp_path)
    assert not {"configure_optimizers", "on_train_epoch_end"} & vars(model).keys()
    assert "on_advance_end" not in vars(trainer.fit_loop)
    assert "load_checkpoint" not in vars(trainer.strategy)
    assert not trainer.checkpoint_callbacks
    assert not trainer.early_stopping_callbacks


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    train(AdamModel(), STAGES, tmp_path)
    checkpoint = torch.load(tmp_path / "stage-1.ckpt", weights_only=True)
    checkpoint["callbacks"]["StagedTraining"] = {"built": 0, "stages": [], "optimizer": {}}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(StageError, match=r"ckpt_path: .*this version.*got .*old.ckpt"):
        train(AdamModel(), STAGES, tmp_path, ckpt_path=tmp_path / "old.ckpt")


class CountsEpochs(AdamModel):
    """Counts in a hook of the module, which Lightning calls after those of ordinary callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("epochs", torch.zeros(()))

    def on_train_epoch_end(self) -> None:
        self.epochs += 1


def test_a_stages_checkpoint_is_what_the_epoch_left_behind(tmp_path: Path) -> None:
    train(CountsEpochs(), [Stage(2), Stage(1)], tmp_path, (CountsToo(),))
    for number, epochs in ((1, 2), (2, 3)):
        saved = torch.load(tmp_path / f"stage-{number}.ckpt", weights_only=True)
        assert saved["state_dict"]["epochs"] == epochs
        assert saved["callbacks"]["CountsToo"]["count"] == epochs


def test_at_least_one_stage_is_expected() -> None:
    with pytest.raises(StageError, match="at least one stage"):
        StagedTraining(stages=[])


@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ({"max_steps": 3}, (1, 3)),
        ({"max_epochs": 1}, (1, BATCHES)),
        ({"max_steps": 99}, (2, 2 * BATCHES)),
        ({"max_epochs": 9}, (2, 2 * BATCHES)),
        ({"max_epochs": 2, "max_steps": 2 * BATCHES}, (2, 2 * BATCHES)),
    ],
)
def test_an_earlier_limit_of_the_trainer_ends_the_run(tmp_path: Path, settings: dict[str, int], end: tuple) -> None:
    trainer = train(AdamModel(), [Stage(1), Stage(1)], tmp_path, **settings)
    assert (trainer.current_epoch, trainer.global_step) == end
    assert (tmp_path / "stage-2.ckpt").exists() == (end[1] == 2 * BATCHES)


def test_a_kept_state_needs_the_same_kind_of_optimizer(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"stages\[1\].*got SGD after Adam"):
        train(AdamModel(), [Stage(1), Stage(1, reset_optimizer=False, optimizer=partial(SGD, lr=0.1))], tmp_path)
    assert not list(tmp_path.iterdir())  # before the first epoch


def test_fast_dev_run_is_left_alone(tmp_path: Path) -> None:
    trainer = train(AdamModel(), [Stage(5)], tmp_path, fast_dev_run=True, max_epochs=None)
    assert trainer.global_step == 1
    assert not list(tmp_path.iterdir())


class RanksInStep(Callback):
    """Fails in any process whose weights, or optimizer, are not those of the others."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        steps = steps_in_state(trainer.optimizers[0])
        assert steps == (trainer.current_epoch % 2) * BATCHES + batch_idx
        mine = torch.cat([p.detach().flatten() for p in pl_module.parameters()] + [torch.tensor([float(steps)])])
        every = pl_module.all_gather(mine)
        assert every.shape[0] == 2
        assert torch.equal(every[0], every[1])


@FORKED
def test_two_processes_stay_in_step(tmp_path: Path) -> None:
    stages = [Stage(2), Stage(2)]
    train(AdamModel(), stages, tmp_path, (RanksInStep(),), **forked())
    assert torch.load(tmp_path / "stage-2.ckpt", weights_only=True)["global_step"] == 4 * BATCHES
