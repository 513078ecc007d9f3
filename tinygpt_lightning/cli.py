"""The command line: a table of commands."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from tinygpt_lightning.app import evaluate
from tinygpt_lightning.app import fit as training
from tinygpt_lightning.app.errors import UsageError, explained
from tinygpt_lightning.app.settings import PROGRAM

Command = Callable[[Sequence[str]], None]


def _study(args: Sequence[str]) -> None:
    # Only now: an experiment is nothing that the other commands should load.
    from tinygpt_lightning.study.command import study

    study(args)


COMMANDS: dict[str, tuple[str, Command]] = {
    "fit": (training.SUMMARY, training.fit),
    "validate": (evaluate.VALIDATE, evaluate.validate),
    "predict": (evaluate.PREDICT, evaluate.predict),
    "study": ("Run an experiment: many runs that differ in one thing, and a report on what it does.", _study),
}


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends with exit code 2 and a message, another failure with 1.

    Args:
        args: The command and what was typed behind it; by default what Python was started with.
    """
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    _prepare_streams()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own call
    # Which callbacks a run may go on without is told by comparing its settings.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
    with explained():
        if sys.stdout is None:
            raise UsageError("stdout: expected a place for the results, got a closed one")
        if command in ("-h", "--help"):
            print(usage())
        elif command in COMMANDS:
            COMMANDS[command][1](rest)
        else:
            raise UsageError(f"expected a command, one of {', '.join(COMMANDS)}, got {command!r}")


def usage() -> str:
    """What ``--help`` says before a command is chosen."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "A one-block GPT-2 that learns one sentence in stages.",
            "",
            "commands:",
            *(f"  {name:{width}}  {summary}" for name, (summary, _) in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help explains the settings of one.",
        ]
    )


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None and name == "stderr":
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # closed on purpose: then nobody listens
        elif stream is not None:
            # Vietnamese, wherever it is piped to.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
