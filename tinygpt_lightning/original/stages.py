"""The original project's way with stages: each is a process of its own, which files tell of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.gpt.checkpoint import read_checkpoint
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.original.vocabulary import renumber


class OriginalStages(StagedTraining):
    """Starts each stage from the run's files, as the original does; and makes its mistake, if asked to.

    Where files give back what was put into them, reading them changes no weight and no id.

    Args:
        stages: The stages, in order.
        dirpath: The run's folder.
        renumber: Whether the vocabulary is numbered anew where a stage ends. The checkpoint that the stage
            leaves then holds other ids than those that its weights learnt.
    """

    def __init__(self, stages: Sequence[Stage], dirpath: str | Path, renumber: bool = False) -> None:
        super().__init__(stages, dirpath)
        self.folder = Path(dirpath)
        self.renumber = renumber

    @override
    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        module = _ours(pl_module)
        file = self.folder / f"stage-{index}.ckpt"
        if not file.exists():  # the run went on from another one's checkpoint
            trainer.save_checkpoint(file)
        # Into the parameters that there are: DDP keeps hold of them.
        module.load_state_dict(read_checkpoint(file)["state_dict"])
        tokenizer = CharTokenizer.load(self.folder / "vocab.json")
        module.tokenizer = renumber(tokenizer) if self.renumber else tokenizer

    @override
    def on_stage_resume(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        pass  # a checkpoint holds all that a boundary has changed

    @override
    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        if self.renumber:
            module = _ours(pl_module)
            module.tokenizer = renumber(module.tokenizer)


def _ours(pl_module: LightningModule) -> TinyGPTModule:
    if not isinstance(pl_module, TinyGPTModule):
        raise TypeError(f"expected a TinyGPTModule, whose vocabulary is known, got {type(pl_module).__name__}")
    return pl_module
