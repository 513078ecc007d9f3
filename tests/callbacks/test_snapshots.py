"""Snapshots in anybody's training."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from tinygpt_lightning import ExactResume, SafeCheckpointIO, Snapshots, Stage, StagedTraining


class Line(LightningModule):
    """Learns to double, and knows which weights it had before each step."""

    def __init__(self, returned: str = "tensor") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(1, 1)
        self.returned = returned
        self.losses: list[float] = []
        self.before: list[dict[str, torch.Tensor]] = []

    def training_step(self, x: torch.Tensor) -> Any:
        self.before.append({name: tensor.clone() for name, tensor in self.state_dict().items()})
        loss = (self.layer(x) - 2 * x - 1).square().mean()
        self.losses.append(loss.item())
        return {"tensor": loss, "mapping": {"loss": loss, "more": 1}}[self.returned]

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.linspace(-1, 1, 8).view(-1, 1), batch_size=8)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.3)


def same(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> bool:
    return [(m["step"], m["loss"]) for m in a] == [(m["step"], m["loss"]) for m in b] and all(
        torch.equal(x["weights"][name], y["weights"][name]) for x, y in zip(a, b, strict=True) for name in x["weights"]
    )


@pytest.mark.parametrize("returned", ["tensor", "mapping"])
def test_moments_are_weights_with_their_own_loss(returned: str) -> None:
    module, snapshots = Line(returned), Snapshots(6)
    quiet_trainer(max_epochs=40, callbacks=[snapshots]).fit(module)
    assert len(snapshots.moments) == 6
    assert [moment["step"] for moment in snapshots.moments][:1] == [0]
    for moment in snapshots.moments:
        assert moment["loss"] == module.losses[moment["step"]]
        for name, weight in module.before[moment["step"]].items():
            assert torch.equal(moment["weights"][name], weight)


def test_they_are_about_even_in_the_losss_logarithm() -> None:
    module, snapshots = Line(), Snapshots(9)
    quiet_trainer(max_epochs=60, callbacks=[snapshots]).fit(module)
    logs = [math.log(moment["loss"]) for moment in snapshots.moments]
    gaps = [a - b for a, b in pairwise(logs)]
    assert min(gaps) > 0
    even = (math.log(module.losses[0]) - math.log(min(module.losses))) / 8
    assert max(gaps) < 2.5 * even


def test_a_resumed_run_keeps_the_same_moments(tmp_path: Path) -> None:
    whole = Snapshots(5)
    quiet_trainer(max_epochs=30, callbacks=[whole, ExactResume()]).fit(Line())
    first = quiet_trainer(max_epochs=11, callbacks=[Snapshots(5), ExactResume()], plugins=[SafeCheckpointIO()])
    first.fit(Line())
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Snapshots(5)
    quiet_trainer(max_epochs=30, callbacks=[resumed, ExactResume()], plugins=[SafeCheckpointIO()]).fit(
        Line(), ckpt_path=tmp_path / "half.ckpt"
    )
    assert same(whole.moments, resumed.moments)


def test_ends_of_stages_are_noted(tmp_path: Path) -> None:
    snapshots = Snapshots(4)
    staged = StagedTraining([Stage(epochs=3), Stage(epochs=5)], tmp_path)
    trainer = quiet_trainer(max_epochs=-1, callbacks=[snapshots, staged], plugins=[SafeCheckpointIO()])
    trainer.fit(Line())
    assert snapshots.boundaries == [3, 8]
    held = torch.load(tmp_path / "stage-2.ckpt", weights_only=True)["callbacks"]["Snapshots"]
    assert held["boundaries"] == [3, 8]
    assert same(held["moments"], snapshots.moments)


def test_a_loss_that_is_no_number_is_no_moment() -> None:
    module, snapshots = Line(), Snapshots(4)
    module.layer.weight.data.fill_(math.nan)
    quiet_trainer(max_epochs=2, callbacks=[snapshots]).fit(module)
    assert snapshots.moments == []


def test_too_many_of_too_large_a_model_are_refused() -> None:
    module = Line()
    module.layer = torch.nn.Linear(1000, 1000)
    with pytest.raises(MisconfigurationException, match=r"2 moments of 4,004,000 bytes; keep fewer "):
        quiet_trainer(max_epochs=1, callbacks=[Snapshots(2)]).fit(module)
    with pytest.raises(ValueError, match="count"):
        Snapshots(1)
