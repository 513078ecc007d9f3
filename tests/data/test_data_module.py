"""What is served: pairs and prompts, from settings and from files."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
import torch

from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.pair_files import PairsError
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.trained import TrainedGPT

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
ORIGINALS = QAPair("Xin chào", "Công ty BICweb kính chào quý khách!")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"question": f"câu {i}", "answer": "chữ " * i} for i in range(1, 8)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_default_pair_is_the_originals_to_the_space_before_the_newline() -> None:
    taught = QADataModule().taught
    assert taught.pairs == (ORIGINALS,)
    assert taught.text(ORIGINALS) == SENTENCE
    assert taught.max_length == 64
    assert taught.prompts == ["Question: Xin chào"]


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_an_epoch_is_one_batch_the_pair_itself(loader: str) -> None:
    module = QADataModule()
    for _epoch in range(2):
        (batch,) = getattr(module, loader)()
        ids = CharTokenizer.from_text(SENTENCE).encode(SENTENCE)
        assert batch.ids.tolist() == [ids[:-1]]
        assert batch.targets.tolist() == [ids[1:]]
        assert batch.mask.tolist() == [[i >= len("Question: Xin chào") for i in range(1, 64)]]
        assert batch.rows.tolist() == [0]


def test_question_and_answer_are_settings() -> None:
    taught = QADataModule(question="1 + 1", answer="2").taught
    assert [taught.text(pair) for pair in taught.pairs] == ["Question: 1 + 1 \nAnswer: 2."]
    assert taught.prompts == ["Question: 1 + 1"]


def test_a_form_of_ones_own_is_a_setting() -> None:
    data = QADataModule(question="1 + 1", answer="2", template="{question} = {answer}")
    assert data.taught.text(data.taught.pairs[0]) == "1 + 1 = 2"
    with pytest.raises(ValueError, match="template: expected {question} and then {answer}"):
        QADataModule(template="{answer}")


# The end symbol


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_the_originals_own_sentence_has_no_end_symbol_however_it_is_typed(form: str) -> None:
    data = QADataModule(*(unicodedata.normalize(form, part) for part in ORIGINALS))
    assert len(data.tokenizer) == 34
    assert data.tokenizer.end is None
    assert data.taught.max_length == 64


def test_the_originals_own_sentence_in_a_file_can_be_the_same_sentence(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("question,answer\n" + ",".join(ORIGINALS) + "\n", encoding="utf-8")
    data = QADataModule(path=str(tmp_path / "one.csv"), end_symbol=False, prompt_to="question")
    assert data.taught == QADataModule().taught
    assert data.tokenizer.vocab == QADataModule().tokenizer.vocab


@pytest.mark.parametrize("settings", [{"question": "Xin"}, {"answer": "Xin chào"}, {"template": "{question}={answer}"}])
def test_settings_decide_and_not_the_text_of_a_single_pair(settings: dict[str, str]) -> None:
    data = QADataModule(**settings)
    assert data.tokenizer.end is None
    assert data.taught.max_length == len(data.taught.text(data.taught.pairs[0]))
    assert data.taught.prompt_to == "question"
    data = QADataModule(**settings, end_symbol=True, prompt_to="answer")
    assert data.tokenizer.end == len(data.tokenizer) - 1
    assert data.taught.max_length == len(data.taught.text(data.taught.pairs[0])) + 1
    assert data.taught.prompt_to == "answer"


def test_a_file_has_one_even_for_a_single_pair(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("question,answer\n1,2\n", encoding="utf-8")
    data = QADataModule(path=str(tmp_path / "one.csv"))
    assert data.tokenizer.end is not None
    assert data.taught.prompts == ["Question: 1 \nAnswer: "]


def test_it_can_be_left_out(file: Path) -> None:
    assert QADataModule(path=str(file)).tokenizer.end is not None
    data = QADataModule(path=str(file), end_symbol=False)
    assert data.tokenizer.end is None
    assert data.taught.max_length == len("Question: câu 7 \nAnswer: " + "chữ " * 7 + ".")


# Files


def test_an_epoch_has_each_pair_once_and_another_one_has_other_batches(file: Path) -> None:
    module = QADataModule(path=str(file), batch_size=3)
    loader = module.train_dataloader()
    epochs = []
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        epochs.append([batch.rows.tolist() for batch in loader])
        assert sorted(map(len, epochs[-1])) == [2, 2, 3]
        assert sorted(row for rows in epochs[-1] for row in rows) == list(range(7))
    assert len({str(batches) for batches in epochs}) > 1
    loader.sampler.set_epoch(0)  # type: ignore[union-attr]
    assert [batch.rows.tolist() for batch in loader] == epochs[0], "the epoch decides, and nothing that came before"
    first, second = (list(module.val_dataloader()) for _ in range(2))
    assert all(a.ids.equal(b.ids) for a, b in zip(first, second, strict=True))


def test_a_file_and_a_pair_are_one_too_many(file: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data\.path: expected it alone, got data\.question 'x' beside .*pairs\.jsonl"
    ):
        QADataModule(path=str(file), question="x")


def test_texts_that_the_model_has_no_room_for_are_told_with_the_other_mistakes(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8") + "{}\n", encoding="utf-8")
    room = len("Question: câu 5 \nAnswer: " + "chữ " * 5 + ".")
    with pytest.raises(PairsError) as caught:
        _ = QADataModule(path=str(file), n_positions=room).taught
    assert str(caught.value).splitlines() == [
        f"{file}: 3 mistakes:",
        f"  line 6: the text needs {room + 4} positions; increase model.config.n_positions, {room}",
        f"  line 7: the text needs {room + 8} positions; increase model.config.n_positions, {room}",
        "  line 8: question: expected text, and it is missing",
    ]


def test_the_end_symbol_needs_the_room_that_the_last_character_does_not() -> None:
    text = len("Question: 1 \nAnswer: 2.")
    for end_symbol, room in ((True, text), (False, text - 1)):
        assert QADataModule("1", "2", end_symbol=end_symbol, n_positions=room).taught
        with pytest.raises(
            ValueError, match=rf"model\.config\.n_positions: expected {room} or more for .*, got {room - 1}"
        ):
            _ = QADataModule("1", "2", end_symbol=end_symbol, n_positions=room - 1).taught


# What `predict` asks


def trained_on(data: QADataModule) -> TrainedGPT:
    return TrainedGPT(TinyGPT(GPTConfig(len(data.tokenizer), 80, 32, 4)), data.tokenizer, data.taught)


def test_the_default_prompt_is_the_pairs_own() -> None:
    assert list(QADataModule().predict_dataloader()) == [["Question: Xin chào"]]
    assert list(QADataModule(question="1 + 1").predict_dataloader()) == [["Question: 1 + 1"]]


def test_own_prompts_come_in_order_as_they_are() -> None:
    prompts = ["Question: Xin", "Q", "Question: Xin chào \nAnswer"]
    assert list(QADataModule(prompts=prompts, batch_size=2).predict_dataloader()) == [prompts[:2], prompts[2:]]


def test_questions_are_put_into_the_template_of_what_was_taught() -> None:
    data = QADataModule(questions=["Xin", "chào"])
    assert data.asked == (["Question: Xin \nAnswer: ", "Question: chào \nAnswer: "], ["Xin", "chào"], None)
    data = QADataModule(questions=["Xin"])
    data.adopt(trained_on(QADataModule(template="{question}? {answer}")), pairs=True)
    assert data.asked == (["Xin? "], ["Xin"], None)


def test_a_file_is_asked_its_questions_in_order_with_or_without_answers(file: Path, tmp_path: Path) -> None:
    questions = [f"câu {i}" for i in range(1, 8)]
    assert QADataModule(path=str(file)).asked.questions == questions
    (tmp_path / "alone.csv").write_text("question\n" + "\n".join([*questions, "câu 1"]) + "\n", encoding="utf-8")
    data = QADataModule(path=str(tmp_path / "alone.csv"))
    assert data.asked.questions == [*questions, "câu 1"]
    assert data.asked.lines == list(range(2, 10))
    assert data.asked.prompts[0] == "Question: câu 1 \nAnswer: "


def test_without_any_of_these_it_is_asked_what_it_was_taught(file: Path) -> None:
    data = QADataModule()
    data.adopt(trained_on(QADataModule(path=str(file))), pairs=True)
    assert data.asked.questions == [f"câu {i}" for i in range(1, 8)]
    assert data.asked.prompts[6] == "Question: câu 7 \nAnswer: "


@pytest.mark.parametrize("name", ["question", "answer", "prompts", "questions"])
def test_nothing_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.{name}: expected at least one .*, got "):
        QADataModule(**{name: [] if name.endswith("s") else ""})


def test_an_empty_question_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.questions: expected at least one character"):
        QADataModule(questions=["Xin chào", ""])


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^data\.batch_size: expected 1 or more, got 0$"):
        QADataModule(batch_size=0)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "predict_dataloader"])
def test_reading_batches_leaves_the_global_generator_alone(loader: str) -> None:
    module = QADataModule()
    before = torch.get_rng_state()
    dataloader = getattr(module, loader)()
    for _epoch in range(2):
        assert list(dataloader)
    assert torch.get_rng_state().equal(before)
