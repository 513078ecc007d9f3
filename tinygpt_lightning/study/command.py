"""`python -m tinygpt_lightning study`: settings in, rows and report out."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from tinygpt_lightning.app.errors import condense
from tinygpt_lightning.study.design import Study


def parse(argv: Sequence[str]) -> tuple[Study, Path]:
    """Read the command line and the config files it names.

    Returns:
        The settings, and the folder of the results.

    Raises:
        ValueError: If a setting is wrong.
    """
    parser = ArgumentParser(
        prog="python -m tinygpt_lightning study",
        description="Run a factorial experiment; runs that are there already are kept.",
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="A YAML file of these settings.")
    parser.add_class_arguments(Study, None)
    try:
        settings = parser.parse_args(list(argv))
        configs = [Path(str(path)) for path in settings.pop("config", None) or []]
        study = Study(**vars(parser.instantiate(settings)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(condense(str(error))) from None
    name = configs[-1].stem if configs else "study"
    return study, Path(study.output) if study.output else Path("checkpoints") / name


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study; what is there already is kept.

    Args:
        argv: The command line after ``study``.

    Returns:
        0 if every run of the design has its row, 1 if one is missing, 2 if a setting is wrong, 130 if it was
        interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    missing = [name for name in ("scipy", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"error: study needs {' and '.join(missing)}: pip install -e '.[study]'", file=sys.stderr)
        return 2
    # Imported only now, because it needs both.
    from tinygpt_lightning.study.runner import Runner

    try:
        study, folder = parse(argv)
        runner = Runner(study, folder, f"python -m tinygpt_lightning study {shlex.join(argv)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        return runner.run()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the rows that are finished", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
