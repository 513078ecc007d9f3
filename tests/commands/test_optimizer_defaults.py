"""An optimizer of another class takes that class's own defaults, in `fit`, in a stage and in a study."""

import inspect

import pytest
import torch
import yaml
from conftest import Command

from tinygpt_lightning.study.recipe import read_recipe

ADAM = {"class_path": "Adam", "init_args": {"lr": 0.5, "weight_decay": 0.25}}


def defaults(name):
    parameters = inspect.signature(getattr(torch.optim, name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("params", "decoupled_weight_decay")}


def parsed(command: Command, *arguments):
    result = command("fit", *arguments, "--print_config")
    assert result.code == 0, result.err
    return yaml.safe_load(result.out)["model"]["optimizer"]


@pytest.mark.parametrize("name", ["SGD", "Adam", "RMSprop", "Adagrad"])
def test_another_class_takes_its_own_defaults(command: Command, tmp_path, name):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"model": {"optimizer": name}}), encoding="utf-8")
    for arguments in (["--model.optimizer", name], ["--config", str(config)]):
        optimizer = parsed(command, *arguments)
        assert optimizer["class_path"] == f"torch.optim.{name}"
        for key, default in defaults(name).items():
            expected = list(default) if isinstance(default, tuple) else default
            assert optimizer["init_args"][key] == expected, key


def test_the_same_class_keeps_the_arguments_before(command: Command, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(yaml.safe_dump({"model": {"optimizer": ADAM}}), encoding="utf-8")
    same = parsed(command, "--config", str(config), "--model.optimizer.lr", "0.1")["init_args"]
    assert (same["lr"], same["weight_decay"]) == (0.1, 0.25)
    other = parsed(command, "--config", str(config), "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1")
    assert (other["init_args"]["lr"], other["init_args"]["weight_decay"]) == (0.1, 0.0)
    assert parsed(command, "--model.optimizer.lr", "0.1")["init_args"]["weight_decay"] == 0.01


@pytest.mark.parametrize("stage", [{}, {"optimizer": "SGD"}])
def test_a_study_takes_them_too(stage):
    recipe = read_recipe({"model": {"optimizer": "SGD"}, "stages": [{"epochs": 1, **stage}]})
    optimizer, _ = recipe.build_optimizer(0, [torch.zeros(1, requires_grad=True)])
    assert {key: optimizer.defaults[key] for key in ("lr", "weight_decay")} == {"lr": 1e-3, "weight_decay": 0}
