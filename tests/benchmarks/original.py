"""The original project's work in plain PyTorch, as a yardstick: the same model, steps, files and ways of doing it.

Written anew from what the original does (folder Single_Block_GPT2_No_depend of Mr-Jack-Tung's oneChatGPT):
attention and GELU spelt out, AdamW as PyTorch has it, a new model and optimizer for each of two stages of 30 epochs,
the weights through a file, the loss of every epoch printed; and text of 64 characters without a cache.

    python tests/benchmarks/original.py train FOLDER
    python tests/benchmarks/original.py generate FOLDER
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
PROMPT = "Question: Xin chào"
SYMBOLS = [*sorted(set(SENTENCE)), "<pad>", "<unk>"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3))))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("bias", torch.ones(positions, positions, dtype=torch.uint8).tril())
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.attn_dropout = nn.Dropout(0.1)
        self.resid_dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (part.view(B, T, self.heads, C // self.heads).transpose(1, 2) for part in self.c_attn(x).split(C, 2))
        weights = q @ k.transpose(-1, -2) / math.sqrt(C // self.heads)
        weights = torch.where(self.bias[:T, :T].bool(), weights, torch.tensor(-1e4))
        weights = self.attn_dropout(F.softmax(weights, dim=-1))
        return self.resid_dropout(self.c_proj((weights @ v).transpose(1, 2).contiguous().view(B, T, C)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, positions: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, positions)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.dropout(self.c_proj(gelu(self.c_fc(self.ln_2(x)))))


class Original(nn.Module):
    def __init__(self, vocabulary: int = 34, width: int = 768, heads: int = 12, positions: int = 1024) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(positions, width)
        self.drop = nn.Dropout(0.1)
        self.h = Block(width, heads, positions)
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(ids.size(1))))
        logits: Tensor = self.lm_head(self.ln_f(self.h(x)))
        return logits

    def loss(self, ids: Tensor) -> Tensor:
        """The whole sentence in, the scores of its last character thrown away."""
        logits = self(ids)[:, :-1].contiguous()
        return F.cross_entropy(logits.view(-1, logits.size(-1)), ids[:, 1:].contiguous().view(-1))

    @torch.no_grad()
    def generate(self, ids: Tensor, max_length: int) -> Tensor:
        self.eval()
        while ids.size(1) < max_length:
            ids = torch.cat([ids, self(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
        return ids


def encode(text: str) -> Tensor:
    return torch.tensor([[SYMBOLS.index(character) for character in text]])


def train(folder: Path) -> None:
    weights = folder / "single_block_model_state_dict.pth"
    for stage in range(2):
        model = Original()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
        if weights.exists():
            model.load_state_dict(torch.load(weights))
        print(model)
        model.train()
        for epoch in range(30):
            loss = model.loss(encode(SENTENCE))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print(f"Stage {stage + 1}, Epoch {epoch + 1}/30, Loss {loss.item():.4f}")
        folder.mkdir(exist_ok=True)
        torch.save(model.state_dict(), weights)
        (folder / "vocab.json").write_text(
            json.dumps({symbol: i for i, symbol in enumerate(SYMBOLS)}), encoding="utf-8"
        )


def generate(folder: Path) -> None:
    model = Original()
    model.load_state_dict(torch.load(folder / "single_block_model_state_dict.pth"))
    print("".join(SYMBOLS[i] for i in model.generate(encode(PROMPT), 64)[0].tolist()))


if __name__ == "__main__":
    {"train": train, "generate": generate}[sys.argv[1]](Path(sys.argv[2]))
