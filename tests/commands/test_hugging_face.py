"""Hugging Face's folder: opened by its own programs, and taken back."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import learnt, untrained
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel, pipeline

from tinygpt_lightning.commands.hugging_face import read_hugging_face, write_hugging_face
from tinygpt_lightning.data.text import QAPair, Template
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.tokenizer import normalize
from tinygpt_lightning.trained import TrainedGPT

FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def network() -> TrainedGPT:
    return learnt()


@pytest.fixture(scope="module")
def exported(network: TrainedGPT, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_hugging_face(network, folder)
    return folder


@pytest.fixture(scope="module")
def theirs(exported: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(exported).eval()


@pytest.fixture(scope="module")
def their_tokenizer(exported: Path) -> Any:
    return AutoTokenizer.from_pretrained(exported)


def test_it_is_a_folder_as_hugging_face_has_it(exported: Path, theirs: Any) -> None:
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert isinstance(theirs, GPT2LMHeadModel)


def test_logits_are_the_same(network: TrainedGPT, theirs: Any) -> None:
    ids = torch.randint(len(network.tokenizer), (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, network.model(ids), rtol=0, atol=1e-5)


def test_greedy_texts_are_the_same_as_far_as_their_end(network: TrainedGPT, theirs: Any, their_tokenizer: Any) -> None:
    for pair in network.taught.pairs:
        prompt = network.taught.prompt(pair.question)
        ids = theirs.generate(**their_tokenizer(prompt, return_tensors="pt"))[0].tolist()
        assert their_tokenizer.decode(ids, skip_special_tokens=True) == network.complete(prompt)
        assert network.answer(pair.question) == pair.answer
        assert ids[-1] == network.tokenizer.end


def test_a_padded_batch_gives_each_prompt_what_it_gives_alone(
    network: TrainedGPT, theirs: Any, their_tokenizer: Any
) -> None:
    prompts = [network.taught.prompt(pair.question) for pair in network.taught.pairs]
    batch = their_tokenizer(prompts, return_tensors="pt", padding=True)
    assert batch["input_ids"].shape[0] > 2
    texts = their_tokenizer.batch_decode(theirs.generate(**batch), skip_special_tokens=True)
    assert texts == [network.complete(prompt) for prompt in prompts]


def test_a_chat_and_a_number_of_new_symbols_give_no_warning(
    network: TrainedGPT, exported: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "transformers")
    logging.getLogger("transformers").propagate = True
    ask = pipeline("text-generation", model=str(exported), device="cpu")
    for pair in network.taught.pairs:
        (said,) = ask([{"role": "user", "content": pair.question}], max_new_tokens=32)
        assert said["generated_text"][-1]["content"] == pair.answer + "."
    assert not [record.message for record in caplog.records if "max_" in record.message]


@pytest.mark.parametrize("question", ["{question}", "{question:9}", "{question:>9}"])
def test_a_chat_fills_a_question_up_as_the_template_does(question: str, tmp_path: Path) -> None:
    network = untrained(template=Template(f"Q {question} = {{answer}}"))
    write_hugging_face(network, tmp_path)
    chat = [{"role": "user", "content": "Xin"}]
    prompt = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(chat, tokenize=False)
    assert prompt == network.taught.prompt("Xin")


def test_the_model_is_given_ids_and_a_mask_and_nothing_that_it_would_add(their_tokenizer: Any) -> None:
    assert set(their_tokenizer("Xin chào")) == {"input_ids", "attention_mask"}


def test_special_symbols_are_known_by_name(network: TrainedGPT, their_tokenizer: Any) -> None:
    assert their_tokenizer.eos_token_id == network.tokenizer.end
    assert their_tokenizer.pad_token_id == network.tokenizer.vocab["<pad>"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_ids_are_the_same_whatever_is_written(network: TrainedGPT, their_tokenizer: Any, data: st.DataObject) -> None:
    symbols = [symbol for symbol in network.tokenizer.vocab if len(symbol) == 1]
    text = data.draw(st.lists(st.sampled_from([*symbols, "a\u0300", "<eos>", " ."])).map("".join))
    ids = their_tokenizer(text)["input_ids"]
    assert ids == network.tokenizer.encode(text)
    assert their_tokenizer.decode(ids) == normalize(text)


def test_a_character_that_is_not_known_is_refused_there_too(their_tokenizer: Any) -> None:
    with pytest.raises(Exception, match=r"Missing \[UNK\]"):
        their_tokenizer("Z")


ROUND_TRIPS: dict[str, Callable[[], TrainedGPT]] = {
    "an end symbol": untrained,
    "no end symbol": lambda: untrained(end_symbol=False),
    "a template": lambda: untrained(template=Template("{question}? {answer}")),
    "tied weights": lambda: untrained(tie_weights=True),
    "sizes": lambda: untrained(n_inner=50, n_head=2, n_positions=70, layer_norm_epsilon=0.1, attn_pdrop=0.3),
    "initial weights": lambda: untrained(initializer_range=0.3),
    "one pair": lambda: untrained([QAPair()], end_symbol=False, n_positions=70),
}


@pytest.mark.parametrize("make", ROUND_TRIPS.values(), ids=ROUND_TRIPS.keys())
def test_what_goes_out_comes_back_to_the_bit(make: Callable[[], TrainedGPT], tmp_path: Path) -> None:
    network = make()
    network.taught = replace(network.taught, known_from=0.75)
    write_hugging_face(network, tmp_path)
    back = read_hugging_face(tmp_path)
    assert back.model.config == network.model.config
    assert (back.tokenizer.vocab, back.taught) == (network.tokenizer.vocab, network.taught)
    weights = back.model.state_dict()
    assert weights.keys() == network.model.state_dict().keys()
    for name, weight in network.model.state_dict().items():
        assert torch.equal(weights[name], weight)
        assert weights[name].is_contiguous()
    assert (back.model.lm_head.weight is back.model.wte.weight) == network.model.config.tie_weights


def test_half_precision_stays_what_it_is(tmp_path: Path) -> None:
    network = untrained()
    network.model.to(torch.bfloat16)
    write_hugging_face(network, tmp_path)
    back = read_hugging_face(tmp_path)
    assert all(
        torch.equal(back.model.state_dict()[name], weight) for name, weight in network.model.state_dict().items()
    )


def test_what_hugging_face_has_saved_again_is_taken(
    network: TrainedGPT, theirs: Any, their_tokenizer: Any, tmp_path: Path
) -> None:
    theirs.save_pretrained(tmp_path)
    their_tokenizer.save_pretrained(tmp_path)
    back = read_hugging_face(tmp_path)
    assert (back.tokenizer.vocab, back.taught) == (network.tokenizer.vocab, network.taught)
    assert all(
        torch.equal(back.model.state_dict()[name], weight) for name, weight in network.model.state_dict().items()
    )


def test_a_network_without_biases_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^bias: expected true"):
        write_hugging_face(untrained(bias=False), tmp_path)


def changed(folder: Path, file: str, **changes: Any) -> None:
    content = json.loads((folder / file).read_text(encoding="utf-8"))
    (folder / file).write_text(json.dumps({**content, **changes}), encoding="utf-8")


def written(name: str, content: bytes) -> Callable[[Path], None]:
    def break_(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return break_


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "config.json", **changes)


def tokenizer(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "tokenizer.json", **changes)


def weights(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    def break_(folder: Path) -> None:
        file = folder / "model.safetensors"
        content = {**load_file(file), **changes}
        save_file({name: weight for name, weight in content.items() if weight is not None}, file)

    return break_


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "more layers": (config(n_layer=2), "config.json: cannot be expressed: expected 1 as n_layer, got 2"),
    "another activation": (config(activation_function="relu"), 'expected "gelu_new" .* as activation_.*, got "relu"'),
    "another model": (config(model_type="llama"), 'expected "gpt2" as model_type, got "llama"'),
    "attention without its scale": (config(scale_attn_weights=False), "scale_attn_weights"),
    "truth as a number of layers": (config(n_layer=True), "n_layer"),
    "a width in words": (config(n_embd="wide"), "n_embd.*'wide'"),
    "a width of another network": (config(n_embd=64), r"expected \(.*64\) as wte.weight"),
    "an immense width": (config(n_embd=10**12, n_head=1), "is invalid"),
    "no number": (written("config.json", b'{"n_embd": NaN}'), "config.json: expected a JSON object, got none"),
    "no JSON": (written("config.json", b"{"), "config.json: expected a JSON object, got none"),
    "no UTF-8": (written("config.json", b"\xff"), "config.json: expected a JSON object, got none"),
    "no object": (written("config.json", b"[]"), "config.json: expected a JSON object, got list"),
    "deep JSON": (written("config.json", b"[" * 10**5), "config.json: expected a JSON object, got none"),
    "another template": (config(tinygpt={"template": "hello"}), "template: expected {question}"),
    "no object of ours": (config(tinygpt=[1]), "expected an object as tinygpt, got list"),
    "words as symbols": (tokenizer(model={"type": "BPE"}), 'tokenizer.json: .*expected "WordLevel" as type, got "BPE"'),
    "no symbols": (tokenizer(model=None), "expected .* as type, got null"),
    "another normalization": (tokenizer(normalizer={"type": "NFKC"}), "as normalizer"),
    "text in words": (tokenizer(pre_tokenizer={"type": "Whitespace"}), "as pre_tokenizer"),
    "a vocabulary of words": (
        tokenizer(model={"type": "WordLevel", "vocab": {"hello": 0}}), "expected single characters",
    ),
    "no vocabulary": (tokenizer(model={"type": "WordLevel"}), "expected an object from symbol to id"),
    "weights cut off": (written("model.safetensors", b"\xff" * 100), "model.safetensors: "),
    "empty weights": (written("model.safetensors", b""), "model.safetensors: "),
    "a weight too few": (weights(**{"transformer.ln_f.bias": None}), "ln_f.bias"),
    "a weight too many": (weights(**{"transformer.h.1.ln_1.bias": torch.ones(32)}), "'transformer.h.1.ln_1.bias'"),
    "a weight by our name": (weights(**{"h.ln_1.bias": torch.ones(32)}), "'h.ln_1.bias' is no weight"),
    "a weight of another shape": (weights(**{"transformer.ln_f.bias": torch.ones(3)}), r"expected \(32,\) as ln_f"),
    "a weight of integers": (weights(**{"transformer.ln_f.bias": torch.ones(32).int()}), "torch.int32"),
}  # fmt: skip


@pytest.mark.parametrize(("break_", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_expressed_or_trusted_is_refused_by_name(
    break_: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    write_hugging_face(untrained(), tmp_path)
    break_(tmp_path)
    with pytest.raises(CheckpointError, match=reason) as error:
        read_hugging_face(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named(name: str, tmp_path: Path) -> None:
    write_hugging_face(untrained(), tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: cannot be read: No such file"):
        read_hugging_face(tmp_path)
