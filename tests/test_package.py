import subprocess
import sys

import pytest

import tinygpt_lightning

PUBLIC = {
    "Answer",
    "CharTokenizer",
    "CheckpointError",
    "ExactResume",
    "GPTConfig",
    "GenerationConfig",
    "QADataModule",
    "QAPair",
    "SafeCheckpointIO",
    "Stage",
    "StagedTraining",
    "TinyGPT",
    "TinyGPTModule",
    "TrainedGPT",
    "Until",
    "generate",
    "load",
    "read_checkpoint",
    "save",
}


def test_the_public_names_are_the_contracts() -> None:
    assert set(tinygpt_lightning.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(tinygpt_lightning, name).__name__ == name


def test_a_star_import_brings_them_all() -> None:
    names: dict[str, object] = {}
    exec("from tinygpt_lightning import *", names)  # noqa: S102
    assert set(names) - {"__builtins__"} == PUBLIC


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Optimizer'"):
        _ = tinygpt_lightning.Optimizer
    with pytest.raises(ImportError, match="Optimizer"):
        from tinygpt_lightning import Optimizer  # noqa: F401


@pytest.mark.parametrize(
    ("names", "absent"),
    [
        ("CharTokenizer", ["torch", "lightning", "pytorch_lightning"]),
        (
            "CharTokenizer, CheckpointError, GPTConfig, GenerationConfig, TinyGPT, TrainedGPT, generate, load, "
            "read_checkpoint",
            ["lightning", "pytorch_lightning", "torchmetrics", "jsonargparse", "tensorboard", "rich"],
        ),
    ],
)
def test_tokenizer_and_model_come_without_what_they_do_not_need(names: str, absent: list[str]) -> None:
    program = f"import sys\nfrom tinygpt_lightning import {names}\nprint(*sys.modules, sep='\\n')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert "tinygpt_lightning" in imported
    assert not imported & set(absent)
