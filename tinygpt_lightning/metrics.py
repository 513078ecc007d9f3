"""How well a model knows its pairs, measured in one forward pass over them, whatever the batches they come in."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat
from typing_extensions import override

from tinygpt_lightning.data.batches import COPY, Batch


class PairMetrics(Metric):
    """Loss, perplexity, error rate of the next characters, and share of exact pairs.

    All are computed on token ids; nothing is decoded. The error rate is teacher-forced: each character is predicted
    behind the true ones. Each pair counts once, whatever the number of processes.

    Source of the perplexity: Jelinek et al. 1977.
    """

    full_state_update = False
    losses: list[Tensor]
    characters: list[Tensor]
    exact: Tensor
    pairs: Tensor
    errors: Tensor
    length: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("losses", "characters"):
            self.add_state(name, [], dist_reduce_fx="cat")
        for name in ("exact", "pairs", "errors", "length"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    @override
    def update(self, loss: Tensor, characters: Tensor, predicted: Tensor, batch: Batch, exact: Tensor) -> None:
        """Take in a batch.

        Args:
            loss: Mean loss of its characters, a scalar.
            characters: Number of these characters, a scalar.
            predicted: The likeliest next characters, ``(B, T)``.
            batch: The pairs.
            exact: Which of them are exact, ``(B,)``.
        """
        is_counted = batch.rows != COPY  # (B,), all of a batch or none
        self.losses.append(loss.detach().reshape(1))
        self.characters.append((characters * is_counted.all()).reshape(1))
        self.exact += (exact & is_counted).sum()
        self.pairs += is_counted.sum()
        counted = batch.mask & is_counted.unsqueeze(1)  # (B, T)
        self.errors += ((predicted != batch.targets) & counted).sum()
        self.length += counted.sum()

    @override
    def compute(self) -> dict[str, Tensor]:
        # In double precision, so that the mean of a single batch equals that batch's bit for bit; on the CPU, since
        # not every accelerator has it.
        kept = dim_zero_cat(self.losses)
        losses, characters = kept.cpu().double(), dim_zero_cat(self.characters).cpu()
        loss = ((losses * characters).sum() / characters.sum()).to(kept)
        return {
            "val/loss": loss,
            "val/exact_match": self.exact / self.pairs,
            "val/next_char_error_rate": self.errors / self.length,
            "val/perplexity": loss.exp(),
        }
