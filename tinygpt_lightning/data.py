"""The one question-answer pair, and the prompts to continue."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from tinygpt_lightning.gpt.template import Template


class QAPair(NamedTuple):
    r"""A question and its answer; the defaults are the original project's.

    Args:
        question: What is asked.
        answer: What is to be learnt.

    >>> QAPair().text
    'Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!.'
    """

    question: str = "Xin chào"
    answer: str = "Công ty BICweb kính chào quý khách!"

    @property
    def prompt(self) -> str:
        """What the model is given."""
        return Template().opening(self.question)

    @property
    def text(self) -> str:
        """What the model learns, the prompt included; in the original's form, to the space."""
        return Template().text(self.question, self.answer)


class QADataModule(LightningDataModule):
    """Serves one pair, the whole sentence as one batch per epoch, and prompts for ``predict``.

    It serves text: the vocabulary belongs to the model, which therefore does the encoding.

    Args:
        question: The question of the pair.
        answer: The answer to learn.
        prompts: Texts to continue in ``predict``; null means the pair's own, ``Question: …``.

    Raises:
        ValueError: If question, answer or the list of prompts is empty.
    """

    def __init__(
        self,
        question: str = QAPair().question,
        answer: str = QAPair().answer,
        prompts: list[str] | None = None,
    ) -> None:
        super().__init__()
        for name, text in (("question", question), ("answer", answer)):
            if not text:
                raise ValueError(f"data.{name}: expected at least one character, got none")
        self.pair = QAPair(question, answer)
        self.prompts = [self.pair.prompt] if prompts is None else list(prompts)
        if not self.prompts:
            raise ValueError("data.prompts: expected at least one prompt, got an empty list")

    def train_dataloader(self) -> DataLoader[QAPair]:
        """One pair an epoch."""
        return _one_by_one([self.pair])

    def val_dataloader(self) -> DataLoader[QAPair]:
        """The pair itself: what is asked for is that it is known by heart."""
        return _one_by_one([self.pair])

    def predict_dataloader(self) -> DataLoader[str]:
        """One prompt a batch, since prompts differ in length."""
        return _one_by_one(self.prompts)


def _one_by_one(items: list[Any]) -> DataLoader[Any]:
    # A loader draws a seed from its generator in every epoch: with one of its own it leaves the global
    # generator, and so the dropout of a run, alone.
    return DataLoader(items, batch_size=None, generator=torch.Generator())  # type: ignore[arg-type]
