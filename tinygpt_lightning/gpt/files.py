"""Files that appear whole or not at all, and folders that one process at a time writes to."""

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
    """Another process is writing to the folder."""


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
    """Fill a folder that takes the name ``path`` when the block succeeds, and that disappears when the block fails.

    It replaces an earlier folder; the caller decides whether it may. At every instant ``path`` names a whole folder,
    or none.

    Raises:
        OSError: If the folder cannot be written; the error names ``path``, and the earlier folder is untouched.
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


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed writers in ``folder``; no other process may be writing there."""
    for path in folder.iterdir():
        if _LEFTOVER.fullmatch(path.name):
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to ``folder``.

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
