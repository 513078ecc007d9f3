"""What TensorBoard is given, read back from the event files as TensorBoard reads them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SENTENCE
from google.protobuf import text_format
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from tinygpt_lightning import load
from tinygpt_lightning.commands.terminal import visible


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(trained / "checkpoints/small/version_0"), size_guidance={"tensors": 0, "images": 0}
    )
    accumulator.Reload()
    return accumulator


@pytest.mark.parametrize(
    "tag",
    ["train/loss", "train/grad_norm", "train/learning_rate", "stage", "val/loss", "val/exact_match",
     "val/next_char_error_rate", "val/perplexity"],
)  # fmt: skip
def test_every_scalar_is_there_for_every_step(events: EventAccumulator, tag: str) -> None:
    assert [event.step for event in events.Scalars(tag)] == list(range(60))


def test_the_boundary_is_visible(events: EventAccumulator) -> None:
    assert [event.value for event in events.Scalars("stage")] == [1.0] * 30 + [2.0] * 30
    losses = [event.value for event in events.Scalars("train/loss")]
    for number, steps in ((1, range(30)), (2, range(30, 60))):
        curve = events.Scalars(f"log10_loss/stage_{number}")
        assert [event.step for event in curve] == list(steps)
        expected = [math.log10(loss) for loss in losses[steps.start : steps.stop]]
        assert [event.value for event in curve] == pytest.approx(expected, rel=1e-5)


def test_it_opens_on_the_losses(events: EventAccumulator) -> None:
    tags = events.Tags()["scalars"]
    assert sorted(tags + events.Tags()["images"])[:2] == ["log10_loss/stage_1", "log10_loss/stage_2"]
    assert {tag for tag in tags if len(events.Scalars(tag)) < 30} == set()  # charts are curves, not dots


def test_the_text_improves_until_it_is_exact(events: EventAccumulator) -> None:
    shown = events.Tensors("generated/text_summary")
    texts = [event.tensor_proto.string_val[0].decode() for event in shown]
    rates = [event.value for event in events.Scalars("val/next_char_error_rate")]
    steps, last = [], None
    for step in (0, *range(4, 60, 5)):  # after the first epoch, and then every fifth, if anything has changed
        if rates[step] != last or step in (29, 59):
            last = rates[step]
            steps.append(step)
    assert [event.step for event in shown] == steps
    assert 4 < len(steps) < 13
    assert texts[0].startswith("epoch 1, not exact:\n\n    Question: Xin chào")
    assert texts[-1] == "epoch 60, exact:\n\n    " + SENTENCE.replace("\n", "\n    ")


def test_the_heads_are_shown_at_doublings_and_at_each_stages_end(events: EventAccumulator) -> None:
    images = events.Images("what the heads attend to")
    steps, done = [], 0
    for step in (event.step for event in events.Tensors("generated/text_summary")):
        if step + 1 >= 2 * done or step in (29, 59):
            done = step + 1
            steps.append(step)
    assert [image.step for image in images] == steps
    assert len(steps) > 3
    assert {(image.width, image.height) for image in images} == {(4 * (64 * 10 + 16) + 6, 64 * 10 + 26 + 6)}


def test_settings_stand_beside_what_came_of_them(trained: Path, events: EventAccumulator) -> None:
    plugin = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    names = sorted(info.name for info in plugin.experiment.hparam_infos)  # as TensorBoard shows them
    assert names[:6] == ["batch_size", "learning_rate", "n_embd", "n_head", "pairs", "stages"]
    assert {info.name.tag for info in plugin.experiment.metric_infos} >= {"val/exact_match", "val/loss"}
    plugin = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    values = plugin.session_start_info.hparams
    assert [values[name].number_value for name in ("n_embd", "n_head", "learning_rate", "pairs")] == [64, 4, 0.01, 1]
    assert values["stages"].string_value == "30 + 30"
    asked = yaml.safe_load((trained / "checkpoints/small/version_0/config.yaml").read_text("utf-8"))
    assert values["yaml.seed_everything"].number_value == asked["seed_everything"]
    assert values["yaml.model.config.embd_pdrop"].number_value == asked["model"]["config"]["embd_pdrop"]


def test_what_the_model_needs_is_told(events: EventAccumulator) -> None:
    (event,) = events.Tensors("what it needs/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:3] == ["| without | exact of 1 |", "| --- | --- |", "| nothing | 1 |"]
    assert [line.split()[1] for line in lines[3:]] == ["attn", "mlp", "wte", "wpe"]
    assert lines[-1] == "| wpe | 0 |"


def test_characters_can_be_projected(trained: Path) -> None:
    run = trained / "checkpoints/small/version_0"
    config = text_format.Parse((run / "projector_config.pbtxt").read_text("utf-8"), ProjectorConfig())
    moments = ["before-training", "after-stage-1", "after-stage-2"]
    assert [info.tensor_name for info in config.embeddings] == [f"characters-{moment}" for moment in moments]
    vocab = load(run).tokenizer.vocab
    for info in config.embeddings:
        symbols = (run / info.metadata_path).read_text("utf-8").splitlines()
        assert symbols == [visible(symbol) for symbol in sorted(vocab, key=vocab.__getitem__)]
    vectors = [line.split("\t") for line in (run / "projector/after-stage-2.tsv").read_text("utf-8").splitlines()]
    weights = torch.tensor([[float(number) for number in vector] for vector in vectors])
    assert torch.equal(weights, load(run).model.wte.weight)
