"""Runs that are stopped and resumed, compared at tolerance zero with the run that was never stopped."""

import os
import random
import secrets

import numpy as np
import pytest
import torch
from anyones import FORKED, forked
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from tinygpt_lightning import Stage, StagedTraining
from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.generators import seed_all

EPOCHS, BATCHES = 3, 4
pytestmark = [
    # Lightning with torch 2.13.
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    # Lightning's advice; that a resume in mid-epoch is not exact is what these tests disprove.
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    # The resumed runs here write no checkpoints, or elsewhere.
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]


class Noisy(Dataset):
    """Samples that are drawn anew each time, as data augmentation does."""

    def __len__(self):
        return 2 * BATCHES

    def __getitem__(self, index):
        return torch.full((8,), float(index)) + torch.randn(8)


class Module(LightningModule):
    """Draws from every generator in a step, and can be made to fail in one."""

    def __init__(self, dropout=0.5, fail_at=None):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout), nn.Linear(16, 1))
        self.fail_at = fail_at
        self.losses, self.seen, self.draws = {}, {}, {}

    def training_step(self, batch, batch_idx):
        step = self.current_epoch, batch_idx
        if step == self.fail_at:
            raise KeyError("stop here")
        self.draws[step] = torch.rand(()).item(), float(np.random.rand()), random.random()
        loss = self.net(batch * self.draws[step][1] + self.draws[step][2]).square().mean()
        self.losses[step], self.seen[step] = loss.item(), batch.tolist()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch):
        torch.rand(3)  # text may be sampled here
        self.log("val/loss", self.net(batch).square().mean())

    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=2, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Noisy(), batch_size=2)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)]


def fit(folder, *callbacks, module=None, seed=1, ckpt_path=None, epochs=EPOCHS, **settings):
    seed_everything(1, verbose=False)
    seed_all(seed)
    module = module or Module()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **settings})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer, module


def assert_same_end(resumed, uninterrupted):
    (trainer, module), (other_trainer, other) = resumed, uninterrupted
    assert trainer.global_step == other_trainer.global_step
    assert module.losses == {step: other.losses[step] for step in module.losses}
    assert module.seen == {step: other.seen[step] for step in module.seen}
    for name, weight in module.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name
    states, other_states = trainer.optimizers[0].state_dict(), other_trainer.optimizers[0].state_dict()
    assert states["param_groups"] == other_states["param_groups"]
    for index, state in states["state"].items():
        for name, value in state.items():
            assert torch.equal(value, other_states["state"][index][name]), (index, name)


TRIGGERS = {
    "epoch end": ({"every_n_epochs": 1, "save_on_train_epoch_end": True}, {}),
    "every step": ({"every_n_train_steps": 1}, {}),
    "every third step": ({"every_n_train_steps": 3}, {}),
    "validation end": ({"every_n_epochs": 1, "save_on_train_epoch_end": False}, {}),
    "validation within the epoch": ({"save_on_train_epoch_end": False}, {"val_check_interval": 0.5}),
    "every step, validation within the epoch": ({"every_n_train_steps": 1}, {"val_check_interval": 0.5}),
    "accumulated gradients": ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize(("when", "settings"), TRIGGERS.values(), ids=TRIGGERS.keys())
def test_a_run_resumed_from_any_checkpoint_equals_the_uninterrupted_one(tmp_path, when, settings):
    files = ModelCheckpoint(tmp_path / "ckpt", "{epoch}-{step}", save_top_k=-1, **when)
    uninterrupted = fit(tmp_path, ExactResume(), files, **settings)
    checkpoints = sorted((tmp_path / "ckpt").glob("*.ckpt"))
    assert len(checkpoints) >= EPOCHS
    for number, path in enumerate(checkpoints):
        again = ModelCheckpoint(tmp_path / "again", save_top_k=-1, **when)
        resumed = fit(tmp_path, ExactResume(), again, seed=100 + number, ckpt_path=path, **settings)
        assert_same_end(resumed, uninterrupted)


class SaveOnException(Callback):
    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, *_):
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [(0, 0), (0, 2), (1, 0), (2, 3)])
def test_a_run_resumed_after_an_exception_equals_the_uninterrupted_one(tmp_path, step):
    uninterrupted = fit(tmp_path, ExactResume(), enable_checkpointing=False)
    path = tmp_path / "stopped.ckpt"
    failing = Module(fail_at=step)
    with pytest.raises(KeyError, match="stop here"):
        fit(tmp_path, ExactResume(), SaveOnException(path), module=failing, enable_checkpointing=False)
    resumed = fit(tmp_path, ExactResume(), seed=2, ckpt_path=path, enable_checkpointing=False)
    assert len(failing.losses) + len(resumed[1].losses) == EPOCHS * BATCHES
    assert_same_end(resumed, uninterrupted)


@pytest.mark.parametrize("path", ["epoch=0-step=4.ckpt", "epoch=1-step=6.ckpt"])
def test_without_the_callback_the_runs_differ(tmp_path, path):
    files = ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, every_n_train_steps=2)
    _, uninterrupted = fit(tmp_path, files)
    _, resumed = fit(tmp_path, seed=2, ckpt_path=tmp_path / path, enable_checkpointing=False)
    last = (EPOCHS - 1, BATCHES - 1)
    assert resumed.losses[last] != uninterrupted.losses[last]


class Workers(Module):
    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=2, shuffle=True, num_workers=1)


class ByEpoch(Module):
    """The order of the samples follows from the epoch that Lightning tells the sampler."""

    def train_dataloader(self):
        return DataLoader(Noisy(), batch_size=2, sampler=DistributedSampler(Noisy(), num_replicas=1, rank=0))


class Interfering(Module):
    """Other hooks draw more numbers in some runs than in others; the order of the samples is fixed."""

    def on_train_epoch_start(self):
        torch.rand(secrets.randbelow(100))

    def train_dataloader(self):
        return DataLoader(torch.ones(2 * BATCHES, 8), batch_size=2)


@pytest.mark.parametrize("kind", [Workers, ByEpoch, Interfering])
def test_kinds_of_loaders_and_hooks(tmp_path, kind):
    files = ModelCheckpoint(tmp_path / "ckpt", "{epoch}-{step}", save_top_k=-1, every_n_train_steps=3)
    uninterrupted = fit(tmp_path, ExactResume(), files, module=kind(), limit_val_batches=0)
    for path in (tmp_path / "ckpt").glob("*.ckpt"):
        again = {"module": kind(), "limit_val_batches": 0, "ckpt_path": path, "enable_checkpointing": False}
        assert_same_end(fit(tmp_path, ExactResume(), seed=2, **again), uninterrupted)


def test_each_step_and_epoch_draws_other_numbers_even_when_the_step_draws_none(tmp_path):
    """Restoring one state before every step would shuffle each epoch alike for a model without dropout."""

    class Still(Module):
        def training_step(self, batch, batch_idx):
            self.seen[self.current_epoch, batch_idx] = batch.tolist()
            return self.net(batch).mean()

    _, module = fit(tmp_path, ExactResume(), module=Still(dropout=0), enable_checkpointing=False)
    orders = [tuple(round(np.mean(module.seen[epoch, batch])) for batch in range(BATCHES)) for epoch in range(EPOCHS)]
    assert len(set(orders)) == EPOCHS
    noise = [np.array(batch) - np.array(batch).mean(axis=1, keepdims=True).round() for batch in module.seen.values()]
    assert len({batch.round(3).tobytes() for batch in noise}) == EPOCHS * BATCHES


def test_a_step_does_not_repeat_the_numbers_its_data_was_made_of(tmp_path):
    class Repeating(Module):
        def training_step(self, batch, batch_idx):
            self.draws[batch_idx] = batch[0].tolist(), torch.randn(8).tolist()
            return self.net(batch).mean()

        def train_dataloader(self):
            return DataLoader(Zeros(), batch_size=1)

    class Zeros(Noisy):
        def __getitem__(self, index):
            return torch.randn(8)

    _, module = fit(tmp_path, ExactResume(), module=Repeating(), epochs=1, enable_checkpointing=False)
    assert all(fetched != drawn for fetched, drawn in module.draws.values())


def test_two_runs_of_one_seed_are_equal_and_of_two_seeds_differ(tmp_path):
    runs = [fit(tmp_path, ExactResume(), seed=seed, enable_checkpointing=False)[1].draws for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_loader_that_keeps_its_own_place_is_left_alone(tmp_path):
    class Counting:
        """A loader in the sense of Lightning's ``_Stateful``: it resumes by itself."""

        def __init__(self):
            self.at = 0

        def __len__(self):
            return BATCHES

        def __iter__(self):
            while self.at < BATCHES:
                self.at += 1
                yield torch.randn(2, 8) + self.at
            self.at = 0

        def state_dict(self):
            return {"at": self.at}

        def load_state_dict(self, state):
            self.at = state["at"]

    class Stateful(Module):
        def train_dataloader(self):
            return Counting()

    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=2)
    uninterrupted = fit(tmp_path, ExactResume(), files, module=Stateful())
    path = tmp_path / "step=6.ckpt"
    resumed = fit(tmp_path, ExactResume(), module=Stateful(), ckpt_path=path, seed=2, enable_checkpointing=False)
    assert_same_end(resumed, uninterrupted)


def test_seed_all_covers_each_generator():
    def draw():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()

    seed_all("a", 1)
    first = draw()
    seed_all("a", 1)
    assert draw() == first
    seed_all("a", 2)
    assert all(new != old for new, old in zip(draw(), first, strict=True))


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_dataloader_iter_is_refused(tmp_path):
    class Fetches(Module):
        def training_step(self, dataloader_iter):
            return self.net(next(dataloader_iter)[0]).mean()

    with pytest.raises(MisconfigurationException, match="expected training_step.batch., got training_step.dataloader"):
        fit(tmp_path, ExactResume(), module=Fetches(), enable_checkpointing=False)


def test_strategies_that_restore_late_are_refused(tmp_path):
    for strategy in (FSDPStrategy, DeepSpeedStrategy):
        assert strategy.restore_checkpoint_after_setup.fget(None)
    trainer = Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False)
    trainer.strategy.__class__ = type("Late", (type(trainer.strategy),), {"restore_checkpoint_after_setup": True})
    with pytest.raises(MisconfigurationException, match="expected a single device, ddp or .*, got Late"):
        ExactResume().setup(trainer, Module(), "fit")


def test_a_checkpoint_without_the_callback_is_resumed_with_a_warning(tmp_path):
    fit(tmp_path, ModelCheckpoint(tmp_path, "plain"), epochs=1)
    with pytest.warns(UserWarning, match="was written without it, so this resume is not exact"):
        fit(tmp_path, ExactResume(), ckpt_path=tmp_path / "plain.ckpt", epochs=2, enable_checkpointing=False)


@pytest.mark.parametrize("seed", [None, "2"])
def test_another_seed_of_what_is_drawn_before_the_fit_is_told(tmp_path, monkeypatch, seed):
    fit(tmp_path, ExactResume(), ModelCheckpoint(tmp_path, "one"), epochs=1)
    monkeypatch.setattr(os, "environ", {key: value for key, value in os.environ.items() if key != "PL_GLOBAL_SEED"})
    if seed:
        os.environ["PL_GLOBAL_SEED"] = seed
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=2, callbacks=ExactResume(), logger=False, enable_checkpointing=False, **quiet)
    with pytest.warns(UserWarning, match=rf"expected seed_everything\(1\).*got {seed}; .*random_split"):
        trainer.fit(Module(), ckpt_path=tmp_path / "one.ckpt")


def test_another_number_of_processes_is_refused(tmp_path):
    fit(tmp_path, ExactResume(), ModelCheckpoint(tmp_path, "one"), epochs=1)
    checkpoint = torch.load(tmp_path / "one.ckpt")
    checkpoint["callbacks"]["ExactResume"]["seeds"].append(7)
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.raises(MisconfigurationException, match="expected 2 processes, which wrote the checkpoint, got 1"):
        fit(tmp_path, ExactResume(), ckpt_path=tmp_path / "two.ckpt")


def test_the_same_object_can_be_used_in_a_second_fit(tmp_path):
    callback = ExactResume()
    _, first = fit(tmp_path, callback, enable_checkpointing=False)
    _, second = fit(tmp_path, callback, seed=2, enable_checkpointing=False)
    assert first.draws != second.draws
    callback.setup(Trainer(default_root_dir=tmp_path, accelerator="cpu", logger=False), first, "fit")
    assert callback.state_dict() == {"seeds": []}


class SaveEnd(Callback):
    """Each process starts from a seed of its own and leaves what it came to in a file."""

    def __init__(self, folder, seed):
        self.folder, self.seed = folder, seed

    def on_fit_start(self, trainer, *_):
        torch.manual_seed(self.seed + trainer.global_rank)

    def on_train_end(self, trainer, pl_module):
        self.folder.mkdir(exist_ok=True)
        end = pl_module.state_dict(), trainer.optimizers[0].state_dict(), pl_module.losses, pl_module.draws
        torch.save(end, self.folder / f"{trainer.global_rank}.pt")


@FORKED
@pytest.mark.slow
@pytest.mark.parametrize(("when", "steps"), [({"every_n_epochs": 1}, [4]), ({"every_n_train_steps": 1}, [1, 4])])
def test_each_process_of_ddp_is_resumed_exactly(tmp_path, when, steps):
    def run(name, seed=1000, **settings):
        files = ModelCheckpoint(tmp_path / f"{name} files", "{epoch}-{step}", save_top_k=-1, **when)
        callbacks = SaveEnd(tmp_path / name, seed), ExactResume(), files
        fit(tmp_path, *callbacks, **forked(), **settings)
        return [torch.load(tmp_path / name / f"{rank}.pt") for rank in range(2)]

    ends = run("uninterrupted")
    assert ends[0][3] != ends[1][3]
    for step in steps:
        path = next((tmp_path / "uninterrupted files").glob(f"*step={step}.ckpt"))
        for (weights, optimizer, losses, _), end in zip(
            run(f"resumed {step}", 2000, ckpt_path=path), ends, strict=True
        ):
            assert losses == {at: end[2][at] for at in losses}
            assert all(torch.equal(weights[name], end[0][name]) for name in end[0])
            for index, state in end[1]["state"].items():
                assert all(torch.equal(state[name], optimizer["state"][index][name]) for name in state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
def test_a_resumed_run_on_a_gpu_equals_the_uninterrupted_one(tmp_path, precision):
    settings = {"accelerator": "gpu", "devices": 1, "precision": precision}
    files = ModelCheckpoint(tmp_path / "ckpt", "{epoch}-{step}", save_top_k=-1, every_n_train_steps=1)
    uninterrupted = fit(tmp_path, ExactResume(), files, **settings)
    for path in (tmp_path / "ckpt").glob("*.ckpt"):
        resumed = fit(tmp_path, ExactResume(), seed=2, ckpt_path=path, enable_checkpointing=False, **settings)
        assert_same_end(resumed, uninterrupted)


class StopsInMidEpoch(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == BATCHES + 2:
            trainer.should_stop = True


def test_an_epoch_is_finished_before_should_stop_ends_the_run(tmp_path):
    uninterrupted = fit(tmp_path, ExactResume(), enable_checkpointing=False)
    files = ModelCheckpoint(tmp_path, "stopped", save_on_train_epoch_end=True)
    trainer, _ = fit(tmp_path, ExactResume(), StopsInMidEpoch(), files)
    assert (trainer.current_epoch, trainer.global_step) == (2, 2 * BATCHES)
    assert not trainer.min_epochs
    resumed = fit(tmp_path, ExactResume(), seed=2, ckpt_path=tmp_path / "stopped.ckpt", enable_checkpointing=False)
    assert_same_end(resumed, uninterrupted)


@pytest.mark.parametrize("exact_first", [True, False])
def test_accumulation_by_schedule_in_any_order(tmp_path, exact_first):
    def callbacks(*others):
        pair = [ExactResume(), GradientAccumulationScheduler({0: 1, 1: 2})]
        return [*(pair if exact_first else pair[::-1]), *others]

    files = ModelCheckpoint(tmp_path / "ckpt", "{epoch}-{step}", save_top_k=-1, every_n_train_steps=1)
    uninterrupted = fit(tmp_path, *callbacks(files))
    for path in (tmp_path / "ckpt").glob("*.ckpt"):
        resumed = fit(tmp_path, *callbacks(), seed=2, ckpt_path=path, enable_checkpointing=False)
        assert_same_end(resumed, uninterrupted)


def test_callbacks_that_cannot_be_resumed_in_mid_epoch_are_named(tmp_path):
    def averaging():
        return StochasticWeightAveraging(0.01, swa_epoch_start=2)

    files = ModelCheckpoint(tmp_path / "ckpt", "{step}", save_top_k=-1, every_n_train_steps=1)
    fit(tmp_path, ExactResume(), averaging(), files)
    path = tmp_path / "ckpt" / "step=6.ckpt"
    with pytest.warns(UserWarning, match="StochasticWeightAveraging.*not exact"):
        fit(tmp_path, ExactResume(), averaging(), ckpt_path=path, enable_checkpointing=False)


@pytest.mark.parametrize("callback", [ExactResume(), StagedTraining([Stage(1)])])
def test_the_other_package_is_refused_by_name(callback):
    trainer = type("Trainer", (), {"__module__": "pytorch_lightning.trainer.trainer"})()
    with pytest.raises(
        MisconfigurationException, match=f"{type(callback).__name__}: .*lightning.pytorch.*pytorch_lightning"
    ):
        callback.setup(trainer, Module(), "fit")
