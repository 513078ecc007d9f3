"""``validate`` and ``predict``: a trained network, measured and asked."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer

from tinygpt_lightning.app.errors import UsageError
from tinygpt_lightning.app.parser import trainers_mistakes
from tinygpt_lightning.app.run import newest_checkpoint
from tinygpt_lightning.app.settings import Settings
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.module import TinyGPTModule


@trainers_mistakes()
def validate(args: Sequence[str]) -> None:
    """Print the metrics.

    Args:
        args: What was typed behind ``validate``.
    """
    made, module, trainer = _prepared(Settings("validate", args))
    for name, value in trainer.validate(module, made.data, verbose=False)[0].items():
        print(f"{name:22} {value:.6g}")


@trainers_mistakes()
def predict(args: Sequence[str]) -> None:
    """Print the texts, and write them to ``--output``.

    Args:
        args: What was typed behind ``predict``.
    """
    made, module, trainer = _prepared(Settings("predict", args))
    made.data.adopt(module.taught)
    for prompt in made.data.asked.prompts:
        try:
            module.trained.encode_prompt(prompt, made.generation)
        except ValueError as error:
            raise UsageError(str(error)) from None
    texts = [text for batch in trainer.predict(module, made.data) or [] for text in batch]
    if made.output:
        rows = zip(made.data.asked.prompts, texts, strict=True)
        lines = [json.dumps({"prompt": prompt, "text": text}, ensure_ascii=False) + "\n" for prompt, text in rows]
        write_output(Path(made.output), "".join(lines).encode())
    for text in texts:
        print(text)


def write_output(path: Path, content: bytes) -> None:
    """Write ``content`` whole or not at all; but into what is there if that is no plain file of its own.

    A link keeps pointing where it does, a pipe or a device is written to, and where the path is just another name
    of stdout (``/dev/stdout``), stdout is.

    Raises:
        OSError: If it cannot be written.
    """
    status = path.stat() if path.exists() else None
    if status and os.path.samestat(status, os.fstat(1)):
        sys.stdout.write(content.decode())
    elif status and not stat.S_ISREG(status.st_mode):
        with path.open("wb") as file:
            file.write(content)
    else:
        write_whole(path.resolve() if path.is_symlink() else path, content)


def _prepared(settings: Settings) -> tuple[Namespace, TinyGPTModule, Trainer]:
    """What was asked for, the model from its checkpoint, and a trainer on one device that writes nothing."""
    made = settings.instantiate(model=False)
    module = TinyGPTModule.load_from_checkpoint(_checkpoint(settings))
    module.generation = made.generation
    made.trainer.callbacks = None  # those of a fit
    trainer = settings.make_trainer(
        made, [], devices=1, num_nodes=1, strategy="auto", logger=False, enable_checkpointing=False
    )
    return made, module, trainer


def _checkpoint(settings: Settings) -> str | Path:
    path = settings.config.ckpt_path
    if path not in (None, "last"):
        return str(path)
    if not settings.config_files:
        raise UsageError("expected --ckpt_path FILE, or --config FILE to look for the newest run of, got neither")
    return newest_checkpoint(settings.config_files, settings.folder)
