"""What a person sees in TensorBoard beyond the logged scalars."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter

from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.attention_picture import LONGEST, tile_heads
from tinygpt_lightning.module import TinyGPTModule

SHOWN = 3  # so many pairs are followed while a model learns them


class RunLogger(TensorBoardLogger):
    """Lightning's logger without its ``hparams.yaml``: a run's ``config.yaml`` says it all."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        threading.excepthook = _without_writers(threading.excepthook)

    def save(self) -> None:
        """Bring everything logged so far to the disk."""
        self.experiment.flush()


def _without_writers(hook: Callable[[threading.ExceptHookArgs], Any]) -> Callable[[threading.ExceptHookArgs], Any]:
    def report(args: threading.ExceptHookArgs) -> None:
        # What TensorBoard's thread cannot write, it also tells the thread that trains, which says so in a line.
        if not (isinstance(args.thread, _AsyncWriterThread) and isinstance(args.exc_value, OSError)):
            hook(args)

    return report


class TensorBoardReport(Callback):
    """Shows the loss of each stage in a curve of its own, the text as it improves, what the heads look at.

    Args:
        staged: The callback that knows the stages.
        settings: All settings of the run; the telling ones are compared with those of other runs.
        stop: The callback that knows whether somebody interrupted the run.
        text_every_n_epochs: How often the text is generated, in epochs, as long as it improves; also at each stage's
            end.
    """

    def __init__(
        self,
        staged: StagedTraining,
        settings: Mapping[str, Any],
        stop: GracefulStop,
        text_every_n_epochs: int = 5,
    ) -> None:
        self.staged = staged
        self.settings = settings
        self.stop = stop
        self.text_every_n_epochs = text_every_n_epochs
        self.shown_at: float | None = None  # the character error rate when the text was shown last
        self._shown_in: int | None = None  # the epoch of that

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay the stages' curves over each other; hide what a killed run logged of steps that come again."""
        if writer := _writer(trainer):
            start = Event(step=trainer.global_step, session_log=SessionLog(status=SessionLog.START))
            writer.file_writer.add_event(start, step=trainer.global_step)  # type: ignore[attr-defined]
            tags = [f"loss_by_stage/stage_{number}" for number in range(1, len(self.staged.stages) + 1)]
            writer.add_custom_scalars_multilinechart(tags, "stages", "train/loss, stage by stage")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss under its stage, so that a boundary is where one curve ends and the next begins."""
        writer = _writer(trainer)
        if writer and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            tag = f"loss_by_stage/stage_{self.staged.position.index + 1}"
            writer.add_scalar(tag, outputs["loss"], trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the text now and then, if it has changed."""
        done = trainer.current_epoch + 1
        is_due = done == 1 or done % self.text_every_n_epochs == 0
        if is_due and _error_rate(trainer) != self.shown_at:
            self._show_text(trainer, pl_module)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Show the text and the attention, and at the very end what came of it all."""
        writer = _writer(trainer)
        if writer is None or not isinstance(pl_module, TinyGPTModule):
            return
        if self._shown_in != trainer.current_epoch:
            self._show_text(trainer, pl_module)
        text = pl_module.taught.text(pl_module.taught.pairs[0])[: min(LONGEST, pl_module.model.config.n_positions)]
        weights = pl_module.model.attention_weights(pl_module.encode(text))[0]  # (H, T, T)
        image = Summary.Value(tag="attention of the heads", image=_png(tile_heads(weights, text)))
        # Not by `add_image`, which makes wide numbers of the bytes: that took more memory than anything else in a fit.
        writer.file_writer.add_summary(Summary(value=[image]), trainer.global_step - 1)  # type: ignore[attr-defined]
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._log_settings(trainer)
        # Before the stage's checkpoint: a run that is killed after it never comes here again.
        writer.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what came of it where training ended early; a run that was interrupted is not at its end."""
        if _writer(trainer) and trainer.current_epoch != trainer.max_epochs and not self.stop.interrupted:
            self._log_settings(trainer)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to show the same texts."""
        return {"shown_at": self.shown_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.shown_at = state["shown_at"]

    def _show_text(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown_at, self._shown_in = _error_rate(trainer), trainer.current_epoch
        if (writer := _writer(trainer)) and isinstance(pl_module, TinyGPTModule):
            said = "\n\n".join(_said(pl_module, trainer.current_epoch + 1))
            writer.add_text("generated", said, trainer.global_step - 1)

    def _log_settings(self, trainer: Trainer) -> None:
        final = {
            f"final/{name.removeprefix('val/')}": float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        assert trainer.logger  # noqa: S101
        trainer.logger.log_hyperparams(_compared(self.settings), metrics=final, step=trainer.global_step - 1)


def _png(picture: Image.Image) -> Summary.Image:
    """A picture as TensorBoard keeps it."""
    file = BytesIO()
    picture.save(file, "PNG")
    return Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=file.getvalue())


def _error_rate(trainer: Trainer) -> float:
    return float(trainer.callback_metrics.get("val/next_char_error_rate", 1))


def _said(module: TinyGPTModule, epoch: int) -> Iterator[str]:
    """What the module makes of some of its pairs, and whether that is what it should."""
    pairs = module.taught.pairs[:SHOWN]
    texts = module.trained.complete_all([module.taught.prompt(pair.question) for pair in pairs])
    for pair, text in zip(pairs, texts, strict=True):
        verdict = "exact" if text == module.taught.text(pair) else "not exact"
        yield f"epoch {epoch}, {verdict}:\n\n" + _as_code(text)


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What TensorBoard compares between runs."""
    optimizer = settings["model"]["optimizer"]
    return {
        "seed": settings["seed_everything"],
        "stages": " + ".join(
            ("≤ " if stage.get("until") else "") + str(stage["epochs"]) for stage in settings["stages"]
        ),
        "rebuild": settings["rebuild"],
        "optimizer": optimizer["class_path"],
        "learning_rate": optimizer["init_args"].get("lr"),
        **settings["model"]["config"],
    }


def _writer(trainer: Trainer) -> SummaryWriter | None:
    """The run's event file; only the first process has one, and only with the logger of this module."""
    if not isinstance(trainer.logger, RunLogger) or not trainer.is_global_zero:
        return None
    writer: SummaryWriter = trainer.logger.experiment
    return writer


def _as_code(text: str) -> str:
    # An indented block is the one form of Markdown in which no character of the text means anything.
    return "\n".join(f"    {line}" for line in text.split("\n"))
