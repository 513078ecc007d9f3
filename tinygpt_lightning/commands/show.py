"""The command ``show``: a model at work, as one page."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.runs import chosen_checkpoint
from tinygpt_lightning.commands.table import Arguments, home_path
from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.page.moments import read_moments
from tinygpt_lightning.page.page import render
from tinygpt_lightning.trained import checkpoint_in, network_of

PAGE = "page.html"


def parser() -> Arguments:
    """The options of ``show``."""
    options = Arguments("show")
    options.add_checkpoint()
    options.add_argument(
        "--output", metavar="FILE", type=home_path, help=f"The page; by default {PAGE} beside the checkpoint."
    )
    options.add_argument("--open", action="store_true", help="Open the page in the browser.")
    return options


def show(args: Sequence[str]) -> None:
    """Write the page of a model, whole or not at all, and say where it is.

    Args:
        args: The arguments after ``show``.

    Raises:
        UsageError: If no run is finished, or JSON cannot hold a setting of the model.
        CheckpointError: If the file is no checkpoint of this project.
    """
    options = parser().parse_args(args)
    path = Path(checkpoint_in(chosen_checkpoint(options.ckpt_path, options.config)))
    checkpoint = read_checkpoint(path)
    trained = network_of(checkpoint, path)
    moments = read_moments(checkpoint, trained.model.config, path)
    output = options.output or path.with_name(PAGE)
    name = "/".join(path.resolve().parts[-2:])
    try:
        page = render(trained, name, moments)
    except ValueError as error:
        raise UsageError(f"{path}: cannot be shown: {error}") from error
    write_whole(output, page.encode())
    print(output)
    if options.open:
        webbrowser.open(output.resolve().as_uri())
