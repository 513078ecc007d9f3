"""Every private name of Lightning's (and two of torchmetrics and PyTorch) that this project uses.

Lightning has no public way to any of these. Each function says why it is needed. No other file of the project touches a
private name, and ``tests/callbacks/test_lightning.py`` uses each one, so an upgrade that moves a name fails there.
Written for Lightning 2.6.6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.core.optimizer import _MockOptimizer
from lightning.pytorch.loops.evaluation_loop import RestartStage
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.utilities.combined_loader import _shutdown_workers_and_reset_iterator
from torch.optim import Optimizer
from torch.utils.data._utils.fetch import _MapDatasetFetcher
from torchmetrics import Metric

from tinygpt_lightning.callbacks.trainers import replaced

LOGGED = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")  # the values that were logged last
REDUCTIONS: dict[str, Callable[..., Any]] = {
    "torch.mean": torch.mean, "torch.sum": torch.sum, "torch.max": torch.max, "torch.min": torch.min,
    "sum": sum, "max": max, "min": min,
}  # fmt: skip


# Random number generators


def generator_states() -> dict[str, Any]:
    """Return the states of all global generators: torch, its accelerators, numpy and Python."""
    return _collect_rng_states()


def set_generator_states(states: dict[str, Any]) -> None:
    """Set all global generators to states of :func:`generator_states`."""
    _set_rng_states(states)


# Loaders


def train_loaders(trainer: Trainer) -> list[Any]:
    """Return the training loaders as one list; ``trainer.train_dataloader`` keeps the user's nesting."""
    return list(trainer.fit_loop._combined_loader.flattened)  # type: ignore[union-attr]


def validation_loaders(trainer: Trainer) -> list[Any]:
    """Return the validation loaders of a fit as one list, empty before they are made."""
    loader = trainer.fit_loop.epoch_loop.val_loop._combined_loader
    return [] if loader is None else list(loader.flattened)


def train_fetcher(trainer: Trainer) -> Any:
    """Return the object that fetches training batches, with ``done``, ``fetched`` and ``iterator``."""
    return trainer.fit_loop._data_fetcher


def is_stateful(loader: object) -> bool:
    """Whether the loader's place is its own to restore: a ``DataLoader`` (torchdata's) has one if its dataset has."""
    return isinstance(getattr(loader, "dataset", loader), _Stateful)


def set_sampler_epoch(loader: object, epoch: int) -> None:
    """Call ``set_epoch`` of the loader's sampler, as Lightning does before an epoch."""
    _set_sampler_epoch(loader, epoch)


def restart_persistent_workers(loaders: Sequence[Any]) -> None:
    """End persistent workers, whose generators hold what earlier epochs left there; the next epoch starts new ones."""
    for loader in loaders:
        if getattr(loader, "persistent_workers", False):
            _shutdown_workers_and_reset_iterator(loader)


def reload_epochs(trainer: Trainer) -> list[float]:
    """Return in which epochs the loaders of training and of validation were made anew; -inf if they never were."""
    train: float = trainer.fit_loop._last_train_dl_reload_epoch
    # Lightning notes no epoch for a validation loader of the sanity check, which a resumed run does not repeat.
    is_anew = train > 0 or trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    return [train, trainer.fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch if is_anew else float("-inf")]


def reload_loaders(trainer: Trainer) -> None:
    """Let module or data module make their loaders anew, between two epochs."""
    loop: Any = trainer.fit_loop
    validation = loop.epoch_loop.val_loop
    loop._combined_loader = None
    loop.setup_data()
    for loader in train_loaders(trainer):
        set_sampler_epoch(loader, loop.epoch_progress.current.processed)
    if validation._combined_loader is not None:
        validation._combined_loader, trainer.validating = None, True
        validation.setup_data()
        trainer.training = True


@contextmanager
def samples_skipped(trainer: Trainer) -> Iterator[bool]:
    """Let the one map-style loader in this process yield None instead of batches; whether it does.

    Its sampler draws before each batch, as it always does, so that its order is kept.
    """
    fetcher: Any = trainer.fit_loop._data_fetcher
    iterators = fetcher.combined_loader._iterator.iterators
    kinds = {type(getattr(iterator, "_dataset_fetcher", None)) for iterator in iterators}
    if len(iterators) == 1 and kinds == {_MapDatasetFetcher} and fetcher.length is not None:
        with replaced(iterators[0]._dataset_fetcher, "fetch", lambda _: None):
            yield True
    else:
        yield False


def repeat_epoch_start(trainer: Trainer, pl_module: LightningModule, owners: Sequence[Any]) -> None:
    """Call ``on_train_epoch_start`` of callbacks, and of the module if it is among them; what they log is dropped."""
    loop, hook = trainer.fit_loop.epoch_loop, "on_train_epoch_start"
    results = type(loop._results)(training=True)
    with replaced(loop, "_results", results), replaced(pl_module, "_current_fx_name", hook):
        for owner in owners:
            owner.on_train_epoch_start(*([] if owner is pl_module else [trainer, pl_module]))


# Progress of the loops


def is_validated_next(trainer: Trainer) -> bool:
    """Whether Lightning validates after the batch at hand."""
    return bool(trainer.fit_loop.epoch_loop._should_check_val_fx(trainer.fit_loop._data_fetcher))  # type: ignore[arg-type]


def is_step(trainer: Trainer) -> bool:
    """Whether the batch at hand ends an optimizer step and its gradients are not accumulated."""
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the batch at hand is its epoch's last one."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def finishes_batch_or_epoch_first(trainer: Trainer) -> bool:
    """Whether a resumed run first finishes the batch of its checkpoint, with its validation, or that batch's epoch."""
    loop, epochs = trainer.fit_loop.epoch_loop, cast(Any, trainer.fit_loop.epoch_progress.current)
    if epochs.started == epochs.processed:
        return False
    is_at_batch_end = loop.val_loop.restarted_mid_evaluation or loop.restarted_on_last
    return is_last_batch(trainer) or (is_at_batch_end and is_validated_next(trainer))


def start_next_batch(trainer: Trainer) -> None:
    """Make Lightning start with the next batch: it would finish the last one, which is over, once more."""
    trainer.fit_loop.epoch_loop.reset_restart_stage()


def end_epoch_at_once(trainer: Trainer) -> None:
    """Make Lightning end the epoch, and the fit, before the next batch."""
    loop = trainer.fit_loop.epoch_loop
    loop.restarting = False  # a restarting loop waits for a validation
    loop.max_steps = trainer.global_step


def update_plateau_schedulers(trainer: Trainer, interval: str) -> None:
    """Step ReduceLROnPlateau after a ``step`` or an ``epoch``, which Lightning does after checkpoints are saved."""
    if interval == "step" or is_last_batch(trainer):
        trainer.fit_loop.epoch_loop.update_lr_schedulers(interval, update_plateau_schedulers=True)


def validate_again(trainer: Trainer) -> None:
    """Make Lightning validate first when training starts, from batch 0 on."""
    loop: Any = trainer.fit_loop.epoch_loop.val_loop
    loop._restart_stage = RestartStage.RESTARTED_MID_EVALUATION
    loop.batch_progress.current.reset()


def count_as_started(trainer: Trainer) -> None:
    """Let the epoch that a run is resumed in end like any other: Lightning would not step ReduceLROnPlateau."""
    trainer.fit_loop._restarting = False


def start_next_epoch(trainer: Trainer) -> None:
    """Make Lightning start with the next epoch: with ``max_steps`` it would end the last one once more."""
    loop: Any = trainer.fit_loop
    loop.epoch_progress.current.completed = loop.epoch_progress.current.processed
    loop.reset_restart_stage()
    type(loop).restarting.fset(loop, False)


# Logged values


def is_logged(trainer: Trainer) -> bool:
    """Whether the loggers get the values of the step at hand (``log_every_n_steps``)."""
    return bool(trainer._logger_connector.should_update_logs)


def log_step(trainer: Trainer) -> None:
    """Log the values of the batch that a checkpoint was saved in, which its process may not have logged."""
    connector = trainer._logger_connector
    connector.on_batch_end()
    connector.update_train_step_metrics()


def finish_epoch(trainer: Trainer) -> None:
    """End the epoch at whose end a checkpoint was saved: step ReduceLROnPlateau, and log what may not be logged."""
    connector, loop = trainer._logger_connector, trainer.fit_loop
    connector.epoch_end_reached()
    connector.on_epoch_end()
    # As at an epoch's end: the epoch is not counted yet, and the values belong to the last step.
    loop.epoch_progress.current.completed -= 1
    update_plateau_schedulers(trainer, "epoch")
    loop.epoch_loop._batches_that_stepped -= 1
    connector.update_train_epoch_metrics()
    loop.epoch_loop._batches_that_stepped += 1
    loop.epoch_progress.current.completed += 1


def count_logged_steps(trainer: Trainer, steps: int) -> None:
    """Add to the count of steps under which values are logged."""
    trainer.fit_loop.epoch_loop._batches_that_stepped += steps


def logged_values(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return the values logged last: for callbacks, for loggers and for the progress bar."""
    return {name: dict(getattr(trainer._logger_connector, name)) for name in LOGGED}


def restore_logged_values(trainer: Trainer, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the values of :func:`logged_values` back."""
    connector: Any = trainer._logger_connector
    for name in LOGGED:
        getattr(connector, name).update(values[name])
    # Otherwise the next batch counts as the epoch's first one, and all averages begin again.
    connector._first_loop_iter = False if trainer.fit_loop.restarted_mid_epoch else None


def logged_names(trainer: Trainer) -> set[str]:
    """Return the names under which this epoch's training has logged something, also of what is shown at its end."""
    return {
        f"{result.meta.name}{end}" for result in trainer.fit_loop.epoch_loop._results.values() for end in ("", "_epoch")
    }


def running_averages(trainer: Trainer) -> dict[str, dict[str, Any]]:
    """Return what ``self.log`` has collected of this epoch, as tensors and plain values."""
    return {
        key: _result_state(result)
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        # A process group cannot be saved.
        if not result.has_reset and result.meta.sync.group is None
    }


def restore_running_averages(
    trainer: Trainer, pl_module: LightningModule, averages: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put the values of :func:`running_averages` back."""
    for key, state in averages.items():
        if not key.startswith("on_train_start."):  # that hook has logged again, or will
            trainer.fit_loop.epoch_loop._results[key] = _result(state, trainer, pl_module)


def _result_state(result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    (reduction,) = (name for name, function in REDUCTIONS.items() if function is meta.reduce_fx)
    return {
        "meta": {name: value for name, value in vars(meta).items() if name not in ("reduce_fx", "_sync")},
        "reduce_fx": reduction,
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "updates": result.update_count,
        "shown": result._forward_cache,
        # A logged torchmetrics object is the module's own, which `metric_state` covers.
        "state": result.metric_state if result.is_tensor else None,
    }


def _result(saved: Mapping[str, Any], trainer: Trainer, pl_module: LightningModule) -> _ResultMetric:
    meta = _Metadata(**saved["meta"], reduce_fx=REDUCTIONS[saved["reduce_fx"]])
    meta.sync = _Sync(fn=trainer.strategy.reduce, **saved["sync"])
    result = _ResultMetric(meta, is_tensor=saved["state"] is not None)
    state = {"value": pl_module.get_submodule(str(meta.metric_attribute))} if saved["state"] is None else saved["state"]
    vars(result).update(state, _update_count=saved["updates"], _forward_cache=saved["shown"])
    return result


def metric_state(metric: Metric) -> dict[str, Any]:
    """Return what a torchmetrics metric has seen; its ``state_dict`` is empty by default."""
    return {"updates": metric.update_count, "shown": metric._forward_cache, "state": metric.metric_state}


def restore_metric(metric: Metric, saved: Mapping[str, Any]) -> None:
    """Put the values of :func:`metric_state` back."""
    metric._update_count, metric._forward_cache = saved["updates"], saved["shown"]
    for field, value in saved["state"].items():
        setattr(metric, field, value)


# Optimizers, averaging, checkpoints


def is_missing(optimizer: object) -> bool:
    """Whether Lightning put this optimizer in the place of one that ``configure_optimizers`` did not return."""
    return isinstance(optimizer, _MockOptimizer)


def unscales_by_itself(optimizer: Optimizer) -> bool:
    """Whether the optimizer unscales gradients itself, so that Lightning cannot clip them in mixed precision."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def averaging_start(callback: StochasticWeightAveraging) -> int | float:
    """Return the callback's ``swa_epoch_start``."""
    return callback._swa_epoch_start


def dump_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """Return the checkpoint that ``trainer.save_checkpoint`` would write now."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
