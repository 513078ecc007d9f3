"""Variations of questions: what is varied, what never is, and how they join the batches."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from own_files import ALPHABETS, made

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.data.batches import COPY, Batch, NumberedPairs
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.noise import KINDS, SPARE, Noise, fold, plain, vary
from tinygpt_lightning.data.sampler import LengthSampler
from tinygpt_lightning.data.text import QAPair
from tinygpt_lightning.module import TinyGPTModule

QUESTIONS = ["Dự án này là gì?", "What is a nat", "Đây là đâu vậy bạn ơi", "Как дела у вас?", "你好吗", "7 + 5 = ?"]


@pytest.mark.parametrize("kind", ["case", "punctuation", "spaces", "diacritics"])
def test_what_is_no_typo_leaves_the_fold(kind: str) -> None:
    for question in QUESTIONS:
        for seed in range(50):
            assert fold(KINDS[kind](question, random.Random(seed))) == fold(question)


def test_each_kind_changes_questions_and_a_typo_by_one_letter() -> None:
    for kind, change in KINDS.items():
        forms = {change("Dự án này là gì", random.Random(seed)) for seed in range(50)}
        assert len(forms - {"Dự án này là gì"}) >= (1 if kind == "diacritics" else 2), kind
    for seed in range(200):
        assert abs(len(KINDS["typo"]("Dự án này", random.Random(seed))) - len("Dự án này")) <= 1


def test_no_digit_is_mistyped() -> None:
    for seed in range(300):
        varied = vary("room 1234567 left or right", random.Random(seed))
        assert "1234567" in varied or "room" not in varied.lower() or "1234567" in varied.replace(" ", "")


def test_diacritics_go_whatever_form_they_have() -> None:
    for form in ("NFC", "NFD"):
        assert plain(unicodedata.normalize(form, "Đường phố é")) == "Duong pho e"


def paired(questions: list[str]) -> list[QAPair]:
    return [QAPair(question, "A") for question in questions]


def test_questions_that_differ_in_form_or_by_two_typos_are_never_varied() -> None:
    noise = Noise(paired(["tá", "ta", "Tạ?", "ask for room ro", "Ask for room ru!", "một câu khác hẳn"]), 1, seed=0)
    for epoch in range(50):
        assert not [varied for row in range(5) for varied in noise(row, epoch)]
    assert len({varied for epoch in range(50) for varied in noise(5, epoch)}) > 10


@pytest.mark.parametrize("seed", range(len(ALPHABETS) * 4))
def test_no_variation_is_another_question(seed: int) -> None:
    pairs = made(seed, pairs=60)
    questions = [pair.question for pair in pairs]
    noise, known = Noise(pairs, 1, seed), set("".join(questions))
    folds = {fold(question) for question in questions}
    for row, question in enumerate(questions):
        for epoch in range(10):
            for varied, answer in noise(row, epoch):
                assert answer == pairs[row].answer
                assert fold(varied) == fold(question) or fold(varied) not in folds
                assert varied.strip()
                assert len(varied) <= len(question) + SPARE
                assert set(unicodedata.normalize("NFC", varied)) <= known


def test_the_runs_seed_and_the_epoch_decide() -> None:
    drawn = [[[*Noise(paired(QUESTIONS), 2, seed)(0, epoch)] for epoch in range(20)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    quarter = Noise(paired(QUESTIONS), 0.25, 0)
    count = sum(len([*quarter(3, epoch)]) for epoch in range(400))
    assert 50 < count <= 125, "a quarter on average, of which some are of no use"


# In batches


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "pairs.tsv"
    pairs = made(0, pairs=21, kind="sentences")
    path.write_text("question\tanswer\n" + "".join(f"{q}\t{a}\n" for q, a in pairs), encoding="utf-8")
    return str(path)


class Batches(Callback):
    def __init__(self) -> None:
        self.seen: list[Batch] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.seen.append(batch)


def fitted(file: str, folder: Path, noise: float, epochs: int, **settings: Any) -> tuple[TinyGPTModule, Batches]:
    seed_everything(0)
    data = QADataModule(path=file, batch_size=8, noise=noise, n_positions=200)
    module = TinyGPTModule.for_data(data, n_positions=200)
    batches = Batches()
    ckpt_path = settings.pop("ckpt_path", None)
    trainer = quiet_trainer(
        max_epochs=epochs, callbacks=[batches, ExactResume()], plugins=[SafeCheckpointIO()], **settings
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{epochs}-{settings.get('max_steps')}.ckpt")
    return module, batches


def test_each_question_is_there_itself_and_at_most_as_often_varied_as_asked(file: str, tmp_path: Path) -> None:
    module, batches = fitted(file, tmp_path, 2, 3)
    for epoch in range(3):
        rows = torch.cat([batch.rows for batch in batches.seen[3 * epoch : 3 * epoch + 3]])
        assert sorted(rows[rows != COPY].tolist()) == list(range(21))
        assert 21 < (rows == COPY).sum() <= 2 * 21
    counted = quiet_trainer().validate(module, QADataModule(path=file, noise=2, n_positions=200), verbose=False)
    assert counted
    assert module.metrics.pairs == 21, "the questions themselves are what is measured"
    decode = module.tokenizer.decode
    texts = {
        decode(ids[ids != module.tokenizer.vocab["<pad>"]].tolist()) for batch in batches.seen for ids in batch.ids
    }
    assert len(texts) > 21 * 3


def test_without_noise_the_batches_are_as_they_were(file: str) -> None:
    seed_everything(0)
    noiseless = QADataModule(path=file, batch_size=8)
    assert noiseless.tokenizer.vocab == QADataModule(path=file, noise=1).tokenizer.vocab
    for batch in noiseless.train_dataloader():
        assert (batch.rows != COPY).all()


def test_a_resumed_run_sees_the_same_variations(file: str, tmp_path: Path) -> None:
    whole, batches = fitted(file, tmp_path, 1, 4)
    fitted(file, tmp_path, 1, 2)
    resumed, rest = fitted(file, tmp_path, 1, 4, ckpt_path=str(tmp_path / "2-None.ckpt"))
    for before, after in zip(batches.seen[6:], rest.seen, strict=True):
        assert all(map(torch.equal, before, after))
    assert all(weight.equal(resumed.state_dict()[name]) for name, weight in whole.state_dict().items())


def test_two_processes_share_the_batches_of_one(file: str) -> None:
    data = QADataModule(path=file, noise=2)
    lengths = [data.taught.length(pair) for pair in data.taught.pairs]

    def batches(world_size: int, rank: int) -> list[list[tuple[int, QAPair]]]:
        sampler = LengthSampler(lengths, 8 // world_size, shuffle=True, world_size=world_size, rank=rank)
        sampler.set_epoch(3)
        noise = Noise(data.taught.pairs, data.noise, sampler.seed)
        numbered = NumberedPairs(data.taught.pairs, lambda row: noise(row, sampler.epoch))
        return [numbered[rows] for rows in sampler]

    for alone, first, second in zip(batches(1, 0), batches(2, 0), batches(2, 1), strict=True):
        assert sorted(first + second) == sorted(alone)


def test_a_variation_that_is_too_long_gives_way_to_the_question(file: str) -> None:
    data = QADataModule(path=file, batch_size=8, noise=3)
    data.n_positions = max(data.taught.length(pair) for pair in data.taught.pairs)
    for batch in data.train_dataloader():
        assert batch.ids.size(1) <= data.n_positions


def test_a_negative_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="data.noise: expected 0 or more, got -1"):
        QADataModule(noise=-1)
