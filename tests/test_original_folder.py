"""The original project's folder, written here by hand as its own code writes it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SENTENCE
from torch import Tensor, nn
from torch.nn import functional as F

from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.tokenizer import VocabularyError
from tinygpt_lightning.original import read_original

SYMBOLS = [*sorted(set(SENTENCE)), "<pad>", "<unk>"]
RESORTED = sorted(SYMBOLS)  # what the original makes of them whenever it reads them
WIDTH, POSITIONS = 48, 80


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.ones(1, 1, POSITIONS, POSITIONS, dtype=torch.uint8).tril())
        self.c_attn = nn.Linear(WIDTH, 3 * WIDTH)
        self.c_proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, 12, C // 12).transpose(1, 2) for part in self.c_attn(x).split(C, dim=2))
        scores = (q @ k.transpose(-1, -2) / (C // 12) ** 0.5).masked_fill(self.bias[:, :, :T, :T] == 0, -1e4)
        return self.c_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, C))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(WIDTH), Attention(), nn.LayerNorm(WIDTH), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Original(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(len(SYMBOLS), WIDTH), nn.Embedding(POSITIONS, WIDTH)
        self.h, self.ln_f = Block(), nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, len(SYMBOLS), bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm_head(self.ln_f(self.h(self.wte(ids) + self.wpe(torch.arange(ids.size(1))))))


def said(model: Original, prompt: str) -> str:
    """What the original's own generation prints: 64 symbols, with the vocabulary sorted anew."""
    ids = torch.tensor([[RESORTED.index(character) for character in prompt]])
    with torch.no_grad():
        while ids.size(1) < 64:
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return "".join(RESORTED[i] for i in ids[0].tolist())


def trained(symbols: list[str]) -> Original:
    """A network whose last stage was trained on ``symbols``."""
    torch.manual_seed(0)
    model = Original()
    ids = torch.tensor([[symbols.index(character) for character in SENTENCE]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        optimizer.zero_grad()
        F.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).backward()
        optimizer.step()
    return model


def written(folder: Path, weights: Any, symbols: list[str] = SYMBOLS) -> Path:
    torch.save(weights, folder / "single_block_model_state_dict.pth")
    text = json.dumps({symbol: i for i, symbol in enumerate(symbols)}, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(("symbols", "exact"), [(SYMBOLS, False), (RESORTED, True)], ids=["one stage", "two stages"])
def test_it_says_what_the_originals_own_generation_says(symbols: list[str], exact: bool, tmp_path: Path) -> None:
    model = trained(symbols)
    network = read_original(written(tmp_path, model.state_dict()))
    theirs = said(model, "Question: Xin chào")
    assert (theirs == SENTENCE) == exact
    assert network.complete("Question: Xin chào", GenerationConfig(max_length=64)) == theirs


def test_weights_are_equal_to_the_bit_and_the_mask_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Original()
    network = read_original(written(tmp_path, model.state_dict()))
    theirs = model.state_dict()
    assert theirs.pop("h.attn.bias").shape == (1, 1, POSITIONS, POSITIONS)
    assert theirs.keys() == network.model.state_dict().keys()
    assert all(torch.equal(network.model.state_dict()[name], weight) for name, weight in theirs.items())


def test_the_originals_sentence_is_told_by_its_characters(tmp_path: Path) -> None:
    weights = Original().state_dict()
    assert read_original(written(tmp_path, weights)).taught.pairs == (QAPair(),)
    other = ["Z" if symbol == "X" else symbol for symbol in SYMBOLS]
    assert read_original(written(tmp_path, weights, other)).taught.pairs == ()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


def test_nothing_in_it_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path, {})
    for content in (pickle.dumps(Evil()), b"", b"nonsense"):
        (tmp_path / "single_block_model_state_dict.pth").write_bytes(content)
        with pytest.raises(CheckpointError, match="single_block_model_state_dict.pth: "):
            read_original(tmp_path)
    assert capsys.readouterr().out == ""


def test_another_model_is_refused_by_name(tmp_path: Path) -> None:
    weights = Original().state_dict()
    for changes, reason in (
        ({"wte.weight": torch.ones(3)}, "expected a matrix as wte.weight"),
        ({"wte.weight": torch.ones(34, 50)}, "n_head: expected a divisor of n_embd=50, got 12"),
        ({"wte.weight": torch.ones(0, 48)}, "vocab_size: expected 1 or more, got 0"),
        ({"wte.weight": torch.ones(30, 48)}, "expected a vocabulary of 30 symbols, got 34"),
        ({"h.1.ln_1.weight": torch.ones(48)}, "h.1.ln_1.weight"),
        ({"h.ln_1.weight": torch.ones(49)}, r"expected \(48,\) as h.ln_1.weight"),
        ({"h.ln_1.weight": 3}, "expected weights by name"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            read_original(written(tmp_path, {**weights, **changes}))
    with pytest.raises(CheckpointError, match="expected weights by name"):
        read_original(written(tmp_path, [1]))


def test_a_vocabulary_that_is_none_is_refused(tmp_path: Path) -> None:
    written(tmp_path, Original().state_dict())
    for content in ("[" * 10**5, "[]", "{}"):
        (tmp_path / "vocab.json").write_text(content, encoding="utf-8")
        with pytest.raises(VocabularyError, match="vocab.json: is invalid as a vocabulary"):
            read_original(tmp_path)
