"""Small networks that know their answers, for tests that use one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tinygpt_lightning.data.batches import Collate
from tinygpt_lightning.data.text import QAPair, Taught, Template
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.trained import TrainedGPT

TEMPLATE = Template()
PAIRS = (
    QAPair("Xin chào", "Chào bạn!"),
    QAPair("你好", "我们很好。"),
    QAPair("family?", "👨‍👩‍👧 <eos>"),
    QAPair("/help", "a question, too"),
)


def untrained(
    pairs: Sequence[QAPair] = PAIRS, template: Template = TEMPLATE, *, end_symbol: bool = True, **config: Any
) -> TrainedGPT:
    """A network that could learn ``pairs``."""
    torch.manual_seed(0)
    taught = Taught.of(pairs, template, end_symbol=end_symbol)
    tokenizer = taught.tokenizer(end_symbol=end_symbol)
    sizes = {"n_positions": 64, "n_embd": 32, "n_head": 4, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    model = TinyGPT(GPTConfig(**{**sizes, "vocab_size": len(tokenizer), **config}))
    return TrainedGPT(model.eval(), tokenizer, taught)


def learnt(pairs: Sequence[QAPair] = PAIRS, **more: Any) -> TrainedGPT:
    """A network that knows ``pairs``."""
    network = untrained(pairs, **more)
    batch = Collate(network.tokenizer, network.taught)(list(enumerate(network.taught.pairs)))
    optimizer = torch.optim.AdamW(network.model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        logits = network.model(batch.ids)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten()).backward()
        optimizer.step()
    assert all(network.knows(network.taught.pairs))
    return network
