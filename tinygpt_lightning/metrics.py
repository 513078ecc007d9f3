"""How well a model knows its pairs, measured in one forward pass over them, whatever the batches they come in."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from tinygpt_lightning.data.batches import IGNORED


class PairMetrics(Metric):
    """Loss, perplexity, character error rate, and the share of pairs that are known by heart.

    All from ids: what is right, which at last is everything, is never turned into text.

    Source of the rate: Morris et al. 2004; of the perplexity: Jelinek et al. 1977.
    """

    full_state_update = False
    losses: list[Tensor]
    characters: list[Tensor]
    exact: Tensor
    pairs: Tensor
    edits: Tensor
    length: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("losses", "characters"):
            self.add_state(name, [], dist_reduce_fx="cat")
        for name in ("exact", "pairs", "edits", "length"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, loss: Tensor, characters: Tensor, predicted: Tensor, answers: Tensor, exact: Tensor) -> None:
        """Take in a batch.

        Args:
            loss: Mean loss of its characters, a scalar.
            characters: How many those are, a scalar.
            predicted: The likeliest next characters, ``(B, T)``.
            answers: Those that should come, ``(B, T)``; `IGNORED` outside of the answer.
            exact: Which pairs are known by heart, ``(B,)``.
        """
        self.losses.append(loss.detach().reshape(1))
        self.characters.append(characters.reshape(1))
        self.exact += exact.sum()
        self.pairs += exact.numel()
        self.length += (answers != IGNORED).sum()
        if not exact.all():
            self.edits += edit_distances(*_left_aligned(predicted[~exact], answers[~exact])).sum()

    @override
    def compute(self) -> dict[str, Tensor]:
        # In double precision, so that the mean of a single batch is that batch's to the bit; on the CPU, for not
        # every accelerator has it.
        kept = dim_zero_cat(self.losses)
        losses, characters = kept.cpu().double(), dim_zero_cat(self.characters).cpu()
        loss = ((losses * characters).sum() / characters.sum()).to(kept)
        return {
            "val/loss": loss,
            "val/exact_match": self.exact / self.pairs,
            "val/char_error_rate": self.edits / self.length,
            "val/perplexity": loss.exp(),
        }


def edit_distances(rows: Tensor, references: Tensor, lengths: Tensor) -> Tensor:
    """How many ids must be inserted, deleted or replaced to make each row its reference, which is as long.

    All rows take part in one dynamic program, which for a hundred of them is a hundred times as fast as one after
    the other.

    Args:
        rows: Ids, ``(B, T)``.
        references: What each row should be, ``(B, T)``.
        lengths: How many ids of each count, ``(B,)``.

    Returns:
        The distances, ``(B,)``.

    Source: Levenshtein 1966; Wagner and Fischer 1974.

    >>> edit_distances(torch.tensor([[1, 2, 3], [2, 3, 1]]), torch.tensor([[1, 9, 9], [1, 2, 3]]), torch.tensor([1, 3]))
    tensor([0, 2])
    """
    columns = torch.arange(references.size(1) + 1, device=rows.device)
    # (B, T + 1): distances of the empty row to each beginning of the reference.
    line, ends = columns.expand(len(rows), -1), lengths.unsqueeze(1)
    distances = lengths
    for i in range(rows.size(1)):
        replaced = line[:, :-1] + (references != rows[:, i : i + 1])
        best = torch.cat([line[:, :1] + 1, torch.minimum(line[:, 1:] + 1, replaced)], dim=1)
        # An insertion costs 1 a column: the cheapest way here from any column to the left.
        line = (best - columns).cummin(dim=1).values + columns
        distances = torch.where(lengths == i + 1, line.gather(1, ends).squeeze(1), distances)
    return distances


def _left_aligned(predicted: Tensor, answers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The answers' characters of each row from the first column on, and how many they are."""
    counts = answers != IGNORED
    order = counts.byte().argsort(dim=1, descending=True, stable=True)[:, : int(counts.sum(1).max())]
    return predicted.gather(1, order), answers.gather(1, order), counts.sum(1)
