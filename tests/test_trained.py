"""A trained network in use; and files that say they hold one."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.description import describe, without_weights
from tinygpt_lightning.gpt.checkpoint import CheckpointError, write_checkpoint
from tinygpt_lightning.gpt.generation import GenerationConfig, generate
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, UnknownCharacterError
from tinygpt_lightning.trained import TrainedGPT, load, save

TAUGHT = Taught.of([QAPair()], prompt_to="question")
SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
CONFIG = GPTConfig(n_positions=64, n_embd=32, n_head=4)


def checkpoint(model: TinyGPT, **changes: Any) -> dict[str, Any]:
    """What a fit writes, as far as it is needed to use the model."""
    return {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": {f"model.{name}": weight for name, weight in model.state_dict().items()},
        "tinygpt": describe(
            model.config, CharTokenizer.from_text(SENTENCE), Taught.of([QAPair()], prompt_to="question")
        ),
        **changes,
    }


@pytest.fixture(scope="module")
def model() -> TinyGPT:
    """A model that knows the sentence by heart."""
    torch.manual_seed(0)
    model = TinyGPT(replace(CONFIG, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))
    ids = torch.tensor([CharTokenizer.from_text(SENTENCE).encode(SENTENCE)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).backward()
        optimizer.step()
    return model


@pytest.fixture
def file(model: TinyGPT, tmp_path: Path) -> Path:
    write_checkpoint(checkpoint(model), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_a_file_or_the_folder_of_a_run_is_all_it_takes(file: Path) -> None:
    for path in (file, str(file), file.parent):
        trained = load(path)
        assert trained.complete("Question: Xin chào") == SENTENCE
        assert trained.answer("Xin chào") == "Công ty BICweb kính chào quý khách!"


def test_it_is_ready_to_use_with_the_weights_of_the_file(file: Path, model: TinyGPT) -> None:
    trained = load(file)
    assert not trained.model.training
    assert trained.model.config == model.config
    assert all(weight.equal(model.state_dict()[name]) for name, weight in trained.model.state_dict().items())
    assert all(parameter.requires_grad for parameter in trained.model.parameters())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = TinyGPT(replace(CONFIG, tie_weights=True))
    write_checkpoint(checkpoint(model), tmp_path / "tied.ckpt")
    trained = load(tmp_path / "tied.ckpt")
    assert trained.model.lm_head.weight is trained.model.wte.weight
    assert trained.model.wte.weight.equal(model.wte.weight)


def test_loading_and_talking_leave_the_global_random_state_alone(file: Path) -> None:
    before = torch.get_rng_state()
    trained = load(file)
    trained.complete("Question", GenerationConfig(temperature=2.0))
    trained.answer("Xin", GenerationConfig(temperature=2.0))
    assert torch.get_rng_state().equal(before)


def test_a_completion_is_what_generate_gives(model: TinyGPT) -> None:
    tokenizer = CharTokenizer.from_text(SENTENCE)
    config = GenerationConfig(max_length=40, temperature=3.0, seed=4)
    ids = generate(model, torch.tensor([tokenizer.encode("Xin")]), config)
    assert TrainedGPT(model, tokenizer).complete("Xin", config) == tokenizer.decode(ids[0].tolist())


def test_it_says_what_it_is(file: Path) -> None:
    trained = load(file)
    parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    for part in (f"{parameters:,} parameters", "n_embd=32", "34 symbols", "1 taught answer,", "on cpu"):
        assert part in repr(trained)


def test_a_model_is_loaded_onto_a_device(file: Path) -> None:
    trained = load(file, device="meta")  # the one that every machine has besides its CPU
    assert all(parameter.is_meta for parameter in trained.model.parameters())
    assert "on meta" in repr(trained)


def test_the_next_characters_probabilities_are_the_models_softmax(file: Path) -> None:
    trained = load(file)
    probabilities = trained.predict_next("Question: Xin")
    ids = torch.tensor([trained.tokenizer.encode("Question: Xin")])
    expected = trained.model(ids)[0, -1].detach().double().softmax(-1)
    assert probabilities == {symbol: expected[i].item() for symbol, i in trained.tokenizer.vocab.items()}
    assert sum(probabilities.values()) == pytest.approx(1)
    assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
    assert next(iter(probabilities)) == " "


def test_the_attention_is_the_models_for_each_head(file: Path) -> None:
    trained = load(file)
    weights = trained.attention("Xin chào")
    assert weights.shape == (4, 8, 8)
    assert weights.equal(trained.model.attention_weights(torch.tensor([trained.tokenizer.encode("Xin chào")]))[0])
    for use in (trained.attention, trained.predict_next):
        for text in ("", "X" * 65):
            with pytest.raises(ValueError, match=f"expected 1 to 64 characters, n_positions, got {len(text)}"):
                use(text)


def test_a_text_where_a_list_belongs_and_an_empty_question_are_refused(file: Path) -> None:
    trained = load(file)
    for use, name in ((trained.answer_all, "questions"), (trained.complete_all, "prompts")):
        with pytest.raises(TypeError, match=f"{name}: expected a list of texts, got the text 'Xin chào'"):
            use("Xin chào")
    for empty in (lambda: trained.answer(""), lambda: trained.answer_all(["Xin chào", ""])):
        with pytest.raises(ValueError, match="question: expected at least one character, got none"):
            empty()


def test_many_questions_are_answered_a_batch_at_a_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load(file)
    sizes: list[int] = []

    def counted(model: TinyGPT, ids: Tensor, *args: Any, **settings: Any) -> Tensor:
        sizes.append(len(ids))
        return generate(model, ids, *args, **settings)

    monkeypatch.setattr("tinygpt_lightning.trained.generate", counted)
    questions = ["Xin chào", "Xin", "chào"] * 50
    assert trained.answer_all(questions) == trained.answer_all(questions[:3]) * 50
    assert sizes == [64, 64, 22, 3]


def test_several_threads_get_what_one_gets(file: Path) -> None:
    trained = load(file)
    prompts = [SENTENCE[: 1 + i % 40] for i in range(200)]
    config = GenerationConfig(temperature=1.0, seed=1)
    expected = [(trained.complete(prompt, config), trained.predict_next(prompt)) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        got = threads.map(lambda prompt: (trained.complete(prompt, config), trained.predict_next(prompt)), prompts)
        assert list(got) == expected
    assert not trained.model.training


def test_an_answer_is_known_where_the_question_is_like_the_taught_one(model: TinyGPT) -> None:
    taught = replace(TAUGHT, known_from=0.8)
    trained = TrainedGPT(model, CharTokenizer.from_text(SENTENCE), taught)
    answer = QAPair().answer
    assert trained.ask("Xin chào") == (answer, 1.0, True)
    assert trained.judge("xin chao?", answer) == (answer, 1.0, True)
    assert trained.judge("Bạn là ai", answer).known is False
    assert trained.ask("Xin " + "chào" * 50) == ("", pytest.approx(0.03, abs=0.03), False), "too long, and foreign"
    assert trained.judge("Xin chào", "something else") == ("something else", 0.0, False)
    assert trained.ask("Ω") == ("", 0.0, False)
    assert trained.nearest("chào") == ["Xin chào"]
    without = TrainedGPT(model, CharTokenizer.from_text(SENTENCE), TAUGHT)
    assert without.judge("Bạn là ai", answer).known is True
    with pytest.raises(UnknownCharacterError):
        without.ask("Ω")


def test_a_question_in_another_form_is_read_as_the_taught_one(model: TinyGPT) -> None:
    pairs = [QAPair("Ma là gì?", "1"), QAPair("Má là gì?", "2"), QAPair("Dự án này là gì", "3")]
    taught = replace(Taught.of(pairs), known_from=0.8)
    trained = TrainedGPT(model, taught.tokenizer(), taught)
    assert trained.as_taught("  du an này LÀ gì???") == "Dự án này là gì"
    assert trained.as_taught("Dự án nàyy là gì") == "Dự án này là gì"
    for question in ("Mà là gì?", "Má là gì?", "Ω"):  # one of two, taught, foreign
        assert trained.as_taught(question) == question
    without = TrainedGPT(model, taught.tokenizer(), replace(taught, known_from=None))
    assert without.as_taught("du an nay la gi") == "du an nay la gi"


def test_the_threshold_travels_in_the_checkpoint(model: TinyGPT, tmp_path: Path) -> None:
    for known_from in (None, 0.75):
        taught = replace(TAUGHT, known_from=known_from)
        save(TrainedGPT(model, CharTokenizer.from_text(SENTENCE), taught), tmp_path / "a.ckpt")
        assert load(tmp_path / "a.ckpt").taught.known_from == known_from
    earlier = {name: value for name, value in described().items() if name != "known_from"}
    write_checkpoint(checkpoint(model, tinygpt=earlier), tmp_path / "earlier.ckpt")
    assert load(tmp_path / "earlier.ckpt").taught.known_from is None


def test_the_prompt_comes_back_composed(file: Path) -> None:
    assert load(file).complete("Question: Xin cha\u0300o") == SENTENCE


def test_what_cannot_be_asked_is_refused(file: Path) -> None:
    trained = load(file)
    with pytest.raises(UnknownCharacterError, match="'Z'"):
        trained.answer("Z")
    with pytest.raises(ValueError, match="prompt: expected at least one character"):
        trained.complete("")
    with pytest.raises(ValueError, match="max_length"):
        trained.answer("Xin" * 30)


# Files with a valid digest and nonsense in them


def config(**changes: Any) -> dict[str, Any]:
    return {"tinygpt": {**described(), "config": {**asdict(CONFIG), **changes}}}


def described() -> dict[str, Any]:
    return describe(CONFIG, CharTokenizer.from_text(SENTENCE), TAUGHT)


def weights(**changes: Tensor) -> dict[str, Any]:
    state = {f"model.{name}": weight for name, weight in TinyGPT(CONFIG).state_dict().items()}
    return {"state_dict": {**state, **changes}}


NONSENSE: dict[str, tuple[dict[str, Any], str]] = {
    "no entry": ({"tinygpt": None}, "is of another model: it has no entry 'tinygpt'"),
    "no mapping": ({"tinygpt": [1]}, "expected entries in tinygpt, got list"),
    "no vocabulary": ({"tinygpt": {**described(), "vocab": None}}, "expected an object from symbol to id"),
    "a vocabulary of another size": (
        {"tinygpt": {**described(), "vocab": CharTokenizer.from_text("abc").vocab}},
        "expected a vocabulary of 34 symbols, got 5",
    ),
    "no template": ({"tinygpt": {**described(), "template": "hello"}}, "template: expected {question}"),
    "no list of questions": (
        {"tinygpt": {**described(), "questions": "Xin chào"}},
        "expected a list of texts as questions, got 'Xin chào'",
    ),
    "an answer that is no text": (
        {"tinygpt": {**described(), "answers": [1]}},
        "expected a list of texts as answers, got [1]",
    ),
    "an empty question": (
        {"tinygpt": {**described(), "questions": [""]}},
        "expected a list of texts as questions, got ['']",
    ),
    "a question without an answer": (
        {"tinygpt": {**described(), "answers": []}},
        "expected 1 answers, one to each question, got 0",
    ),
    "no length": ({"tinygpt": {**described(), "max_length": 0}}, "max_length: expected 1 or more, or None, got 0"),
    "a length as truth": (
        {"tinygpt": {**described(), "max_length": True}},
        "max_length: expected 1 or more, or None, got True",
    ),
    "a threshold above 1": (
        {"tinygpt": {**described(), "known_from": 1.5}},
        "known_from: expected a number from 0 to 1",
    ),
    "a threshold as text": (
        {"tinygpt": {**described(), "known_from": "1"}},
        "known_from: expected a number from 0 to 1",
    ),
    "an unknown entry": ({"tinygpt": {**described(), "x": 1}}, "its tinygpt has an unknown entry 'x'"),
    "a missing entry": ({"tinygpt": {"vocab": {}}}, "its tinygpt lacks 'config'"),
    "an unknown size": (config(depth=2), "its tinygpt.config has an unknown entry 'depth'"),
    "a width as text": (config(n_embd="32"), "expected int as config.n_embd, got '32'"),
    "a width as a number with a point": (config(n_embd=32.0), "expected int as config.n_embd, got 32.0"),
    "a truth as a number": (config(bias=1), "expected bool as config.bias, got 1"),
    "no number": (config(embd_pdrop=None), "expected float as config.embd_pdrop, got None"),
    "a width out of range": (config(n_embd=-4), "n_embd: expected 1 or more, got -4"),
    "a width of 480 GB": (config(n_embd=200_000), "expected (34, 200000) as wte.weight, got (34, 32)"),
    "a width that no machine counts to": (config(n_embd=4 * 10**20), "is invalid: "),
    "no weights": ({"state_dict": None}, "expected entries in state_dict, got NoneType"),
    "weights of something else": ({"state_dict": {"a": torch.ones(1)}}, "its state_dict lacks 'model.wte.weight'"),
    "a weight too many": (weights(extra=torch.ones(1)), "its state_dict has an unknown entry 'extra'"),
    "a weight of another shape": (
        weights(**{"model.ln_f.bias": torch.ones(3)}),
        "expected (32,) as ln_f.bias, got (3,) of torch.float32",
    ),
    "a weight of whole numbers": (
        weights(**{"model.ln_f.bias": torch.ones(32, dtype=torch.long)}),
        "expected (32,) as ln_f.bias, got (32,) of torch.int64",
    ),
    "a weight that is none": (weights(**{"model.ln_f.bias": "?"}), "expected (32,) as ln_f.bias, got '?'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_refused_in_a_line_that_names_it(tmp_path: Path, name: str) -> None:
    changes, reason = NONSENSE[name]
    path = tmp_path / "nonsense.ckpt"
    write_checkpoint(checkpoint(TinyGPT(CONFIG), **changes), path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith((f"{path}: is of ", f"{path}: is invalid: "))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        load(tmp_path)  # a folder without a run


@pytest.mark.parametrize("changes", [{}, {"tie_weights": True}, {"bias": False, "initializer_range": 0.1}], ids=str)
def test_what_is_saved_is_loaded_to_the_bit(changes: dict[str, Any], tmp_path: Path) -> None:
    network = TrainedGPT(
        TinyGPT(replace(CONFIG, **changes)),
        CharTokenizer.from_text(SENTENCE),
        Taught.of([QAPair()], prompt_to="question"),
    )
    save(network, tmp_path / "a.ckpt")
    back = load(tmp_path / "a.ckpt")
    assert (back.model.config, back.tokenizer.vocab, back.taught) == (
        network.model.config, network.tokenizer.vocab, network.taught,
    )  # fmt: skip
    assert all(weight.equal(network.model.state_dict()[name]) for name, weight in back.model.state_dict().items())


def test_a_model_without_weights_has_the_shapes_and_takes_no_memory() -> None:
    config = replace(CONFIG, initializer_range=0.1, tie_weights=True)
    shapes = {name: weight.shape for name, weight in without_weights(config).state_dict().items()}
    assert shapes == {name: weight.shape for name, weight in TinyGPT(config).state_dict().items()}
    immense = without_weights(replace(CONFIG, n_embd=4 * 10**6))
    assert all(parameter.is_meta for parameter in immense.parameters())


def test_no_prompts_have_no_texts(model: TinyGPT) -> None:
    trained = TrainedGPT(model, CharTokenizer.from_text(SENTENCE), TAUGHT)
    assert trained.complete_all([]) == trained.answer_all([]) == []


def test_a_checkpoint_without_prompt_to_has_the_prompts_of_earlier_versions(model: TinyGPT, tmp_path: Path) -> None:
    for pairs, expected in (([QAPair()], "question"), ([QAPair(), QAPair("Xin", "chào")], "answer")):
        described = describe(model.config, CharTokenizer.from_text(SENTENCE), Taught.of(pairs))
        del described["prompt_to"]
        write_checkpoint(checkpoint(model, tinygpt=described), tmp_path / "earlier.ckpt")
        assert load(tmp_path / "earlier.ckpt").taught.prompt_to == expected


def test_a_model_is_saved_and_loaded_where_lightning_is_not_installed(file: Path) -> None:
    program = """
import importlib.metadata, sys
sys.modules["lightning"] = sys.modules["pytorch_lightning"] = None
def version(name):
    raise importlib.metadata.PackageNotFoundError(name)
importlib.metadata.version = version
from tinygpt_lightning.trained import load, save
save(load(sys.argv[1]), sys.argv[2])
print(load(sys.argv[2]).answer("Xin chào"))
"""
    command = [sys.executable, "-c", program, file, file.with_name("saved.ckpt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "Công ty BICweb kính chào quý khách!\n"
