"""Stages as the original project has them: model and tokenizer, too, are made anew at each boundary."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

from tinygpt_lightning.callbacks.staged_training import Stage, StagedTraining, StageError
from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule


class RebuiltStages(StagedTraining):
    """Starts each stage from the run's files: weights from ``stage-N.ckpt``, ids from ``vocab.json``.

    Nothing else crosses the boundary in the original, whose stages are processes of their own. Where files
    give back what was put into them, this changes no weight and no id.

    Args:
        stages: The stages, in order.
        dirpath: The run's folder.
    """

    def __init__(self, stages: list[Stage], dirpath: Path) -> None:
        super().__init__(stages, dirpath)
        self._folder = dirpath

    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Make model and tokenizer anew."""
        assert isinstance(pl_module, TinyGPTModule)  # noqa: S101
        if trainer.world_size > 1:
            raise StageError("rebuild: expected one process, since DDP keeps hold of the old model; set it to false")
        file = self._folder / f"stage-{index}.ckpt"
        if not file.exists():  # the run went on from another one's checkpoint
            trainer.save_checkpoint(file)
        weights = read_checkpoint(file)["state_dict"]
        # New weights are drawn and thrown away: the dropout to come should not notice.
        with torch.random.fork_rng():
            model = TinyGPT(pl_module.model.config)
        model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
        pl_module.model = model.to(pl_module.device)
        pl_module.tokenizer = pl_module.read_back(CharTokenizer.load(self._folder / "vocab.json"))
