"""The command ``show``: a model at work, as one page."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path

from tinygpt_lightning.commands.arguments import Arguments
from tinygpt_lightning.commands.run import configured_root, newest_checkpoint, newest_of_all, runs_folder
from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.page.moments import read_moments
from tinygpt_lightning.page.page import render
from tinygpt_lightning.trained import LAST, network_of

PAGE = "page.html"


def parser() -> Arguments:
    """The options of ``show``."""
    options = Arguments("show")
    options.add_argument("--ckpt_path", metavar="FILE", type=Path, help="Checkpoint to read, or a run's folder.")
    options.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="Take the newest finished run of this configuration. Without either, the newest of all.",
    )
    options.add_argument(
        "--output", metavar="FILE", type=Path, help=f"The page; by default {PAGE} beside the checkpoint."
    )
    options.add_argument("--open", action="store_true", help="Open the page in the browser.")
    return options


def show(args: Sequence[str]) -> None:
    """Write the page of a model, whole or not at all, and say where it is.

    Args:
        args: What was typed behind ``show``.

    Raises:
        UsageError: If there is no finished run to show.
        CheckpointError: If the file is no checkpoint of this project.
    """
    options = parser().parse_args(args)
    path = options.ckpt_path or _newest(options.config)
    if path.is_dir():
        path /= LAST
    checkpoint = read_checkpoint(path)
    trained = network_of(checkpoint, path)
    moments = read_moments(checkpoint, trained.model.config, path)
    output = options.output or path.with_name(PAGE)
    name = "/".join(path.resolve().parts[-2:])
    write_whole(output, render(trained, name, moments).encode())
    print(output)
    if options.open:
        webbrowser.open(output.resolve().as_uri())


def _newest(configs: Sequence[Path]) -> Path:
    if not configs:
        return newest_of_all()
    return newest_checkpoint(configs, runs_folder(configs, configured_root(configs)))
