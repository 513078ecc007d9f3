"""What is taught: texts in two parts."""

from __future__ import annotations

import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_lightning.data.text import QAPair, Taught, Template

ONE, TWO = QAPair("Xin", "chào"), QAPair("Xin chào", "bạn")


def test_a_prompt_ends_after_the_question_or_before_the_answer() -> None:
    assert Taught.of([ONE, TWO], prompt_to="question").parts(ONE) == ("Question: Xin", " \nAnswer: chào.")
    assert Taught.of([ONE]).parts(ONE) == ("Question: Xin \nAnswer: ", "chào.")
    assert Taught.of([ONE, TWO]).parts(ONE) == ("Question: Xin \nAnswer: ", "chào.")
    assert Taught.of([ONE, TWO]).prompts == ["Question: Xin \nAnswer: ", "Question: Xin chào \nAnswer: "]


def test_the_longest_text_is_measured_with_its_end_symbol() -> None:
    assert Taught.of([ONE, TWO]).max_length == len("Question: Xin chào \nAnswer: bạn.")
    assert Taught.of([ONE, TWO], end_symbol=True).max_length == len("Question: Xin chào \nAnswer: bạn.") + 1


def test_pairs_are_composed() -> None:
    decomposed = [QAPair(*(unicodedata.normalize("NFD", part) for part in pair)) for pair in (ONE, TWO)]
    assert decomposed != [ONE, TWO]
    assert Taught.of(decomposed) == Taught.of([ONE, TWO])


def test_the_vocabulary_is_that_of_all_texts() -> None:
    tokenizer = Taught.of([ONE, TWO], Template("{question}→{answer}")).tokenizer(end_symbol=True)
    assert set(tokenizer.vocab) == {*"Xin chào→bạn", "<pad>", "<unk>", "<eos>"}


text = st.text(st.characters(codec="utf-8"), min_size=1)


@settings(deadline=None)
@given(
    st.lists(st.tuples(text, text).map(lambda pair: QAPair(*pair)), min_size=1, max_size=3),
    st.sampled_from(["{question}{answer}", "{question} \n{answer}.", "e{question}a{answer}\u0301"]),
)
def test_whatever_the_texts_each_part_is_encoded_by_itself(pairs: list[QAPair], pattern: str) -> None:
    """Also where the end of one part and the beginning of the next would make one character."""
    taught = Taught.of(pairs, Template(pattern))
    tokenizer = taught.tokenizer()
    for pair in taught.pairs:
        prompt, rest = taught.parts(pair)
        ids = tokenizer.encode(prompt) + tokenizer.encode(rest)
        assert tokenizer.decode(ids) == taught.text(pair) == prompt + rest
        assert tokenizer.encode(taught.prompt(pair.question)) == tokenizer.encode(prompt)
        assert len(ids) == taught.length(pair)
