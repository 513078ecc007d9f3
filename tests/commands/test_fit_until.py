"""Stages that end by themselves, as a person meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from conftest import Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tinygpt_lightning import read_checkpoint

EXACT = {"monitor": "val/exact_match", "mode": "max", "stopping_threshold": 1, "for_epochs": 3}
STAGES = json.dumps([{"epochs": 40, "until": EXACT}, {"epochs": 2}])
OTHERS = json.dumps([{"epochs": 40, "until": {**EXACT, "for_epochs": 2}}, {"epochs": 2}])
FIT = ("fit", "--config", "small.yaml", "--stages", STAGES)
RUN = Path("checkpoints/small/version_0")


def test_it_is_seen_on_the_terminal_and_in_tensorboard_and_resumed_exactly(home: Path, command: Command) -> None:
    result = command(*FIT)
    first, second = re.fullmatch(
        r"stage 1/2: (\d+) epochs, loss \S+, exact\nstage 2/2: (\d+) epochs, loss \S+, exact\n", result.err
    ).groups()  # type: ignore[union-attr]
    assert 3 <= int(first) < 40
    assert int(second) == 2
    events = EventAccumulator(str(RUN))
    events.Reload()
    exact = [event.value for event in events.Scalars("val/exact_match")]
    assert exact[: int(first)][-4:] == [0, 1, 1, 1]
    assert len(exact) == int(first) + 2
    shown = {image.step + 1 for image in events.Images("what the heads attend to")}
    assert {int(first), int(first) + 2} <= shown
    assert len(events.Tensors("what it needs/text_summary")) == 1
    assert "≤ 40 + 2".encode() in events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content

    assert command("fit", "--ckpt_path", RUN).err == f"{RUN} is finished: there is nothing to resume\n"
    refused = command("fit", "--ckpt_path", RUN, "--stages", OTHERS)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("error: stages[0].until.for_epochs: expected 3, with which")

    assert "version_1" in command(*FIT, "--ckpt_path", RUN / "stage-1.ckpt").out
    ends = [read_checkpoint(run / "stage-2.ckpt")["state_dict"] for run in (RUN, RUN.with_name("version_1"))]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


def test_an_interrupted_run_says_how_many_epochs_it_takes_at_most(home: Path, command: Command) -> None:
    stops = (
        '[{"class_path": "EarlyStopping", "init_args": {"monitor": "val/exact_match", "mode": "max", "patience": 2}}]'
    )
    result = command(*FIT, "--trainer.callbacks", stops)
    assert "ended early by EarlyStopping on val/exact_match after epoch 3 of at most 42; resume with: " in result.err


def test_a_stage_restores_its_best_weights_and_the_next_one_freezes_some(home: Path, command: Command) -> None:
    # The loss falls, so where a higher one counts as better, the weights after the first epoch are the best.
    best = {"epochs": 9, "until": {"monitor": "val/loss", "mode": "max", "patience": 2}, "restore_best": True}
    stages = [best, {"epochs": 2, "freeze": ["model.h.*", "model.wpe.weight"]}]
    fit = ("fit", "--config", "small.yaml", "--stages")
    assert command(*fit, '[{"epochs": 1}]').code == 0
    assert command(*fit, json.dumps(stages)).code == 0
    whole = RUN.with_name("version_1")
    assert command(*fit, json.dumps(stages), "--ckpt_path", whole / "stage-1.ckpt").code == 0
    alone, restored, end, resumed = (
        read_checkpoint(file)["state_dict"]
        for file in (
            RUN / "stage-1.ckpt", whole / "stage-1.ckpt", whole / "stage-2.ckpt",
            whole.with_name("version_2") / "stage-2.ckpt",
        )
    )  # fmt: skip
    assert all(torch.equal(weight, alone[name]) for name, weight in restored.items())
    assert all(torch.equal(weight, end[name]) for name, weight in resumed.items())
    still = {name for name, weight in restored.items() if torch.equal(weight, end[name])}
    assert still == {name for name in restored if name.startswith(("model.h.", "model.wpe"))}
    stages[0] = {**best, "restore_best": False}
    refused = command(*fit, json.dumps(stages), "--ckpt_path", whole / "stage-1.ckpt")
    assert (refused.code, refused.err.startswith("error: stages[0].restore_best: expected True")) == (2, True)
