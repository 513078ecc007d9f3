import unicodedata

import pytest

from tinygpt_lightning.data.text import QAPair, Taught, Template

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."


def test_the_default_is_the_originals_to_the_space_before_the_newline() -> None:
    template = Template()
    assert template.text("Xin chào", "Công ty BICweb kính chào quý khách!") == SENTENCE
    assert template.prompt("Xin chào", to="question") == "Question: Xin chào"
    assert template.prompt("Xin chào") == "Question: Xin chào \nAnswer: "
    assert template.answer(SENTENCE.removeprefix(template.prompt("Xin chào"))) == "Công ty BICweb kính chào quý khách!"


def test_braces_in_question_and_answer_are_text() -> None:
    template = Template("{question}={answer}")
    assert template.text("{answer}", "{question}{x}") == "{answer}={question}{x}"
    assert template.prompt("{answer}") == "{answer}="
    assert template.answer("x.") == "x."


def test_a_question_is_filled_up_so_that_answers_begin_at_one_position() -> None:
    template = Template("Q {question:8}={answer}.")
    for question in ("Q", "Xin chào", "e\u0301" * 4):
        assert len(unicodedata.normalize("NFC", template.prompt(question))) == 11
    assert template.text("Xin", "A") == "Q Xin     =A."
    assert template.text("a longer question", "A") == "Q a longer question=A."
    assert template.prompt("Xin", to="question") == "Q Xin     "
    assert Template("Q {question:>8}={answer}.").prompt("Xin") == "Q      Xin="
    assert template.answer("A.") == "A"
    taught = Taught.of([QAPair("e\u0301", "A")], template)
    assert taught.parts(taught.pairs[0]) == ("Q \u00e9       =", "A.")
    assert taught.max_length == 13


@pytest.mark.parametrize(
    "pattern",
    [
        "{question:0}{answer}",
        "{question:>}{answer}",
        "{question:x}{answer}",
        "{question:4}{question}{answer}",
        "{question}{answer:}",
    ],
)
def test_a_width_that_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="template: expected {question} and then {answer}, once each, got"):
        Template(pattern)


@pytest.mark.parametrize("pattern", ["", "{question}", "{answer}", "{answer}{question}", "{question}{answer}{answer}"])
def test_a_pattern_without_place_for_both_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="template: expected {question} and then {answer}, once each, got"):
        Template(pattern)
