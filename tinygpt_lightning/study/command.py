"""``study``: settings in, rows and a report out."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from tinygpt_lightning.commands.errors import UsageError, fail, need
from tinygpt_lightning.commands.settings import lightning_errors
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM
from tinygpt_lightning.study.design.plan import FabricSettings, Plan
from tinygpt_lightning.study.design.recipe import SETTINGS, RecipeParser
from tinygpt_lightning.study.design.study import Study


def parse(args: Sequence[str]) -> tuple[Study, Path]:
    """Read the command line and the config files it names.

    Returns:
        What is asked, and the folder of the results.

    Raises:
        UsageError: If a setting is wrong.
    """
    parser = RecipeParser(
        prog=f"{PROGRAM} study", description=COMMANDS["study"].summary, usage=f"{PROGRAM} study [options]"
    )
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file of these settings.")
    parser.add_class_arguments(Plan, None)
    parser.add_recipe_arguments()
    settings = parser.parse_args(list(args))
    configs = [Path(str(path)) for path in settings.pop("config", None) or []]
    base = {name: value for name, value in parser.plain(settings).items() if name in SETTINGS}
    asked = {field.name: settings[field.name] for field in dataclasses.fields(Plan)}
    try:
        plan = Plan(**{**asked, "fabric": FabricSettings(**vars(settings.fabric))})
    except ValueError as error:
        raise UsageError(str(error)) from None
    name = "-".join(path.stem for path in configs) or "study"
    return Study(plan, base), Path(plan.output) if plan.output else Path("checkpoints") / name


@lightning_errors()
def study(args: Sequence[str]) -> None:
    """Run a study; what is there already is kept.

    Args:
        args: What was typed behind ``study``.

    Raises:
        SystemExit: With 1 if a row is missing at the end, or all runs diverged; with 130 if it was interrupted.
    """
    asked, folder = parse(args)
    need("study", ("scipy", "matplotlib"), "study")
    # Imported only now, because it needs both.
    from tinygpt_lightning.study.runner import Runner

    try:
        went_well = Runner(asked, folder, f"{PROGRAM} study {shlex.join(args)}").run()
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the rows that are finished", 128 + signal.SIGINT)
    if not went_well:
        sys.exit(1)
