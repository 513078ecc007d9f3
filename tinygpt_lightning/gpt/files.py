"""Files that appear whole or not at all, and folders that one process at a time writes in."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")


class FolderLockedError(ValueError):
    """Two processes would write in one folder."""


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name ``path`` when the block ends well, and leaves nothing if it does not.

    At every instant ``path`` names the earlier file or the new one, whole; when the block is over, the new one
    is on the disk.

    Raises:
        OSError: If it cannot be written; it names ``path``, and what was there is still there.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("x+b") as file:  # unlike tempfile's, the permissions are those the umask gives
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that takes the name ``path`` when the block ends well, and leaves nothing if it does not.

    What was there is replaced: whether it may be is for the caller to know. At every instant ``path`` names a folder
    that is whole, or none.

    Raises:
        OSError: If it cannot be written; it names ``path``, and what was there is still there.
    """
    temporary, old = _temporary(path), _temporary(path)
    try:
        temporary.mkdir()
        yield temporary
        _fsync_folder(temporary)
        if replaced := path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if replaced:
                old.rename(path)
            raise
        _fsync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write ``content`` as a `whole_file`."""
    with whole_file(path) as file:
        file.write(content)


def link_whole(source: Path, path: Path) -> None:
    """Make ``path`` another name of the file ``source``, in no time; a copy where there are no such links.

    At every instant ``path`` names the earlier file or the new one, whole.

    Raises:
        OSError: If neither can be made; what was there is still there.
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


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in ``folder``; nobody else may be writing there."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing in ``folder``.

    Raises:
        FolderLockedError: If another process has locked it.
    """
    # The folder itself is locked: no file is left behind by a process that is killed.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FolderLockedError(f"{folder}: another process is writing there; wait for its end") from None
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    # Beside the file, for a rename is atomic only within a file system.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
