"""A sharded checkpoint: a folder of which nothing is executed when it is read, and that shows any damage."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.tensor import DTensor
from typing_extensions import override

from tinygpt_lightning.gpt.checkpoint import CheckpointError, plain_values, read_checkpoint

META = "meta.pt"  # all of the checkpoint but weights and optimizers
DIGESTS = "sha256"  # in META: the digest of each other file
_LISTED = ".metadata"  # where the shards are

# What torch.distributed.checkpoint writes in `_LISTED`, besides plain values.
_DATA = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta", "TensorProperties",
        "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
    "pathlib._local": {"PosixPath"},  # since Python 3.13
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    @override
    def find_class(self, module: str, name: str) -> Any:
        if name not in _DATA.get(module, ()):
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    @override
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_metadata(Path(self.path))


class _Planner(DefaultLoadPlanner):
    @override
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name = read_item.dest_index.fqn
        self.original_state_dict[name] = plain_values(name, value)


def read_metadata(folder: Path) -> Metadata:
    """Read where the shards of a checkpoint are.

    Raises:
        CheckpointError: If the file cannot be read, or holds anything else.
    """
    try:
        with (folder / _LISTED).open("rb") as file:
            metadata = _Unpickler(file).load()
    except Exception as error:  # whatever a file provokes here, it is refused
        raise CheckpointError(folder / _LISTED, f"is refused ({type(error).__name__}: {error})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(folder / _LISTED, "expected the shards of a checkpoint, got other values")
    return metadata


def read_meta(folder: Path) -> dict[str, Any]:
    """Read all of a checkpoint but weights and optimizers, and compare the digests of the others; all processes do.

    Raises:
        CheckpointError: If a file is missing, damaged, or holds more than tensors and plain values.
    """
    checkpoint = read_checkpoint(folder / META)
    expected: dict[str, str] = checkpoint.pop(DIGESTS, {})
    # Each process reads its share of the files.
    mine = sorted(expected)[dist.get_rank() :: dist.get_world_size()]
    wrong = [name for name in mine if not (folder / name).is_file() or digest(folder / name) != expected[name]]
    every: list[list[str]] = [[]] * dist.get_world_size()
    dist.all_gather_object(every, wrong)
    for damaged in chain(*every):
        raise CheckpointError(folder / damaged, "is damaged or missing: its content does not match its digest")
    read_metadata(folder)
    if "lr_schedulers" in checkpoint:  # Lightning looks for both
        checkpoint["optimizer_states"] = []
    return checkpoint


def digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file in ``folder``."""
    return {file.name: digest(file) for file in folder.iterdir()}


def digest(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    total = hashlib.sha256()
    with file.open("rb") as content:
        while part := content.read(1 << 20):
            total.update(part)
    return total.hexdigest()


def read_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Fill the tensors of the same names, whole or sharded, and replace other values; all processes do.

    Raises:
        CheckpointError: If one is missing, of another shape, or a value is refused.
    """
    try:
        load(tensors, storage_reader=_Reader(folder), planner=_Planner())
    except CheckpointException as error:
        (reason, _), *_ = error.failures.values()
        raise CheckpointError(folder, str(reason)) from error


def read_optimizer(folder: Path, name: str, parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read an optimizer's state, with the names of its parameters.

    Args:
        folder: The checkpoint.
        name: The optimizer's name in it.
        parameters: The parameters, by name; what has the shape of one is sharded like it.
    """
    metadata = read_metadata(folder)
    paths = {key: path for key, path in metadata.planner_data.items() if path[0] == name}
    values: dict[str, Any] = {}
    for key, (_, part, parameter, *_) in paths.items():
        stored, like = metadata.state_dict_metadata[key], parameters[parameter] if part == "state" else None
        if isinstance(stored, BytesStorageMetadata):
            values[key] = None
        elif isinstance(like, DTensor) and like.shape == stored.size:
            values[key] = torch.zeros_like(like, dtype=stored.properties.dtype, requires_grad=False)
        else:
            values[key] = torch.zeros(stored.size, dtype=stored.properties.dtype)
    read_tensors(folder, values)
    state: dict[str, Any] = {"state": {}, "param_groups": {}}
    for key, (_, *path, last) in paths.items():
        inner = state
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = values[key]
    return {**state, "param_groups": [group for _, group in sorted(state["param_groups"].items())]}
