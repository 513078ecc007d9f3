"""``predict``: continue prompts, or answer questions, with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from tinygpt_lightning.commands.errors import say
from tinygpt_lightning.commands.evaluation import check_texts, evaluation_trainer, open_trained, rows_file
from tinygpt_lightning.commands.parser import lightning_errors
from tinygpt_lightning.commands.progress import WorkProgress
from tinygpt_lightning.commands.settings import Settings
from tinygpt_lightning.data.asked import Asked
from tinygpt_lightning.gpt.tokenizer import normalize
from tinygpt_lightning.trained import TrainedGPT


@lightning_errors()
def predict(args: Sequence[str]) -> None:
    """Print each text as soon as it is generated, and write it to ``--output``.

    Args:
        args: The arguments after ``predict``.
    """
    settings = Settings("predict", args)
    objects, module = open_trained(settings)
    asked, trained, generation = objects.data.asked, module.trained, objects.generation
    check_texts(asked.prompts, lambda prompt: trained.encode_prompt(prompt, generation), objects.data.path, asked.lines)
    module.generation = generation
    with rows_file(objects.output) as write:
        printer = TextPrinter(asked, trained, write)
        evaluation_trainer(settings, objects, printer).predict(module, objects.data, return_predictions=False)
    if printer.unknown:
        total, column = len(asked.prompts), "" if objects.output else "; --output FILE says which"
        say(f"warning: the model was not taught to answer {printer.unknown} of {total} questions{column}")


class TextPrinter(Callback):
    """Prints the texts of each batch, writes a row for each, and shows progress.

    Args:
        asked: The prompts, and the questions in them.
        trained: The model.
        write: Writes a row.

    Attributes:
        unknown: How many questions the model was not taught to answer.
    """

    def __init__(self, asked: Asked, trained: TrainedGPT, write: Callable[[Mapping[str, object]], None]) -> None:
        self.trained = trained
        self.write = write
        self.unknown = 0
        self._questions = iter(asked.questions or repeat(None))
        # In a terminal the texts themselves show the progress.
        self._progress = None if sys.stdout.isatty() else WorkProgress("predict", "texts", len(asked.prompts))

    @override
    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: list[str], *_: int
    ) -> None:
        for prompt, text, question in zip(batch, outputs, islice(self._questions, len(batch)), strict=True):
            row: dict[str, object] = {"prompt": prompt, "text": text}
            if question is not None:
                taught = self.trained.taught
                answer = taught.template.answer(text[len(normalize(prompt)) :])
                row |= {"question": question, "answer": answer}
                if taught.known_from is not None:
                    judged = self.trained.judge(question, answer)
                    row |= {"confidence": round(judged.confidence, 4), "known": judged.known}
                    self.unknown += not judged.known
            self.write(row)
            print(text)
        sys.stdout.flush()
        if self._progress:
            self._progress.advance(len(batch))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._progress:
            self._progress.close()  # so that the error appears below it
