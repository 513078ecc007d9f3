"""Lightning and its parser, in the words of this project when something is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from jsonargparse import Namespace, _typehints
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from tinygpt_lightning.callbacks.stages import Stage, StageError
from tinygpt_lightning.commands.errors import USERS_MISTAKES, UsageError, fail

MOST_LINES = 4
# What the parser tried and how, and not what was wrong.
PARSER_INTERNALS = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Expected a path but|Expected a NoneType"
)


@contextmanager
def trainers_mistakes() -> Iterator[None]:
    """Bring what the Trainer and the stages refuse to a `UsageError`, in the first process of several.

    Raises:
        UsageError: If they refuse something.
    """
    try:
        yield
    except (*USERS_MISTAKES, StageError, MisconfigurationException) as error:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            sys.exit(2)  # each process of a distributed fit comes to the same refusal
        raise error if isinstance(error, USERS_MISTAKES) else UsageError(str(error)) from error


def _forget_arguments(_parser: Any, before: Any, value: Any) -> None:
    """Drop the arguments of the class before, if ``value`` names another class, which then has its own defaults.

    jsonargparse drops only those that the new class does not know: an SGD would silently take over AdamW's weight
    decay, which is decoupled there and L2 regularisation here.
    """
    if before and before.get("init_args") and before["class_path"] != value["class_path"]:
        before["init_args"] = Namespace()  # type: ignore[no-untyped-call]


# There is no setting for this; a test fails if a version of jsonargparse has another name for it.
_typehints.discard_init_args_on_class_path_change = _forget_arguments


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
