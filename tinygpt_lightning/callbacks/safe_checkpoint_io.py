"""Checkpoints through Lightning's Trainer that are whole, show any damage, and run no code when read."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import CheckpointIO
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.serialization import get_unsafe_globals_in_checkpoint
from typing_extensions import override

from tinygpt_lightning.callbacks._lightning import dump_checkpoint
from tinygpt_lightning.gpt.checkpoint import local_path, plain_values, read_checkpoint, write_checkpoint

FROM_PROCESS = ".temp.ckpt"  # where Lightning hands weights alone from a spawned or forked process to the main one


class SafeCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads only what is whole and harmless.

    Lightning's own plugin writes to ``$TMPDIR`` and moves, which tears the file when that lies on another
    file system, and it runs a checkpoint's code for ``weights_only=False``,
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` and URLs.

    **Covered**: a process that is killed, a power failure, a full disk, at any instant; a file that is truncated or
    damaged, which is told by its checksums; whatever a file would run. A checkpoint may hold tensors, and numbers,
    texts and bytes in dictionaries, lists, tuples and sets; numpy's scalars become Python's numbers. What else
    ``save_hyperparameters`` or a callback's ``state_dict`` puts there (a ``Path``, an ``Enum``, an array of numpy's, an
    object) is **refused**: when the fit starts, if `StagedTraining` or `ExactResume` is among the callbacks, else,
    since Lightning asks this plugin nothing before, by the first checkpoint. Refused are also files that are not local.
    A checkpoint that Lightning wrote by itself is read alike: whatever ``torch.save`` wrote carries checksums.

    **Not covered**: what others read or write past it, ``LightningModule.load_from_checkpoint`` above all (give it
    ``weights_only=True``); checkpoints that are folders, which `sharded.py` writes and reads;
    two processes that write one file.

    Source: Lightning issues #19970 and #21800.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False)
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError(f"storage_options: expected none, as checkpoints are local files, got {storage_options!r}")
        write_checkpoint(plain(checkpoint), path)

    @override
    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if Path(path).name == FROM_PROCESS:
            with Path(path).open("rb") as file:
                return dict(plain_values(path, file))
        return read_checkpoint(path)

    @override
    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        local_path(path).unlink(missing_ok=True)


def try_saving(trainer: Trainer) -> None:
    """Tell when a fit starts, and not when the first checkpoint is due, what `SafeCheckpointIO` would not write.

    Args:
        trainer: A trainer, with this plugin or another one; of others nothing is asked.

    Raises:
        MisconfigurationException: The message names what cannot be written, and where it is.
    """
    if isinstance(trainer.strategy.checkpoint_io, SafeCheckpointIO):
        for where, value in _leaves(plain(dump_checkpoint(trainer))):
            if reason := _reason_against(value):
                raise MisconfigurationException(
                    f"SafeCheckpointIO: {where}: expected tensors and plain values, which can be read without running "
                    f"code, got {reason}; leave it out of what is saved (save_hyperparameters(ignore=...)), or "
                    "save a plain value"
                )


def plain(value: Any) -> Any:
    """Numpy's scalars as Python's numbers, wherever they are in dictionaries, lists and tuples.

    >>> plain({"lr": np.float64(0.5), "sizes": [np.int64(3)]})
    {'lr': 0.5, 'sizes': [3]}
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) in (dict, OrderedDict):
        changed = {key: plain(inner) for key, inner in value.items()}
        return changed if any(changed[key] is not inner for key, inner in value.items()) else value
    if type(value) in (list, tuple):
        made = type(value)(plain(inner) for inner in value)
        return made if any(new is not old for new, old in zip(made, value, strict=True)) else value
    return value


def _leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if type(value) in (dict, OrderedDict):
        for key, inner in value.items():
            yield from _leaves(key, f"{where}.{key}" if where else str(key))
            yield from _leaves(inner, f"{where}.{key}" if where else str(key))
    elif type(value) in (list, tuple):
        for i, inner in enumerate(value):
            yield from _leaves(inner, f"{where}[{i}]")
    elif value is not None and type(value) not in (bool, int, float, str, Tensor, torch.nn.Parameter, DTensor):
        yield where, value


def _reason_against(value: Any) -> str | None:
    file = io.BytesIO()
    try:
        torch.save(value, file)
    except Exception as error:  # whatever an object of somebody else's does when it is pickled
        return f"{type(value).__name__}, which cannot be written ({error})"
    file.seek(0)
    unsafe = get_unsafe_globals_in_checkpoint(file)
    return f"{type(value).__name__}, which is read by running {', '.join(sorted(unsafe))}" if unsafe else None
