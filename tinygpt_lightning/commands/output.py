"""Where ``--output`` goes: rows in a file that appears whole or not at all, or into what is there."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tinygpt_lightning.gpt.files import whole_file

Write = Callable[[Mapping[str, str]], None]


@contextmanager
def output(path: str | None) -> Iterator[Write]:
    """Open a file of JSON objects, one a line; without a path they go nowhere.

    The file appears whole when the block ends well, or not at all. But a link keeps pointing where it does, a pipe or
    a device is written to, and where the path is just another name of stdout (``/dev/stdout``), stdout is.

    Raises:
        OSError: If it cannot be written; that it cannot be made is known at once.
    """
    if path is None:
        yield _drop
        return
    with _opened(Path(path)) as file:
        yield lambda row: _write(file, row)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    status = path.stat() if path.exists() else None
    if status and os.path.samestat(status, os.fstat(1)):
        yield sys.stdout.buffer
    elif status and not stat.S_ISREG(status.st_mode):
        with path.open("wb") as file:
            yield file
    else:
        with whole_file(path.resolve() if path.is_symlink() else path) as file:
            yield file


def _drop(row: Mapping[str, str]) -> None:
    del row


def _write(file: BinaryIO, row: Mapping[str, str]) -> None:
    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
