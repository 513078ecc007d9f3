import pytest

from tinygpt_lightning.data.text import Template

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


@pytest.mark.parametrize("pattern", ["", "{question}", "{answer}", "{answer}{question}", "{question}{answer}{answer}"])
def test_a_pattern_without_place_for_both_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="template: expected {question} and then {answer}, once each, got"):
        Template(pattern)
