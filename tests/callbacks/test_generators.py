"""Generators that a loader, its sampler or its dataset brings."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from anyones import Anyones, quiet_trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tinygpt_lightning import ExactResume
from tinygpt_lightning.callbacks.generators import find_generators, seed_each

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Augmented(Dataset[Tensor]):
    """Draws from generators of its own: one of numpy, one of Python, and one in a transform."""

    def __init__(self) -> None:
        self.noise, self.choice = np.random.default_rng(0), random.Random(0)
        self.transforms = [Jitter()]

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        x = torch.full((4,), index / 4) + float(self.noise.normal()) + self.choice.random()
        return self.transforms[0](x)


class Jitter:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.randn(4, generator=self.generator)


class OwnGenerators(Anyones):
    workers = 0

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(1)
        return DataLoader(Augmented(), 2, shuffle=True, generator=generator, num_workers=self.workers)

    def val_dataloader(self) -> Any:
        return DataLoader(Augmented(), 5)


class OwnSampler(OwnGenerators):
    def train_dataloader(self) -> Any:
        sampler = RandomSampler(Augmented(), replacement=True, generator=torch.Generator().manual_seed(1))
        return DataLoader(Augmented(), 2, sampler=sampler)


@pytest.mark.parametrize("kind", [OwnGenerators, OwnSampler])
def test_a_run_with_own_generators_is_resumed_exactly(tmp_path: Path, kind: type[Anyones]) -> None:
    whole = kind()
    files = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    quiet_trainer(tmp_path, ExactResume(), files, max_epochs=3).fit(whole)
    for path in sorted(tmp_path.glob("*.ckpt"))[::3]:
        resumed = kind()
        quiet_trainer(tmp_path, ExactResume(), max_epochs=3).fit(resumed, ckpt_path=path)
        assert torch.equal(resumed.body.weight, whole.body.weight), path


def test_generators_are_found_in_attributes_and_each_is_seeded_differently() -> None:
    loader = OwnGenerators().train_dataloader()
    generators = find_generators([loader])
    assert {type(generator) for generator in generators} == {torch.Generator, np.random.Generator, random.Random}
    assert len(generators) == 4  # the sampler's is the loader's own; the transform's, numpy's and Python's
    dataset = loader.dataset

    def draw() -> tuple[float, ...]:
        return (
            torch.rand((), generator=loader.generator).item(),
            torch.rand((), generator=dataset.transforms[0].generator).item(),
            dataset.noise.random(),
            dataset.choice.random(),
        )

    seed_each(generators, 7, "epoch", 0)
    first = draw()
    seed_each(generators, 7, "epoch", 0)
    assert draw() == first
    seed_each(generators, 7, "epoch", 1)
    assert all(a != b for a, b in zip(draw(), first, strict=True))
    assert len(set(first)) == 4
