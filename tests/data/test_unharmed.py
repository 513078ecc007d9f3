"""Any pairs, from a file of any form to the texts of a model that knows them."""

from __future__ import annotations

import unicodedata

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pair_files import in_form, read
from torch import Tensor

from tinygpt_lightning.data.batches import IGNORED, Batch, Collate, exact_rows
from tinygpt_lightning.data.text import Taught
from tinygpt_lightning.gpt.generation import GenerationConfig, generate
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
any_pairs = st.lists(
    st.tuples(texts, texts), min_size=1, max_size=6, unique_by=lambda pair: unicodedata.normalize("NFC", pair[0])
)


class Oracle(TinyGPT):
    """Says what a batch taught, looked up and not computed."""

    def __init__(self, config: GPTConfig, batch: Batch) -> None:
        super().__init__(config)
        self.known = {
            tuple(ids[: t + 1]): target
            for ids, answers in zip(batch.ids.tolist(), batch.answers.tolist(), strict=True)
            for t, target in enumerate(answers)
            if target != IGNORED
        }

    def forward(self, ids: Tensor) -> Tensor:
        logits = torch.zeros(*ids.shape, self.config.vocab_size)
        for row, symbols in enumerate(ids.tolist()):
            for t in range(len(symbols)):
                logits[row, t, self.known.get(tuple(symbols[: t + 1]), 0)] = 1
        return logits


@settings(deadline=None)
@given(any_pairs, st.sampled_from([".jsonl", ".csv", ".tsv"]))
def test_any_pairs_come_through_file_vocabulary_batch_padding_and_decoding(
    pairs: list[tuple[str, str]], kind: str
) -> None:
    file = read(in_form(kind, pairs), f"pairs{kind}")
    taught = Taught.of(file.pairs, end_symbol=True)
    tokenizer = taught.tokenizer(end_symbol=True)
    batch = Collate(tokenizer, taught)(list(enumerate(taught.pairs)))
    oracle = Oracle(GPTConfig(len(tokenizer), n_positions=128, n_embd=4, n_head=1), batch)
    assert exact_rows(oracle(batch.ids).argmax(-1), batch, tokenizer, taught.max_length).all()
    prompts = [tokenizer.encode(prompt) for prompt in taught.prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padded = torch.tensor([[*prompt, *[0] * (int(lengths.max()) - len(prompt))] for prompt in prompts])
    config = GenerationConfig(max_length=taught.max_length)
    said = generate(oracle, padded, config, lengths=lengths, end=tokenizer.end, use_cache=False).tolist()
    assert said[0][: len(prompts[0])] == prompts[0]
    for (question, answer), ids in zip(pairs, said, strict=True):
        expected = unicodedata.normalize("NFC", question), unicodedata.normalize("NFC", answer)
        continuation = tokenizer.decode(ids).removeprefix(taught.prompt(expected[0]))
        assert taught.template.answer(continuation).endswith(expected[1])
