"""What TensorBoard shows of a run besides logged scalars: a curve for each stage, texts, attention, results."""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.terminal import visible
from tinygpt_lightning.module import TinyGPTModule

MAX_TEXTS = 3  # pairs whose texts are shown
MAX_SYMBOLS = 96  # symbols in the attention picture; earlier ones cannot attend to later ones, so that none is missing
CELL = 10  # side of one attention weight, and of one character, in pixels
DARK, BRIGHT = (13, 8, 64), (255, 230, 77)
# The picture is a palette image, one byte a pixel: a third of the time and memory of RGB.
SHADES, GREYS = 224, 32
# Common system fonts that cover more than the English font that Pillow brings along.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf", "NotoSansCJK-Regular.ttc",
    "PingFang.ttc", "NotoSansArabic-Regular.ttf",
)  # fmt: skip

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class RunLogger(TensorBoardLogger):
    """Lightning's logger without its ``hparams.yaml``, since a run's ``config.yaml`` holds all settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        threading.excepthook = _without_writers(threading.excepthook)

    def save(self) -> None:
        """Write everything logged so far to the disk."""
        self.experiment.flush()


def _without_writers(hook: Callable[[threading.ExceptHookArgs], Any]) -> Callable[[threading.ExceptHookArgs], Any]:
    def report(args: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread passes its OSError on to the main thread, which reports it in one line.
        if not (isinstance(args.thread, _AsyncWriterThread) and isinstance(args.exc_value, OSError)):
            hook(args)

    return report


class TensorBoardReport(Callback):
    """Shows the loss of each stage in a curve of its own, texts while they improve, and attention.

    Args:
        staged: The callback that knows the stages.
        settings: All settings of the run; TensorBoard compares the important ones between runs.
        stop: The callback that notes signals.
        text_every_n_epochs: How often texts are generated, in epochs, while they improve; also at each stage's end.
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
        self.shown_at: float | None = None  # the character error rate of the texts shown last
        self._shown_in: int | None = None  # their epoch

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Define the chart of all stages; hide values that a killed run logged for steps that will be repeated."""
        if writer := _writer(trainer):
            start = Event(step=trainer.global_step, session_log=SessionLog(status=SessionLog.START))
            writer.file_writer.add_event(start, step=trainer.global_step)  # type: ignore[attr-defined]
            tags = [f"loss_by_stage/stage_{number}" for number in range(1, len(self.staged.stages) + 1)]
            writer.add_custom_scalars_multilinechart(tags, "stages", "train/loss, stage by stage")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss under its stage, so that a new curve begins at each boundary."""
        writer = _writer(trainer)
        if writer and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            tag = f"loss_by_stage/stage_{self.staged.position.index + 1}"
            writer.add_scalar(tag, outputs["loss"], trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show texts every few epochs, if they have changed."""
        done = trainer.current_epoch + 1
        is_due = done == 1 or done % self.text_every_n_epochs == 0
        if is_due and _error_rate(trainer) != self.shown_at:
            self._show_texts(trainer, pl_module)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Show texts and attention; at the last stage's end also settings and final metrics."""
        writer = _writer(trainer)
        if writer is None or not isinstance(pl_module, TinyGPTModule):
            return
        if self._shown_in != trainer.current_epoch:
            self._show_texts(trainer, pl_module)
        text = pl_module.taught.text(pl_module.taught.pairs[0])[: min(MAX_SYMBOLS, pl_module.model.config.n_positions)]
        weights = pl_module.model.attention_weights(pl_module.encode(text))[0]  # (H, T, T)
        image = Summary.Value(tag="attention of the heads", image=_png(tile_heads(weights, text)))
        # Not by `add_image`, whose wide numbers took more memory than all the rest of a fit.
        writer.file_writer.add_summary(Summary(value=[image]), trainer.global_step - 1)  # type: ignore[attr-defined]
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._log_settings(trainer)
        # Before the stage's checkpoint: a run that is resumed from it does not call this hook again.
        writer.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show settings and final metrics if training ended early; a run that was interrupted has not ended."""
        if _writer(trainer) and trainer.current_epoch != trainer.max_epochs and not self.stop.interrupted:
            self._log_settings(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The error rate of the texts shown last, so that a resumed run shows the same texts."""
        return {"shown_at": self.shown_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.shown_at = state["shown_at"]

    def _show_texts(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.shown_at, self._shown_in = _error_rate(trainer), trainer.current_epoch
        if (writer := _writer(trainer)) and isinstance(pl_module, TinyGPTModule):
            taught = pl_module.taught
            pairs = taught.pairs[:MAX_TEXTS]
            texts = pl_module.trained.complete_all([taught.prompt(pair.question) for pair in pairs])
            shown = [
                f"epoch {trainer.current_epoch + 1}, {'' if text == taught.text(pair) else 'not '}exact:\n\n"
                # An indented block is the one form of Markdown in which no character of the text has a meaning.
                + "\n".join(f"    {line}" for line in text.split("\n"))
                for pair, text in zip(pairs, texts, strict=True)
            ]
            writer.add_text("generated", "\n\n".join(shown), trainer.global_step - 1)

    def _log_settings(self, trainer: Trainer) -> None:
        final = {
            f"final/{name.removeprefix('val/')}": float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        assert trainer.logger  # noqa: S101
        trainer.logger.log_hyperparams(_compared(self.settings), metrics=final, step=trainer.global_step - 1)


def tile_heads(weights: Tensor, symbols: Sequence[str], columns: int = 4, gap: int = 6) -> Image.Image:
    """Draw the heads' attention maps side by side.

    Args:
        weights: Attention of each head, ``(H, T, T)``, from 0 to 1.
        symbols: The ``T`` symbols of the text; they stand above the columns and left of the rows.
        columns: Maps in a row.
        gap: Space between maps, in pixels.

    Returns:
        The picture: dark where a row's position (query) ignores a column's (key), bright where it attends to it.

    >>> tile_heads(torch.eye(2).repeat(3, 1, 1), "ab", columns=2, gap=1).size
    (63, 63)
    """
    heads = len(weights)
    rows = -(-heads // columns)
    # The square root makes small weights visible; most weights of a row are small.
    shades = (weights.cpu().sqrt() * (SHADES - 1)).round().byte()
    maps = F.pad(shades, (0, 0, 0, 0, 0, rows * columns - heads))  # (R·columns, T, T)
    maps = maps.repeat_interleave(CELL, 1).repeat_interleave(CELL, 2)  # (R·columns, T·CELL, T·CELL)
    white = SHADES + GREYS - 1
    maps = F.pad(maps, (CELL + gap, 0, CELL + gap, 0), value=white)
    letters = torch.cat([_letter(symbol) for symbol in symbols], dim=1)  # (CELL, T·CELL)
    maps[:heads, gap : gap + CELL, gap + CELL :] = letters
    maps[:heads, gap + CELL :, gap : gap + CELL] = torch.cat(torch.split(letters, CELL, dim=1))
    height, width = maps.shape[1:]
    tiled = maps.view(rows, columns, height, width).transpose(1, 2).reshape(rows * height, columns * width)
    picture = Image.fromarray(F.pad(tiled, (0, gap, 0, gap), value=white).numpy())
    colours = [np.linspace(DARK, BRIGHT, SHADES), np.linspace((0, 0, 0), (255, 255, 255), GREYS)]
    picture.putpalette(np.concatenate(colours).round().astype(np.uint8).tobytes())
    return picture


@cache
def _letter(symbol: str) -> Tensor:
    """A symbol in greys, ``(CELL, CELL)``; without its accents, or as a dot, if no font has it."""
    shown = visible(symbol) if len(symbol) == 1 else "·"
    for text in (shown, unicodedata.normalize("NFD", shown)[0], "·"):
        if font := next((font for font in _fonts() if _has(font, text)), None):
            break
    image = Image.new("L", (CELL, CELL), 255)
    ImageDraw.Draw(image).text((CELL / 2, CELL / 2), text, fill=0, font=font, anchor="mm")
    return torch.from_numpy(np.array(image)) // (256 // GREYS) + SHADES


@cache
def _fonts() -> tuple[_Font, ...]:
    fonts: list[_Font] = []
    for name in FONTS:
        try:
            fonts.append(ImageFont.truetype(name, CELL - 1))
        except OSError:
            continue
    return (*fonts, ImageFont.load_default(CELL - 1))


def _has(font: _Font, text: str) -> bool:
    # A font draws every character that it lacks alike; no font has U+FFFF.
    return bytes(font.getmask(text)) != bytes(font.getmask("\uffff"))


def _png(picture: Image.Image) -> Summary.Image:
    file = BytesIO()
    picture.save(file, "PNG")
    return Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=file.getvalue())


def _error_rate(trainer: Trainer) -> float:
    return float(trainer.callback_metrics.get("val/next_char_error_rate", 1))


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that TensorBoard compares between runs."""
    optimizer = settings["model"]["optimizer"]
    return {
        "seed": settings["seed_everything"],
        "stages": " + ".join(
            ("≤ " if stage.get("until") else "")
            + (f"{stage['steps']} steps" if stage.get("steps") else str(stage["epochs"]))
            for stage in settings["stages"]
        ),
        "rebuild": settings["rebuild"],
        "optimizer": optimizer["class_path"],
        "learning_rate": optimizer["init_args"].get("lr"),
        **settings["model"]["config"],
    }


def _writer(trainer: Trainer) -> SummaryWriter | None:
    """The run's event file; None in all processes but the first, and with another logger than `RunLogger`."""
    if not isinstance(trainer.logger, RunLogger) or not trainer.is_global_zero:
        return None
    writer: SummaryWriter = trainer.logger.experiment
    return writer
