"""The original project's way with stages, files and vocabularies, and its mistake.

Whenever it reads a saved vocabulary, it numbers the symbols anew, so that a run of one stage is read with a
vocabulary it was never trained on. That is the answer to the original's riddle; see the README.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.gpt.checkpoint import CheckpointError, plain_values, read_checkpoint
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.trained import TrainedGPT, describe, network_of, state_of

WEIGHTS, VOCABULARY = "single_block_model_state_dict.pth", "vocab.json"
MASK = "h.attn.bias"  # the causal mask, which the original keeps among its weights


def renumber(tokenizer: CharTokenizer) -> CharTokenizer:
    """Number the symbols anew in the order of their text, specials included.

    This is what the original project does whenever it reads a saved vocabulary: ``<`` sorts between ``:`` and
    ``A``, so most ids move. Doing it again changes nothing more.

    >>> renumber(CharTokenizer.from_text("chào")).vocab
    {'<pad>': 0, '<unk>': 1, 'c': 2, 'h': 3, 'o': 4, 'à': 5}
    """
    return CharTokenizer({symbol: i for i, symbol in enumerate(sorted(tokenizer.vocab))})


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


def read_original(folder: Path) -> TrainedGPT:
    """Read such a folder as the original's own generation does; nothing in it is executed.

    Its ids are those that the original would use, mistake included: see `renumber`. A vocabulary of just the
    characters of the original's sentence was made from that sentence; what else somebody taught, nobody knows.

    Raises:
        CheckpointError: If it holds no such network.
        VocabularyError: If its vocabulary is none.
        OSError: If a file cannot be read.
    """
    path = folder / WEIGHTS
    with path.open("rb") as file:
        weights = plain_values(path, file)
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise CheckpointError(path, "expected weights by name, got something else")
    weights.pop(MASK, None)
    tokenizer = renumber(CharTokenizer.load(folder / VOCABULARY))
    sentence = Taught.of([QAPair()])
    taught = sentence if tokenizer.vocab.keys() == sentence.tokenizer().vocab.keys() else Taught()
    described = describe(_config(weights, path), tokenizer, taught)
    return network_of(state_of(weights, described), path)


def _config(weights: dict[str, Tensor], path: Path) -> GPTConfig:
    """The sizes, as the shapes tell them; the number of heads leaves no trace, and is the original's."""
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
