"""What Lightning's checkpoints leave out of an epoch that is not over: gradients, averages, the values last shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import TrainerStatus
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torchmetrics import Metric

REDUCTIONS: dict[str, Callable[..., Any]] = {
    "torch.mean": torch.mean, "torch.sum": torch.sum, "torch.max": torch.max, "torch.min": torch.min,
    "sum": sum, "max": max, "min": min,
}  # fmt: skip
SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


def note(trainer: Trainer, pl_module: LightningModule, metrics: Mapping[str, Metric]) -> list[dict[str, Any] | None]:
    """Note where each process stands in the epoch, for a checkpoint.

    Args:
        trainer: The trainer.
        pl_module: The module.
        metrics: Those of its metrics that belong to the training of this epoch.

    Returns:
        Tensors and plain values, one entry for each process; none for those that cannot be asked, which is so when
        an exception may have come to one of them alone.
    """
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    mine = {
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "gradients": {n: p.grad for n, p in pl_module.named_parameters() if p.grad is not None}
        if _is_within_a_step(trainer)
        else {},
        "results": {
            key: _note_result(result)
            for key, result in loop._results.items()
            # A process group cannot be kept.
            if not result.has_reset and result.meta.sync.group is None
        },
        "metrics": {
            name: {"updates": metric.update_count, "shown": metric._forward_cache, "state": metric.metric_state}
            for name, metric in metrics.items()
        },
        "shown": {name: dict(getattr(connector, name)) for name in SHOWN},
    }
    mine = apply_to_collection(mine, Tensor, lambda tensor: tensor.detach().cpu())
    every: list[dict[str, Any] | None] = [None] * trainer.world_size
    if trainer.world_size > 1 and trainer.state.status != TrainerStatus.INTERRUPTED:
        torch.distributed.all_gather_object(every, mine)
    else:
        every[trainer.global_rank] = mine
    return every


def go_on(trainer: Trainer, pl_module: LightningModule, noted: Mapping[str, Any]) -> None:
    """Bring this process to where it stood in the epoch.

    Args:
        trainer: The trainer, when training is about to start.
        pl_module: The module.
        noted: This process's entry of :func:`note`.
    """
    noted = apply_to_collection(noted, Tensor, lambda tensor: tensor.to(pl_module.device))
    trainer.accumulate_grad_batches = noted["accumulate_grad_batches"]
    parameters = dict(pl_module.named_parameters())
    for name, gradient in noted["gradients"].items():
        parameters[name].grad = gradient
    for name, saved in noted["metrics"].items():
        metric: Any = pl_module.get_submodule(name)
        metric._update_count, metric._forward_cache = saved["updates"], saved["shown"]
        for field, value in saved["state"].items():
            setattr(metric, field, value)
    results = trainer.fit_loop.epoch_loop._results
    for key, saved in noted["results"].items():
        if not key.startswith("on_train_start."):  # that hook has been called anew, or will be
            results[key] = _made_result(saved, trainer, pl_module)
    connector: Any = trainer._logger_connector
    for name in SHOWN:
        getattr(connector, name).update(noted["shown"][name])
    # False, or the next batch would pass for the first one, and begin all averages.
    connector._first_loop_iter = False if trainer.fit_loop.restarted_mid_epoch else None


def metrics_in_use(pl_module: LightningModule) -> dict[str, Metric]:
    """The metrics of a module that have been updated since they were reset, by name."""
    return {
        name: module
        for name, module in pl_module.named_modules()
        if isinstance(module, Metric) and module.update_called
    }


def _is_within_a_step(trainer: Trainer) -> bool:
    """Whether gradients are still to be used; where a module steps by hand, nobody else can know."""
    if not trainer.lightning_module.automatic_optimization:
        return True
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    done: int = progress.current.processed
    is_over = done == progress.current.ready and (progress.is_last_batch or done == trainer.num_training_batches)
    return done % trainer.accumulate_grad_batches != 0 and not is_over


def _note_result(result: _ResultMetric) -> dict[str, Any]:
    meta = result.meta
    fields = {name: value for name, value in vars(meta).items() if name not in ("reduce_fx", "_sync")}
    (reduction,) = (name for name, function in REDUCTIONS.items() if function is meta.reduce_fx)
    return {
        "meta": fields,
        "reduce_fx": reduction,
        "sync": {"_should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "updates": result.update_count,
        "shown": result._forward_cache,
        # What is logged as a metric is the module's own object.
        "state": result.metric_state if result.is_tensor else None,
    }


def _made_result(saved: Mapping[str, Any], trainer: Trainer, pl_module: LightningModule) -> _ResultMetric:
    meta = _Metadata(**saved["meta"], reduce_fx=REDUCTIONS[saved["reduce_fx"]])
    meta.sync = _Sync(fn=trainer.strategy.reduce, **saved["sync"])
    result = _ResultMetric(meta, is_tensor=saved["state"] is not None)
    state = {"value": pl_module.get_submodule(str(meta.metric_attribute))} if saved["state"] is None else saved["state"]
    vars(result).update(state, _update_count=saved["updates"], _forward_cache=saved["shown"])
    return result
