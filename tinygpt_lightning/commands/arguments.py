"""What is typed behind a command that needs no Lightning."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import NoReturn

from typing_extensions import override

from tinygpt_lightning.commands.errors import fail
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM


class Arguments(ArgumentParser):
    """The options of a command; what is wrong with them is said in a line.

    Args:
        command: Its name.
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"{PROGRAM} {command}", description=COMMANDS[command].summary, allow_abbrev=False)

    @override
    def error(self, message: str) -> NoReturn:
        fail(message, 2)
