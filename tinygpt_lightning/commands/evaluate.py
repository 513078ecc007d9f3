"""``validate`` and ``predict``: a trained network, measured and asked."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from tinygpt_lightning.commands.errors import UsageError
from tinygpt_lightning.commands.output import Write, output
from tinygpt_lightning.commands.parser import trainers_mistakes
from tinygpt_lightning.commands.progress import WorkProgress
from tinygpt_lightning.commands.run import Run, newest_checkpoint
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.data.batches import Batch
from tinygpt_lightning.data.data_module import Asked
from tinygpt_lightning.data.pair_files import Mistake, PairsError
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.checkpoint import local_path
from tinygpt_lightning.gpt.tokenizer import normalize
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.trained import BATCH_SIZE, TrainedGPT

MOST_SHOWN = 20  # so many pairs that are not learnt are shown
PAIRS = ("--data.path", "--data.question", "--data.answer")  # who types these, asks about other pairs than the run's


@trainers_mistakes()
def validate(args: Sequence[str]) -> None:
    """Print the metrics and what is not learnt yet, and write the latter to ``--output``.

    Args:
        args: What was typed behind ``validate``.
    """
    settings = Settings("validate", args)
    made, module = _prepared(settings)
    try:
        taught = made.data.taught
    except ValueError as error:
        raise UsageError(str(error)) from None
    pairs = taught.pairs
    _check(map(taught.text, pairs), module.tokenizer.encode, made.data.path, made.data.lines)
    measured = MeasuredPairs()
    metrics = _trainer(settings, made, measured).validate(module, made.data, verbose=False)[0]
    unlearnt = [pairs[row] for row, is_exact in sorted(measured.exact.items()) if not is_exact]
    with output(made.output) as write:
        for name, value in metrics.items():
            print(f"{name:22} {value:.6g}")
        if unlearnt:
            print(f"\nnot learnt yet: {len(unlearnt)} of {len(measured.exact)}")
        for number, row in enumerate(_instead(module.trained, unlearnt if made.output else unlearnt[:MOST_SHOWN])):
            write(row)
            if number < MOST_SHOWN:
                print()
                for name, text in row.items():
                    print(f"  {name:10}" + text.replace("\n", "\n" + 12 * " "))
    if len(unlearnt) > MOST_SHOWN and not made.output:
        print(f"\nand {len(unlearnt) - MOST_SHOWN} more, which --output FILE writes down")


@trainers_mistakes()
def predict(args: Sequence[str]) -> None:
    """Print the texts as they come, and write them to ``--output``.

    Args:
        args: What was typed behind ``predict``.
    """
    settings = Settings("predict", args)
    made, module = _prepared(settings)
    asked, trained = made.data.asked, module.trained
    _check(asked.prompts, lambda prompt: trained.encode_prompt(prompt, made.generation), made.data.path, asked.lines)
    module.generation = made.generation
    with output(made.output) as write:
        _trainer(settings, made, TextsAsTheyCome(asked, trained, write)).predict(
            module, made.data, return_predictions=False
        )


class MeasuredPairs(Callback):
    """Keeps which of the measured pairs are exact, by their rows."""

    def __init__(self) -> None:
        self.exact: dict[int, bool] = {}

    @override
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        exact: Tensor = outputs
        self.exact.update(zip(batch.rows.tolist(), exact.tolist(), strict=True))


class TextsAsTheyCome(Callback):
    """Prints each text when it is there, writes it down, and says how far it has come.

    Args:
        asked: What is asked.
        trained: The model.
        write: Takes a row for each text.
    """

    def __init__(self, asked: Asked, trained: TrainedGPT, write: Write) -> None:
        self.template = trained.taught.template
        self.write = write
        self._questions = iter(asked.questions or repeat(None))
        # Where a person sees the texts themselves, they are the progress.
        self._progress = None if sys.stdout.isatty() else WorkProgress("predict", "texts", len(asked.prompts))

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: list[str], *_: int
    ) -> None:
        for prompt, text, question in zip(batch, outputs, islice(self._questions, len(batch)), strict=True):
            row = {"prompt": prompt, "text": text}
            if question is not None:
                row |= {"question": question, "answer": self.template.answer(text[len(normalize(prompt)) :])}
            self.write(row)
            print(text)
        sys.stdout.flush()
        if self._progress:
            self._progress.advance(len(batch))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._progress:
            self._progress.close()  # so that the error appears below it


def _check(
    texts: Iterable[str], encode: Callable[[str], object], path: str | None, lines: Sequence[int] | None
) -> None:
    """Refuse texts that the model cannot take; those of a file with their lines, the first ten at once."""
    mistakes = []
    for i, text in enumerate(texts):
        try:
            encode(text)
        except ValueError as error:
            if path is None or not lines:
                raise UsageError(str(error)) from None
            mistakes.append(Mistake(lines[i], str(error)))
    if path is not None and mistakes:
        raise PairsError(path, mistakes)


def _instead(trained: TrainedGPT, pairs: Sequence[QAPair]) -> Iterator[dict[str, str]]:
    """What the model says, greedily, where it should say something else."""
    for i in range(0, len(pairs), BATCH_SIZE):
        batch = pairs[i : i + BATCH_SIZE]
        prompts, expected = zip(*map(trained.taught.parts, batch), strict=True)
        texts = trained.complete_all(prompts)
        for pair, prompt, rest, text in zip(batch, prompts, expected, texts, strict=True):
            yield {"question": pair.question, "expected": rest, "says": text[len(prompt) :]}


def _prepared(settings: Settings) -> tuple[Namespace, TinyGPTModule]:
    """What was asked for, and the model from its checkpoint."""
    made = settings.instantiate(model=False)
    checkpoint = local_path(_checkpoint(settings))
    run = Run(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    begun = run.settings if run.config.is_file() else settings.plain  # a checkpoint may lie anywhere
    module = TinyGPTModule.load_from_checkpoint(checkpoint, loss_on=begun["model"]["loss_on"])
    # A file that the configuration names is what the run was taught: what it holds by now makes no difference.
    typed = any(arg.partition("=")[0] in PAIRS for arg in settings.args)
    own = settings.config.data.path in (None, run.config.is_file() and begun["data"]["path"])
    made.data.adopt(module.trained, pairs=own and not typed)
    return made, module


def _trainer(settings: Settings, made: Namespace, callback: Callback) -> Trainer:
    """A trainer on one device that writes nothing."""
    made.trainer.callbacks = None  # those of a fit
    return settings.make_trainer(
        made, [callback], devices=1, num_nodes=1, strategy="auto", logger=False, enable_checkpointing=False
    )


def _checkpoint(settings: Settings) -> str | Path:
    path = settings.config.ckpt_path
    if path not in (None, "last"):
        return str(path)
    if not settings.config_files:
        raise UsageError("expected --ckpt_path FILE, or --config FILE to look for the newest run of, got neither")
    return newest_checkpoint(settings.config_files, settings.folder)
