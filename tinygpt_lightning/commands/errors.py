"""What a person is told when something is wrong, and the exit code that goes with it, for all commands."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from tinygpt_lightning.data.pair_files import PairsError
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.files import FolderLockedError
from tinygpt_lightning.gpt.tokenizer import UnknownCharacterError, VocabularyError


class UsageError(ValueError):
    """Something was asked for that cannot be done."""


USERS_MISTAKES = (
    UsageError, CheckpointError, FolderLockedError, PairsError, UnknownCharacterError, VocabularyError,
)  # fmt: skip
MACHINES_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what goes wrong into a message on stderr and an exit code: 2 for a user's mistake, 1 for a failure."""
    try:
        yield
        sys.stdout.flush()  # here, where a reader who has gone is noticed
    except USERS_MISTAKES as error:
        fail(str(error), 2)
    except (KeyboardInterrupt, SystemExit) as error:
        # A Trainer that is interrupted while it validates or predicts exits by itself, with 1.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        fail("interrupted before there was anything to keep", 128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read the output has enough of it. What is still to be flushed when Python ends goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # A path that cannot be used is the user's to mend; a disk that fails or fills up is not.
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        reason = f"{path}: {error.strerror}" if path else str(error)
        fail(reason, 1 if error.errno in MACHINES_FAILURES else 2)


def need(command: str, modules: Sequence[str], install: str) -> None:
    """Refuse a command whose libraries are an extra that is not installed.

    Raises:
        UsageError: It says how to ``install`` them.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{command} needs {' and '.join(missing)}: {install}")


def say(text: str) -> None:
    """Tell a person something, beside the results."""
    print(text, file=sys.stderr)


def fail(reason: str, code: int) -> NoReturn:
    """Say why nothing more will happen, and exit."""
    say(f"error: {reason}")
    sys.exit(code)
