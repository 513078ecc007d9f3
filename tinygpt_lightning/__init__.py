"""A one-block GPT-2 that memorises one sentence in stages, on PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinygpt_lightning.callbacks.exact_resume import ExactResume
    from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
    from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
    from tinygpt_lightning.callbacks.snapshots import Snapshots
    from tinygpt_lightning.callbacks.staged_training import StagedTraining
    from tinygpt_lightning.callbacks.stages import Stage, Until, current_stage
    from tinygpt_lightning.data.data_module import QADataModule
    from tinygpt_lightning.data.text import QAPair
    from tinygpt_lightning.gpt.checkpoint import CheckpointError, read_checkpoint
    from tinygpt_lightning.gpt.generation import GenerationConfig, generate
    from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
    from tinygpt_lightning.gpt.tokenizer import CharTokenizer
    from tinygpt_lightning.module import TinyGPTModule
    from tinygpt_lightning.trained import Answer, TrainedGPT, load, save

__version__ = "0.2.0"

__all__ = [
    "Answer",
    "CharTokenizer",
    "CheckpointError",
    "ExactResume",
    "GPTConfig",
    "GenerationConfig",
    "GracefulStop",
    "QADataModule",
    "QAPair",
    "SafeCheckpointIO",
    "Snapshots",
    "Stage",
    "StagedTraining",
    "TinyGPT",
    "TinyGPTModule",
    "TrainedGPT",
    "Until",
    "current_stage",
    "generate",
    "load",
    "read_checkpoint",
    "save",
]

_MODULES = {
    "Answer": "trained",
    "CharTokenizer": "gpt.tokenizer",
    "CheckpointError": "gpt.checkpoint",
    "ExactResume": "callbacks.exact_resume",
    "GPTConfig": "gpt.model",
    "GenerationConfig": "gpt.generation",
    "GracefulStop": "callbacks.graceful_stop",
    "QADataModule": "data.data_module",
    "QAPair": "data.text",
    "SafeCheckpointIO": "callbacks.safe_checkpoint_io",
    "Snapshots": "callbacks.snapshots",
    "Stage": "callbacks.stages",
    "StagedTraining": "callbacks.staged_training",
    "TinyGPT": "gpt.model",
    "TinyGPTModule": "module",
    "TrainedGPT": "trained",
    "Until": "callbacks.stages",
    "current_stage": "callbacks.stages",
    "generate": "gpt.generation",
    "load": "trained",
    "read_checkpoint": "gpt.checkpoint",
    "save": "trained",
}


def __getattr__(name: str) -> object:
    # On first use, so that tokenizer and model are imported without Lightning and its seconds of start-up.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
