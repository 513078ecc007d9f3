"""Checkpoint files that are whole, that show any damage, and that run no code when they are read."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from tinygpt_lightning.gpt.files import whole_file

VERSION = "pytorch-lightning_version"  # the entry with the version of Lightning that wrote a checkpoint
LIGHTNING = "2.6.6"  # the version whose form of checkpoints this project writes


class CheckpointError(ValueError):
    """A file is refused as a checkpoint; the message is one line, with the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self._reason = os.fspath(path), reason

    def __reduce__(self) -> Any:  # from one process to another
        return type(self), self._reason


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``checkpoint`` so that ``path`` names the earlier file or the new one, whole, at every instant.

    Raises:
        CheckpointError: If ``path`` is not local, or :func:`read_checkpoint` would refuse the file: better now than
            when the run is resumed.
        OSError: If the file cannot be written; it names ``path``. The earlier file is untouched.
    """
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:
            # torch finishes the archive even after a failed write, and complains about that instead.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.seek(0)
        if unsafe := get_unsafe_globals_in_checkpoint(file):
            names = ", ".join(sorted(unsafe))
            raise CheckpointError(path, f"not written, since {names} in it would be refused when it is read")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a Lightning checkpoint onto the CPU, whoever wrote it.

    Raises:
        CheckpointError: If there is no such file, it is not local, empty, damaged or no checkpoint, was written by
            another major version of Lightning, or holds more than tensors and plain values.
    """
    path = local_path(path)
    try:
        file = path.open("rb")  # once: the bytes that are checked are loaded, even if the file is replaced meanwhile
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    with file:
        _check_whole(path, file)
        file.seek(0)
        checkpoint = plain_values(path, file)  # a checksum proves no good will
    if not isinstance(checkpoint, dict) or not isinstance(version := checkpoint.get(VERSION), str):
        raise CheckpointError(path, f"expected a Lightning checkpoint, got one without {VERSION}")
    if version.split(".")[0] != (expected := LIGHTNING.split(".")[0]):
        raise CheckpointError(path, f"expected a checkpoint of Lightning {expected}.x, got one of {version}")
    return checkpoint


def plain_values(path: str | os.PathLike[str], file: BinaryIO) -> Any:
    """Read a file of ``torch.save`` that holds tensors and plain values.

    Args:
        path: The file's name, for the message.
        file: The file.

    Raises:
        CheckpointError: If the file holds anything else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file provokes here, it is refused
        raise CheckpointError(path, _refusal(error)) from error


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint without its tensors: fast whatever its size, but damage to the tensors goes unnoticed.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        state = torch.load(local_path(path), map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # whatever a file provokes here, it is refused
        raise CheckpointError(path, _refusal(error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(path, "expected a checkpoint, got other values")
    return state


def newest_whole(folder: str | os.PathLike[str]) -> tuple[Path | None, list[CheckpointError]]:
    """Find the most advanced checkpoint in ``folder`` (``*.ckpt``), and the invalid ones.

    The most advanced one has the highest ``global_step``, since copying a run may change the times of its files;
    among equal steps it is the file written last, which may hold the validation after that step.

    Returns:
        The checkpoint, or None if none can be read, and an error for each invalid one.
    """
    valid: list[tuple[int, int, Path]] = []
    invalid: list[CheckpointError] = []
    for path in sorted(local_path(folder).glob("*.ckpt")):
        try:
            valid.append((read_checkpoint(path).get("global_step", -1), path.stat().st_mtime_ns, path))
        except CheckpointError as error:
            invalid.append(error)
    return (max(valid)[2] if valid else None), invalid


def _check_whole(path: Path, file: BinaryIO) -> None:
    """Compare each member of the zip archive that torch writes with its checksum, which ``torch.load`` does not."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise CheckpointError(path, "is empty")
    file.seek(0)
    is_archive = file.read(2) == b"PK"
    try:
        with zipfile.ZipFile(file) as archive:
            # torch stores its members as they are; others could hold far more than the file's size.
            is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
            is_whole = is_stored and archive.testzip() is None
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a file provokes here, it is refused
        reason = "is damaged or truncated" if is_archive else "expected a file of torch.save, got something else"
        raise CheckpointError(path, reason) from error
    if not is_whole:
        raise CheckpointError(path, "is damaged: its content does not match its checksums")


def _refusal(error: Exception) -> str:
    name = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if name:
        return f"refused, since it holds {name[1]}, which may run code; only tensors and plain values are read"
    return f"cannot be read as tensors and plain values ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"


def local_path(path: str | os.PathLike[str]) -> Path:
    """Remove ``file://`` from a path.

    Raises:
        CheckpointError: If the path is not on this machine.
    """
    text = os.fspath(path).removeprefix("file://")
    if "://" in text:
        raise CheckpointError(text, "is not a local file; fetch it yourself if you trust where it comes from")
    return Path(text)
