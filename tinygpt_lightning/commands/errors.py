"""Error messages and exit codes of all commands."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
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
    """The user asked for something that cannot be done."""


USER_ERRORS = (
    UsageError, CheckpointError, FolderLockedError, PairsError, UnknownCharacterError, VocabularyError,
)  # fmt: skip
MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
MAX_LINES = 4
# Lines in which jsonargparse reports its attempts rather than the mistake.
PARSER_INTERNALS = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Expected a path but|Expected a NoneType"
)


@contextmanager
def explained() -> Iterator[None]:
    """Turn an error into a message on stderr and an exit code: 2 for a user's mistake, 1 for another failure."""
    try:
        yield
        sys.stdout.flush()  # raises here if the reader of a pipe has gone
    except USER_ERRORS as error:
        fail(str(error), 2)
    except (KeyboardInterrupt, SystemExit) as error:
        # A Trainer that is interrupted while it validates or predicts exits with 1.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        fail("interrupted before there was anything to keep", 128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader has seen enough. Python flushes stdout when it exits: into nothing, to avoid a second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        # The user can correct a path, but not a disk that fails or is full.
        path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else None
        reason = f"{path}: {error.strerror}" if path else str(error)
        fail(reason, 1 if error.errno in MACHINE_ERRORS else 2)


def need(command: str, modules: Sequence[str], extra: str) -> None:
    """Refuse a command whose libraries are not installed.

    Args:
        command: The command.
        modules: The libraries.
        extra: The extra of this project that installs them.

    Raises:
        UsageError: If one is missing; the message says how to install the extra.
    """
    if missing := [name for name in modules if importlib.util.find_spec(name) is None]:
        raise UsageError(f"{command} needs {' and '.join(missing)}: pip install -e '.[{extra}]'")


def say(text: str) -> None:
    """Print a message on stderr, so that stdout keeps the results alone."""
    print(text, file=sys.stderr)


def fail(reason: str, code: int) -> NoReturn:
    """Print the reason and exit."""
    say(f"error: {reason}")
    sys.exit(code)


def shorten(message: str) -> str:
    r"""Keep the useful lines of an error message of jsonargparse.

    >>> print(shorten("Parser key \"lr\":\n  Errors:\n    - Expected a <class 'float'>\n  Given value: abc"))
    --lr:
    Expected a float
    Given value: abc
    """
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    return "\n".join([line for line in lines if not PARSER_INTERNALS.match(line)][:MAX_LINES])
