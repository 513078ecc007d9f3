"""The metrics, against torchmetrics' own and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text.helper import _edit_distance
from torchmetrics.text import CharErrorRate

from tinygpt_lightning.metrics import BatchedCharErrorRate, MeanLoss, edit_distances

texts = st.text("abc\U0001f600", max_size=8)
many = st.lists(st.tuples(texts, texts), min_size=1, max_size=8)


@settings(deadline=None)
@given(many)
def test_the_distances_are_those_of_one_pair_after_the_other(pairs: list[tuple[str, str]]) -> None:
    expected = [_edit_distance(list(text), list(reference)) for text, reference in pairs]
    assert edit_distances(*zip(*pairs, strict=True)).tolist() == expected


@settings(deadline=None)
@given(st.lists(many, min_size=1, max_size=3))
def test_the_rate_is_that_of_torchmetrics_to_the_bit(batches: list[list[tuple[str, str]]]) -> None:
    ours, theirs = BatchedCharErrorRate(), CharErrorRate()
    for batch in batches:
        said, expected = (list(column) for column in zip(*batch, strict=True))
        ours.update(said, expected)
        theirs.update(said, expected)
    assert ours.errors.equal(theirs.errors)
    assert ours.compute().equal(theirs.compute()) or not theirs.total  # 0/0


def test_the_mean_is_over_characters_and_not_over_batches() -> None:
    mean = MeanLoss()
    mean.update(torch.tensor(1.0), torch.tensor(30))
    mean.update(torch.tensor(4.0), torch.tensor(10))
    assert mean.compute().item() == pytest.approx((30 + 40) / 40)


def test_the_mean_of_one_batch_is_that_batchs_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    for loss in torch.rand(500, generator=generator):
        mean = MeanLoss()
        mean.update(loss, torch.tensor(63))
        assert mean.compute().equal(loss)
