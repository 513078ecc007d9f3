"""What TensorBoard shows of a run besides logged scalars: a curve for each stage, texts, attention, results."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tinygpt_lightning.callbacks.graceful_stop import GracefulStop
from tinygpt_lightning.callbacks.sharded import unsharded
from tinygpt_lightning.callbacks.staged_training import StagedTraining
from tinygpt_lightning.commands.attention_picture import tile_heads
from tinygpt_lightning.commands.settings import flat
from tinygpt_lightning.commands.terminal import visible
from tinygpt_lightning.gpt.files import write_whole
from tinygpt_lightning.module import TinyGPTModule
from tinygpt_lightning.page.parts import parts, taken_out

ATTENTION = "what the heads attend to"  # behind the losses in the alphabet
MAX_TEXTS = 3  # pairs whose texts are shown
MAX_SYMBOLS = 96  # symbols in the attention picture; earlier ones cannot attend to later ones, so that none is missing
MAX_NEEDS = 64  # pairs that show which parts the model needs
MAX_PROJECTED = 2_000  # symbols in the projector


class RunLogger(TensorBoardLogger):
    """Lightning's logger without its ``hparams.yaml``, since a run's ``config.yaml`` holds all settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        threading.excepthook = _without_writers(threading.excepthook)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log scalars, but not Lightning's ``epoch``, which would stand before the losses and tell nothing."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

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
    """Shows what a learner looks for: losses, texts and attention while they improve, characters, settings.

    The loss of each stage has a curve of its own, as a logarithm, since it falls by decades; its name comes first in
    the alphabet, so that TensorBoard opens on it.

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
        self.drawn_at = 0  # epochs done when the attention was drawn last
        self._shown_in: int | None = None  # the epoch of those texts

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Define the chart of all stages; hide values that a killed run logged for steps that will be repeated."""
        if writer := _writer(trainer):
            start = Event(step=trainer.global_step, session_log=SessionLog(status=SessionLog.START))
            writer.file_writer.add_event(start, step=trainer.global_step)  # type: ignore[attr-defined]
            tags = [_loss_tag(index) for index in range(len(self.staged.stages))]
            writer.add_custom_scalars_multilinechart(tags, "stages", "log10 of train/loss, stage by stage")
        if trainer.global_step == 0:
            with unsharded(pl_module):
                if writer and isinstance(pl_module, TinyGPTModule):
                    _project(writer, pl_module, "before training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss under its stage, so that a new curve begins at each boundary."""
        writer = _writer(trainer)
        if writer and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            loss = math.log10(max(float(outputs["loss"]), 1e-45))  # a loss may be 0
            writer.add_scalar(_loss_tag(self.staged.position.index), loss, trainer.global_step - 1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show texts every few epochs, if they have changed."""
        done = trainer.current_epoch + 1
        is_due = done == 1 or done % self.text_every_n_epochs == 0
        if is_due and _error_rate(trainer) != self.shown_at:
            with unsharded(pl_module):
                self._show_texts(trainer, pl_module)

    def on_stage_end(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        """Show texts, attention and characters; at the last stage's end also settings and what the model needs."""
        with unsharded(pl_module):
            self._show_stage(trainer, pl_module, index)

    def _show_stage(self, trainer: Trainer, pl_module: LightningModule, index: int) -> None:
        writer = _writer(trainer)
        if writer is None or not isinstance(pl_module, TinyGPTModule):
            return
        if self._shown_in != trainer.current_epoch:
            self._show_texts(trainer, pl_module)
        if self.drawn_at != trainer.current_epoch + 1:
            self._show_attention(trainer, pl_module)
        _project(writer, pl_module, f"after stage {index + 1}")
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._conclude(trainer, pl_module)
        # Before the stage's checkpoint: a run that is resumed from it does not call this hook again.
        writer.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show settings and what the model needs if training ended early; a run that was interrupted has not ended."""
        if trainer.current_epoch != trainer.max_epochs and not self.stop.interrupted:
            with unsharded(pl_module):
                self._conclude(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What was shown last, so that a resumed run shows the same texts and pictures."""
        return {"shown_at": self.shown_at, "drawn_at": self.drawn_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""
        self.shown_at, self.drawn_at = state["shown_at"], state.get("drawn_at", 0)  # older runs drew at stages' ends

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

            # At each doubling: 24 heads are 150 kB, and the texts of many pairs change hundreds of times.
            if trainer.current_epoch + 1 >= 2 * self.drawn_at:
                self._show_attention(trainer, pl_module)

    def _show_attention(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.drawn_at = trainer.current_epoch + 1
        if (writer := _writer(trainer)) and isinstance(pl_module, TinyGPTModule):
            taught = pl_module.taught
            text = taught.text(taught.pairs[0])[: min(MAX_SYMBOLS, pl_module.model.config.n_positions)]
            weights = pl_module.model.attention_weights(pl_module.encode(text))[0]  # (H, T, T)
            image = Summary.Value(tag=ATTENTION, image=_png(tile_heads(weights, text)))
            # Not by `add_image`, whose wide numbers took more memory than all the rest of a fit.
            writer.file_writer.add_summary(Summary(value=[image]), trainer.global_step - 1)  # type: ignore[attr-defined]

    def _conclude(self, trainer: Trainer, pl_module: LightningModule) -> None:
        writer = _writer(trainer)
        if writer is None or not isinstance(pl_module, TinyGPTModule):
            return
        # The metrics are the curves that are there already, of which the table of settings shows the last values.
        metrics = {name: 0 for name in trainer.callback_metrics if name.startswith("val/")}
        for summary in hparams(_compared(self.settings, pl_module), metrics):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]
        writer.add_text("what it needs", _needs(pl_module), trainer.global_step - 1)


def _loss_tag(index: int) -> str:
    return f"log10_loss/stage_{index + 1}"


def _needs(module: TinyGPTModule) -> str:
    """How many pairs stay exact without a part of the model, as a table."""
    pairs, trained = module.taught.pairs[:MAX_NEEDS], module.trained
    rows = [f"| nothing | {sum(trained.knows(pairs))} |"]
    for part in parts(module.model.config)[:4]:  # without the heads one by one
        with taken_out(module.model, part):
            rows.append(f"| {part} | {sum(trained.knows(pairs))} |")
    return "\n".join([f"| without | exact of {len(pairs)} |", "| --- | --- |", *rows])


def _project(writer: SummaryWriter, module: TinyGPTModule, moment: str) -> None:
    """Give TensorBoard's projector the character embeddings of a moment, with the characters as labels.

    In files of the run and not by `add_embedding`, which forgets earlier moments where a run is resumed.
    """
    run = Path(writer.log_dir)
    folder = run / "projector"
    folder.mkdir(exist_ok=True)
    name = moment.replace(" ", "-")
    vectors = module.model.wte.weight.detach()[:MAX_PROJECTED].tolist()
    symbols = sorted(module.tokenizer.vocab, key=module.tokenizer.vocab.__getitem__)[:MAX_PROJECTED]
    write_whole(folder / f"{name}.tsv", _lines("\t".join(map(str, vector)) for vector in vectors))
    write_whole(folder / f"{name}.symbols", _lines(map(visible, symbols)))
    moments = [path.stem for path in sorted(folder.glob("*.tsv"), key=lambda path: path.stat().st_mtime_ns)]
    write_whole(run / "projector_config.pbtxt", _lines(_EMBEDDING.format(name=moment) for moment in moments))


_EMBEDDING = """embeddings {{
  tensor_name: "characters-{name}"
  tensor_path: "projector/{name}.tsv"
  metadata_path: "projector/{name}.symbols"
}}"""


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _png(picture: Image.Image) -> Summary.Image:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=3)  # an eighth of the time of 6, and a third larger
    return Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=file.getvalue())


def _error_rate(trainer: Trainer) -> float:
    return float(trainer.callback_metrics.get("val/next_char_error_rate", 1))


def _compared(settings: Mapping[str, Any], module: TinyGPTModule) -> dict[str, bool | str | float]:
    """The settings that TensorBoard compares between runs: the ones that matter most, then all that were set.

    TensorBoard sorts them by name, hence ``yaml.`` before all others.
    """
    stages = " + ".join(
        ("≤ " if stage.get("until") else "")
        + (f"{stage['steps']} steps" if stage.get("steps") else str(stage["epochs"]))
        for stage in settings["stages"]
    )
    first = {
        "n_embd": module.model.config.n_embd,
        "n_head": module.model.config.n_head,
        "learning_rate": settings["model"]["optimizer"]["init_args"].get("lr"),
        "batch_size": settings["data"]["batch_size"],
        "pairs": len(module.taught.pairs),
        "stages": stages,
    }
    every = {**first, **flat({"yaml": {name: value for name, value in settings.items() if name != "stages"}})}
    return {
        name: value if isinstance(value, bool | str | int | float) else str(value)
        for name, value in every.items()
        if value is not None
    }


def _writer(trainer: Trainer) -> SummaryWriter | None:
    """The run's event file; None in all processes but the first, and with another logger than `RunLogger`."""
    if not isinstance(trainer.logger, RunLogger) or not trainer.is_global_zero:
        return None
    writer: SummaryWriter = trainer.logger.experiment
    return writer
