"""What a model is taught: pairs, and the texts that a template makes of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tinygpt_lightning.gpt.pairs import QAPair
from tinygpt_lightning.gpt.template import Template
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, normalize


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
    template: Template = Template()  # noqa: RUF009, it is frozen
    max_length: int | None = None

    @classmethod
    def of(cls, pairs: Iterable[QAPair], template: Template = Template(), *, end_symbol: bool = False) -> Taught:  # noqa: B008, it is frozen
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
