"""What a person is told when something is wrong, and the exit code that goes with it, for all commands."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from tinygpt_lightning.callbacks.stages import Stage, StageError
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.files import FolderLockedError
from tinygpt_lightning.gpt.tokenizer import UnknownCharacterError, VocabularyError

MOST_LINES = 4
# What the parser tried and how, and not what was wrong.
PARSER_INTERNALS = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Expected a path but|Expected a NoneType"
)


class UsageError(ValueError):
    """Something was asked for that cannot be done."""


USERS_MISTAKES = (
    UsageError, StageError, CheckpointError, FolderLockedError, UnknownCharacterError, VocabularyError,
    MisconfigurationException,
)  # fmt: skip
MACHINES_FAILURES = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def explained() -> Iterator[None]:
    """Turn what goes wrong into a message on stderr and an exit code: 2 for a user's mistake, 1 for a failure."""
    try:
        yield
        sys.stdout.flush()  # here, where a reader who has gone is noticed
    except USERS_MISTAKES as error:
        # Each process of a distributed fit comes to the same refusal.
        fail(str(error), 2) if rank_zero_only.rank == 0 else sys.exit(2)  # type: ignore[attr-defined]
    except KeyboardInterrupt:
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


class Parser(LightningArgumentParser):
    """Says in a few lines what is wrong."""

    stage: type[Stage] = Stage  # what a list of stages is made of

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason, without the usage that fills a screen."""
        unknown = re.search(r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'", message)
        if unknown:
            message += self._suggestion(unknown[1] or unknown[2])
        fail(shorten(message), 2)

    def _suggestion(self, option: str) -> str:
        fields = [field.name for field in dataclasses.fields(self.stage)]
        close = difflib.get_close_matches(option, [*(action.dest for action in self._actions), *fields, "lr"], n=1)
        return (f": did you mean '{close[0]}'?" if close else "") + f"\nA stage takes {', '.join(fields)}."


def shorten(message: str) -> str:
    r"""Keep what a person can use of an error message of the parser: a few lines.

    >>> print(shorten("Parser key \"lr\":\n  Errors:\n    - Expected a <class 'float'>\n  Given value: abc"))
    --lr:
    Expected a float
    Given value: abc
    """
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    return "\n".join([line for line in lines if not PARSER_INTERNALS.match(line)][:MOST_LINES])


def say(text: str) -> None:
    """Tell a person something, beside the results."""
    print(text, file=sys.stderr)


def fail(reason: str, code: int) -> NoReturn:
    """Say why nothing more will happen, and exit."""
    say(f"error: {reason}")
    sys.exit(code)
