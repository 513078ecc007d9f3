"""The LightningModule: tensors in, loss and metrics out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn import functional as F
from torch.optim import Optimizer

from tinygpt_lightning.callbacks.sharded import whole
from tinygpt_lightning.data.batches import IGNORED, Batch, exact_rows
from tinygpt_lightning.data.data_module import QADataModule
from tinygpt_lightning.data.noise import SPARE
from tinygpt_lightning.data.recipe import recipe_for
from tinygpt_lightning.data.text import QAPair, Taught
from tinygpt_lightning.description import CHECKPOINT_KEY, describe, read_description, read_weights
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.generation import GenerationConfig
from tinygpt_lightning.gpt.model import GPTConfig, TinyGPT
from tinygpt_lightning.gpt.tokenizer import CharTokenizer
from tinygpt_lightning.metrics import PairMetrics
from tinygpt_lightning.trained import TrainedGPT, load


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, in nats.

    Args:
        logits: Scores before softmax, ``(B, T, V)``.
        targets: Character ids, ``(B, T)``; -100 is left out.

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
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class TinyGPTModule(LightningModule):
    """Trains a `TinyGPT` on question-answer pairs.

    Vocabulary, sizes and taught pairs travel in the checkpoint, so ``predict`` needs nothing but a checkpoint.

    Args:
        config: Sizes of the model, and its dropout.
        vocab: Symbol to id; None means the vocabulary of the default pair.
        optimizer: Makes the optimizer from the parameters. A factory, since every stage needs a new one.
        lr_scheduler: Makes the learning rate scheduler from the optimizer; None means a constant rate.
        taught: The texts to learn; None means the default pair's.
        loss_on: The characters that the loss counts: all, or those behind the prompt, which are the answer's.

    Attributes:
        model: The model.
        tokenizer: The vocabulary that its weights know.
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
        taught: Taught | None = None,
        loss_on: Literal["all", "answer"] = "all",
    ) -> None:
        super().__init__()
        default = Taught.of([QAPair()], prompt_to="question")
        self.taught = taught or default
        self.tokenizer = default.tokenizer() if vocab is None else CharTokenizer(vocab)
        if config.vocab_size != len(self.tokenizer):
            raise ValueError(
                f"config.vocab_size: expected the vocabulary's {len(self.tokenizer)} symbols, got {config.vocab_size}"
            )
        self.model = TinyGPT(config)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.loss_on = loss_on
        self.generation = GenerationConfig()
        self.metrics = PairMetrics()

    @classmethod
    def for_data(cls, data: QADataModule, **sizes: Any) -> TinyGPTModule:
        """Make a module that learns the pairs of a data module, in about a hundred epochs.

        Args:
            data: The data module.
            sizes: Fields of `GPTConfig`; what is missing follows from the pairs.
        """
        recipe = recipe_for(data.taught.pairs)
        longest = data.taught.max_length or 0
        config = GPTConfig(
            **{
                "vocab_size": len(data.tokenizer),
                "n_positions": longest + SPARE,
                "n_embd": recipe.n_embd,
                "n_head": recipe.n_head,
                **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0),
                **sizes,
            }
        )
        optimizer = partial(torch.optim.AdamW, lr=recipe.lr, betas=(0.9, 0.99), fused=True)
        return cls(config, data.tokenizer.vocab, optimizer, taught=data.taught, loss_on="answer")

    def configure_model(self) -> None:
        """Shard the model over the processes, under ``ModelParallelStrategy``."""
        if self.device_mesh is not None and not isinstance(self.model, FSDPModule):
            fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self) -> Any:
        """Make a new optimizer, and scheduler, each time it is called."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.lr_scheduler(optimizer)}

    def training_step(self, batch: Batch) -> Tensor:
        """One step over a batch of pairs."""
        logits, targets = self._scored(batch)
        loss = next_token_loss(logits, targets)
        if self.trainer.world_size > 1:
            # The mean over the processes is then the mean over all their characters, of which not all have as many.
            count = (targets != IGNORED).sum().float()
            loss = loss * (count / self.trainer.strategy.reduce(count.clone(), reduce_op="mean"))
        self.log("train/loss", loss, batch_size=len(batch.rows), sync_dist=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log gradient norm and learning rate of the coming step."""
        # Straight to the loggers: nobody needs the mean of this over an epoch, which `self.log` would keep as well.
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            metrics = {
                "train/grad_norm": whole(torch.nn.utils.get_total_norm(gradients)).item(),
                "train/learning_rate": optimizer.param_groups[0]["lr"],
            }
            for logger in self.loggers:
                logger.log_metrics(metrics, self.trainer.global_step)

    def on_validation_epoch_start(self) -> None:
        """Reset the metrics."""
        self.metrics.reset()

    def validation_step(self, batch: Batch) -> Tensor:
        """Measure which pairs are exact, with one forward pass.

        Returns:
            Whether each pair is, ``(B,)``.
        """
        logits, targets = self._scored(batch)
        predicted = F.pad(logits.argmax(dim=-1), (batch.ids.size(1) - logits.size(1), 0))  # (B, T)
        exact = exact_rows(predicted, batch, self.tokenizer, self.taught.max_length)
        self.metrics.update(next_token_loss(logits, targets), (targets != IGNORED).sum(), predicted, batch, exact)
        return exact

    def on_validation_epoch_end(self) -> None:
        """Log the metrics."""
        self.log_dict(self.metrics.compute(), sync_dist=True)

    def predict_step(self, prompts: Sequence[str]) -> list[str]:
        """Continue each of the prompts."""
        return self.trained.complete_all(prompts, self.generation)

    @property
    def trained(self) -> TrainedGPT:
        """The model in use, as it is now."""
        return TrainedGPT(self.model, self.tokenizer, self.taught)

    def complete(self, prompt: str, generation: GenerationConfig | None = None) -> str:
        """Continue ``prompt``, as `TrainedGPT.complete` does."""
        return self.trained.complete(prompt, generation)

    def encode(self, text: str) -> Tensor:
        """Turn ``text`` into ids on the model's device, ``(1, T)``."""
        return torch.tensor([self.tokenizer.encode(text)], device=self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put sizes, vocabulary and taught pairs beside the weights that they belong to."""
        checkpoint[CHECKPOINT_KEY] = describe(self.model.config, self.tokenizer, self.taught)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the ids of the checkpoint's vocabulary; refuse a checkpoint of another model.

        Raises:
            CheckpointError: If the checkpoint has no model of this kind, or one of other sizes or symbols.
        """
        path = self.trainer.ckpt_path or "checkpoint"
        config, tokenizer, taught = read_description(checkpoint, path)
        _check_alike(self, config, tokenizer, path)
        read_weights(checkpoint, config, path)
        self.tokenizer = tokenizer
        if self.trainer.state.fn != TrainerFn.FITTING:  # a fit teaches the pairs that it was given
            self.taught = taught

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # the base class lets code in the file run on request
        cls, checkpoint_path: str | Path, **kwargs: Any
    ) -> TinyGPTModule:
        """Make the module that a checkpoint holds, with its sizes, vocabulary and taught pairs.

        Args:
            checkpoint_path: A file on this machine, or a run's folder.
            kwargs: More arguments of the constructor, such as the optimizer.

        Raises:
            CheckpointError: If the file is not a whole checkpoint of this project.
        """
        trained = load(checkpoint_path)
        module = cls(trained.model.config, trained.tokenizer.vocab, taught=trained.taught, **kwargs)
        module.model = trained.model.train()
        return module

    def _scored(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits ``(B, T - start, V)`` and targets ``(B, T - start)`` from the first position that the loss counts."""
        if self.loss_on == "all":
            return self.model(batch.ids), batch.targets
        start = int(batch.mask.any(dim=0).int().argmax())
        return self.model(batch.ids, start), batch.answers[:, start:]


def _check_alike(module: TinyGPTModule, config: GPTConfig, tokenizer: CharTokenizer, path: str | Path) -> None:
    """Refuse a checkpoint of a model with other sizes or other symbols."""
    expected, got = ("".join(known.vocab) for known in (tokenizer, module.tokenizer))
    if tokenizer.vocab.keys() != module.tokenizer.vocab.keys():
        raise CheckpointError(path, f"is of another vocabulary: expected the symbols {expected!r}, got {got!r}")
    for field, value in asdict(config).items():
        if (asked := getattr(module.model.config, field)) != value:
            raise CheckpointError(path, f"is of another model: expected model.config.{field} {value}, got {asked}")
