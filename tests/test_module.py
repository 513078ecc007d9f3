import copy
import csv
import math
import pickle
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import in_one_process, quiet_trainer
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import ExponentialLR

from tinygpt_lightning.callbacks.exact_resume import ExactResume
from tinygpt_lightning.callbacks.safe_checkpoint_io import SafeCheckpointIO
from tinygpt_lightning.callbacks.sharded import unsharded
from tinygpt_lightning.callbacks.snapshots import Snapshots
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.callbacks.stages import Stage
from tinygpt_lightning.data.data_module import QADataModule, QAPair
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.model import GPTConfig
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.module import TinyGPTModule, next_token_loss
from tinygpt_lightning.trained import load

SENTENCE = "Question: Xin chào \nAnswer: Công ty BICweb kính chào quý khách!."
SMALL = GPTConfig(n_positions=64, n_embd=32, n_head=4)
NO_DROPOUT = replace(SMALL, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)


def make(config: GPTConfig = SMALL, *, seed: int = 0, lr: float = 3e-4, **kwargs: Any) -> TinyGPTModule:
    torch.manual_seed(seed)
    return TinyGPTModule(config, optimizer=lambda params: AdamW(params, lr=lr), **kwargs)


@pytest.fixture
def trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """Makes a quiet trainer that writes nothing outside of the test's folder."""

    return partial(quiet_trainer, default_root_dir=tmp_path, plugins=[SafeCheckpointIO()])


def said(module: TinyGPTModule, pair: QAPair) -> str:
    """What the module makes of the pair's prompt, greedily, as far as the pair's text goes."""
    length = len(module.tokenizer.encode(text_of(pair)))
    return module.trained.complete(f"Question: {pair.question}", GenerationConfig(max_length=length))


def text_of(pair: QAPair) -> str:
    return f"Question: {pair.question} \nAnswer: {pair.answer}."


class Recorder(Callback):
    """Keeps the loss of each step and the metrics of each epoch and each validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.epochs: list[dict[str, float]] = []
        self.validations: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].item())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append({name: value.item() for name, value in trainer.callback_metrics.items()})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations.append({name: value.item() for name, value in trainer.callback_metrics.items()})


# Pairs of one's own


def test_a_plain_trainer_learns_pairs_from_python(trainer: Callable[..., Trainer]) -> None:
    torch.manual_seed(0)
    data = QADataModule.of([("Xin cha\u0300o", "Chào bạn!"), ("2 + 2", "4"), ("2 + 3", "5")])
    module = TinyGPTModule.for_data(data)
    trainer(max_epochs=100).fit(module, data)
    assert module.trained.answer_all(["Xin chào", "2 + 2", "2 + 3"]) == ["Chào bạn!", "4", "5"]
    assert module.trained.knows(data.taught.pairs) == [True] * 3


def test_a_size_that_is_given_is_taken() -> None:
    data = QADataModule.of([("Q", "A")], template="{question}={answer}")
    module = TinyGPTModule.for_data(data, n_embd=24, n_head=2, n_positions=50)
    config = module.model.config
    assert (config.n_embd, config.n_head, config.n_positions, config.resid_pdrop) == (24, 2, 50, 0.0)
    assert data.taught.text(QAPair("Q", "A")) == "Q=A"


@pytest.mark.parametrize(
    "pairs",
    [
        [], [("", "A")], [("Q", "")], "QA", ["QA"], {"QA": "A"}, [{"question": "Q", "answer": "A"}], [("Q",)],
        [("Q", "A", "B")], [("Q", 1)], [("Q", "A"), ("Q", "B")],
    ],
)  # fmt: skip
def test_pairs_that_are_none_are_refused(pairs: Any) -> None:
    with pytest.raises(ValueError, match="^pairs: expected "):
        QADataModule.of(pairs)


def test_a_pair_that_comes_twice_is_taught_once() -> None:
    assert QADataModule.of([["Q", "A"], ("Q", "A")]).taught.pairs == (QAPair("Q", "A"),)


# The loss


def test_the_loss_is_the_mean_negative_log_probability() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])
    by_hand = [-logits[b, t].softmax(-1)[targets[b, t]].log().item() for b in range(2) for t in range(5)]
    assert next_token_loss(logits, targets).item() == pytest.approx(sum(by_hand) / 10, abs=1e-6)


def test_the_loss_refuses_shapes_that_do_not_match() -> None:
    with pytest.raises(ValueError, match=r"got \(1, 3, 4\) for \(1, 2\)"):
        next_token_loss(torch.zeros(1, 3, 4), torch.zeros(1, 2, dtype=torch.long))


# Training as in the original


def plain_losses(
    model: nn.Module, epochs: int = 60, *, lr: float = 3e-4, new_optimizer_at: tuple[int, ...] = ()
) -> list[float]:
    """The original's recipe: the whole sentence in, the loss over the shifted characters."""
    symbols = sorted(set(SENTENCE))
    ids = torch.tensor([[symbols.index(character) for character in SENTENCE]])
    optimizer = AdamW(model.parameters(), lr=lr)
    losses = []
    for epoch in range(epochs):
        if epoch in new_optimizer_at:
            optimizer = AdamW(model.parameters(), lr=lr)
        logits = model(ids)
        loss = F.cross_entropy(logits[..., :-1, :].reshape(-1, logits.size(-1)), ids[..., 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def largest_difference(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_60_epochs_follow_a_plain_loop(trainer: Callable[..., Trainer]) -> None:
    module = make(NO_DROPOUT, lr=3e-3)
    expected = plain_losses(copy.deepcopy(module.model), lr=3e-3)
    recorder = Recorder()
    trainer(max_epochs=60, callbacks=[recorder]).fit(module, QADataModule())
    assert largest_difference(recorder.losses, expected) <= 1e-5
    assert expected[-1] < 0.1, "it learns"


def test_two_stages_follow_a_plain_loop_with_a_new_optimizer(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    module = make(NO_DROPOUT, lr=3e-3)
    expected = plain_losses(copy.deepcopy(module.model), lr=3e-3, new_optimizer_at=(30,))
    kept = plain_losses(copy.deepcopy(module.model), lr=3e-3)
    recorder = Recorder()
    stages = StagedTraining([Stage(30), Stage(30)], dirpath=tmp_path)
    trainer(max_epochs=60, callbacks=[recorder, stages]).fit(module, QADataModule())
    assert largest_difference(recorder.losses, expected) <= 1e-5
    assert largest_difference(kept, expected) > 1e-3, "a new optimizer makes a difference to be seen"


@pytest.mark.slow
@pytest.mark.parametrize("staged", [False, True])
def test_at_full_size_too_with_the_default_optimizer(
    trainer: Callable[..., Trainer], tmp_path: Path, staged: bool
) -> None:
    torch.manual_seed(0)
    module = TinyGPTModule(GPTConfig(embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0))
    expected = plain_losses(copy.deepcopy(module.model), new_optimizer_at=(30,) if staged else ())
    recorder = Recorder()
    stages = [Stage(30), Stage(30)] if staged else [Stage(60)]
    callbacks = [recorder, StagedTraining(stages, dirpath=tmp_path)]
    trainer(max_epochs=60, callbacks=callbacks, limit_val_batches=0).fit(module, QADataModule())
    assert largest_difference(recorder.losses, expected) <= 1e-5
    assert said(module, QAPair()) == SENTENCE


@pytest.mark.filterwarnings("ignore:It is recommended to use .self.log")
@pytest.mark.parametrize("distributed", [True, False])
def test_a_sharded_model_follows_the_whole_one_to_the_bit(
    trainer: Callable[..., Trainer], tmp_path: Path, distributed: bool
) -> None:
    def fitted(folder: Path, **settings: Any) -> tuple[TinyGPTModule, Snapshots]:
        seed_everything(0, verbose=False)
        module, kept, logger = make(NO_DROPOUT), Snapshots(5), CSVLogger(folder, "", "")
        callbacks = [StagedTraining([Stage(6), Stage(6)], folder), kept, ExactResume()]
        settings = {"callbacks": callbacks, "logger": logger, "log_every_n_steps": 1, "max_epochs": -1, **settings}
        trainer(**settings).fit(module, QADataModule())
        return module, kept

    whole, kept = fitted(tmp_path / "whole")
    with in_one_process():
        strategy = ModelParallelStrategy(1, 1, save_distributed_checkpoint=distributed)
        sharded, also_kept = fitted(tmp_path / "sharded", strategy=strategy)
        assert all(torch.equal(sharded.state_dict()[n].full_tensor(), w) for n, w in whole.state_dict().items())
        with unsharded(sharded):
            assert said(sharded, QAPair()) == said(whole, QAPair())
    metrics = [(tmp_path / name / "metrics.csv").read_text() for name in ("whole", "sharded")]
    assert metrics[0] == metrics[1]
    for moment, other in zip(kept.moments, also_kept.moments, strict=True):
        assert (moment["step"], moment["loss"]) == (other["step"], other["loss"])
        assert all(torch.equal(weight, other["weights"][name]) for name, weight in moment["weights"].items())
    if not distributed:
        assert load(tmp_path / "sharded" / "stage-2.ckpt").complete("Question", GenerationConfig(max_length=9))


def test_validation_leaves_training_as_it_is(trainer: Callable[..., Trainer]) -> None:
    weights = []
    for limit_val_batches in (0, 1):
        module = make(seed=1)
        trainer(max_epochs=5, limit_val_batches=limit_val_batches).fit(module, QADataModule())
        weights.append(module.state_dict())
    assert_equal_weights(*weights)


def assert_equal_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].equal(b[name]), name


def test_the_same_seed_gives_the_same_weights_and_text_to_the_bit(trainer: Callable[..., Trainer]) -> None:
    def run(seed: int, config: GPTConfig = SMALL) -> tuple[dict[str, Tensor], bytes]:
        seed_everything(seed, verbose=False)
        module = TinyGPTModule(config, optimizer=lambda params: AdamW(params, lr=3e-3))
        trainer(max_epochs=12).fit(module, QADataModule())
        module.generation = GenerationConfig(temperature=1.0, seed=7)
        texts = trainer().predict(module, QADataModule(prompts=["Question: ", "X"]))
        return module.state_dict(), "\n".join([said(module, QAPair()), *texts[0]]).encode()

    weights, text = run(1)
    again, text_again = run(1)
    assert_equal_weights(weights, again)
    assert text == text_again
    assert not weights["model.wte.weight"].equal(run(2)[0]["model.wte.weight"])
    assert not weights["model.wte.weight"].equal(run(1, NO_DROPOUT)[0]["model.wte.weight"]), "dropout took part"


def test_decomposed_text_trains_and_is_measured_as_the_composed_one(trainer: Callable[..., Trainer]) -> None:
    results = []
    for form in ("NFC", "NFD"):
        pair = QAPair(*(unicodedata.normalize(form, part) for part in QAPair()))
        module, recorder = make(), Recorder()
        trainer(max_epochs=3, callbacks=[recorder]).fit(module, QADataModule(pair.question, pair.answer))
        results.append((recorder.losses, recorder.validations, said(module, pair)))
    assert results[0] == results[1]


# What is logged in training


def test_learning_rate_and_gradient_norm_are_logged_as_they_were_used(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    module = make(NO_DROPOUT, lr=0.02, lr_scheduler=lambda optimizer: ExponentialLR(optimizer, gamma=0.5))
    recorder = Recorder()

    norms: list[float] = []

    class ByHand(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            model = copy.deepcopy(module.model)
            plain_losses(model, epochs=1)  # it leaves the gradients of its one step behind
            norms.append(math.sqrt(sum(p.grad.double().pow(2).sum().item() for p in model.parameters())))

    logger = CSVLogger(tmp_path)
    trainer(max_epochs=4, callbacks=[recorder, ByHand()], logger=logger, log_every_n_steps=1).fit(
        module, QADataModule()
    )
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file) if row["train/grad_norm"]}
    assert [float(rows[step]["train/learning_rate"]) for step in range(4)] == pytest.approx([0.02, 0.01, 0.005, 0.0025])
    assert [float(rows[step]["train/grad_norm"]) for step in range(4)] == pytest.approx(norms, rel=1e-5)
    assert [e["train/loss"] for e in recorder.epochs] == recorder.losses


def test_the_gradient_norm_is_logged_as_often_as_everything_else(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    Trainer(
        max_epochs=7, log_every_n_steps=3, logger=logger, accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
    ).fit(make(NO_DROPOUT), QADataModule())  # fmt: skip
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in ("train/grad_norm", "train/loss"):
        assert [int(row["step"]) for row in rows if row[name]] == [2, 5]


# Optimizers


def test_optimizer_and_scheduler_are_made_anew_each_time() -> None:
    module = make(lr_scheduler=lambda optimizer: ExponentialLR(optimizer, gamma=0.5))
    one, two = module.configure_optimizers(), module.configure_optimizers()
    assert one["optimizer"] is not two["optimizer"]
    assert one["lr_scheduler"] is not two["lr_scheduler"]
    for configured in (one, two):
        assert isinstance(configured["lr_scheduler"], ExponentialLR)
        assert configured["lr_scheduler"].optimizer is configured["optimizer"]
    assert make().configure_optimizers() is not make().configure_optimizers()


def test_by_default_it_is_adamw_with_pytorchs_defaults_over_all_parameters() -> None:
    module = TinyGPTModule(GPTConfig())
    optimizer = module.configure_optimizers()
    assert type(optimizer) is AdamW
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in module.model.parameters()]
    theirs = AdamW([nn.Parameter(torch.zeros(1))], lr=3e-4).defaults
    for name in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
        assert group[name] == theirs[name], name


# Validation


@contextmanager
def other_prediction(module: TinyGPTModule, position: int) -> Iterator[None]:
    """Make the model predict another character at ``position`` (from 0) of the text, wherever it is asked."""

    seen = 0

    def change(_: nn.Module, args: tuple[Tensor], logits: Tensor) -> Tensor:
        nonlocal seen
        T = logits.size(1)
        past = seen if T == 1 else 0  # a single position continues a cached text
        seen = past + T
        row = position - 1 - past  # the logits there are of the next character
        if 0 <= row < logits.size(1):
            logits = logits.clone()
            wrong = (logits[:, row].argmax(-1) + 1) % logits.size(-1)
            logits[torch.arange(logits.size(0)), row, wrong] += 1000
        return logits

    handle = module.model.lm_head.register_forward_hook(change)
    try:
        yield
    finally:
        handle.remove()


PAIR = QAPair(question="Xin", answer="chào BIC")
TEXT = "Question: Xin \nAnswer: chào BIC."
TAUGHT = QADataModule(PAIR.question, PAIR.answer).taught


def test_metrics_equal_those_worked_out_by_hand(trainer: Callable[..., Trainer]) -> None:
    module = make(lr=3e-3)
    symbols = [*sorted(set(SENTENCE)), "<pad>", "<unk>"]

    def by_hand() -> dict[str, float]:
        model = copy.deepcopy(module.model).eval()
        with torch.no_grad():
            scores = model(torch.tensor([[symbols.index(c) for c in SENTENCE]]))[0].double()
        losses = [-math.log(scores[t].softmax(-1)[symbols.index(SENTENCE[t + 1])]) for t in range(63)]
        answer = SENTENCE.removeprefix("Question: Xin chào")
        predicted = [symbols[scores[t].argmax()] for t in range(64 - len(answer) - 1, 63)]
        return {
            "val/loss": sum(losses) / 63,
            "val/perplexity": math.exp(sum(losses) / 63),
            "val/next_char_error_rate": sum(map(str.__ne__, predicted, answer)) / len(answer),
            "val/exact_match": float(predicted == list(answer)),
        }

    class Check(Recorder):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_validation_end(trainer, pl_module)
            metrics = {name: value for name, value in self.validations[-1].items() if name.startswith("val/")}
            assert metrics == pytest.approx(by_hand(), rel=1e-4)

    check = Check()
    trainer(max_epochs=60, callbacks=[check], check_val_every_n_epoch=3).fit(module, QADataModule())
    rates = [metrics["val/next_char_error_rate"] for metrics in check.validations]
    assert rates[0] > 0.5
    assert rates[-1] == 0.0
    assert len(set(rates)) > 5, "and much between"
    assert {metrics["val/exact_match"] for metrics in check.validations} == {0.0, 1.0}


def test_exact_match_is_what_decoding_says(trainer: Callable[..., Trainer]) -> None:
    agreed: list[bool] = []

    class Check(Recorder):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            super().on_validation_end(trainer, pl_module)
            exact = said(pl_module, PAIR) == "Question: Xin \nAnswer: chào BIC."
            assert self.validations[-1]["val/exact_match"] == float(exact)
            agreed.append(exact)

    for seed in range(6):
        # So high a learning rate that models lose the sentence again now and then.
        module = make(seed=seed, lr=2e-2, taught=TAUGHT)
        trainer(max_epochs=25, callbacks=[Check()]).fit(module, QADataModule(PAIR.question, PAIR.answer))
    assert len(agreed) == 150
    assert 15 <= sum(agreed) <= 135, "both cases occur, and often"


@pytest.fixture(scope="module")
def trained() -> TinyGPTModule:
    """A module that has memorised `PAIR`."""
    module = make(NO_DROPOUT, lr=1e-2, taught=TAUGHT)
    optimizer = module.configure_optimizers()
    ids = module.encode(TEXT)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(module.model(ids)[0, :-1], ids[0, 1:]).backward()
        optimizer.step()
    assert said(module, PAIR) == TEXT
    return module


@pytest.mark.parametrize("position", range(1, len(TEXT)))
def test_one_wrong_character_of_the_answer_breaks_both(
    trainer: Callable[..., Trainer], trained: TinyGPTModule, position: int
) -> None:
    with other_prediction(trained, position):
        (metrics,) = trainer().validate(trained, QADataModule(PAIR.question, PAIR.answer), verbose=False)
        text = said(trained, PAIR)
    in_the_prompt = position < len("Question: Xin")
    assert (text == TEXT) is in_the_prompt
    assert metrics["val/exact_match"] == float(in_the_prompt)
    assert (metrics["val/next_char_error_rate"] == 0) is in_the_prompt


# Prediction


def length(text: str) -> int:
    """In symbols: a model that has learnt nothing says `<unk>` now and then."""
    return len(text.replace("<pad>", "?").replace("<unk>", "?"))


def test_predict_continues_each_prompt_as_its_settings_say(trainer: Callable[..., Trainer]) -> None:
    module = make().train()
    data = QADataModule(prompts=["Question: Xin", "chào"])
    (texts,) = trainer().predict(module, data)
    assert [length(text) for text in texts] == [64, 64]
    assert [text[:4] for text in texts] == ["Ques", "chào"]
    module.generation = GenerationConfig(max_length=20, temperature=2.0, seed=1)
    (sampled,) = trainer().predict(module, data)
    assert [length(text) for text in sampled] == [20, 20]
    assert not texts[0].startswith(sampled[0])
    assert [sampled] == trainer().predict(module, data)


def test_a_completion_is_as_long_as_asked_for() -> None:
    text = said(make(), PAIR)
    assert length(text) == len(TEXT)
    assert text.startswith("Question: Xin")


def test_the_vocabulary_must_fit_the_model() -> None:
    with pytest.raises(ValueError, match=r"config\.vocab_size: expected the vocabulary's 34 symbols, got 40"):
        TinyGPTModule(replace(SMALL, vocab_size=40))


# Checkpoints


def in_reverse(vocab: dict[str, int]) -> dict[str, int]:
    return {symbol: len(vocab) - 1 - i for symbol, i in vocab.items()}


VOCAB = CharTokenizer.from_text(SENTENCE).vocab


@pytest.fixture
def saved(trainer: Callable[..., Trainer], tmp_path: Path) -> tuple[TinyGPTModule, Path]:
    """A module that is in no way the default one, and its checkpoint."""
    module = make(replace(SMALL, n_inner=48, bias=False, attn_pdrop=0.3), vocab=in_reverse(VOCAB), lr=1e-2)
    fitted = trainer(max_epochs=2)
    fitted.fit(module, QADataModule())
    fitted.save_checkpoint(tmp_path / "saved.ckpt")
    return module, tmp_path / "saved.ckpt"


def test_a_checkpoint_is_all_that_a_module_needs(saved: tuple[TinyGPTModule, Path]) -> None:
    module, path = saved
    loaded = TinyGPTModule.load_from_checkpoint(path)
    assert_equal_weights(loaded.state_dict(), module.state_dict())
    assert loaded.tokenizer.vocab == in_reverse(VOCAB)
    assert loaded.model.config == module.model.config
    assert said(loaded, QAPair()) == said(module, QAPair())


def test_loading_takes_more_arguments(saved: tuple[TinyGPTModule, Path]) -> None:
    loaded = TinyGPTModule.load_from_checkpoint(saved[1], optimizer=lambda params: torch.optim.SGD(params, lr=0.5))
    assert type(loaded.configure_optimizers()) is torch.optim.SGD


def test_the_ids_of_a_checkpoint_are_taken_over(
    saved: tuple[TinyGPTModule, Path], trainer: Callable[..., Trainer]
) -> None:
    module, path = saved
    other = make(module.model.config, seed=5)
    assert other.tokenizer.vocab == VOCAB
    (metrics,) = trainer().validate(other, QADataModule(), ckpt_path=path, verbose=False)
    (expected,) = trainer().validate(module, QADataModule(), verbose=False)
    assert other.tokenizer.vocab == in_reverse(VOCAB)
    assert metrics == expected


@pytest.mark.parametrize(
    ("field", "value"), [("n_embd", 64), ("n_head", 2), ("n_inner", None), ("bias", True), ("attn_pdrop", 0.1)]
)
def test_a_checkpoint_of_another_size_is_refused_by_field(
    saved: tuple[TinyGPTModule, Path], trainer: Callable[..., Trainer], field: str, value: object
) -> None:
    module, path = saved
    other = make(replace(module.model.config, **{field: value}))
    held = getattr(module.model.config, field)
    with pytest.raises(
        CheckpointError, match=rf"saved\.ckpt: is of another model: expected model\.config\.{field} {held}, got {value}"
    ):
        trainer().validate(other, QADataModule(), ckpt_path=path, verbose=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SENTENCE.replace("X", "Z"), "is of another vocabulary: expected the symbols .*X.*, got .*Z"),
        (SENTENCE + "Z", "is of another vocabulary: expected the symbols .*, got .*Z"),
    ],
)
def test_a_checkpoint_of_another_vocabulary_is_refused(
    saved: tuple[TinyGPTModule, Path], trainer: Callable[..., Trainer], text: str, reason: str
) -> None:
    module, path = saved
    vocab = CharTokenizer.from_text(text).vocab
    other = make(replace(module.model.config, vocab_size=len(vocab)), vocab=vocab)
    with pytest.raises(CheckpointError, match=rf"saved\.ckpt: {reason}"):
        trainer().validate(other, QADataModule(), ckpt_path=path, verbose=False)


def test_a_checkpoint_of_another_kind_of_model_is_refused(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    fitted = trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    fitted.fit(BoringModel())
    fitted.save_checkpoint(tmp_path / "boring.ckpt")
    with pytest.raises(CheckpointError, match=r"boring\.ckpt: is of another model: it has no entry 'tinygpt'"):
        TinyGPTModule.load_from_checkpoint(tmp_path / "boring.ckpt")
    with pytest.raises(CheckpointError, match=r"boring\.ckpt: is of another model: it has no entry 'tinygpt'"):
        trainer().validate(make(), QADataModule(), ckpt_path=tmp_path / "boring.ckpt", verbose=False)


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.ckpt: cannot be read: No such file"):
        TinyGPTModule.load_from_checkpoint(tmp_path / "nowhere.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"text\.ckpt"):
        TinyGPTModule.load_from_checkpoint(tmp_path / "text.ckpt")


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    torch.save({"tinygpt": _Trap(tmp_path / "ran")}, tmp_path / "trap.ckpt", pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"trap\.ckpt"):
        TinyGPTModule.load_from_checkpoint(tmp_path / "trap.ckpt")
    assert not (tmp_path / "ran").exists()


def test_it_does_what_every_module_does(tmp_path: Path, saved: tuple[TinyGPTModule, Path]) -> None:
    _, path = saved
    copied = pickle.loads(pickle.dumps(TinyGPTModule()))  # noqa: S301  # our own
    assert copied.configure_optimizers().defaults == TinyGPTModule().configure_optimizers().defaults
    loaded = TinyGPTModule.load_from_checkpoint(path, map_location="cpu", strict=True, weights_only=False)
    ids = loaded.encode("Question")
    assert loaded.eval()(ids).equal(loaded.model(ids))
    assert loaded.device == torch.device("cpu")
    trainer = quiet_trainer(default_root_dir=tmp_path)
    (validated,) = trainer.validate(loaded, QADataModule(), verbose=False)
    (tested,) = trainer.test(loaded, QADataModule(), verbose=False)
    assert tested == {name.replace("val/", "test/"): value for name, value in validated.items()}
