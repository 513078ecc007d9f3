"""What came out of a run, as it is stored in its row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.text import char_error_rate

from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.recipe import Recipe
from tinygpt_lightning.trained import TrainedGPT

Outcome = dict[str, Any]


def as_trained(outcome: Outcome, name: str) -> Any:
    """What came out when the vocabulary of training is used to read: exact, text or char_error_rate."""
    return outcome.get("in_training_vocabulary", outcome)[name]


@torch.no_grad()
def outcomes(ensemble: Ensemble, recipe: Recipe, curve_points: int) -> dict[int, Outcome]:
    """What came out, for each seed; numbers that are no numbers (a diverged loss) become null.

    Args:
        ensemble: At the end of the run.
        recipe: Of the run.
        curve_points: How many epochs of a long curve are kept.
    """
    ensemble.look()
    loss_on = ensemble.loss_with_dropout().tolist()
    loss_off = ensemble.evaluate()[0].tolist()
    curves = {"loss": torch.stack(ensemble.losses, dim=1)}  # (S, epochs)
    if ensemble.steps.norms:
        curves["update_norm"] = torch.stack(ensemble.steps.norms, dim=1)
    *starts, total = [0, *accumulate(stage.epochs for stage in recipe.stages)]
    kept = kept_epochs(total, starts, curve_points)
    first_losses = _numbers(curves["loss"][:, starts])
    thinned = {name: _numbers(curve[:, kept]) for name, curve in curves.items()}
    norms = ensemble.steps.norms
    first_updates = [number(norm) for norm in norms[starts[-1]].tolist()] if norms else None  # of the last stage
    factors = ensemble.steps.rate_factor
    reader = _Reader(recipe, ensemble)
    found = {}
    for index, seed in enumerate(ensemble.seeds):
        found[seed] = {
            **reader.read(index),
            "epochs": [epoch + 1 for epoch in kept],
            **{name: curve[index] for name, curve in thinned.items()},
            "first_loss_of_stage": first_losses[index],
            "epochs_to_exact": ensemble.exact_after[index],
            "final_loss_dropout_on": number(loss_on[index]),
            "final_loss_dropout_off": number(loss_off[index]),
            **({"first_update_norm": first_updates[index]} if first_updates else {}),
            **({} if factors is None else {"learning_rate_factor": number(factors[index].item())}),
            "seconds": ensemble.seconds / len(ensemble.seeds),
        }
    return found


def kept_epochs(total: int, starts: Sequence[int], points: int) -> list[int]:
    """Epochs of a curve that are kept, from 0: evenly spaced, with the first and the last one of each stage.

    >>> kept_epochs(5, [0], 10)
    [0, 1, 2, 3, 4]
    >>> kept_epochs(1000, [0, 500], 5)
    [0, 250, 499, 500, 749, 999]
    """
    if total <= points:
        return list(range(total))
    evenly = (round(i * (total - 1) / (points - 1)) for i in range(points))
    edges = {epoch for start in starts for epoch in (start - 1, start) if epoch >= 0}
    return sorted({*evenly, *edges})


def number(value: float) -> float | None:
    """A number of single precision with as many digits as it has, nine; or null if it is none."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _numbers(values: Tensor) -> list[list[float | None]]:
    return [[number(value) for value in row] for row in values.tolist()]


class _Reader:
    """Asks the replicates for the sentence, by greedy decoding.

    Args:
        recipe: Of the run.
        ensemble: The replicates.
    """

    def __init__(self, recipe: Recipe, ensemble: Ensemble) -> None:
        self.recipe = recipe
        self.ensemble = ensemble
        self.model = TinyGPT(recipe.config).to(ensemble.device)  # lent to one replicate's weights after another
        stages = len(recipe.stages)
        self.trained_on, self.read_with = recipe.tokenizer(stages - 1), recipe.tokenizer(stages)

    def read(self, index: int) -> Outcome:
        """What one replicate says."""
        self.ensemble.copy_weights(index, self.model)
        found = self._say(self.read_with)
        if self.read_with.vocab != self.trained_on.vocab:
            found["in_training_vocabulary"] = self._say(self.trained_on)
        return found

    def _say(self, tokenizer: CharTokenizer) -> Outcome:
        expected = self.recipe.text
        text = TrainedGPT(self.model, tokenizer, self.recipe.taught).complete(self.recipe.prompt)
        error_rate = number(char_error_rate([text], [expected]).item())
        return {"exact": text == expected, "text": text, "char_error_rate": error_rate}
