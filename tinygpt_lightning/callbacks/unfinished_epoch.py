"""An epoch that a checkpoint interrupts: what Lightning leaves out of the checkpoint, and how it is restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_info
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric
from tqdm import tqdm

from tinygpt_lightning.callbacks import _lightning
from tinygpt_lightning.callbacks.sharded import from_shard, shard_of


@dataclass(frozen=True)
class Pending:
    """What a resumed run does first, before the next batch or epoch.

    Args:
        validation: Whether the validation after the last batch comes first, from its batch 0 on.
        log: What the stopped process may not have logged, and ReduceLROnPlateau not seen: a ``step`` or an ``epoch``.
        steps: Steps that the loggers' count lacks.
        next_batch: Whether the last batch is over, with its validation.
    """

    validation: bool = False
    log: str | None = None
    steps: int = 0
    next_batch: bool = False


# Progress of the loops


def note_progress(trainer: Trainer, validated: int, ended: int) -> dict[str, bool]:
    """Return what Lightning's counts in a checkpoint do not tell.

    ``is_validated_next``: whether the batch that is done is still to be validated, where ``validated`` batches were
    done at the last validation's end. ``is_a_step``: whether the batch at hand ends an optimizer step.
    ``is_over``: whether nothing is left to do for the last batch, where ``ended`` is the count of such batches.
    """
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    is_within_epoch = _is_within_epoch(vars(trainer.fit_loop.epoch_progress.current))
    is_done = is_within_epoch and progress.current.ready == progress.current.processed > 0
    is_unvalidated = is_done and validated != progress.total.processed
    return {
        "is_validated_next": is_unvalidated and _lightning.is_validated_next(trainer),
        "is_a_step": _lightning.is_step(trainer),
        "is_over": is_done and ended == progress.total.processed,
    }


def repair_progress(loops: dict[str, Any], noted: Mapping[str, bool]) -> Pending:
    """Repair Lightning's counts in a checkpoint, so that nothing is done twice or left out.

    Lightning skips the epoch if the checkpoint was saved at its start; the validation, if it was saved after a batch
    that is to be validated; the epoch's end as well, if that batch was the last one. Saved during a validation,
    Lightning validates only the batches that follow. Saved between two batches, it finishes the first one again. And
    after an exception within a batch, the loggers' count of steps is too high by one.

    ``loops`` is the state of the fit loop in the checkpoint, changed in place; ``noted`` comes from
    :func:`note_progress`, or is empty where Lightning alone wrote the checkpoint.
    """
    epoch, batch = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
    now, total = batch["current"], batch["total"]
    # A batch at which `on_train_batch_start` cut an epoch (-1) counts as processed, but not as started.
    if not _is_within_epoch(epoch["current"]):
        now |= dict.fromkeys(now, now["processed"])
    total |= {name: total["processed"] - now["processed"] + count for name, count in now.items()}
    if epoch["current"]["started"] < epoch["current"]["ready"]:
        for counts in epoch["total"], epoch["current"]:
            counts["ready"] = counts["started"]
    if not _is_within_epoch(epoch["current"]):
        return Pending(log="epoch" if epoch["current"]["completed"] < epoch["current"]["processed"] else None)
    validation, is_a_step = noted.get("is_validated_next", False), noted.get("is_a_step", False)
    if now["processed"] < now["ready"]:
        return Pending(steps=-is_a_step)
    if noted.get("is_over"):
        return Pending(steps=-is_a_step, next_batch=True)
    is_at_batch_end, is_last = now["completed"] < now["processed"], batch["is_last_batch"]
    if validation or is_last:
        for counts in total, now:
            counts["completed"] = counts["processed"]
    steps = is_a_step if is_at_batch_end and is_last and not validation else 0
    return Pending(validation, "step" if is_at_batch_end else None, steps)


def do_pending(trainer: Trainer, pending: Pending) -> None:
    """Do what :func:`repair_progress` returned, or make Lightning do it, when training is about to start."""
    loop = trainer.fit_loop
    if loop.restarting and not loop.restarted_mid_epoch:
        _lightning.start_next_epoch(trainer)
    _lightning.count_as_started(trainer)
    if pending.next_batch:
        _lightning.start_next_batch(trainer)
    if pending.validation:
        _lightning.validate_again(trainer)
    if pending.log == "step":
        _lightning.log_step(trainer)
        if not pending.validation:
            _lightning.update_plateau_schedulers(trainer, "step")
    elif pending.log == "epoch":
        _lightning.finish_epoch(trainer)
    _lightning.count_logged_steps(trainer, pending.steps)


def _is_within_epoch(counts: Mapping[str, int]) -> bool:
    return counts["started"] == counts["ready"] > counts["processed"]


# Gradients, averages, logged values


def note_state(
    trainer: Trainer, pl_module: LightningModule, metrics: Mapping[str, Metric]
) -> list[dict[str, Any] | None]:
    """Return each process's gradients, averages and logged values, for a checkpoint.

    They are tensors on the CPU and plain values, one entry a process; None for the other processes if they cannot be
    asked, because an exception may have come to this one alone. ``metrics`` are those of the module's torchmetrics, by
    name, that the training of this epoch uses.
    """
    gradients = {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
    mine = {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradients": gradients if gradients_are_in_use(trainer) else {},
        "results": _lightning.running_averages(trainer),
        "metrics": {name: _lightning.metric_state(metric) for name, metric in metrics.items()},
        "shown": _lightning.logged_values(trainer),
    }
    mine = apply_to_collection(mine, Tensor, shard_of)
    every: list[dict[str, Any] | None] = [None] * trainer.world_size
    if trainer.world_size > 1 and trainer.state.status != TrainerStatus.INTERRUPTED:
        torch.distributed.all_gather_object(every, mine)
    else:
        every[trainer.global_rank] = mine
    return every


def restore_state(trainer: Trainer, pl_module: LightningModule, noted: Mapping[str, Any]) -> None:
    """Put this process's entry of :func:`note_state` back, when training is about to start."""
    noted = apply_to_collection(noted, Tensor, lambda tensor: tensor.to(pl_module.device))
    trainer.accumulate_grad_batches = noted["accumulate_grad_batches"]
    parameters = dict(pl_module.named_parameters())
    for name, gradient in noted["gradients"].items():
        parameters[name].grad = from_shard(gradient, parameters[name])
    for name, saved in noted["metrics"].items():
        _lightning.restore_metric(pl_module.get_submodule(name), saved)  # type: ignore[arg-type]
    _lightning.restore_running_averages(trainer, pl_module, noted["results"])
    _lightning.restore_logged_values(trainer, noted["shown"])


def metrics_in_use(pl_module: LightningModule) -> dict[str, Metric]:
    """Return the module's torchmetrics that were updated since their reset, by name."""
    return {
        name: module
        for name, module in pl_module.named_modules()
        if isinstance(module, Metric) and module.update_called
    }


def gradients_are_in_use(trainer: Trainer) -> bool:
    """Whether a later batch uses the gradients; a module that steps by hand may always do so."""
    if not trainer.lightning_module.automatic_optimization:
        return True
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    done: int = progress.current.processed
    is_over = done == progress.current.ready and (progress.is_last_batch or done == trainer.num_training_batches)
    return done % trainer.accumulate_grad_batches != 0 and not is_over


# Hooks that Lightning skips


def repeat_epoch_start(trainer: Trainer, pl_module: LightningModule) -> None:
    """Call ``on_train_epoch_start`` of module and callbacks, which Lightning skips when it resumes within an epoch.

    Plain attributes that the hooks set are set again. All that a checkpoint holds is put back afterwards: states of
    module and callbacks, metrics, gradients, options of optimizers.
    """
    callbacks = [callback for callback in trainer.callbacks if _is_repeated(callback)]  # type: ignore[attr-defined]
    states = [deepcopy(callback.state_dict()) for callback in callbacks]
    weights = deepcopy(pl_module.state_dict())
    metrics = {module: deepcopy(_lightning.metric_state(module)) for module in metrics_in_use(pl_module).values()}
    gradients = {parameter: parameter.grad for parameter in pl_module.parameters()}
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    options = [{**group} for group in groups]
    accumulated = trainer.accumulate_grad_batches
    with ExitStack() as stack:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if as_epoch_began := getattr(callback, "as_epoch_began", None):
                stack.enter_context(as_epoch_began())
        owners = [*callbacks, *([pl_module] if _is_repeated(pl_module) else [])]
        _lightning.repeat_epoch_start(trainer, pl_module, owners)
    for callback, state in zip(callbacks, states, strict=True):
        if state:
            callback.load_state_dict(state)
    pl_module.load_state_dict(weights)
    for metric, state in metrics.items():
        _lightning.restore_metric(metric, state)
    for parameter, gradient in gradients.items():
        parameter.grad = gradient
    for group, before in zip(groups, options, strict=True):
        group.update(before)
    trainer.accumulate_grad_batches = accumulated


def _is_repeated(owner: Any) -> bool:
    is_lightnings = owner.on_train_epoch_start.__module__.startswith("lightning.")  # progress bars, finetuning
    return not is_lightnings and not isinstance(owner, Checkpoint) and getattr(owner, "repeat_epoch_start", True)


# Loaders


def begin_epoch(trainer: Trainer) -> None:
    """Start the loaders with the generators as they are now, where Lightning would keep an earlier iterator."""
    loop = trainer.fit_loop
    _lightning.restart_persistent_workers(_lightning.train_loaders(trainer))
    if trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting:
        iter(_lightning.train_fetcher(trainer))


def fetch_again(trainer: Trainer, seed: Callable[[str, int], None], batches: int) -> None:
    """Bring the loaders of an interrupted epoch to its place: fetch the batches it has used, and drop them.

    Where the samples of a batch depend on nothing but its number (a map-style loader without workers), they are not
    fetched.

    Args:
        trainer: The trainer, when training is about to start.
        seed: Seeds all generators for a moment (``epoch``, ``fetch``) and its number.
        batches: Training batches done since the start of the run.
    """
    fetcher, loaders = _lightning.train_fetcher(trainer), _lightning.train_loaders(trainer)
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    done: int = progress.current.processed
    if any(_lightning.is_stateful(loader) for loader in loaders):
        seed("fetch", batches)
    elif done >= trainer.num_training_batches:  # only the epoch's end is missing
        fetcher.done = True
        seed("fetch", batches)
    else:
        _lightning.restart_persistent_workers(loaders)
        for loader in loaders:
            _lightning.set_sampler_epoch(loader, trainer.current_epoch)
        seed("epoch", trainer.current_epoch)
        iter(fetcher)
        with _lightning.samples_skipped(trainer) as are_skipped:
            if not are_skipped:
                rank_zero_info(f"ExactResume: fetches the {done} batches that this epoch has used once more")
            is_silent = are_skipped or trainer.global_rank > 0
            for batch in tqdm(range(batches - done, batches), "fetched again", leave=False, delay=5, disable=is_silent):
                next(fetcher)
                seed("fetch", batch + 1)
        fetcher.fetched = 0  # Lightning adds the batches done
    fetcher.iterator = _with_generators_of_now(fetcher.iterator, trainer)


def _with_generators_of_now(iterator: Iterator[Any], trainer: Trainer) -> Iterable[Any]:
    """Return the iterator that sets the generators as now: to skip a validation, Lightning starts its loader."""
    states = _lightning.generator_states()

    def items() -> Iterator[Any]:
        _lightning.restart_persistent_workers(_lightning.validation_loaders(trainer))
        _lightning.set_generator_states(states)
        yield from map(next, repeat(iterator))  # `iter` would start it again

    return items()
