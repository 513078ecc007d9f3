"""Files that appear whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)  # by some file systems
_LEFTOVER = r"\.[0-9a-f]{8}\.tmp"


class FolderLockedError(ValueError):
    """Another process is writing to the folder."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an `OSError` the path that it is about: a failed write, for example, names none.

    Raises:
        OSError: Of the same kind, with ``path`` as its ``filename``.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name ``path`` when the block succeeds, and that disappears when the block fails.

    At every instant ``path`` names the earlier file or the new one, whole; after the block the new file is on the
    disk.

    Raises:
        OSError: If the file cannot be written; the error names ``path``, and the earlier file is untouched.
    """
    temporary = _temporary(path)
    try:
        with naming(path):
            with temporary.open("x+b") as file:  # unlike tempfile's, the permissions are those the umask gives
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes the name ``path`` when the block succeeds, and that disappears when the block fails.

    It replaces an earlier folder; the caller decides whether it may. At every instant ``path`` names the earlier folder
    or the new one, whole; where the file system cannot exchange two names (outside Linux), for an instant none.

    Raises:
        OSError: If the folder cannot be written; the error names ``path``, and the earlier folder is untouched.
    """
    temporary, old = _temporary(path), _temporary(path)
    try:
        with naming(path):
            temporary.mkdir()
            yield temporary
            _fsync_folder(temporary)
            if not _exchange(temporary, path):
                if replaced := path.exists():
                    path.rename(old)
                try:
                    temporary.rename(path)
                except OSError:
                    if replaced:
                        old.rename(path)
                    raise
        _fsync_folder(path.parent)
    finally:
        for folder in (temporary, old):
            _remove(folder)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` as a `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def link_whole(source: Path, path: Path) -> None:
    """Make ``path`` a hard link to the file ``source``; a copy where the file system has no hard links.

    At every instant ``path`` names the earlier file or the new one, whole.

    Raises:
        OSError: If neither is possible; the earlier file is untouched.
    """
    if path.exists() and path.samefile(source):
        return
    temporary = _temporary(path)
    try:
        os.link(source, temporary)
    except OSError:
        write_whole(path, source.read_bytes())
        return
    temporary.replace(path)
    _fsync_folder(path.parent)


def remove_whole(path: Path) -> None:
    """Delete a file or a folder at one instant; a folder that is killed meanwhile leaves no part under its name."""
    temporary = _temporary(path)
    with suppress(FileNotFoundError):
        path.rename(temporary)
    _remove(temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Delete what killed writers left in ``folder``, of one file ``name`` or of all; no other process may write it."""
    leftover = re.compile(rf"\.{'.+' if name is None else re.escape(name)}" + _LEFTOVER)
    for path in folder.iterdir():
        if leftover.fullmatch(path.name):
            _remove(path)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to ``folder``; where the file system has no locks, warn and go ahead.

    Raises:
        FolderLockedError: If another process has locked it.
        OSError: If it cannot be opened.
    """
    # The folder itself is locked: a process that is killed leaves no lock file behind.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(folder, descriptor)
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, descriptor: int) -> None:
    try:
        with naming(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderLockedError(f"{folder}: another process is writing there; wait for its end") from None
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        warnings.warn(f"{folder}: the file system has no locks: let only one process train there", stacklevel=2)


def _temporary(path: Path) -> Path:
    # Beside the file, for a rename is atomic only within a file system.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names at one instant; False where that cannot be done, or one of them does not exist."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)  # Python has no function for it
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, bytes(first), here, bytes(second), exchange) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        message = f"the file system cannot flush a folder ({folder.name}): a power cut may lose the newest file"
        warnings.warn(message, stacklevel=2)
    finally:
        os.close(descriptor)
