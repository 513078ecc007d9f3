"""Of a sharded checkpoint nothing is executed, all damage is seen, and a killed save leaves the former one."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from test_sharded import WARNINGS, _one_process, plain_fit  # noqa: F401
from torch.distributed.checkpoint.api import CheckpointException
from two_processes import Sharded

from tinygpt_lightning import CheckpointError
from tinygpt_lightning.callbacks.sharded_folder import read_tensors
from tinygpt_lightning.gpt import files

pytestmark = [pytest.mark.filterwarnings(f"ignore:{of}") for of in (*WARNINGS, "Environment variable TORCH_FORCE")]


class Payload:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


class Optimizer(torch.optim.SGD):
    """With an option that PyTorch reads by executing it."""

    payload: Any = None

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.param_groups[0]["option"] = self.payload


class Carries(Sharded):
    def configure_optimizers(self) -> Any:
        return Optimizer(self.parameters())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    plain_fit(folder, ModelCheckpoint(folder, "end"), module=Carries)
    return folder / "end.ckpt"


def resume(folder: Path, **settings: Any) -> None:
    plain_fit(folder.parent, ckpt_path=folder, enable_checkpointing=False, **settings)


@pytest.mark.parametrize("part", ["meta.pt", ".metadata", "__0_0.distcp"])
def test_nothing_in_a_folder_is_executed(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    folder, touched = tmp_path / "end.ckpt", tmp_path / "touched"
    if part == "__0_0.distcp":
        monkeypatch.setattr(Optimizer, "payload", Payload(touched))
        plain_fit(tmp_path, ModelCheckpoint(tmp_path, "end"), module=Carries)
    else:
        shutil.copytree(saved, folder)
        meta = torch.load(folder / "meta.pt")
        del meta["sha256"]  # as whoever changes a folder can
        torch.save({**meta, "payload": Payload(touched)} if part == "meta.pt" else meta, folder / "meta.pt")
        if part == ".metadata":
            (folder / part).write_bytes(pickle.dumps(Payload(touched)))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError, match=f"{folder}.* refused"):
        resume(folder, module=Carries)
    if part == ".metadata":  # which is read again for weights and optimizers
        with pytest.raises(CheckpointError, match=f"{folder}.* refused"):
            read_tensors(folder, {})
    assert not touched.exists()
    with suppress(Exception, CheckpointException):
        resume(folder, module=Carries, strategy=ModelParallelStrategy)
    assert touched.exists()  # so the payload is one


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("part", ["meta.pt", ".metadata", "__0_0.distcp"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-9])])
def test_damage_is_seen(saved: Path, tmp_path: Path, part: str, damage: Callable[[Path], Any]) -> None:
    folder = tmp_path / "end.ckpt"
    shutil.copytree(saved, folder)
    damage(folder / part)
    with pytest.raises(CheckpointError, match=rf"{folder}.*(damaged|cannot be read)"):
        resume(folder, module=Carries)


def test_a_killed_save_leaves_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, copies, exchange, replace = tmp_path / "run", tmp_path / "copies", files._exchange, Path.replace

    def copy(moment: str) -> None:
        shutil.copytree(folder, copies / f"{len(list(copies.iterdir())) if copies.exists() else 0} {moment}")

    def exchange_between(*names: Path) -> bool:
        copy("within")
        done = exchange(*names)
        copy("after")
        return done

    def replace_after(source: Path, target: Path) -> Path:
        copy("within")
        return replace(source, target)

    monkeypatch.setattr(files, "_exchange", exchange_between)
    monkeypatch.setattr(Path, "replace", replace_after)
    plain_fit(folder, ModelCheckpoint(folder, "end", save_last=True, enable_version_counter=False), max_epochs=2)
    monkeypatch.undo()
    instants = sorted(copies.iterdir())
    assert len(instants) >= 8
    for instant in instants:
        for file in instant.glob("*.ckpt"):
            resume(file, max_epochs=3)
    plain_fit(instants[1], ModelCheckpoint(instants[1], "end", enable_version_counter=False), max_epochs=1)
    assert [file.name for file in instants[1].glob(".*.tmp") if ".end." in file.name] == []
