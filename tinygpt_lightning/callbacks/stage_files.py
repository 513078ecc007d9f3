"""The checkpoints of stages: each is written once, also where the process that ended the stage was killed."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer


class StageFiles:
    """Writes ``stage-N.ckpt`` of the current stage.

    Args:
        dirpath: Their folder; None means the trainer's log folder.

    Attributes:
        is_saved: Whether the current stage, if it is over, has its checkpoint.
    """

    def __init__(self, dirpath: str | Path | None) -> None:
        self.dirpath = dirpath
        self.is_saved = True

    def save(self, trainer: Trainer, index: int) -> None:
        """Write the checkpoint of the stage at ``index`` unless it has one."""
        if not self.is_saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.is_saved = True
            trainer.save_checkpoint(self._file(trainer, index), weights_only=False)

    def find(self, trainer: Trainer, index: int) -> None:
        """Find out whether the killed process that ended the stage came to write its checkpoint."""
        if not self.is_saved:
            file = self._file(trainer, index)
            is_resumed_from_it = trainer.ckpt_path is not None and Path(trainer.ckpt_path).name == file.name
            self.is_saved = trainer.strategy.broadcast(file.exists() or is_resumed_from_it)

    def _file(self, trainer: Trainer, index: int) -> Path:
        return Path(self.dirpath or trainer.log_dir or trainer.default_root_dir) / f"stage-{index + 1}.ckpt"
