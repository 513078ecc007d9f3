"""The LightningModule: what is learnt, measured and generated, and what a checkpoint needs to be read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics.text import CharErrorRate, Perplexity

from tinygpt_lightning.data import QAPair
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.template import Template
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.gpt.trained import CHECKPOINT_KEY, TrainedGPT, describe, load, read_description, read_weights


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats.

    Args:
        logits: Scores before softmax, ``(B, T, V)``.
        targets: Character ids, ``(B, T)``.

    Returns:
        A scalar.

    Raises:
        ValueError: If ``logits.shape[:2] != targets.shape``; the message names both.

    Source: Radford et al. 2019, section 2.

    >>> round(next_token_loss(torch.zeros(1, 2, 4), torch.tensor([[1, 3]])).item(), 4)
    1.3863
    """
    if logits.shape[:2] != targets.shape:
        raise ValueError(
            f"expected logits (B, T, V) for targets (B, T), got {tuple(logits.shape)} for {tuple(targets.shape)}"
        )
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class TinyGPTModule(LightningModule):
    """Trains a `TinyGPT` on a question-answer pair.

    Vocabulary and size travel in the checkpoint, so a checkpoint is all that ``predict`` needs.

    Args:
        config: Size of the model, and its dropout.
        vocab: Symbol to id; null means the vocabulary of the default pair.
        optimizer: Makes the optimizer from the parameters. A factory, since every stage needs a new one.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; null means a constant rate.
        loss_on: Whether the loss is over all characters, or over those behind the prompt only.

    Attributes:
        model: The model.
        tokenizer: The vocabulary that it is trained on.
        generation: How ``predict`` continues a prompt.

    Raises:
        ValueError: If ``config.vocab_size`` is not the size of ``vocab``.
    """

    def __init__(
        self,
        config: GPTConfig = GPTConfig(),  # noqa: B008, it is frozen
        vocab: dict[str, int] | None = None,
        optimizer: OptimizerCallable = lambda params: torch.optim.AdamW(params, lr=3e-4, fused=True),
        lr_scheduler: LRSchedulerCallable | None = None,
        loss_on: Literal["all", "answer"] = "all",
    ) -> None:
        super().__init__()
        self.tokenizer = CharTokenizer(vocab) if vocab is not None else CharTokenizer.from_text(QAPair().text)
        if config.vocab_size != len(self.tokenizer):
            raise ValueError(
                f"config.vocab_size: expected the vocabulary's {len(self.tokenizer)} symbols, got {config.vocab_size}"
            )
        self.model = TinyGPT(config)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loss_on = loss_on
        self.template = Template()
        self.generation = GenerationConfig()
        self.char_error_rate = CharErrorRate()
        self.perplexity = Perplexity()

    def configure_optimizers(self) -> Any:
        """Make a new optimizer, and scheduler, each time it is called."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def training_step(self, pair: QAPair) -> Tensor:
        """One step over the pair."""
        logits, targets = self._score(pair)
        start = self._answer_start(pair) if self.loss_on == "answer" else 0
        loss = next_token_loss(logits[:, start:], targets[:, start:])
        self.log("train/loss", loss, batch_size=1)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log what the optimizer is about to do."""
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        self.log_dict(
            {
                "train/grad_norm": torch.nn.utils.get_total_norm(gradients),
                "train/learning_rate": optimizer.param_groups[0]["lr"],
            }
        )

    def validation_step(self, pair: QAPair) -> None:
        """Measure whether the pair is known by heart, with one forward pass.

        Greedy decoding gives the answer back if and only if every teacher-forced argmax over the answer is
        right: up to the first mistake both see the same characters, and a mistake in one is one in the other.
        """
        logits, targets = self._score(pair)
        start = self._answer_start(pair)
        predicted, expected = logits.argmax(dim=-1)[:, start:], targets[:, start:]  # (B, T - start)
        self.char_error_rate.update(
            [self.tokenizer.decode(row) for row in predicted.tolist()],
            [self.tokenizer.decode(row) for row in expected.tolist()],
        )
        self.perplexity.update(logits, targets)
        self.log_dict(
            {
                "val/loss": next_token_loss(logits, targets),
                "val/exact_match": float(predicted.equal(expected)),
                "val/char_error_rate": self.char_error_rate,
                "val/perplexity": self.perplexity,
            },
            batch_size=1,
            sync_dist=True,
        )

    def predict_step(self, prompt: str) -> str:
        """Continue ``prompt``."""
        return self.complete(prompt, self.generation)

    def complete(self, prompt: str, generation: GenerationConfig | None = None) -> str:
        """Continue ``prompt``, as `TrainedGPT.complete` does."""
        return TrainedGPT(self.model, self.tokenizer, self.template).complete(prompt, generation)

    def encode(self, text: str) -> Tensor:
        """Turn ``text`` into ids on the model's device, ``(1, T)``."""
        return torch.tensor([self.tokenizer.encode(text)], device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put size, vocabulary and template beside the weights that they belong to."""
        checkpoint[CHECKPOINT_KEY] = describe(self.model.config, self.tokenizer, self.template)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the vocabulary of the run that is resumed; refuse a checkpoint of another model.

        Raises:
            CheckpointError: If the checkpoint has no model of this kind, or one of another size or vocabulary.
        """
        path = self.trainer.ckpt_path or "checkpoint"
        config, tokenizer, self.template = read_description(checkpoint, path)
        if tokenizer.vocab.keys() != self.tokenizer.vocab.keys():
            raise CheckpointError(
                path,
                f"is of another vocabulary: expected the symbols {''.join(tokenizer.vocab)!r}, "
                f"got {''.join(self.tokenizer.vocab)!r}",
            )
        saved = asdict(config)
        for field, value in asdict(self.model.config).items():
            if saved[field] != value:
                raise CheckpointError(
                    path, f"is of another model: expected model.config.{field} {saved[field]}, got {value}"
                )
        read_weights(checkpoint, config, path)
        self.tokenizer = tokenizer

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # the base class lets code in the file run on request
        cls, checkpoint_path: str | Path, **kwargs: Any
    ) -> TinyGPTModule:
        """Make the module that a checkpoint holds, with its size and its vocabulary.

        Args:
            checkpoint_path: A file on this machine, or a run's folder.
            kwargs: More arguments of the constructor, such as the optimizer.

        Raises:
            CheckpointError: If the file is not a whole checkpoint of this project.
        """
        trained = load(checkpoint_path)
        module = cls(trained.model.config, trained.tokenizer.vocab, **kwargs)
        module.model, module.template = trained.model.train(), trained.template
        return module

    def _answer_start(self, pair: QAPair) -> int:
        """Where the first character after the prompt is predicted."""
        return len(self.tokenizer.encode(pair.prompt)) - 1

    def _score(self, pair: QAPair) -> tuple[Tensor, Tensor]:
        """Logits ``(1, T, V)`` and the characters that should come next ``(1, T)``."""
        ids = self.encode(pair.text)  # (1, T + 1)
        return self.model(ids[:, :-1]), ids[:, 1:]
