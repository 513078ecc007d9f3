"""A replicate of the study against a `fit` of the same settings."""

import pytest
import torch
import yaml
from conftest import Command

from tinygpt_lightning import load
from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.study import ensemble
from tinygpt_lightning.study.recipe import read_recipe

SIZE = {"n_embd": 32, "n_head": 2, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
ADAMW = {"class_path": "AdamW", "init_args": {"lr": 1e-3}}
ONE_CYCLE = {"class_path": "OneCycleLR", "init_args": {"max_lr": 1e-2, "total_steps": 60}}


def events(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return [event.value for event in board.Scalars(tag)]


SGD = {"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}


@pytest.mark.parametrize(
    ("settings", "seed"),
    [
        ({"stages": [{"epochs": 30}, {"epochs": 30}]}, 4),
        ({"stages": [{"epochs": 30}, {"epochs": 30, "reset_optimizer": False}]}, 0),
        ({"stages": [{"epochs": 30}, {"epochs": 30}], "model": {"optimizer": SGD}}, 3),
        ({"stages": [{"epochs": 20}, {"epochs": 20, "optimizer": SGD}]}, 2),
        ({"stages": [{"epochs": 30}, {"epochs": 30}], "model": {"lr_scheduler": ONE_CYCLE, "loss_on": "answer"}}, 9),
        ({"stages": [{"epochs": 5}], "data": {"question": "Bạn?", "answer": "Tôi"}}, 1),
    ],
)
def test_a_replicate_equals_a_fit_of_the_same_settings(command: Command, tmp_path, monkeypatch, settings, seed):
    """In double precision, where the two ways to sum agree: to 1e-5 of a loss, however small the loss has become."""
    monkeypatch.chdir(tmp_path)
    settings["model"] = {"config": SIZE, "optimizer": ADAMW, **settings.get("model", {})}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    arguments = ["--seed_everything", str(seed), "--trainer.accelerator", "cpu", "--trainer.precision", "64-true"]
    result = command("fit", "--config", "run.yaml", *arguments)
    assert result.code == 0, result.err
    [folder] = (tmp_path / "checkpoints" / "run").iterdir()
    draw = ensemble.draw_parameters

    def draw_doubles(*which):
        return {name: p.detach().double().requires_grad_() for name, p in draw(*which).items()}

    monkeypatch.setattr(ensemble, "draw_parameters", draw_doubles)
    asked = read_recipe(settings)
    together = ensemble.Ensemble(asked, [seed + 1, seed], torch.device("cpu"), measure_updates=False)
    for number, stage in enumerate(asked.stages):
        if number:
            together.begin_stage(asked, number)
        for _ in range(stage.epochs):
            together.train_epoch()
    losses = torch.stack(together.losses)[:, 1].tolist()
    assert losses == pytest.approx(events(folder, "train/loss"), rel=1e-5)
    replicate, trained = TinyGPT(asked.config).eval(), load(folder)
    together.copy_weights(1, replicate)
    ids = torch.tensor([trained.tokenizer.encode(asked.text)])
    torch.testing.assert_close(replicate(ids), trained.model.float()(ids), atol=1e-4, rtol=1e-4)
