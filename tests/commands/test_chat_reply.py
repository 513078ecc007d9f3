"""An answer while it is written."""

from __future__ import annotations

import pytest
import torch
from networks import PAIRS, learnt, untrained

from tinygpt_lightning.commands.chat import Reply
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.tokenizer import UnknownCharacterError
from tinygpt_lightning.trained import TrainedGPT

GREEDY = GenerationConfig()


@pytest.fixture(scope="module")
def network() -> TrainedGPT:
    return learnt()


@pytest.mark.parametrize(
    "generation", [GREEDY, *(GenerationConfig(temperature=5.0, seed=seed) for seed in range(10))], ids=str
)
@pytest.mark.parametrize("end_symbol", [True, False])
def test_it_is_the_answer_that_the_network_gives(end_symbol: bool, generation: GenerationConfig) -> None:
    network = untrained(end_symbol=end_symbol)
    for pair in PAIRS:
        reply = Reply(network, pair.question, generation)
        assert "".join(symbol.text for symbol in reply.shown()) == network.answer(pair.question, generation)


def test_what_closes_an_answer_is_written_and_not_shown(network: TrainedGPT) -> None:
    reply = Reply(network, "Xin chào", GREEDY)
    assert "".join(symbol.text for symbol in reply.shown()) == "Chào bạn!"
    assert [symbol.text for symbol in reply.written] == [*"Chào bạn!.", "<eos>"]


def test_probabilities_are_the_networks_own_at_any_temperature(network: TrainedGPT) -> None:
    reply = Reply(network, "Xin chào", GenerationConfig(temperature=3.0, seed=1))
    list(reply.shown())
    prompt = network.tokenizer.encode("Question: Xin chào \nAnswer: ")
    ids = prompt + [network.tokenizer.vocab[symbol.text] for symbol in reply.written]
    with torch.no_grad():
        probabilities = network.model(torch.tensor([ids])).double().softmax(-1)[0]
    for position, symbol in enumerate(reply.written, len(prompt)):
        expected = probabilities[position - 1]
        assert symbol.probability == pytest.approx(expected[ids[position]].item(), rel=1e-4, abs=1e-7)
        others = [i for i in expected.argsort(descending=True).tolist() if i != ids[position]][:3]
        assert [network.tokenizer.vocab[text] for text, _ in symbol.runners_up] == others
        assert [share for _, share in symbol.runners_up] == pytest.approx(
            [expected[i].item() for i in others], rel=1e-4, abs=1e-7
        )


def test_the_heads_looked_at_what_was_there(network: TrainedGPT) -> None:
    reply = Reply(network, "Xin chào", GREEDY)
    list(reply.shown())
    for number in (1, 3, len(reply.written)):
        context = reply.context(number)
        assert "".join(context) == "Question: Xin chào \nAnswer: " + "Chào bạn!."[: number - 1]
        ids = torch.tensor([[network.tokenizer.vocab[symbol] for symbol in context]])
        assert torch.equal(reply.attention(number), network.model.attention_weights(ids)[0, :, -1])
        assert reply.attention(number).shape == (4, len(context))


def test_what_cannot_be_asked_is_refused_by_its_place_in_the_question(network: TrainedGPT) -> None:
    with pytest.raises(UnknownCharacterError, match=r"'Z' .* at position 5 of 'Xin Z'"):
        Reply(network, "Xin Z", GREEDY)
    with pytest.raises(ValueError, match="prompt: expected at most max_length"):
        Reply(network, "Xin" * 30, GREEDY)
