"""What a trained model is asked: the prompts of ``predict``, and the questions in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tinygpt_lightning.data.pair_files import read_questions


class Asked(NamedTuple):
    """The prompts of ``predict``.

    Args:
        prompts: The texts to continue.
        questions: The question in each prompt; None if the prompts are raw text.
        lines: Where each question begins in its file; None if they come from no file.
    """

    prompts: list[str]
    questions: list[str] | None = None
    lines: list[int] | None = None

    @classmethod
    def of(cls, questions: Sequence[str] | str, prompt: Callable[[str], str]) -> Asked:
        """Ask questions.

        Args:
            questions: The questions, or the path of a file of them.
            prompt: Makes the prompt for a question.

        Raises:
            PairsError: If the file is no file of questions.
            OSError: If it cannot be read.
        """
        lines = None
        if isinstance(questions, str):
            lines, questions = map(list, zip(*read_questions(questions), strict=True))
        return cls([prompt(question) for question in questions], list(questions), lines)
