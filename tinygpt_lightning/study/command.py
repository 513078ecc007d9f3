"""``study``: settings in, rows and a report out."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from tinygpt_lightning.app.commands import COMMANDS, PROGRAM
from tinygpt_lightning.app.errors import UsageError, fail, need
from tinygpt_lightning.app.parser import Parser, trainers_mistakes
from tinygpt_lightning.study.design import Study


def parse(args: Sequence[str]) -> tuple[Study, Path]:
    """Read the command line and the config files it names.

    Returns:
        The settings, and the folder of the results.

    Raises:
        UsageError: If a setting is wrong.
    """
    parser = Parser(prog=f"{PROGRAM} study", description=COMMANDS["study"].summary, usage=f"{PROGRAM} study [options]")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file of these settings.")
    parser.add_class_arguments(Study, None)
    settings = parser.parse_args(list(args))
    configs = [Path(str(path)) for path in settings.pop("config", None) or []]
    try:
        study = Study(**vars(parser.instantiate_classes(settings)))
    except ValueError as error:
        raise UsageError(str(error)) from None
    name = "-".join(path.stem for path in configs) or "study"
    return study, Path(study.output) if study.output else Path("checkpoints") / name


@trainers_mistakes()
def study(args: Sequence[str]) -> None:
    """Run a study; what is there already is kept.

    Args:
        args: What was typed behind ``study``.

    Raises:
        SystemExit: With 1 if a row is missing at the end, or all runs diverged; with 130 if it was interrupted.
    """
    settings, folder = parse(args)
    need("study", ("scipy", "matplotlib"), "pip install -e '.[study]'")
    # Imported only now, because it needs both.
    from tinygpt_lightning.study.runner import Runner

    try:
        went_well = Runner(settings, folder, f"{PROGRAM} study {shlex.join(args)}").run()
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the rows that are finished", 128 + signal.SIGINT)
    if not went_well:
        sys.exit(1)
