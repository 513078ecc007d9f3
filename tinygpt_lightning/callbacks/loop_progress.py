"""Lightning's counts of epochs and batches in a checkpoint, mended so that nothing is done twice, or left out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loops.evaluation_loop import RestartStage


@dataclass(frozen=True)
class Pending:
    """What comes first where a run is resumed, before it goes on with the next batch or epoch.

    Args:
        validation: Whether it is the validation after the last batch, from its beginning.
        log: What may not have been logged before the process ended: the values of a ``step`` or of an ``epoch``.
        steps: Steps that are done and that the logger's count lacks.
    """

    validation: bool = False
    log: str | None = None
    steps: int = 0


def note(trainer: Trainer, validated: int) -> dict[str, bool]:
    """Note what a checkpoint's counts do not tell.

    Args:
        trainer: The trainer.
        validated: The batches that were done when the last validation ended.

    Returns:
        Whether the batch that is done is still to be validated, and whether the batch at hand ends a step.
    """
    loop: Any = trainer.fit_loop.epoch_loop
    progress = loop.batch_progress
    is_within_epoch = _is_within_epoch(vars(trainer.fit_loop.epoch_progress.current))
    is_done = is_within_epoch and progress.current.ready == progress.current.processed > 0
    is_unvalidated = is_done and validated != progress.total.processed
    return {
        "is_validated_next": is_unvalidated and loop._should_check_val_fx(trainer.fit_loop._data_fetcher),
        "is_a_step": not loop._should_accumulate(),
    }


def mend(loops: dict[str, Any], noted: dict[str, bool]) -> Pending:
    """Mend what Lightning gets wrong when it goes on from a checkpoint of certain moments.

    Of one written at an epoch's start, it leaves out that epoch; after a batch that is to be validated, the
    validation; after an epoch's last batch, the epoch's end as well; in a validation, that is gone on with, but from
    the first batches on; and where an exception broke off a batch, the logger's count of steps is one too high.

    Args:
        loops: The state of the fit loop in the checkpoint, to be changed.
        noted: What :func:`note` noted when it was written.
    """
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    if epoch["current"]["started"] < epoch["current"]["ready"]:
        for counts in epoch["total"], epoch["current"]:
            counts["ready"] = counts["started"]
    if not _is_within_epoch(epoch["current"]):
        return Pending(log="epoch" if epoch["current"]["completed"] < epoch["current"]["processed"] else None)
    now, validation = batch["current"], noted["is_validated_next"]
    if now["processed"] < now["ready"]:
        return Pending(steps=-noted["is_a_step"])
    is_at_batch_end, is_last = now["completed"] < now["processed"], batch["is_last_batch"]
    if validation or is_last:
        for counts in batch["total"], now:
            counts["completed"] = counts["processed"]
    steps = noted["is_a_step"] if is_at_batch_end and is_last and not validation else 0
    return Pending(validation, "step" if is_at_batch_end else None, steps)


def go_on(trainer: Trainer, pending: Pending) -> None:
    """Do, or have done, what is pending.

    Args:
        trainer: The trainer, when training is about to start.
        pending: What :func:`mend` returned.
    """
    loop: Any = trainer.fit_loop
    connector: Any = trainer._logger_connector
    if loop.restarting and not loop.restarted_mid_epoch:
        # With ``max_steps`` Lightning would end the last epoch once more.
        loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
        loop.reset_restart_stage()
        type(loop).restarting.fset(loop, False)
    if pending.validation:
        loop.epoch_loop.val_loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
        loop.epoch_loop.val_loop.batch_progress.current.reset()
    if pending.log == "step":
        connector.on_batch_end()
        connector.update_train_step_metrics()
    elif pending.log == "epoch":
        connector.epoch_end_reached()
        connector.on_epoch_end()
        with _one_less(loop.epoch_progress.current, "completed"), _one_less(loop.epoch_loop, "_batches_that_stepped"):
            connector.update_train_epoch_metrics()
    loop.epoch_loop._batches_that_stepped += pending.steps


def _is_within_epoch(counts: dict[str, int]) -> bool:
    return counts["started"] == counts["ready"] > counts["processed"]


@contextmanager
def _one_less(instance: object, name: str) -> Iterator[None]:
    setattr(instance, name, getattr(instance, name) - 1)
    yield
    setattr(instance, name, getattr(instance, name) + 1)
