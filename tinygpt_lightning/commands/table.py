"""The table of commands, and the parser of those that need no Lightning."""

from __future__ import annotations

from argparse import ArgumentParser
from os.path import expanduser  # not a `Path`, which would shorten an address
from pathlib import Path
from typing import NamedTuple, NoReturn

from typing_extensions import override

from tinygpt_lightning.commands.errors import fail

PROGRAM = "python -m tinygpt_lightning"
CKPT_PATH = "Checkpoint to read, or a run's folder."


class Command(NamedTuple):
    """A command, given by name so that the table imports no command's libraries.

    Args:
        summary: One sentence for ``--help``.
        module: The module below this package.
        function: The function in it; it takes the arguments after the command.
    """

    summary: str
    module: str
    function: str


COMMANDS = {
    "fit": Command("Train in stages, and show the result.", "commands.fit", "fit"),
    "validate": Command(
        "Measure which pairs a trained model gives back exactly, and show its text for the others.",
        "commands.validate",
        "validate",
    ),
    "predict": Command(
        "Continue prompts with a trained model; stdout gets the texts and nothing else.", "commands.predict", "predict"
    ),
    "chat": Command(
        "Ask a trained model questions, and see how sure it is of each character.", "commands.chat", "chat"
    ),
    "show": Command("Write a page that shows a trained model at work.", "commands.show", "show"),
    "export": Command("Write a trained model in Hugging Face's form.", "commands.exchange", "export"),
    "import": Command(
        "Make a checkpoint of a model from Hugging Face's folder, or the original project's.",
        "commands.exchange",
        "import_",
    ),
    "study": Command(
        "Run an experiment: many runs that differ in one thing, and a report on its effect.", "study.command", "study"
    ),
}


def home_path(text: str) -> Path:
    """The path that a user typed, with ``~`` expanded; a shell leaves ``--output=~/x`` as it is."""
    return Path(text).expanduser()


class Arguments(ArgumentParser):
    """The options of a command; a mistake is reported in one line.

    Args:
        command: Its name.
    """

    def __init__(self, command: str) -> None:
        super().__init__(f"{PROGRAM} {command}", description=COMMANDS[command].summary, allow_abbrev=False)

    def add_checkpoint(self) -> None:
        """Add ``--ckpt_path`` and ``--config``, of which `runs.chosen_checkpoint` makes a path."""
        self.add_argument("--ckpt_path", metavar="FILE", type=expanduser, help=CKPT_PATH)
        self.add_argument(
            "-c",
            "--config",
            metavar="FILE",
            type=home_path,
            action="append",
            default=[],
            help="Take the newest finished run of this configuration. Without either, the newest of all.",
        )

    @override
    def error(self, message: str) -> NoReturn:
        fail(message, 2)
