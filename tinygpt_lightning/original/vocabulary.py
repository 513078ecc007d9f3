"""The original project's mistake.

Whenever it reads a saved vocabulary, it numbers the symbols anew, so that a run of one stage is read with a
vocabulary it was never trained on. That is the answer to the original's riddle; see the README.
"""

from __future__ import annotations

from tinygpt_lightning.gpt.tokenizer import CharTokenizer


def renumber(tokenizer: CharTokenizer) -> CharTokenizer:
    """Number the symbols anew in the order of their text, specials included.

    This is what the original project does whenever it reads a saved vocabulary: ``<`` sorts between ``:`` and
    ``A``, so most ids move. Doing it again changes nothing more.

    >>> renumber(CharTokenizer.from_text("chào")).vocab
    {'<pad>': 0, '<unk>': 1, 'c': 2, 'h': 3, 'o': 4, 'à': 5}
    """
    return CharTokenizer({symbol: i for i, symbol in enumerate(sorted(tokenizer.vocab))})
