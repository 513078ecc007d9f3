"""Checkpoint files that are whole, that show any damage, and that run no code when read."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from tinygpt_lightning.gpt.files import whole_file

FORMAT = 1
LIGHTNING = "2"  # the major version of Lightning whose checkpoints are read
# Kept as the comment of the zip archive that torch writes, so torch and every zip program still read the file.
_COMMENT = "tinygpt-checkpoint {format} sha256:{digest}"
_COMMENT_PATTERN = re.compile(rb"tinygpt-checkpoint (\d+) sha256:(\S+)\Z")
_COMMENT_LENGTH = len(_COMMENT.format(format=FORMAT, digest="0" * 64))
VERSION = "pytorch-lightning_version"  # the entry with the version of Lightning that wrote a checkpoint
_CHUNK = 1 << 20  # bytes
_LENGTH_FIELD = struct.Struct("<H")  # the last field of a zip archive, before the comment


class CheckpointError(ValueError):
    """A file is refused as a checkpoint; the message is one line, with the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``checkpoint`` so that ``path`` names the earlier file or the new one, whole, at every instant.

    Raises:
        CheckpointError: If ``path`` is not local, or :func:`read_checkpoint` would refuse what is to be
            written; better now than when the run is to go on.
        OSError: If the file cannot be written; it names ``path``. The earlier file is untouched.
    """
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        _write_archive(checkpoint, file)
        file.seek(0)
        if unsafe := get_unsafe_globals_in_checkpoint(file):
            names = ", ".join(sorted(unsafe))
            raise CheckpointError(path, f"not written, for {names} in it would be refused when it is read")


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint of :func:`write_checkpoint` onto the CPU.

    Raises:
        CheckpointError: If there is no such file, it is not local, empty, damaged or no checkpoint, was
            written by another program, in another format or by another major version of Lightning, or holds
            more than tensors and plain values.
    """
    path = local_path(path)
    try:
        file = path.open("rb")  # once: what is checked is what is loaded, even if the file is replaced meanwhile
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    with file:
        _check_whole(path, file)
        file.seek(0)
        checkpoint = plain_values(path, file)  # a digest proves no good will
    if not isinstance(checkpoint, dict) or not isinstance(version := checkpoint.get(VERSION), str):
        raise CheckpointError(path, f"is no Lightning checkpoint: it has no {VERSION}")
    if version.split(".")[0] != LIGHTNING:
        raise CheckpointError(path, f"was written by Lightning {version}; this is Lightning {LIGHTNING}.x")
    return checkpoint


def plain_values(path: str | os.PathLike[str], file: BinaryIO) -> Any:
    """What ``torch.save`` wrote, if that was tensors and plain values.

    Args:
        path: The file's name, for the message.
        file: The file.

    Raises:
        CheckpointError: If it is anything else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file provokes here, it is refused
        raise CheckpointError(path, _refusal(error)) from error


def read_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what a checkpoint says, without its tensors: in no time, and without noticing damage to them.

    Raises:
        CheckpointError: If it cannot be read.
    """
    try:
        state = torch.load(local_path(path), map_location="meta", mmap=True, weights_only=True)
    except Exception as error:  # whatever a file provokes here, it is refused
        raise CheckpointError(path, _refusal(error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(path, "is no checkpoint")
    return state


def newest_whole(folder: str | os.PathLike[str]) -> tuple[Path | None, list[CheckpointError]]:
    """Find the checkpoint in ``folder`` (``*.ckpt``) that has come furthest, and those that are unfit.

    Furthest is the highest ``global_step``, for copying a run may change the times of its files; among equal
    steps it is the file written last, which may hold the validation after that step.

    Returns:
        The checkpoint, or ``None`` if none can be read, and an error for each one left out.
    """
    found: list[tuple[int, int, Path]] = []
    unfit: list[CheckpointError] = []
    for path in sorted(local_path(folder).glob("*.ckpt")):
        try:
            found.append((read_checkpoint(path).get("global_step", -1), path.stat().st_mtime_ns, path))
        except CheckpointError as error:
            unfit.append(error)
    return (max(found)[2] if found else None), unfit


class _DigestingWriter:
    """What ``torch.save`` needs of a file, with a digest of everything that passes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        self._file.flush()


def _write_archive(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    writer = _DigestingWriter(file)
    try:
        torch.save(checkpoint, writer)  # type: ignore[arg-type]  # it asks only for write and flush
    except RuntimeError:
        # torch finishes the archive even after a failed write, and complains of that instead.
        if writer.error is not None:
            raise writer.error from None
        raise
    comment = _COMMENT.format(format=FORMAT, digest=writer.digest.hexdigest()).encode()
    file.seek(-_LENGTH_FIELD.size, os.SEEK_END)
    file.write(_LENGTH_FIELD.pack(len(comment)) + comment)
    file.flush()


def _check_whole(path: Path, file: BinaryIO) -> None:
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 2 * _COMMENT_LENGTH))
        tail = file.read()
        file.seek(0)
        start = file.read(2)
        length = size - _COMMENT_LENGTH - _LENGTH_FIELD.size  # of the archive
        comment = _COMMENT_PATTERN.search(tail)
        digest = _digest(file, length) if comment else ""
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror}") from error
    if not size:
        raise CheckpointError(path, "is empty")
    if comment is None and tail[-22:].startswith(b"PK\5\6") and tail.endswith(_LENGTH_FIELD.pack(0)):
        raise CheckpointError(path, "carries no digest (it was written by another program), so damage would go unseen")
    if comment is None:
        raise CheckpointError(path, "is truncated" if start == b"PK" else "is no checkpoint")
    if int(comment[1]) != FORMAT:
        raise CheckpointError(path, f"is of format {int(comment[1])}; this version reads format {FORMAT}")
    expected = _LENGTH_FIELD.pack(_COMMENT_LENGTH) + _COMMENT.format(format=FORMAT, digest=digest).encode()
    if not tail.endswith(expected):
        raise CheckpointError(path, "is damaged: its content does not match its digest")


def _digest(file: BinaryIO, length: int) -> str:
    """The digest of an archive of ``length`` bytes as torch wrote it, without a comment."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0 and (data := file.read(min(length, _CHUNK))):
        digest.update(data)
        length -= len(data)
    digest.update(_LENGTH_FIELD.pack(0))
    return digest.hexdigest()


def _refusal(error: Exception) -> str:
    name = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if name:
        return f"refused, for it holds {name[1]}, which may run code; only tensors and plain values are read"
    return f"cannot be read as tensors and plain values ({type(error).__name__}: {str(error).strip().splitlines()[:1]})"


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path without its ``file://``.

    Raises:
        CheckpointError: If it is not on this machine.
    """
    text = os.fspath(path).removeprefix("file://")
    if "://" in text:
        raise CheckpointError(text, "is not a local file; fetch it yourself if you trust where it comes from")
    return Path(text)
