"""The metrics, against torchmetrics' own and against sums by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.text.helper import _edit_distance
from torchmetrics.text import CharErrorRate, Perplexity

from tinygpt_lightning.data.batches import IGNORED, exact_rows
from tinygpt_lightning.metrics import PairMetrics, edit_distances

ids = st.integers(0, 2)
rows = st.lists(st.lists(st.tuples(ids, ids), max_size=8), min_size=1, max_size=8)  # predicted and expected


@settings(deadline=None)
@given(rows)
def test_the_distances_are_those_of_one_row_after_the_other(rows: list[list[tuple[int, int]]]) -> None:
    longest = max(map(len, rows))
    padded = torch.tensor([[*row, *[(7, 8)] * (longest - len(row))] for row in rows]).view(len(rows), longest, 2)
    expected = [_edit_distance([a for a, _ in row], [b for _, b in row]) for row in rows]
    lengths = torch.tensor([len(row) for row in rows])
    assert edit_distances(padded[..., 0], padded[..., 1], lengths).tolist() == expected


def logits_of(seed: int, answers: Tensor, luck: float) -> Tensor:
    """Scores of 26 symbols, ``(B, T, 26)``, which are often right."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*answers.shape, 26, generator=generator)
    lucky = torch.rand(*answers.shape, generator=generator) < luck
    return logits + 9 * lucky.unsqueeze(-1) * F.one_hot(answers.clamp(min=0), 26)


@pytest.mark.parametrize("luck", [0.0, 0.8, 0.97, 1.0])
def test_all_are_those_of_torchmetrics_over_batches_of_several_lengths(luck: float) -> None:
    ours, perplexity, rate = PairMetrics(), Perplexity(ignore_index=IGNORED), CharErrorRate()
    exact = []
    for seed, starts, ends in ((0, [0, 3, 5], [9, 9, 7]), (1, [2], [4]), (2, [0] * 20, list(range(1, 21)))):
        columns = torch.arange(max(ends))
        answers = torch.randint(26, (len(ends), max(ends)), generator=torch.Generator().manual_seed(9 + seed))
        outside = (columns < torch.tensor(starts).unsqueeze(1)) | (columns >= torch.tensor(ends).unsqueeze(1))
        answers = answers.masked_fill(outside, IGNORED)
        logits = logits_of(seed, answers, luck)
        said = logits.argmax(-1)
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        ours.update(loss, (~outside).sum(), said, answers, exact_rows(said, answers))
        perplexity.update(logits, answers)
        for row, expected, out in zip(said, answers, outside, strict=True):
            texts = ["".join(chr(97 + i) for i in sequence[~out].tolist()) for sequence in (row, expected)]
            rate.update(*texts)
            exact.append(texts[0] == texts[1])
    measured = ours.compute()
    assert measured["val/char_error_rate"].equal(rate.compute())
    assert measured["val/perplexity"].item() == pytest.approx(perplexity.compute().item(), rel=1e-5)
    assert measured["val/loss"].exp().equal(measured["val/perplexity"])
    assert measured["val/exact_match"].item() == pytest.approx(sum(exact) / len(exact))


def measure(loss: Tensor, count: int) -> tuple[Tensor, ...]:
    nothing = torch.zeros(1, 1, dtype=torch.long)
    return loss, torch.tensor(count), nothing, nothing, torch.tensor([True])


def test_the_mean_is_over_characters_and_not_over_batches() -> None:
    metrics = PairMetrics()
    metrics.update(*measure(torch.tensor(1.0), 30))
    metrics.update(*measure(torch.tensor(4.0), 10))
    assert metrics.compute()["val/loss"].item() == pytest.approx((30 + 40) / 40)


def test_the_mean_of_one_batch_is_that_batchs_to_the_bit() -> None:
    for loss in torch.rand(500, generator=torch.Generator().manual_seed(0)):
        metrics = PairMetrics()
        metrics.update(*measure(loss, 63))
        assert metrics.compute()["val/loss"].equal(loss)
