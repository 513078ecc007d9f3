"""``export`` and ``import``: a trained model to Hugging Face's form, and back to a checkpoint."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from os.path import expanduser  # not a `Path`, which would shorten an address
from pathlib import Path

from tinygpt_lightning.commands.errors import UsageError, need, say
from tinygpt_lightning.commands.hugging_face import CONFIG, FILES, read_hugging_face, write_hugging_face
from tinygpt_lightning.commands.table import CKPT_PATH, Arguments, home_path
from tinygpt_lightning.gpt.files import whole_folder
from tinygpt_lightning.original import VOCABULARY, WEIGHTS, read_original
from tinygpt_lightning.trained import TrainedGPT, load, save

LIBRARIES = ("safetensors", "tokenizers", "transformers")


def export_parser() -> Arguments:
    """The options of ``export``."""
    options = Arguments("export")
    options.add_argument("--ckpt_path", metavar="FILE", type=expanduser, required=True, help=CKPT_PATH)
    output = options.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", metavar="FOLDER", type=home_path, help="New folder; an earlier export is replaced.")
    output.add_argument(
        "--weights",
        metavar="FILE",
        type=home_path,
        help="A checkpoint without the optimizer, a third of a run's, to share.",
    )
    return options


def import_parser() -> Arguments:
    """The options of ``import``."""
    options = Arguments("import")
    options.add_argument(
        "--from",
        dest="source",
        metavar="FOLDER",
        type=home_path,
        required=True,
        help=f"Hugging Face's folder ({CONFIG} and its other files) or the original's ({WEIGHTS} and {VOCABULARY}).",
    )
    options.add_argument("--output", metavar="FILE", type=home_path, required=True, help="The checkpoint to write.")
    return options


def export(args: Sequence[str]) -> None:
    """Write a model's folder, or a checkpoint to share, whole or not at all.

    Args:
        args: The arguments after ``export``.

    Raises:
        UsageError: If GPT-2 in transformers cannot express the model, or the folder holds other files.
    """
    options = export_parser().parse_args(args)
    if options.weights:
        save(load(options.ckpt_path), _new_file("--weights", options.weights))
        return
    need("export", LIBRARIES, "export")
    folder = options.output.resolve()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output {options.output}: expected a folder, got a file")
    if folder.is_dir() and (others := sorted({path.name for path in folder.iterdir()} - FILES)):
        raise UsageError(
            f"--output {options.output}: expected a new folder or an earlier export, got one that holds {others[0]!r}"
        )
    trained = load(options.ckpt_path)
    with whole_folder(folder) as unfinished:
        try:
            write_hugging_face(trained, unfinished)
        except ValueError as error:
            raise UsageError(f"{options.ckpt_path}: cannot be expressed: {error}") from None
    say(f"exported to {options.output}: AutoModelForCausalLM and AutoTokenizer open it")


def import_(args: Sequence[str]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        args: The arguments after ``import``.

    Raises:
        UsageError: If the folder holds no model, or the output cannot be a file.
    """
    options = import_parser().parse_args(args)
    output = _new_file("--output", options.output)
    save(_read(options.source), output)
    say(f"imported to {options.output}: chat --ckpt_path {shlex.quote(str(options.output))} asks it")


def _new_file(flag: str, path: Path) -> Path:
    """The file that a checkpoint is written to.

    Raises:
        UsageError: If it cannot be a file.
    """
    file = path.resolve()
    if file.exists() and not file.is_file():
        raise UsageError(f"{flag} {path}: expected a file, got something else")
    if not file.parent.is_dir():
        raise UsageError(f"{flag} {path}: No such file or directory")
    return file


def _read(folder: Path) -> TrainedGPT:
    if (folder / CONFIG).exists():
        need("import", LIBRARIES, "export")
        return read_hugging_face(folder)
    if (folder / WEIGHTS).exists():
        return read_original(folder)
    raise UsageError(f"--from {folder}: expected a folder with {CONFIG}, or with {WEIGHTS}, found neither")
