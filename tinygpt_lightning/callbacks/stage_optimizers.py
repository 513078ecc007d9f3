"""The optimizers and schedulers of a stage: built, compared, kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import wraps
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tinygpt_lightning.callbacks._lightning import is_missing, replaced, unscales_by_itself
from tinygpt_lightning.callbacks.stages import Stage, StageError

Options = list[dict[str, Any]]  # of each parameter group, without the parameters


def build(trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
    """Replace the trainer's optimizers and schedulers by new ones.

    Meanwhile the trainer's length (``estimated_stepping_batches``, ``max_epochs``) is the stage's.

    Raises:
        StageError: If the module configures none, or several where the stage brings one of its own.
    """
    with replaced(trainer.fit_loop, "max_epochs", stage.epochs), _options_before_schedulers() as untouched:
        # The strategy's method also replaces Lightning's wrappers and the scheduler configurations.
        trainer.strategy.setup_optimizers(trainer)
        if any(is_missing(optimizer) for optimizer in trainer.optimizers):
            raise StageError("configure_optimizers: expected an optimizer, which each stage builds again, got None")
        if stage.optimizer is None and stage.lr_scheduler is None:
            return
        if len(trainer.optimizers) != 1:
            raise StageError(
                "expected a module with one optimizer where a stage has an optimizer or lr_scheduler of its own, "
                f"got one with {len(trainer.optimizers)}"
            )
        optimizer = trainer.optimizers[0]
        if stage.optimizer is not None:
            optimizer = stage.optimizer([p for group in optimizer.param_groups for p in group["params"]])
        else:
            # The module's own scheduler, which is dropped here, has changed the options.
            for group, options in zip(optimizer.param_groups, untouched.get(optimizer, []), strict=False):
                params = group["params"]
                group.clear()
                group.update(options, params=params)
        configured: dict[str, Any] = {"optimizer": optimizer}
        if stage.lr_scheduler is not None:
            configured["lr_scheduler"] = stage.lr_scheduler(optimizer)
        with replaced(pl_module, "configure_optimizers", lambda: configured):
            trainer.strategy.setup_optimizers(trainer)


def try_all(trainer: Trainer, pl_module: LightningModule, stages: Sequence[Stage]) -> None:
    """Build every stage once, so that a mistake in the last one shows now and not after hours.

    Raises:
        StageError: If a stage cannot be built, or cannot be trained as configured; the message names the stage.
    """
    before: list[Optimizer] = []
    every: list[Optimizer] = []
    for i, stage in enumerate(stages):
        try:
            build(trainer, pl_module, stage)
        except ValueError as error:  # a learning rate below 0, say
            raise StageError(f"stages[{i}]: {error}") from error
        now = trainer.optimizers
        if any(optimizer is old for optimizer in now for old in every):
            raise StageError(
                f"stages[{i}]: expected a new optimizer each time that configure_optimizers is called, got the same "
                "again; if it is LightningCLI's, see auto_configure_optimizers=False and OptimizerCallable"
            )
        kinds, kinds_before = [type(optimizer) for optimizer in now], [type(optimizer) for optimizer in before]
        if i and not stage.reset_optimizer and kinds != kinds_before:
            raise StageError(
                f"stages[{i}]: expected an optimizer like the one before, whose state it is to keep "
                f"(reset_optimizer: false), got {kinds[0].__name__} after {kinds_before[0].__name__}"
            )
        if any(config.reduce_on_plateau for config in trainer.strategy.lr_scheduler_configs):
            raise StageError(
                f"stages[{i}].lr_scheduler: expected any but ReduceLROnPlateau, which steps after the "
                "checkpoint is written, so that no run could be resumed exactly"
            )
        _check_clipping(trainer, i)
        before = now
        every += now


def keep_state(old: Sequence[Optimizer], new: Sequence[Optimizer]) -> None:
    """Give new optimizers the state (momentum and the like) of old ones, for the parameters that both have."""
    # The state alone: with the old groups the new scheduler would inherit a stale learning rate.
    for before, now in zip(old, new, strict=True):
        held = {p for group in now.param_groups for p in group["params"]}
        now.state.update({p: state for p, state in before.state.items() if not isinstance(p, Tensor) or p in held})


def settings_of_optimizers(trainer: Trainer) -> dict[str, str]:
    """Return the settings of the trainer's optimizers and schedulers, which are new, as text, by name."""
    settings: dict[str, str] = {}
    schedulers = [config.scheduler for config in trainer.strategy.lr_scheduler_configs]
    for i, optimizer in enumerate(trainer.optimizers):
        name = "optimizer" + (f"[{i}]" if len(trainer.optimizers) > 1 else "")
        settings[name] = type(optimizer).__name__
        for j, options in enumerate(optimizer.param_groups):
            group = name + (f".groups[{j}]" if len(optimizer.param_groups) > 1 else "")
            # Without the parameters themselves, and without the option that a scheduler adds.
            settings |= {f"{group}.{k}": str(v) for k, v in options.items() if k not in ("params", "initial_lr")}
            settings[f"{group}.params"] = str(len(options["params"]))
    for i, scheduler in enumerate(schedulers):
        name = "lr_scheduler" + (f"[{i}]" if len(schedulers) > 1 else "")
        settings[name] = type(scheduler).__name__
        settings |= {f"{name}.{k}": str(v) for k, v in scheduler.state_dict().items()}
    return settings


def _check_clipping(trainer: Trainer, index: int) -> None:
    mixed = isinstance(trainer.precision_plugin, MixedPrecision)
    if mixed and trainer.gradient_clip_val and trainer.lightning_module.automatic_optimization:
        for optimizer in trainer.optimizers:
            if unscales_by_itself(optimizer):
                raise StageError(
                    f"stages[{index}]: expected an optimizer with fused: false, whose gradients can be clipped "
                    f"(gradient_clip_val) in mixed precision, got a fused {type(optimizer).__name__}"
                )


@contextmanager
def _options_before_schedulers() -> Iterator[dict[Optimizer, Options]]:
    """Collect the options of optimizers as they are before the first scheduler is made for them."""
    noted: dict[Optimizer, Options] = {}

    def noting(init: Any) -> Any:
        @wraps(init)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            for value in (*args, *kwargs.values()):
                if isinstance(value, Optimizer) and value not in noted:
                    noted[value] = [
                        deepcopy({k: v for k, v in group.items() if k != "params"}) for group in value.param_groups
                    ]
            init(*args, **kwargs)

        return wrapper

    # Some (OneCycleLR) change the options before they call the constructor that all of them have in common.
    constructors = [(kind, vars(kind)["__init__"]) for kind in _kinds(LRScheduler) if "__init__" in vars(kind)]
    for kind, init in constructors:
        kind.__init__ = noting(init)
    try:
        yield noted
    finally:
        for kind, init in constructors:
            kind.__init__ = init


def _kinds(base: Any) -> set[Any]:
    return {base}.union(*(_kinds(kind) for kind in base.__subclasses__()))
