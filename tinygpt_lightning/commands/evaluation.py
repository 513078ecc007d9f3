"""What ``validate`` and ``predict`` share: the model from its checkpoint, a trainer, and ``--output``."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer

from tinygpt_lightning.commands.errors import UsageError, say
from tinygpt_lightning.commands.runs import Run, newest_checkpoint
from tinygpt_lightning.commands.settings import Settings, as_list
from tinygpt_lightning.data.pair_files import Mistake, PairsError
from tinygpt_lightning.gpt.checkpoint import local_path
from tinygpt_lightning.gpt.files import whole_file
from tinygpt_lightning.module import TinyGPTModule

PAIR_FLAGS = ("--data.path", "--data.question", "--data.answer")  # with one of these, not the run's pairs are used
UNUSED_FLAGS = ("--model.", "--stages", "--rebuild", "--renumber", "--save_every_n_seconds")


def open_trained(settings: Settings) -> tuple[Namespace, TinyGPTModule]:
    """Read the model from its checkpoint, and adapt the data module to it.

    Returns:
        The objects that the settings describe, but for the model; and the model.

    Raises:
        UsageError: If no checkpoint is given and none can be found.
        CheckpointError: If the checkpoint is refused.
    """
    if without_effect := [arg for arg in settings.args if arg.startswith(UNUSED_FLAGS)]:
        flag = without_effect[0].partition("=")[0]
        raise UsageError(f"{flag}: has no effect on {settings.command}, which reads the model from a checkpoint")
    with suppress(UsageError):  # the pairs in the checkpoint may do
        settings.locate_pairs()
    objects = settings.instantiate(model=False)
    checkpoint = local_path(_checkpoint(settings))
    run = Run(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    begun = _settings_beside(run)
    loss_on = begun["model"].get("loss_on", "all") if begun else settings.plain["model"]["loss_on"]
    module = TinyGPTModule.load_from_checkpoint(checkpoint, loss_on=loss_on)
    # The pairs are in the checkpoint, as they were taught: only who types a file means that file.
    typed = any(arg.partition("=")[0] in PAIR_FLAGS for arg in settings.args)
    objects.data.adopt(module.trained, pairs=not typed)
    return objects, module


def evaluation_trainer(settings: Settings, objects: Namespace, callback: Callback) -> Trainer:
    """Make a trainer on one device that writes no files."""
    objects.trainer.callbacks = None  # those of a fit
    plugins = [*as_list(objects.trainer.plugins), LightningEnvironment()]  # this process alone, whoever started it
    return settings.make_trainer(
        objects,
        [callback],
        devices=1,
        num_nodes=1,
        strategy="auto",
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
    )


def check_texts(
    texts: Iterable[str], encode: Callable[[str], object], path: str | None, lines: Sequence[int] | None
) -> None:
    """Refuse texts that the model cannot take.

    Args:
        texts: The texts.
        encode: Raises a `ValueError` for such a text.
        path: The file that they come from, if any.
        lines: The line of each text in that file.

    Raises:
        PairsError: For texts from a file; it names up to ten of them, with their lines.
        UsageError: For other texts; it names the first.
    """
    mistakes = []
    for i, text in enumerate(texts):
        try:
            encode(text)
        except ValueError as error:
            if path is None or not lines:
                raise UsageError(str(error)) from None
            mistakes.append(Mistake(lines[i], str(error)))
    if path is not None and mistakes:
        raise PairsError(path, mistakes)


@contextmanager
def rows_file(path: str | None) -> Iterator[Callable[[Mapping[str, object]], None]]:
    """Open ``--output``, a file of JSON objects, one a line; without a path the rows are dropped.

    The file appears whole when the block ends well, or not at all. A link keeps its target, a pipe or device is
    written to directly, and another name of stdout (``-``, ``/dev/stdout``) is stdout.

    Yields:
        A function that writes a row.

    Raises:
        OSError: If the file cannot be written; a file that cannot be created is noticed at once.
    """
    if path is None:
        yield lambda _: None
        return
    with _opened(Path("/dev/stdout" if path == "-" else path)) as file:
        yield lambda row: _write(file, row)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    status = path.stat() if path.exists() else None
    if status and os.path.samestat(status, os.fstat(1)):
        yield getattr(sys.stdout, "buffer", None) or sys.__stdout__.buffer  # type: ignore[misc, union-attr]
    elif status and not stat.S_ISREG(status.st_mode):
        with path.open("wb") as file:
            yield file
    else:
        with whole_file(path.resolve() if path.is_symlink() else path) as file:
            yield file


def _write(file: BinaryIO, row: Mapping[str, object]) -> None:
    file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _checkpoint(settings: Settings) -> str | Path:
    path = settings.config.ckpt_path
    if path not in (None, "last"):
        return str(path)
    if not settings.config_files:
        raise UsageError("expected --ckpt_path FILE, or --config FILE to look for the newest run of, got neither")
    return newest_checkpoint(settings.config_files, settings.folder)


def _settings_beside(run: Run) -> dict[str, Any] | None:
    """The settings of the run that a checkpoint lies in; None where it lies elsewhere, since it suffices alone."""
    if not run.config.exists():
        return None
    try:
        settings = run.settings
        for name in ("model", "data"):
            if not isinstance(settings.get(name), dict):
                raise UsageError(f"{run.config}: expected the settings of a run, with {name}, found none")
        return settings
    except UsageError as error:
        say(f"warning: {error}; only the checkpoint is used")
        return None
