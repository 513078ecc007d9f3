import pytest
import torch

from tinygpt_lightning.data import QADataModule, QAPair

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."


def test_the_default_pair_is_the_originals_to_the_space_before_the_newline() -> None:
    pair = QADataModule().pair
    assert pair.text == SENTENCE
    assert len(pair.text) == 64
    assert pair.prompt == "Question: Xin chào"
    assert pair.text.startswith(pair.prompt)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader"])
def test_an_epoch_is_one_batch_the_pair_itself(loader: str) -> None:
    module = QADataModule()
    for _epoch in range(2):
        batches = list(getattr(module, loader)())
        assert batches == [QAPair("Xin chào", "Công ty BICweb kính chào quý khách!")]
        assert [type(batch) for batch in batches] == [QAPair], "text, not a collated list"


def test_question_and_answer_are_settings() -> None:
    (pair,) = QADataModule(question="1 + 1", answer="2").train_dataloader()
    assert pair.text == "Question: 1 + 1 \nAnswer: 2."
    assert pair.prompt == "Question: 1 + 1"


def test_the_default_prompt_is_the_pairs_own() -> None:
    assert list(QADataModule().predict_dataloader()) == ["Question: Xin chào"]
    assert list(QADataModule(question="1 + 1").predict_dataloader()) == ["Question: 1 + 1"]


def test_own_prompts_come_one_by_one_in_order() -> None:
    prompts = ["Question: Xin", "Q", "Question: Xin chào \nAnswer"]
    assert list(QADataModule(prompts=prompts).predict_dataloader()) == prompts


@pytest.mark.parametrize("name", ["question", "answer", "prompts"])
def test_nothing_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^data\.{name}: expected at least one .*, got "):
        QADataModule(**{name: [] if name == "prompts" else ""})


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "predict_dataloader"])
def test_reading_batches_leaves_the_global_generator_alone(loader: str) -> None:
    module = QADataModule()
    before = torch.get_rng_state()
    dataloader = getattr(module, loader)()
    for _epoch in range(2):
        assert list(dataloader)
    assert torch.get_rng_state().equal(before)
