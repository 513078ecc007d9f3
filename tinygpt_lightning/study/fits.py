"""Runs that the stacked engine cannot train, one `fit` at a time: many pairs, `until`, any optimizer, any precision."""

from __future__ import annotations

import copy
import tempfile
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torchmetrics.functional.text import char_error_rate
from typing_extensions import override

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.study.outcome import Outcome, kept_epochs, number
from tinygpt_lightning.study.recipe import Recipe
from tinygpt_lightning.trained import TrainedGPT


class Recorder(Callback):
    """Keeps the curves of a fit; losses are in nats."""

    def __init__(self) -> None:
        self.losses: list[float] = []  # training loss of each epoch
        self.exact: list[bool] = []  # whether every pair is an exact match after each epoch
        self.ends: list[int] = []  # epochs of the run after which a stage was over
        self.validation_loss = float("nan")  # after the last epoch, dropout off

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.losses.append(float(metrics["train/loss"]))
        self.exact.append(float(metrics["val/exact_match"]) == 1)
        self.validation_loss = float(metrics["val/loss"])

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Note where a stage ends, which ``until`` may have ended."""
        self.ends.append(len(self.losses))


def fit_outcome(recipe: Recipe, seed: int, device: torch.device, curve_points: int) -> Outcome:
    """Train one seed as `fit` does, and return its outcome, with ``curve_points`` epochs of a long curve.

    With many pairs a run is exact if every pair is, its text has one line for each pair that is not, and the error
    rate is over all pairs. The loss with dropout after the last update is not measured: it is None.
    """
    start = time.perf_counter()
    recorder = Recorder()
    seed_everything(seed, verbose=False)
    module = TinyGPTModule(
        recipe.config, recipe.vocabulary.vocab, recipe.optimizer, recipe.lr_scheduler, recipe.taught, recipe.loss_on
    )
    data = QADataModule(**recipe.settings["data"], n_positions=recipe.config.n_positions)
    settings = copy.deepcopy(vars(recipe.trainer))
    own = settings.pop("callbacks") or []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator=device.type, devices=1, max_epochs=-1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
            callbacks=[*own, StagedTraining(recipe.stages, folder), recorder, ExactResume()], **settings,
        )  # fmt: skip
        trainer.fit(module, data)
    module.to(device)
    taught = recipe.taught
    expected = [taught.text(pair) for pair in taught.pairs]
    texts = TrainedGPT(module.model.eval(), module.tokenizer, taught).complete_all(taught.prompts)
    wrong = [text for text, truth in zip(texts, expected, strict=True) if text != truth]
    total = len(recorder.losses)
    starts = [0, *(end for end in recorder.ends if end < total)]  # a callback may have ended the run before
    kept = kept_epochs(total, starts, curve_points)
    return {
        "exact": not wrong,
        "text": texts[0] if len(texts) == 1 else "\n".join(wrong),
        "generated_char_error_rate": number(char_error_rate(texts, expected).item()),
        "epochs": [epoch + 1 for epoch in kept],
        "loss": [number(recorder.losses[epoch]) for epoch in kept],
        "first_loss_of_stage": [number(recorder.losses[epoch]) for epoch in starts],
        "epochs_to_exact": _first(recorder.exact[starts[-1] :]),
        "epochs_of_run_to_exact": _first(recorder.exact),
        "final_loss_dropout_on": None,
        "final_loss_dropout_off": number(recorder.validation_loss),
        "exact_pairs": (len(texts) - len(wrong)) / len(texts),
        "seconds": time.perf_counter() - start,
    }


def _first(exact: list[bool]) -> int | None:
    """After how many epochs there is the first exact one."""
    return exact.index(True) + 1 if True in exact else None
