"""The table of commands: what each does, and where it is."""

from __future__ import annotations

from typing import NamedTuple

PROGRAM = "python -m tinygpt_lightning"


class Command(NamedTuple):
    """A command, by name: whoever asks for one loads no libraries of another.

    Args:
        summary: What it does, for ``--help``.
        module: Where it is.
        function: Its name there; it takes what was typed behind the command.
    """

    summary: str
    module: str
    function: str


COMMANDS = {
    "fit": Command("Train in stages, and show what was learnt.", "tinygpt_lightning.commands.fit", "fit"),
    "validate": Command(
        "Measure what a trained model knows by heart, and show what it says instead of the rest.",
        "tinygpt_lightning.commands.evaluate",
        "validate",
    ),
    "predict": Command(
        "Continue prompts with a trained model: the texts go to stdout, and nothing else does.",
        "tinygpt_lightning.commands.evaluate",
        "predict",
    ),
    "chat": Command(
        "Ask a trained network questions, and see how sure it is of each character.",
        "tinygpt_lightning.commands.chat.command",
        "chat",
    ),
    "show": Command("Write a page that shows a trained model at work.", "tinygpt_lightning.commands.show", "show"),
    "export": Command(
        "Write a trained network as Hugging Face's programs read it.", "tinygpt_lightning.commands.exchange", "export"
    ),
    "import": Command(
        "Make a checkpoint of a network from Hugging Face's folder, or the original project's.",
        "tinygpt_lightning.commands.exchange",
        "import_",
    ),
    "study": Command(
        "Run an experiment: many runs that differ in one thing, and a report on what it does.",
        "tinygpt_lightning.study.command",
        "study",
    ),
}
