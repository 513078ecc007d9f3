import re
import subprocess
import sys
from importlib import import_module
from importlib.resources import files
from pathlib import Path

import pytest

import tinygpt_lightning

PUBLIC = {
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
}


def test_the_public_names_are_the_contracts() -> None:
    assert set(tinygpt_lightning.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(tinygpt_lightning, name).__name__ == name


def test_a_star_import_brings_them_all() -> None:
    names: dict[str, object] = {}
    exec("from tinygpt_lightning import *", names)  # noqa: S102
    assert set(names) - {"__builtins__"} == PUBLIC


def test_dir_lists_them_before_they_are_imported() -> None:
    assert PUBLIC | {"__version__"} <= set(dir(tinygpt_lightning))


def test_the_package_is_typed_and_has_a_version() -> None:
    assert files("tinygpt_lightning").joinpath("py.typed").is_file()
    assert re.fullmatch(r"\d+\.\d+\.\d+", tinygpt_lightning.__version__)


def test_the_command_is_installed_under_a_name_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    project = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    ((module, function),) = re.findall(r'^tinygpt = "(.+):(.+)"$', project, re.MULTILINE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tinygpt", "--help"])
        getattr(import_module(module), function)()
    assert "\n  fit " in capfd.readouterr().out


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
