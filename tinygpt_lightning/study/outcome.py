"""The outcome of a run, as its row stores it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torchmetrics.functional.text import char_error_rate

from tinygpt_lightning.gpt.model import TinyGPT
from tinygpt_lightning.study.ensemble import Ensemble
from tinygpt_lightning.study.recipe import Recipe
from tinygpt_lightning.trained import TrainedGPT

Outcome = dict[str, Any]
IN_TRAINING = "_in_training_vocabulary"  # suffix of the fields of the text that this vocabulary gives


def as_trained(outcome: Outcome, name: str) -> Any:
    """A field of what the vocabulary of training gives: exact, text or generated_char_error_rate."""
    return outcome.get(f"{name}{IN_TRAINING}", outcome[name])


@torch.no_grad()
def outcomes(ensemble: Ensemble, recipe: Recipe, curve_points: int) -> dict[int, Outcome]:
    """The outcome of each seed at the end of a run, with ``curve_points`` epochs of a long curve.

    NaN and inf (a diverged loss) become None.
    """
    ensemble.note_exactness()
    loss_on = ensemble.loss_with_dropout().tolist()
    loss_off = ensemble.evaluate()[0].tolist()
    curves = {"loss": torch.stack(ensemble.losses, dim=1)}  # (S, epochs)
    if ensemble.steps.norms:
        curves["update_norm"] = torch.stack(ensemble.steps.norms, dim=1)
    *starts, total = [0, *accumulate(stage.epochs for stage in recipe.stages)]
    kept = kept_epochs(total, starts, curve_points)
    factors = ensemble.steps.rate_factor
    model = TinyGPT(recipe.config).to(ensemble.device)  # holds the weights of one replicate after another
    by_seed = {}
    for index, seed in enumerate(ensemble.seeds):
        ensemble.copy_weights(index, model)
        own = {name: curve[index].tolist() for name, curve in curves.items()}
        by_seed[seed] = {
            **generated(recipe, model),
            "epochs": [epoch + 1 for epoch in kept],
            **{name: [number(curve[epoch]) for epoch in kept] for name, curve in own.items()},
            "first_loss_of_stage": [number(own["loss"][epoch]) for epoch in starts],
            "epochs_to_exact": ensemble.exact_after[index],
            "epochs_of_run_to_exact": ensemble.exact_in_run[index],
            "final_loss_dropout_on": number(loss_on[index]),
            "final_loss_dropout_off": number(loss_off[index]),
            **({"first_update_norm": number(own["update_norm"][starts[-1]])} if "update_norm" in own else {}),
            **({} if factors is None else {"learning_rate_factor": number(factors[index].item())}),
            "seconds": ensemble.seconds / len(ensemble.seeds),
        }
    return by_seed


def kept_epochs(total: int, starts: Sequence[int], points: int) -> list[int]:
    """Epochs of a curve that a row keeps, from 0: evenly spaced, with the first and the last one of each stage.

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
    """A single-precision number with the nine digits that it has; None for NaN and inf."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def generated(recipe: Recipe, model: TinyGPT) -> Outcome:
    """Generate greedily from the prompt, with the vocabulary that is saved and, if another one, that of training."""
    outcome: Outcome = {}
    trained_with, read_with = (recipe.tokenizer(len(recipe.stages) - 1 + later) for later in (0, 1))
    readings = {"": read_with} if read_with.vocab == trained_with.vocab else {"": read_with, IN_TRAINING: trained_with}
    for suffix, tokenizer in readings.items():
        text = TrainedGPT(model, tokenizer, recipe.taught).complete(recipe.prompt)
        rate = number(char_error_rate([text], [recipe.text]).item())
        fields = {"exact": text == recipe.text, "text": text, "generated_char_error_rate": rate}
        outcome |= {f"{name}{suffix}": value for name, value in fields.items()}
    return outcome
