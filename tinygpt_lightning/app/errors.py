"""What the command line says when something is wrong: the reason, in a few lines."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from tinygpt_lightning.callbacks.staged_training import Stage

# What the parser tried and how, and not what was wrong.
PARSER_INTERNALS = re.compile(
    r"Does not validate|Subtypes:|Errors:|Given value type:|Expected a path but|Expected a NoneType"
)


class Parser(LightningArgumentParser):
    """Says in a few lines what is wrong."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason, without the usage that fills a screen."""
        unknown = re.search(r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'", message)
        if unknown:
            message += _suggestion(unknown[1] or unknown[2], [action.dest for action in self._actions])
        fail(condense(message), 2)


def _suggestion(option: str, known: list[str]) -> str:
    fields = [field.name for field in dataclasses.fields(Stage)]
    close = difflib.get_close_matches(option, [*known, *fields, "lr"], n=1)
    return (f": did you mean '{close[0]}'?" if close else "") + f"\nA stage takes {', '.join(fields)}."


def condense(message: str, most: int = 4) -> str:
    r"""Keep what a person can use of an error message of the parser: at most so many lines.

    >>> print(condense("Parser key \"lr\":\n  Errors:\n    - Expected a <class 'float'>\n  Given value: abc"))
    --lr:
    Expected a float
    Given value: abc
    """
    message = re.sub(r"<class '([^']+)'>", r"\1", message)
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    lines = [line.strip().removeprefix("- ") for line in message.splitlines() if line.strip()]
    return "\n".join([line for line in lines if not PARSER_INTERNALS.match(line)][:most])


def say(text: str) -> None:
    """Tell a person something, beside the results."""
    print(text, file=sys.stderr)


def fail(reason: str, code: int) -> NoReturn:
    """Say why nothing more will happen, and exit."""
    say(f"error: {reason}")
    sys.exit(code)
