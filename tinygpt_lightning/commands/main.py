"""The command line: from what was typed to a command."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from tinygpt_lightning.commands.errors import UsageError, explained
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM, Command


def keep_freed_memory() -> None:
    """Ask glibc to keep what a step frees for the next one.

    By default it returns large blocks to the system, which has to clear them again at every step: a third of
    the time of small models that train together, a twentieth of the default model's. Other C libraries are left as
    they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
            libc.mallopt(option, 2**31 - 1)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake ends with exit code 2 and a message, another failure with 1.

    Args:
        args: The command and what was typed behind it; by default what Python was started with.
    """
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    _prepare_streams()
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own call
    # Which callbacks a run may go on without is told by comparing its settings.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
    with explained():
        if sys.stdout is None:
            raise UsageError("stdout: expected a place for the results, got a closed one")
        if command in ("-h", "--help"):
            print(usage())
        elif command in COMMANDS:
            _loaded(COMMANDS[command])(rest)
        else:
            raise UsageError(f"expected a command, one of {', '.join(COMMANDS)}, got {command!r}")


def usage() -> str:
    """What ``--help`` says before a command is chosen."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "A one-block GPT-2 that learns sentences by heart, in stages.",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help explains the settings of one.",
        ]
    )


def _loaded(command: Command) -> Callable[[Sequence[str]], None]:
    """The function behind a command, with the libraries that this one needs."""
    with _loading(new=command.module not in sys.modules):
        function: Callable[[Sequence[str]], None] = getattr(import_module(command.module), command.function)
    for name in ("lightning.pytorch", "lightning.fabric"):  # after their import, which sets another level
        logging.getLogger(name).setLevel(logging.WARNING)
    return function


@contextmanager
def _loading(*, new: bool) -> Iterator[None]:
    """While libraries are loaded, which takes seconds."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends that without a traceback
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if collects:
            gc.enable()
    if new:
        # They stay until the end: to look for garbage among their million objects, again and again, takes a second.
        gc.freeze()


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None and name == "stderr":
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # closed on purpose: then nobody listens
        elif stream is not None:
            # Vietnamese, wherever it is piped to.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
