"""A one-block GPT-2 that learns one sentence in stages, on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinygpt_lightning.checkpoint_io import CheckpointError, SafeCheckpointIO, read_checkpoint
    from tinygpt_lightning.data import QADataModule
    from tinygpt_lightning.generation import GenerationConfig, generate
    from tinygpt_lightning.model import GPTConfig, TinyGPT
    from tinygpt_lightning.module import TinyGPTModule
    from tinygpt_lightning.resume import ExactResume
    from tinygpt_lightning.stages import Stage, StagedTraining
    from tinygpt_lightning.tokenizer import CharTokenizer

__all__ = [
    "CharTokenizer",
    "CheckpointError",
    "ExactResume",
    "GPTConfig",
    "GenerationConfig",
    "QADataModule",
    "SafeCheckpointIO",
    "Stage",
    "StagedTraining",
    "TinyGPT",
    "TinyGPTModule",
    "generate",
    "read_checkpoint",
]

_MODULES = {
    "CharTokenizer": "tokenizer",
    "CheckpointError": "checkpoint_io",
    "ExactResume": "resume",
    "GPTConfig": "model",
    "GenerationConfig": "generation",
    "QADataModule": "data",
    "SafeCheckpointIO": "checkpoint_io",
    "Stage": "stages",
    "StagedTraining": "stages",
    "TinyGPT": "model",
    "TinyGPTModule": "module",
    "generate": "generation",
    "read_checkpoint": "checkpoint_io",
}


def __getattr__(name: str) -> object:
    # On first use, so that tokenizer and model come without Lightning and its seconds of start-up.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
