"""Batches: a pair is in them what it is alone, and the padding is nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tinygpt_lightning.data.batches import COPY, IGNORED, Batch, Collate, NumberedPairs, exact_rows
from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer, UnknownCharacterError

PAIRS = [QAPair("1 + 1", "2"), QAPair("1 + 10", "11"), QAPair("Xin chào", "Chào bạn!"), QAPair("?", "A" * 40)]
TAUGHT = Taught.of(PAIRS, end_symbol=True)
TOKENIZER = TAUGHT.tokenizer(end_symbol=True)


def collate(pairs: Sequence[QAPair], taught: Taught = TAUGHT, tokenizer: CharTokenizer = TOKENIZER) -> Batch:
    return Collate(tokenizer, taught)(list(enumerate(pairs)))


@pytest.fixture(scope="module")
def model() -> TinyGPT:
    torch.manual_seed(0)
    return TinyGPT(GPTConfig(len(TOKENIZER), n_positions=80, n_embd=32, n_head=4)).eval()


def test_a_row_is_the_text_the_next_characters_and_those_of_the_answer() -> None:
    batch = collate(PAIRS)
    assert batch.ids.shape == batch.targets.shape == batch.answers.shape == (4, TAUGHT.max_length - 1)
    for row, pair in enumerate(PAIRS):
        prompt, answer = f"Question: {pair.question} \nAnswer: ", f"{pair.answer}."
        ids = [*TOKENIZER.encode(prompt + answer), TOKENIZER.end]
        padding = TAUGHT.max_length - len(ids)
        assert batch.ids[row].tolist() == [*ids, *[TOKENIZER.vocab["<pad>"]] * padding][:-1]
        assert batch.targets[row].tolist() == [*ids[1:], *[IGNORED] * padding]
        before = len(prompt) - 1
        assert batch.answers[row].tolist() == [*[IGNORED] * before, *ids[len(prompt) :], *[IGNORED] * padding]


def test_without_an_end_symbol_the_last_character_is_the_last_target() -> None:
    batch = collate(PAIRS[:1], Taught.of(PAIRS), Taught.of(PAIRS).tokenizer())
    text = "Question: 1 + 1 \nAnswer: 2."
    assert Taught.of(PAIRS).tokenizer().decode(batch.targets[0].tolist()) == text[1:]
    assert batch.ids.shape == (1, len(text) - 1)


def test_a_pair_has_the_logits_and_the_loss_that_it_has_alone(model: TinyGPT) -> None:
    together = collate(PAIRS)
    logits = model(together.ids)
    for row, pair in enumerate(PAIRS):
        alone = collate([pair])
        expected = model(alone.ids)
        T = alone.ids.size(1)
        torch.testing.assert_close(logits[row, :T], expected[0], atol=1e-6, rtol=0)
        for kind in ("targets", "answers"):
            loss = F.cross_entropy(logits[row], getattr(together, kind)[row])
            torch.testing.assert_close(loss, F.cross_entropy(expected[0], getattr(alone, kind)[0]), atol=1e-6, rtol=0)


def test_the_loss_of_a_batch_is_the_mean_over_all_characters(model: TinyGPT) -> None:
    batch = collate(PAIRS)
    together = F.cross_entropy(model(batch.ids).flatten(0, 1), batch.targets.flatten())
    losses = [
        F.cross_entropy(model(alone.ids)[0], alone.targets[0], reduction="none")
        for alone in (collate([pair]) for pair in PAIRS)
    ]
    torch.testing.assert_close(together, torch.cat(losses).mean(), atol=1e-6, rtol=0)


def test_a_pair_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    whole = CharTokenizer.encode

    def counted(self: CharTokenizer, text: str) -> list[int]:
        calls.append(text)
        return whole(self, text)

    monkeypatch.setattr(CharTokenizer, "encode", counted)
    reused = Collate(TOKENIZER, TAUGHT)
    for _ in range(3):
        reused(list(enumerate(PAIRS)))
        reused(list(enumerate(PAIRS[::-1])))
    assert len(calls) == 2 * len(PAIRS)


def test_a_character_that_the_vocabulary_lacks_is_refused() -> None:
    with pytest.raises(UnknownCharacterError, match="'Z'"):
        collate([PAIRS[0], QAPair("Z", "A")])


text = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.dictionaries(text, text, min_size=1, max_size=6), st.booleans())
def test_any_pairs_come_through_a_batch_unharmed(pairs: dict[str, str], end_symbol: bool) -> None:
    taught = Taught.of(map(QAPair, pairs, pairs.values()), end_symbol=end_symbol)
    tokenizer = taught.tokenizer(end_symbol=end_symbol)
    batch = collate(taught.pairs, taught, tokenizer)
    for pair, ids, targets, answers in zip(taught.pairs, batch.ids, batch.targets, batch.answers, strict=True):
        prompt, rest = taught.parts(pair)
        counted = [i for i in targets.tolist() if i != IGNORED]
        assert tokenizer.decode([int(ids[0]), *counted]) == prompt + rest
        assert tokenizer.decode([i for i in answers.tolist() if i != IGNORED]) == rest
        assert len(counted) + 1 == len(prompt + rest) + end_symbol
        assert taught.template.answer(tokenizer.decode(tokenizer.encode(rest))) in (rest[:-1], pair.answer)


def test_a_row_is_exact_if_every_character_of_the_answer_is_the_likeliest() -> None:
    batch = collate(PAIRS)
    perfect = batch.targets.clamp(min=0)
    assert exact_rows(perfect, batch, TOKENIZER, TAUGHT.max_length).tolist() == [True] * 4
    for row in range(4):
        for position in range(perfect.size(1)):
            spoilt = perfect.clone()
            spoilt[row, position] += 1
            counts = bool(batch.mask[row, position])
            exact = exact_rows(spoilt, batch, TOKENIZER, TAUGHT.max_length).tolist()
            assert exact == [not (counts and i == row) for i in range(4)]


def test_without_an_end_symbol_only_the_longest_text_is_exact() -> None:
    taught = Taught.of(PAIRS)
    batch = collate(PAIRS, taught, taught.tokenizer())
    exact = exact_rows(batch.targets.clamp(min=0), batch, taught.tokenizer(), taught.max_length)
    assert exact.tolist() == [taught.length(pair) == taught.max_length for pair in PAIRS]
    assert exact.sum() == 1


def test_rows_number_the_pairs_and_mark_copies() -> None:
    numbered = NumberedPairs(PAIRS)[[2, ~0, 1]]
    assert numbered == [(2, PAIRS[2]), (COPY, PAIRS[0]), (1, PAIRS[1])]
    assert Collate(TOKENIZER, TAUGHT)(numbered).rows.tolist() == [2, COPY, 1]
