"""Checkpoints through Lightning's Trainer that are whole, show any damage, and run no code when read."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch.plugins import CheckpointIO
from typing_extensions import override

from tinygpt_lightning.gpt.checkpoint import local_path, read_checkpoint, write_checkpoint


class SafeCheckpointIO(CheckpointIO):
    """Writes a checkpoint whole or not at all, and reads only what is whole and harmless.

    Lightning's own plugin writes to ``$TMPDIR`` and moves, which tears the file when that lies on another
    file system, and it runs a checkpoint's code for ``weights_only=False``,
    ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` and URLs.

    Source: Lightning issues #19970 and #21800.

    >>> from lightning.pytorch import Trainer
    >>> trainer = Trainer(plugins=[SafeCheckpointIO()], accelerator="cpu", logger=False)
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        if storage_options is not None:
            raise TypeError(f"storage_options: expected none, as checkpoints are local files, got {storage_options!r}")
        write_checkpoint(checkpoint, path)

    @override
    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    @override
    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        local_path(path).unlink(missing_ok=True)
