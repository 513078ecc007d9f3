"""LightningCLI's parser and Lightning's own errors, reported in a few lines that name the flag."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import Namespace, _typehints
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_only

from tinygpt_lightning.callbacks.stages import Stage, StageError
from tinygpt_lightning.commands.errors import USER_ERRORS, UsageError, fail, shorten
from tinygpt_lightning.commands.runs import read_yaml

# Settings that only one of the two kinds of commands has, by the command to name.
OF_OTHERS = {
    **dict.fromkeys(("factors", "seeds", "chunk", "report", "share"), "study"),
    **dict.fromkeys(("trainer", "rebuild", "save_every_n_seconds", "generation"), "fit"),
}


@contextmanager
def lightning_errors() -> Iterator[None]:
    """Raise what Lightning and the stages refuse as a `UsageError`, in the first of several processes.

    Raises:
        UsageError: If they refuse something.
    """
    try:
        yield
    except (*USER_ERRORS, StageError, MisconfigurationException) as error:
        if rank_zero_only.rank:  # type: ignore[attr-defined]
            sys.exit(2)  # each process of a distributed fit raises the same error
        raise error if isinstance(error, USER_ERRORS) else UsageError(str(error)) from error


@contextmanager
def setting_up(has_begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise any error while Lightning is being set up as a `UsageError`: Lightning refuses settings in many ways.

    With ``TINYGPT_DEBUG=1`` in the environment the error keeps its type and its traceback.

    Args:
        has_begun: Whether training has begun; errors are then no longer about settings.

    Raises:
        UsageError: The message has the first lines of the error.
    """
    try:
        yield
    except (*USER_ERRORS, StageError, MisconfigurationException, OSError):
        raise
    except Exception as error:
        if has_begun() or os.environ.get("TINYGPT_DEBUG"):
            raise
        lines = [line for line in str(error).splitlines() if line.strip()][:3]
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        traceback.clear_frames(error.__traceback__)  # half-made objects of Lightning complain when they are deleted
        sys.unraisablehook = hook
        raise UsageError("\n".join([*lines, "TINYGPT_DEBUG=1 shows where this comes from."])) from error


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
    """Reports a mistake in a few lines."""

    stage: type[Stage] = Stage  # the element type of a list of stages
    typed: Sequence[str] = ()  # the arguments

    def parse_args(self, args: Any = None, *rest: Any, **settings: Any) -> Any:
        """Parse, and keep the arguments for an error message."""
        Parser.typed = sys.argv[1:] if args is None else [str(arg) for arg in args]  # also for parsers of subclasses
        try:
            return super().parse_args(args, *rest, **settings)
        except UnicodeDecodeError as error:
            for file in map(Path, Parser.typed):
                if file.is_file():
                    read_yaml(file)  # names the file that is not UTF-8
            raise UsageError(f"--config: expected YAML in UTF-8, got {error}") from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the reason, without the usage, which fills a screen."""
        if unknown := re.search(r"[Oo]ption '([^']+)' is not accepted|accept option '([^']+)'", message):
            group = re.match(r"Group '([^']+)'", message)
            message += self._suggestion(unknown[1] or unknown[2], group[1] if group else "")
        elif unknown := re.match(r"unrecognized arguments: --([\w.]+)", message):
            message += self._suggestion(unknown[1])
        elif key := re.match(r'Parser key "([^"]+)":', message):
            message = self._wrong_value(message, key[1])
        fail(shorten(message), 2)

    def _suggestion(self, option: str, group: str = "") -> str:
        first = (group or option).split(".")[0]
        command = OF_OTHERS.get(first)
        if command and (command == "study") != self.prog.endswith("study"):
            return f": that is a setting of `{command}`"
        fields = [field.name for field in dataclasses.fields(self.stage)]
        of_stages = f"\nA stage takes {', '.join(fields)}."
        if option in fields:
            return f": it belongs to a stage, as in --stages '[{{{option}: …}}]'{of_stages}"
        flags = {action.dest: f"--{action.dest}" for action in self._actions if action.dest}
        ends = {flag.rpartition(".")[2]: flag for flag in reversed(flags.values()) if "." in flag}
        names = {**ends, "lr": "--model.optimizer.lr", **flags, **{field: field for field in fields}}
        close = difflib.get_close_matches(option, names, n=1)
        if close and names[close[0]].startswith("--"):
            return f": did you mean '{names[close[0]]}'?"
        return (f": did you mean '{names[close[0]]}'?" if close else "") + of_stages

    def _wrong_value(self, message: str, key: str) -> str:
        """Name the whole flag, keep the last attempt of the parser, and show the form of a list."""
        flags = [arg.partition("=")[0] for arg in self.typed] if "." not in key else []
        flag = next((flag for flag in flags if flag.endswith(f".{key}")), f"--{key}")
        value = message.rpartition("Given value: ")[2].strip() if "Given value: " in message else ""
        if "class 'list'" in message and value:
            return f"""{flag}: expected a list, as in {flag} '["{value}"]', got {value!r}"""
        if "Expected a <class" in message:
            message = re.sub(r"\n[^\n]*Expected a dot import path string[^\n]*", "", message)
        return message.replace(f'Parser key "{key}":', f"{flag}:", 1)
