"""The original project's way with stages, files and vocabularies, and its mistake.

Whenever it reads a saved vocabulary, it numbers the symbols anew, so that a run of one stage is read with a
vocabulary it was never trained on. That is the answer to the original's riddle; see the README.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.data.batches import IGNORED, Batch
from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.description import describe, state_of
from tinygpt_lightning.gpt.checkpoint import CheckpointError, plain_values, read_checkpoint
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.trained import TrainedGPT, network_of

WEIGHTS, VOCABULARY = "single_block_model_state_dict.pth", "vocab.json"
MASK = "h.attn.bias"  # the causal mask, which the original keeps among its weights


def renumber(tokenizer: CharTokenizer) -> CharTokenizer:
    """Number the symbols again in the order of their text, specials included.

    The original project does so whenever it reads a saved vocabulary: ``<`` sorts between ``:`` and ``A``, so most
    ids move. Doing it again changes nothing more.

    >>> renumber(CharTokenizer.from_text("chào")).vocab
    {'<pad>': 0, '<unk>': 1, 'c': 2, 'h': 3, 'o': 4, 'à': 5}
    """
    return CharTokenizer({symbol: i for i, symbol in enumerate(sorted(tokenizer.vocab))})


def permutation(before: CharTokenizer, after: CharTokenizer) -> Tensor:
    """The ids that the symbols of ``before``, in the order of their ids, have in ``after``, ``(V,)``.

    >>> tokenizer = CharTokenizer.from_text("chào")
    >>> permutation(tokenizer, renumber(tokenizer))
    tensor([2, 3, 4, 5, 0, 1])
    """
    return torch.tensor([after.vocab[symbol] for symbol in sorted(before.vocab, key=before.vocab.__getitem__)])


class OriginalStages(StagedTraining):
    """Starts each stage from the run's files, as the original does; and makes its mistake, if asked to.

    Files give back the weights and ids that were put into them, so reading them changes nothing. The mistake is a
    permutation of ids: from the end of a stage on, checkpoints hold the renumbered vocabulary, and the batches of
    later stages are translated into it.

    Args:
        stages: The stages, in order.
        dirpath: The run's folder.
        renumber: Whether the vocabulary is renumbered at each stage's end. The stage's checkpoint then holds other
            ids than those that its weights have learnt.
    """

    def __init__(self, stages: Sequence[Stage], dirpath: str | Path, renumber: bool = False) -> None:
        super().__init__(stages, dirpath)
        self.folder = Path(dirpath)
        self.renumber = renumber
        self._batches_in: CharTokenizer | None = None  # the vocabulary that the data module tokenises with

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self._batches_in = _ours(pl_module).tokenizer

    @override
    def on_stage_start(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        module = _ours(pl_module)
        if index == 0:
            return
        file = self.folder / f"stage-{index}.ckpt"
        if not file.exists():  # the run was resumed from another run's checkpoint
            trainer.save_checkpoint(file, weights_only=False)
        # Into the existing parameters: DDP keeps hold of them.
        trainer.strategy.load_model_state_dict(read_checkpoint(file))
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

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._translate(batch, pl_module)

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._translate(batch, pl_module)

    def _translate(self, batch: Batch, pl_module: LightningModule) -> None:
        """Bring the ids of a batch from the data module's vocabulary to the one in use, in place."""
        now = _ours(pl_module).tokenizer
        if self._batches_in is None or self._batches_in.vocab == now.vocab:
            return
        ids = permutation(self._batches_in, now).to(batch.ids.device)
        batch.ids.copy_(ids[batch.ids])
        batch.targets.copy_(torch.where(batch.targets == IGNORED, IGNORED, ids[batch.targets.clamp(min=0)]))


def _ours(pl_module: LightningModule) -> TinyGPTModule:
    if not isinstance(pl_module, TinyGPTModule):
        raise TypeError(f"expected a TinyGPTModule, whose vocabulary is known, got {type(pl_module).__name__}")
    return pl_module


def read_original(folder: Path) -> TrainedGPT:
    """Read the folder that the original project leaves, as its own generation does; nothing in it is executed.

    The ids are those that the original uses, mistake included: see `renumber`. If the vocabulary has just the
    characters of the original's sentence, it was made from that sentence; otherwise the taught text is unknown.

    Raises:
        CheckpointError: If the folder holds no such model.
        VocabularyError: If its vocabulary is invalid.
        OSError: If a file cannot be read.
    """
    path = folder / WEIGHTS
    with path.open("rb") as file:
        weights = plain_values(path, file)
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(path, "is invalid: expected weights by name")
    weights.pop(MASK, None)
    tokenizer = renumber(CharTokenizer.load(folder / VOCABULARY))
    sentence = Taught.of([QAPair()], prompt_to="question")
    taught = sentence if tokenizer.vocab.keys() == sentence.tokenizer().vocab.keys() else Taught()
    described = describe(_config(weights, path), tokenizer, taught)
    return network_of(state_of(weights, described), path)


def _config(weights: dict[str, Tensor], path: Path) -> GPTConfig:
    """Read the sizes off the shapes; the number of heads leaves no trace, and is the original's."""
    for name in ("wte.weight", "wpe.weight", "h.mlp.c_fc.weight"):
        if name not in weights or weights[name].dim() != 2:
            raise CheckpointError(path, f"is of another model: expected a matrix as {name}")
    vocab_size, n_embd = weights["wte.weight"].shape
    n_inner = weights["h.mlp.c_fc.weight"].size(0)
    try:
        return GPTConfig(
            vocab_size=vocab_size,
            n_positions=weights["wpe.weight"].size(0),
            n_embd=n_embd,
            n_inner=None if n_inner == 4 * n_embd else n_inner,
        )
    except ValueError as error:
        raise CheckpointError(path, f"is of another model: {error}") from None
