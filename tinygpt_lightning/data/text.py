"""What a model is taught: question-answer pairs, and the texts that a template makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize

QUESTION, ANSWER = "{question}", "{answer}"


class QAPair(NamedTuple):
    """A question and its answer; the defaults are the original project's.

    Args:
        question: What is asked.
        answer: What is to be learnt.
    """

    question: str = "Xin chào"
    answer: str = "Công ty BICweb kính chào quý khách!"


@dataclass(frozen=True)
class Template:
    r"""The form of the texts that a model learns; the default is the original project's, to the space.

    Args:
        pattern: The text, with ``{question}`` and, behind it, ``{answer}`` where they belong.

    Raises:
        ValueError: If ``pattern`` has not each of the two once, in this order.

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
        found = sorted((QUESTION, ANSWER), key=self.pattern.find)
        if found != [QUESTION, ANSWER] or any(self.pattern.count(part) != 1 for part in found):
            raise ValueError(f"template: expected {QUESTION} and then {ANSWER}, once each, got {self.pattern!r}")

    def text(self, question: str, answer: str) -> str:
        """What is learnt."""
        before, between, after = self._parts
        return before + question + between + answer + after

    def prompt(self, question: str) -> str:
        """The text as far as the answer: what a model is given that is to answer."""
        before, between, _ = self._parts
        return before + question + between

    def opening(self, question: str) -> str:
        """The text as far as the question: what the original gives its model, which knows one pair only."""
        return self._parts[0] + question

    def answer(self, continuation: str) -> str:
        """The answer in what a model says to a prompt: without what the template puts behind it."""
        return continuation.removesuffix(self.closing)

    @property
    def closing(self) -> str:
        """What stands behind the answer."""
        return self._parts[2]

    @property
    def _parts(self) -> tuple[str, str, str]:
        before, rest = self.pattern.split(QUESTION)
        between, after = rest.split(ANSWER)
        return before, between, after


@dataclass(frozen=True)
class Taught:
    r"""The texts that a model learns, each in two parts: the prompt that it is given, and what it is to say to it.

    Args:
        pairs: The pairs; none where nobody knows them.
        template: The form of their texts.
        max_length: Symbols of the longest text, its end symbol included; null where nobody knows.

    >>> taught = Taught.of([QAPair("1 + 1", "2"), QAPair("1 + 2", "3")], end_symbol=True)
    >>> taught.parts(taught.pairs[1])
    ('Question: 1 + 2 \nAnswer: ', '3.')
    >>> taught.max_length
    28
    """

    pairs: tuple[QAPair, ...] = ()
    template: Template = Template()
    max_length: int | None = None

    @classmethod
    def of(cls, pairs: Iterable[QAPair], template: Template = Template(), *, end_symbol: bool = False) -> Taught:
        """Bring ``pairs`` to Unicode's composed form, and find the longest text."""
        composed = tuple(QAPair(*map(normalize, pair)) for pair in pairs)
        taught = cls(composed, template)
        return cls(composed, template, max(taught.length(pair) for pair in composed) + end_symbol)

    def parts(self, pair: QAPair) -> tuple[str, str]:
        """What the model is given, and what is to come then."""
        prompt, text = self.prompt(pair.question), self.template.text(*pair)
        return normalize(prompt), normalize(text[len(prompt) :])

    def text(self, pair: QAPair) -> str:
        """What the model learns of ``pair``."""
        return "".join(self.parts(pair))

    def length(self, pair: QAPair) -> int:
        """Characters of its text."""
        return len(self.text(pair))

    def prompt(self, question: str) -> str:
        """What the model is given, that it may answer ``question``.

        One that knows a single pair needs no more than the question, which the original gives it; one of several
        needs to see where the question ends.
        """
        return self.template.opening(question) if len(self.pairs) == 1 else self.template.prompt(question)

    @property
    def prompts(self) -> list[str]:
        """What to ask in order to hear all that was taught."""
        return [self.prompt(pair.question) for pair in self.pairs]

    def tokenizer(self, *, end_symbol: bool = False) -> CharTokenizer:
        """The vocabulary of all texts.

        Raises:
            VocabularyError: If one holds a lone surrogate.
        """
        return CharTokenizer.from_text(
            *(part for pair in self.pairs for part in self.parts(pair)), end_symbol=end_symbol
        )
