"""Question-answer pairs, and the texts that a template makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize

PARTS = re.compile(r"(.*)\{question(?::(>?[1-9]\d{0,3}))?\}(.*)\{answer\}(.*)", re.DOTALL)


class QAPair(NamedTuple):
    """A question and its answer; the defaults are the original project's.

    Args:
        question: The question.
        answer: The answer that the model learns.
    """

    question: str = "Xin chào"
    answer: str = "Công ty BICweb kính chào quý khách!"


@dataclass(frozen=True)
class Template:
    r"""The form of the texts that a model learns; the default is the original project's, to the space.

    Args:
        pattern: The text, with ``{question}`` and, behind it, ``{answer}`` where they belong. ``{question:40}`` fills
            a question up with spaces to 40 characters, ``{question:>40}`` with spaces before it: the answer then begins
            at the same position even behind a character more or less, which a model of positions learns much sooner.

    Raises:
        ValueError: If ``pattern`` does not have each of the two once, in this order.

    >>> template = Template()
    >>> template.text("Xin chào", "Chào bạn")
    'Question: Xin chào \nAnswer: Chào bạn.'
    >>> template.prompt("Xin chào")
    'Question: Xin chào \nAnswer: '
    >>> template.answer("Chào bạn.")
    'Chào bạn'
    """

    pattern: str = "Question: {question} \nAnswer: {answer}."

    def __post_init__(self) -> None:
        if not PARTS.fullmatch(self.pattern) or any(self.pattern.count(part) != 1 for part in ("{question", "{answer")):
            raise ValueError(f"template: expected {{question}} and then {{answer}}, once each, got {self.pattern!r}")

    def text(self, question: str, answer: str) -> str:
        """The whole text of a pair."""
        return self.prompt(question) + answer + self.closing

    def prompt(self, question: str, to: Literal["question", "answer"] = "answer") -> str:
        """The beginning of a text: to the end of its question, or to the beginning of its answer."""
        before, width, between, _ = self._parts
        question = f"{normalize(question):{width}}" if width else question
        return before + question + (between if to == "answer" else "")

    def answer(self, continuation: str) -> str:
        """The answer in the continuation of a prompt: without the part of the template behind it."""
        return continuation.removesuffix(self.closing)

    @property
    def closing(self) -> str:
        """The part of the template behind the answer."""
        return self._parts[3]

    @property
    def _parts(self) -> tuple[str, str | None, str, str]:
        """What stands before the question, its width if it has one, what stands behind it, and behind the answer."""
        match = PARTS.fullmatch(self.pattern)
        assert match  # noqa: S101  # as `__post_init__` has seen
        return match[1], match[2], match[3], match[4]


@dataclass(frozen=True)
class Taught:
    r"""The texts that a model learns, each in two parts: a prompt, and the continuation that answers it.

    Args:
        pairs: The pairs; none if they are unknown.
        template: The form of their texts.
        max_length: Symbols of the longest text, its end symbol included; None if unknown.
        prompt_to: Where the prompt of a taught pair ends: after its question, or before its answer.
        known_from: From which likeness to a taught question on a question is answered; None if this is unknown.

    >>> taught = Taught.of([QAPair("1 + 1", "2"), QAPair("1 + 2", "3")], end_symbol=True)
    >>> taught.parts(taught.pairs[1])
    ('Question: 1 + 2 \nAnswer: ', '3.')
    >>> taught.max_length
    28
    """

    pairs: tuple[QAPair, ...] = ()
    template: Template = Template()
    max_length: int | None = None
    prompt_to: Literal["question", "answer"] = "answer"
    known_from: float | None = None

    @classmethod
    def of(
        cls,
        pairs: Iterable[QAPair],
        template: Template = Template(),
        *,
        end_symbol: bool = False,
        prompt_to: Literal["question", "answer"] = "answer",
    ) -> Taught:
        """Bring ``pairs`` to Unicode's composed form, and measure the longest text."""
        composed = tuple(QAPair(*map(normalize, pair)) for pair in pairs)
        taught = cls(composed, template, None, prompt_to)
        return cls(composed, template, max(map(taught.length, composed)) + end_symbol, prompt_to)

    def parts(self, pair: QAPair) -> tuple[str, str]:
        """The prompt of ``pair``, and its continuation."""
        prompt, text = self.prompt(pair.question), self.template.text(*pair)
        return normalize(prompt), normalize(text[len(prompt) :])

    def text(self, pair: QAPair) -> str:
        """The whole text of ``pair``."""
        return "".join(self.parts(pair))

    def length(self, pair: QAPair) -> int:
        """Number of characters of the text of ``pair``."""
        return len(self.text(pair))

    def prompt(self, question: str) -> str:
        """The prompt for a taught question."""
        return self.template.prompt(question, self.prompt_to)

    @property
    def prompts(self) -> list[str]:
        """The prompts of all pairs."""
        return [self.prompt(pair.question) for pair in self.pairs]

    def tokenizer(self, *, end_symbol: bool = False) -> CharTokenizer:
        """Make the vocabulary of all texts.

        Raises:
            VocabularyError: If a text holds a lone surrogate.
        """
        return CharTokenizer.from_text(
            *(part for pair in self.pairs for part in self.parts(pair)), end_symbol=end_symbol
        )
