"""How a question and its answer become one text, and how the answer is found in it again."""

from __future__ import annotations

from dataclasses import dataclass

QUESTION, ANSWER = "{question}", "{answer}"


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
