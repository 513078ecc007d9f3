"""Stages and their conditions, without a Trainer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping

from tinygpt_lightning.callbacks.stages import Position, Stage, StageError, Until, check_stages


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_a_run_moves_through_its_stages(lengths: list[tuple[int, int]]) -> None:
    """Each stage has a length and an epoch at which a condition would end it; whichever comes first counts."""
    stages = [Stage(epochs) for epochs, _ in lengths]
    expected = [index for index, pair in enumerate(lengths) for _ in range(min(pair))]
    position, seen = Position(), []
    for epoch in range(len(expected)):
        if position.is_over:
            position = position.next(epoch, 10 * epoch)
        seen.append(position.index)
        done, (_, condition) = epoch + 1, lengths[position.index]
        following = sum(stage.epochs for stage in stages[position.index + 1 :])
        assert position.last_epoch(stages, done) == position.epoch + stages[position.index].epochs + following
        if position.reaches_end(stages, done, 10 * done) or done - position.epoch == condition:
            position = replace(position, is_over=True)
            assert position.last_epoch(stages, done) == done + following
    assert seen == expected
    assert position == Position(len(stages) - 1, position.epoch, 10 * position.epoch, is_over=True)


def test_stages_in_steps_and_epochs_follow_one_another() -> None:
    stages = [Stage(steps=25), Stage(2), Stage(steps=5)]
    first = Position()
    assert [first.reaches_end(stages, steps // 10, steps) for steps in (24, 25, 26)] == [False, True, True]
    second = first.next(2, 25)  # in the third epoch, the rest of which counts
    assert [second.reaches_end(stages, epochs, 10 * epochs) for epochs in (2, 3, 4)] == [False, False, True]
    assert [second.next(4, 40).reaches_end(stages, 4, steps) for steps in (44, 45)] == [False, True]
    assert {position.last_epoch(stages, 9) for position in (first, second, second.next(4, 40))} == {-1}
    assert Position(2, 4, 40, is_over=True).last_epoch(stages, 5) == 5
    assert Position(1, 2, 25).last_epoch(stages[:2], 3) == 4


@pytest.mark.parametrize("name", ["epochs", "steps"])
@pytest.mark.parametrize("length", [0, -1, 1.5, True, "3"])
def test_a_length_is_an_integer_of_at_least_one(name: str, length: object) -> None:
    with pytest.raises(ValueError, match=f"{name}: .*got {length!r}"):
        Stage(**{name: length})  # type: ignore[arg-type]


@pytest.mark.parametrize("lengths", [{}, {"epochs": 1, "steps": 1}])
def test_a_stage_has_either_epochs_or_steps(lengths: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="either epochs or steps"):
        Stage(**lengths)


VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, float("nan")]), min_size=1, max_size=12)


def judge_all(until: Until, values: list[float]) -> list[bool]:
    ends, seen = [], {}
    for value in values:
        end, seen = until.judge(value, seen)
        ends.append(end)
    return ends


@given(VALUES, st.sampled_from(["min", "max"]), st.integers(1, 4), st.sampled_from([0.0, 0.25, 0.3]))
def test_patience_is_that_of_early_stopping(values: list[float], mode: str, patience: int, min_delta: float) -> None:
    until = Until("x", mode, patience=patience, min_delta=min_delta)  # type: ignore[arg-type]
    reference = EarlyStopping("x", min_delta, patience, mode=mode, check_finite=False)
    expected = [reference._evaluate_stopping_criteria(torch.tensor(value))[0] for value in values]
    assert judge_all(until, values) == expected


@given(VALUES, st.sampled_from(["min", "max"]), st.integers(1, 3))
def test_a_threshold_must_be_reached_several_times_in_a_row(values: list[float], mode: str, for_epochs: int) -> None:
    until = Until("x", mode, stopping_threshold=0.5, for_epochs=for_epochs)  # type: ignore[arg-type]
    good = "".join("y" if (value >= 0.5 if mode == "max" else value <= 0.5) else "n" for value in values)
    expected = [good[: i + 1].endswith("y" * for_epochs) for i in range(len(values))]
    assert judge_all(until, values) == expected


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "expected stopping_threshold, patience or both, got neither"),
        ({"patience": 0}, "patience: expected 1 or more, got 1, 0"),
        ({"stopping_threshold": 1.0, "for_epochs": 0}, "for_epochs.*got 0, None"),
        ({"patience": 1, "min_delta": -0.1}, "min_delta: expected 0 or more, got -0.1"),
        ({"patience": 1, "mode": "least"}, "mode: expected min or max, got 'least'"),
    ],
)
def test_contradicting_settings_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Until("x", **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stages", "named"),
    [
        ([], "at least one stage"),
        (Stage(1), "a list of Stage"),
        ([Stage(1), 2], "a list of Stage"),
        (
            [Stage(steps=9), Stage(1, reload_dataloaders=True)],
            r"stages\[1\].reload_dataloaders: expected epochs.*got steps: 9",
        ),
        ([Stage(1), Stage(1, until=lambda _: True)], r"stages\[1\].until: .*trainer and pl_module"),
    ],
)
def test_what_is_no_list_of_stages_is_refused(stages: object, named: str) -> None:
    with pytest.raises(StageError, match=named):
        check_stages(stages)
