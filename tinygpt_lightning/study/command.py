"""The command ``study``: reads settings, runs what is missing, writes rows and a report."""

from __future__ import annotations

import dataclasses
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

from tinygpt_lightning.commands.errors import UsageError, fail, need
from tinygpt_lightning.commands.parser import lightning_errors
from tinygpt_lightning.commands.table import COMMANDS, PROGRAM
from tinygpt_lightning.study.design import FabricSettings, Plan, Study, Tuning
from tinygpt_lightning.study.recipe import SETTINGS, RecipeParser


def parse(args: Sequence[str]) -> tuple[Study, Path]:
    """The study that the command line and its config files ask for, and the folder of its results.

    Raises:
        UsageError: If a setting is wrong.
    """
    name = f"{PROGRAM} study"
    parser = RecipeParser(prog=name, description=COMMANDS["study"].summary, usage=f"{name} [options]")
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="A YAML file of these settings.")
    parser.add_class_arguments(Plan, None)
    parser.add_recipe_arguments()
    settings = parser.parse_args(list(args))
    configs = [Path(str(path)) for path in settings.pop("config", None) or []]
    base = {name: value for name, value in parser.plain(settings).items() if name in SETTINGS}
    asked = {field.name: settings[field.name] for field in dataclasses.fields(Plan)}
    tune = Tuning(**vars(settings.tune)) if settings.tune else None
    try:
        plan = Plan(**{**asked, "fabric": FabricSettings(**vars(settings.fabric)), "tune": tune})
    except ValueError as error:
        raise UsageError(str(error)) from None
    name = "-".join(path.stem for path in configs) or "study"
    return Study(plan, base), Path(plan.output).expanduser() if plan.output else Path("checkpoints") / name


@lightning_errors()
def study(args: Sequence[str]) -> None:
    """Run a study, by the arguments behind ``study``; finished rows in its folder are kept.

    Raises:
        SystemExit: With 1 if a row is missing at the end, or all runs diverged; with 130 if it was interrupted.
    """
    asked, folder = parse(args)
    need("study", ("scipy", "matplotlib"), "study")
    # Imported here because it needs both.
    from tinygpt_lightning.study.runner import Runner, tuned

    try:
        typed = f"{PROGRAM} study {shlex.join(args)}"
        complete = Runner(tuned(asked, folder), folder).run(typed)
    except KeyboardInterrupt:
        fail("interrupted; the same command continues after the finished rows", 128 + signal.SIGINT)
    if not complete:
        sys.exit(1)
