"""The folder that the original project leaves when it has trained: weights, and a vocabulary."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tinygpt_lightning.gpt.checkpoint import CheckpointError, plain_values
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.pairs import QAPair
from tinygpt_lightning.gpt.taught import Taught
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.gpt.trained import TrainedGPT, describe, network_of, state_of
from tinygpt_lightning.original.vocabulary import renumber

WEIGHTS, VOCABULARY = "single_block_model_state_dict.pth", "vocab.json"
MASK = "h.attn.bias"  # the causal mask, which the original keeps among its weights


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
