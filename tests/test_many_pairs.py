"""Many pairs through Lightning: what counts in the loss, what is measured, and several processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import functional as F
from torch.optim import AdamW

from tinygpt_lightning.data import sampler
from tinygpt_lightning.data.batches import Collate
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.sampler import Repetition
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.module import TinyGPTModule

PAIRS = [(f"câu {i}", f"chữ {i * i} " * (i % 5 + 1)) for i in range(21)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "pairs.tsv"
    path.write_text("question\tanswer\n" + "".join(f"{q}\t{a}\n" for q, a in PAIRS), encoding="utf-8")
    return str(path)


def module_for(data: QADataModule, **settings: Any) -> TinyGPTModule:
    torch.manual_seed(0)
    config = GPTConfig(len(data.tokenizer), 96, 32, 4, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
    return TinyGPTModule(config, data.tokenizer.vocab, partial(AdamW, lr=1e-3), taught=data.taught, **settings)


def fitted(file: str, batch_size: int, **settings: Any) -> tuple[TinyGPTModule, dict[str, float]]:
    data = QADataModule(path=file, batch_size=batch_size)
    module = module_for(data)
    trainer = quiet_trainer(max_epochs=3, **settings)
    trainer.fit(module, data)
    return module, {name: float(value) for name, value in trainer.callback_metrics.items()}


def test_two_processes_with_half_the_batch_follow_one_with_the_whole(file: str) -> None:
    # 7 pairs a batch: one process has 4 of them and the other 3, of other lengths.
    alone, metrics = fitted(file, 8)
    together, theirs = fitted(file, 4, strategy="ddp_spawn", devices=2)
    weights = together.state_dict()
    for name, weight in alone.state_dict().items():
        if name.endswith("c_attn.bias"):
            # No softmax sees the keys' bias: its gradient is rounding, which Adam makes as large as any other.
            weight[32:64] = weights[name][32:64]
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-5)
    assert theirs == pytest.approx(metrics, rel=1e-5)


def test_two_processes_repeat_the_pairs_that_one_would(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "SHARE", 1)  # so early, all pairs are wrong
    alone, _ = fitted(file, 8, callbacks=[Repetition(1)])
    together, _ = fitted(file, 4, callbacks=[Repetition(1)], strategy="ddp_fork", devices=2)
    without, _ = fitted(file, 8)
    weights = together.model.lm_head.weight
    torch.testing.assert_close(weights, alone.model.lm_head.weight, rtol=0, atol=1e-5)
    assert (weights - without.model.lm_head.weight).abs().max() > 1e-3


@pytest.mark.slow
def test_two_processes_count_a_single_pair_once() -> None:
    torch.manual_seed(0)
    counted = PairsCounted()
    module = TinyGPTModule(GPTConfig(n_positions=64, n_embd=16, n_head=2), optimizer=partial(AdamW, lr=1e-3))
    trainer = quiet_trainer(max_epochs=1, strategy="ddp_spawn", devices=2, callbacks=[counted])
    trainer.fit(module, QADataModule())
    assert trainer.callback_metrics["pairs"] == 1


class PairsCounted(Callback):
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("pairs", pl_module.metrics.pairs.float(), sync_dist=True, reduce_fx="sum")


@pytest.mark.parametrize("loss_on", ["all", "answer"])
def test_every_character_that_counts_counts_once(file: str, loss_on: Any) -> None:
    data = QADataModule(path=file, batch_size=8)
    module = module_for(data, loss_on=loss_on).eval()
    losses, exact = [], []
    for pair in data.taught.pairs:
        prompt, rest = data.taught.parts(pair)
        ids = [*data.tokenizer.encode(prompt + rest), data.tokenizer.end]
        scores = module.model(torch.tensor([ids[:-1]]))[0].detach()
        first = len(prompt) - 1 if loss_on == "answer" else 0
        losses.append(F.cross_entropy(scores[first:], torch.tensor(ids[first + 1 :]), reduction="none"))
        exact.append(scores[len(prompt) - 1 :].argmax(-1).tolist() == ids[len(prompt) :])
    metrics = quiet_trainer().validate(module, data, verbose=False)[0]
    assert metrics["val/loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-6)
    assert metrics["val/perplexity"] == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-5)
    assert metrics["val/exact_match"] == sum(exact) / len(exact)


def test_the_training_step_learns_from_what_counts_alone(file: str) -> None:
    data = QADataModule(path=file, batch_size=8)
    together = next(iter(data.val_dataloader()))
    pairs = [data.taught.pairs[row] for row in together.rows]
    collate = Collate(data.tokenizer, data.taught)
    gradients = []
    for batches in ([together], [collate([(0, pair)]) for pair in pairs]):
        module = module_for(data, loss_on="answer")
        module.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
        module.trainer = quiet_trainer()
        lengths = [len(data.taught.parts(pair)[1]) + 1 for pair in pairs]
        counts = [sum(lengths)] if len(batches) == 1 else lengths
        for batch, count in zip(batches, counts, strict=True):
            (module.training_step(batch) * count / sum(counts)).backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for batched, alone in zip(*gradients, strict=True):
        torch.testing.assert_close(batched, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("end_symbol", [True, False])
def test_the_share_of_exact_pairs_is_the_share_that_decoding_gives_back(file: str, end_symbol: bool) -> None:
    data = QADataModule(path=file, batch_size=8, end_symbol=end_symbol)
    module = module_for(data)
    optimizer = AdamW(module.parameters(), lr=1e-2)
    shares = set()
    for _ in range(40):
        for batch in [*data.train_dataloader()] * 2:
            optimizer.zero_grad()
            F.cross_entropy(module.model(batch.ids).flatten(0, 1), batch.targets.flatten()).backward()
            optimizer.step()
        share = quiet_trainer().validate(module, data, verbose=False)[0]["val/exact_match"]
        texts = module.trained.complete_all(data.taught.prompts)
        exact = list(map(str.__eq__, texts, map(data.taught.text, data.taught.pairs)))
        assert module.trained.knows(data.taught.pairs) == exact
        assert share == pytest.approx(sum(exact) / 21)
        shares.add(share)
    assert len(shares) > (3 if end_symbol else 1), "and not all or nothing"
