"""A character tokenizer: every distinct character of the training text is one symbol."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

from tinygpt_lightning.gpt.files import write_whole

PAD = "<pad>"
UNK = "<unk>"
EOS = "<eos>"
SPECIALS = (PAD, UNK, EOS)
MOST_NAMED = 100  # characters of a vocabulary that a message lists


class UnknownCharacterError(ValueError):
    """A text holds a character that the vocabulary lacks."""


class VocabularyError(ValueError):
    """A mapping or a file is invalid as a vocabulary."""


def normalize(text: str) -> str:
    r"""Bring ``text`` to Unicode's composed form, NFC (Unicode Standard Annex 15).

    Vietnamese typed on a Mac arrives decomposed: ``à`` as ``a`` and a combining grave accent. It looks
    the same and means the same, so it gets the same ids.

    >>> len("a\u0300"), len(normalize("a\u0300"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", text)


class CharTokenizer:
    """Text to ids and back, one character at a time.

    Args:
        vocab: Symbol to id. The ids are kept as they are: the weights of a trained model know its symbols by these
            ids, so a vocabulary is never numbered again.

    Attributes:
        vocab: Symbol to id.
        end: The id of ``<eos>``, which ends a text; None if the vocabulary has no such symbol.

    Raises:
        VocabularyError: If the ids are not ``0 … len(vocab) - 1``, a symbol is neither one character nor
            ``<pad>``, ``<unk>`` or ``<eos>``, or one of the first two is missing.

    >>> tokenizer = CharTokenizer.from_text("chào", end_symbol=True)
    >>> tokenizer.vocab
    {'c': 0, 'h': 1, 'o': 2, 'à': 3, '<pad>': 4, '<unk>': 5, '<eos>': 6}
    >>> tokenizer.encode("hào")
    [1, 3, 2]
    >>> tokenizer.decode([1, 3, 2, tokenizer.end, 0])
    'hào'
    """

    def __init__(self, vocab: Mapping[str, int]) -> None:
        check_vocab(vocab)
        self.vocab = dict(vocab)
        self.end = self.vocab.get(EOS)
        self._symbols = sorted(self.vocab, key=self.vocab.__getitem__)

    @classmethod
    def from_text(cls, *texts: str, end_symbol: bool = False) -> CharTokenizer:
        """Make the vocabulary of ``texts``: their characters by code point, then ``<pad>`` and ``<unk>``.

        Args:
            texts: All texts that will be encoded.
            end_symbol: Whether to add ``<eos>``.

        Raises:
            VocabularyError: If a text holds a lone surrogate, which no UTF-8 file can keep.
        """
        characters = {character for text in texts for character in normalize(text)}
        symbols = [*sorted(characters), PAD, UNK, *([EOS] if end_symbol else [])]
        return cls({symbol: i for i, symbol in enumerate(symbols)})

    def __len__(self) -> int:
        return len(self.vocab)

    def encode(self, text: str, *, allow_unknown: bool = False) -> list[int]:
        """Turn ``text`` into ids, one for each character of its composed form.

        Args:
            text: Any text; it is brought to NFC first.
            allow_unknown: Whether a character that the vocabulary lacks gets the id of ``<unk>``.

        Raises:
            UnknownCharacterError: If the vocabulary lacks a character; the message names the first one
                and its position in the composed text, counted from 1.

        >>> CharTokenizer.from_text("chào").encode("chú")
        Traceback (most recent call last):
        ...
        tinygpt_lightning.gpt.tokenizer.UnknownCharacterError: character 'ú' (U+00FA) at position 3 of 'chú' is not \
in the vocabulary; it knows 'choà'
        """
        text = normalize(text)
        unknown = self.vocab[UNK] if allow_unknown else None
        ids = [self.vocab.get(character, unknown) for character in text]
        if None in ids:
            position = ids.index(None)
            character = text[position]
            known = "".join(symbol for symbol in self._symbols if len(symbol) == 1)
            more = f" and {len(known) - MOST_NAMED} more" if len(known) > MOST_NAMED else ""
            raise UnknownCharacterError(
                f"character {character!r} (U+{ord(character):04X}) at position {position + 1} of {text!r} "
                f"is not in the vocabulary; it knows {known[:MOST_NAMED]!r}{more}"
            )
        return [i for i in ids if i is not None]

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text, as far as the end symbol; ``<pad>`` and ``<unk>`` appear by name.

        Raises:
            ValueError: If an id is outside the vocabulary.
        """
        ids = list(ids)
        for i in ids:
            if not 0 <= i < len(self):
                raise ValueError(f"expected ids from 0 to {len(self) - 1}, got {i}")
        if self.end is not None and self.end in ids:
            ids = ids[: ids.index(self.end)]
        return "".join(self._symbols[i] for i in ids)

    def save(self, path: str | Path) -> None:
        """Write the vocabulary as a UTF-8 JSON object, symbol to id."""
        write_whole(Path(path), (json.dumps(self.vocab, ensure_ascii=False, indent=2) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> CharTokenizer:
        """Read a vocabulary with its ids as saved.

        Raises:
            VocabularyError: If the file is not a JSON object of symbols and ids.
            OSError: If the file cannot be read.
        """
        try:
            return cls(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, RecursionError) as error:
            raise VocabularyError(f"{path}: is invalid as a vocabulary: {error}") from None


def check_vocab(vocab: object) -> None:
    """Check that ``vocab`` maps symbols to the ids from 0 on.

    Raises:
        VocabularyError: If it does not; the message names the first fault.
    """
    if not isinstance(vocab, Mapping):
        raise VocabularyError(f"expected an object from symbol to id, got {type(vocab).__name__}")
    for symbol in vocab:
        if not isinstance(symbol, str) or (len(symbol) != 1 and symbol not in SPECIALS):
            raise VocabularyError(f"expected single characters, {', '.join(SPECIALS)} as symbols, got {symbol!r}")
        if "\ud800" <= symbol <= "\udfff":
            raise VocabularyError(f"expected valid Unicode, got the lone surrogate {symbol!r}")
    for special in (PAD, UNK):
        if special not in vocab:
            raise VocabularyError(f"expected the symbol {special}, got none")
    # `type` and not `isinstance`: JSON's true is not an id.
    if any(type(i) is not int for i in vocab.values()) or sorted(vocab.values()) != list(range(len(vocab))):
        raise VocabularyError(f"expected the ids 0 to {len(vocab) - 1}, each once, got {list(vocab.values())}")
