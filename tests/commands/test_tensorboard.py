"""What TensorBoard is given, read back from the event files as TensorBoard reads them."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import SENTENCE
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


@pytest.fixture(scope="module")
def events(trained: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(trained / "checkpoints/small/version_0"), size_guidance={"tensors": 0})
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
        curve = events.Scalars(f"loss_by_stage/stage_{number}")
        assert [event.step for event in curve] == list(steps)
        assert [event.value for event in curve] == losses[steps.start : steps.stop]


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


def test_the_heads_are_shown_at_each_stage_end(events: EventAccumulator) -> None:
    images = events.Images("attention of the heads")
    assert [image.step for image in images] == [29, 59]
    assert {(image.width, image.height) for image in images} == {(4 * (64 * 10 + 16) + 6, 64 * 10 + 16 + 6)}


def test_settings_stand_beside_what_came_of_them(events: EventAccumulator) -> None:
    assert events.Scalars("final/exact_match")[0].value == 1.0
    session = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    for name in (b"n_embd", b"learning_rate", b"stages", b"30 + 30"):
        assert name in session
