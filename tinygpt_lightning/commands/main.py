"""The command line: prepare the process, import the command's module, call its function."""

from __future__ import annotations

import ctypes
import difflib
import gc
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from tinygpt_lightning.commands.errors import UsageError, explained, say
from tinygpt_lightning.commands.launch import forget_foreign_ranks, launched_rank
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM, Command

PACKAGE = __name__.partition(".")[0]
TRAINING = ("fit", "study")  # the commands that several processes share


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; a user's mistake exits with code 2 and a message, another failure with 1.

    Args:
        args: The command and its arguments; by default those of the process.
    """
    command, *rest = (sys.argv[1:] if args is None else args) or [""]
    _prepare_streams()
    forget_foreign_ranks()
    if launched_rank() and command not in TRAINING:
        return  # a launcher started several processes: the first one does the work
    warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own call
    # `fit` itself compares the settings of a run, callbacks included.
    warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint need to be provided")
    with explained():
        if sys.stdout is None:
            raise UsageError("stdout is closed; expected a place for the results")
        if command in ("-h", "--help"):
            print(usage())
        elif command in COMMANDS:
            if command in TRAINING and sys.stderr.isatty():
                say(f"{command}: importing PyTorch and Lightning, which takes some seconds")
            _imported(COMMANDS[command])(rest)
        else:
            close = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f": did you mean {close[0]}?" if close else ""
            raise UsageError(f"expected a command, one of {', '.join(COMMANDS)}, got {command!r}{hint}")


def usage() -> str:
    """The text of ``--help`` without a command."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [options]",
            "",
            "A one-block GPT-2 that memorises sentences, in stages.",
            "",
            "commands:",
            *(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()),
            "",
            f"{PROGRAM} COMMAND --help explains the settings of a command.",
        ]
    )


def keep_freed_memory() -> None:
    """Ask glibc to keep memory that a training step frees for the next one.

    By default glibc returns large blocks to the system, which has to clear them again at every step: a third of
    the time of small models that train together, a twentieth of the default model's. Other C libraries stay as they
    are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
            libc.mallopt(option, 2**31 - 1)


def _imported(command: Command) -> Callable[[Sequence[str]], None]:
    """Import a command's function, and with it the libraries of this command alone."""
    module = f"{PACKAGE}.{command.module}"
    with _importing(new=module not in sys.modules):
        function: Callable[[Sequence[str]], None] = getattr(import_module(module), command.function)
    for name in ("lightning.pytorch", "lightning.fabric"):  # after their import, which sets another level
        logging.getLogger(name).setLevel(logging.WARNING)
    return function


@contextmanager
def _importing(*, new: bool) -> Iterator[None]:
    """Prepare for imports that take seconds: garbage collection is off, Ctrl-C ends the process without traceback."""
    is_main = threading.current_thread() is threading.main_thread()  # the only one that may set a signal's handler
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if is_main else None
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)
        if collects:
            gc.enable()
    if new:
        # Imported modules stay until the end: collections that visit their million objects take a second in all.
        gc.freeze()


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None and name == "stderr":
            sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115  # the user closed it: nobody reads messages
        elif hasattr(stream, "reconfigure"):  # not in a notebook, nor where a test replaced it
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # Vietnamese, into any pipe
