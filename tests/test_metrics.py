"""The metrics, against torchmetrics' own and against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

from tinygpt_lightning.data.batches import COPY, IGNORED, Batch
from tinygpt_lightning.metrics import PairMetrics


def logits_of(seed: int, answers: Tensor, luck: float) -> Tensor:
    """Scores of 26 symbols, ``(B, T, 26)``, which are often right."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*answers.shape, 26, generator=generator)
    lucky = torch.rand(*answers.shape, generator=generator) < luck
    return logits + 9 * lucky.unsqueeze(-1) * F.one_hot(answers.clamp(min=0), 26)


@pytest.mark.parametrize("luck", [0.0, 0.8, 0.97, 1.0])
def test_all_are_those_of_torchmetrics_over_batches_of_several_lengths(luck: float) -> None:
    ours, perplexity, accuracy = (
        PairMetrics(),
        Perplexity(ignore_index=IGNORED),
        MulticlassAccuracy(26, average="micro", ignore_index=IGNORED),
    )
    exact = []
    for seed, starts, ends in ((0, [0, 3, 5], [9, 9, 7]), (1, [2], [4]), (2, [0] * 20, list(range(1, 21)))):
        columns = torch.arange(max(ends))
        answers = torch.randint(26, (len(ends), max(ends)), generator=torch.Generator().manual_seed(9 + seed))
        outside = (columns < torch.tensor(starts).unsqueeze(1)) | (columns >= torch.tensor(ends).unsqueeze(1))
        answers = answers.masked_fill(outside, IGNORED)
        logits = logits_of(seed, answers, luck)
        said = logits.argmax(-1)
        loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
        is_exact = ((said == answers) | outside).all(dim=1)
        ours.update(loss, (~outside).sum(), said, batch_of(answers), is_exact)
        perplexity.update(logits, answers)
        accuracy.update(logits.flatten(0, 1), answers.flatten())
        exact += is_exact.tolist()
    measured = ours.compute()
    assert measured["val/next_char_error_rate"].item() == pytest.approx(1 - accuracy.compute().item(), abs=1e-6)
    assert measured["val/perplexity"].item() == pytest.approx(perplexity.compute().item(), rel=1e-5)
    assert measured["val/loss"].exp().equal(measured["val/perplexity"])
    assert measured["val/exact_match"].item() == pytest.approx(sum(exact) / len(exact))


def batch_of(answers: Tensor, row: int = 0) -> Batch:
    return Batch(answers, answers, answers != IGNORED, torch.full((len(answers),), row))


def measure(loss: Tensor, count: int, row: int = 0) -> tuple[Any, ...]:
    nothing = torch.zeros(1, 1, dtype=torch.long)
    return loss, torch.tensor(count), nothing, batch_of(nothing, row), torch.tensor([True])


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


def test_a_copy_that_another_process_counts_is_not_counted() -> None:
    metrics = PairMetrics()
    metrics.update(*measure(torch.tensor(1.0), 30))
    metrics.update(*measure(torch.tensor(4.0), 10, row=COPY))
    assert metrics.compute()["val/loss"].item() == 1
    assert (metrics.pairs, metrics.exact, metrics.length) == (1, 1, 1)
