"""The optimizers and schedulers of a stage: built, compared, kept."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim import Optimizer

from tinygpt_lightning.callbacks._lightning import averaging_start, is_missing, unscales_by_itself
from tinygpt_lightning.callbacks.sharded import adopt, reshard
from tinygpt_lightning.callbacks.stage_weights import Frozen
from tinygpt_lightning.callbacks.stages import Position, Stage, StageError
from tinygpt_lightning.callbacks.trainers import replaced

Options = list[dict[str, Any]]  # of each parameter group, without the parameters


@contextmanager
def length_of(trainer: Trainer, stage: Stage) -> Iterator[None]:
    """Give the trainer the length of a stage, which schedulers may depend on, until the context ends."""
    loop = trainer.fit_loop
    with (
        replaced(loop, "max_epochs", stage.epochs or -1),
        replaced(loop.epoch_loop, "max_steps", stage.steps or -1),
    ):
        yield


def build(trainer: Trainer, pl_module: LightningModule, stage: Stage) -> None:
    """Replace the trainer's optimizers and schedulers by new ones.

    Meanwhile the trainer's length (``estimated_stepping_batches``, ``max_epochs``, ``max_steps``) is the stage's.

    Raises:
        StageError: If the module configures none, or several where the stage brings one of its own.
    """
    with length_of(trainer, stage), _options_before_schedulers() as untouched:
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
            optimizer = stage.optimizer(_parameters(optimizer, untouched.get(optimizer)))
        else:
            # The module's own scheduler, which is dropped here, has changed the options.
            for group, options in zip(optimizer.param_groups, untouched.get(optimizer, []), strict=False):
                params = group["params"]
                group.clear()
                group.update(options, params=params)
        configured: dict[str, Any] = {"optimizer": optimizer}
        if stage.lr_scheduler is not None:
            configured["lr_scheduler"] = {
                "scheduler": stage.lr_scheduler(optimizer),
                "interval": stage.interval,
                "frequency": stage.frequency,
                **({"monitor": stage.monitor} if stage.monitor else {}),
            }
        with replaced(pl_module, "configure_optimizers", lambda: configured):
            trainer.strategy.setup_optimizers(trainer)


def _parameters(optimizer: Optimizer, untouched: Options | None) -> list[Any]:
    """Return the optimizer's parameters; if it has groups, with the options in which a group differs from the rest."""
    groups = optimizer.param_groups
    if len(groups) == 1:
        return list(groups[0]["params"])
    own = untouched or [{name: value for name, value in group.items() if name != "params"} for group in groups]
    return [
        {"params": group["params"], **{n: v for n, v in options.items() if v != optimizer.defaults.get(n, v)}}
        for group, options in zip(groups, own, strict=True)
    ]


def try_all(
    trainer: Trainer, pl_module: LightningModule, stages: Sequence[Stage], frozen: Frozen, *, strict: bool
) -> None:
    """Build every stage once, so that a mistake in the last one shows now and not after hours.

    ``frozen`` holds the frozen parameters of the last one afterwards; ``strict``: whether names must exist now.

    Raises:
        StageError: If a stage cannot be built, or cannot be trained as configured; the message names the stage.
    """
    before: list[Optimizer] = []
    every: list[Optimizer] = []
    for i, stage in enumerate(stages):
        try:
            frozen.begin(pl_module, stage, strict=strict)
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
        _check_clipping(trainer, i)
        before = now
        every += now


@contextmanager
def changing(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Let the context freeze, add or change parameters of the module."""
    reshard(pl_module)
    yield
    if isinstance(trainer.strategy, DDPStrategy):
        # DDP waits for gradients of the parameters that required one when it was set up.
        trainer.strategy.model = pl_module
        trainer.strategy.configure_ddp()


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


def check_strategy(trainer: Trainer) -> None:
    """Refuse a strategy that loads optimizers too early; `sharded.adopt` replaces one that does."""
    adopt(trainer)
    if trainer.strategy.restore_checkpoint_after_setup:
        raise StageError(
            f"strategy: expected a single device, DDP or ModelParallelStrategy, got {type(trainer.strategy).__name__}, "
            "which loads the optimizers' state before a callback can choose the stage that they belong to"
        )


def check_averaging(trainer: Trainer, stages: Sequence[Stage]) -> None:
    """Refuse `StochasticWeightAveraging` across a boundary, which would replace its learning rates."""
    epochs = Position().last_epoch(stages, 0)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging):
            if epochs == -1 or any(stage.until is not None for stage in stages):
                raise StageError(
                    "stages: expected neither steps nor until beside StochasticWeightAveraging, which needs to know "
                    "the last epoch"
                )
            start, last_stage = averaging_start(callback), epochs - (stages[-1].epochs or 0)
            # Counted from 1, or a share of all epochs.
            if max(start if isinstance(start, int) else int(epochs * start), 1) <= last_stage:
                raise StageError(
                    f"StochasticWeightAveraging.swa_epoch_start: expected {last_stage + 1} or more, so that it "
                    f"averages within the last stage, got {start}; a boundary would replace its learning rates"
                )


def check_state(state: Mapping[str, Any], stages: Sequence[Stage], checkpoint: object) -> None:
    """Refuse the callback's state in a checkpoint if an earlier version wrote it, or if begun stages are missing."""
    if "step" not in state:
        raise StageError(
            f"ckpt_path: expected a checkpoint that this version wrote, got {checkpoint} of an earlier one; "
            "resume it with that version, or start a new run"
        )
    if state["built"] >= len(stages):
        raise StageError(f"stages: expected at least the {state['built'] + 1} that this run began, got {len(stages)}")


def check_resumed(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a resume with other stages than the run began with; each argument is a callback's state."""
    pairs = [*zip(before["stages"], now["stages"], strict=True)]
    if not before["optimizer"]:  # Lightning's tuner saves a checkpoint before any optimizer is built
        return
    # The optimizer of a stage that is over plays no role any more.
    pairs[-1] = ({**pairs[-1][0], **before["optimizer"]}, {**pairs[-1][1], **now["optimizer"]})
    for i, (old, new) in enumerate(pairs):
        for name in [*new, *old]:
            if old.get(name) != new.get(name):
                expected, got = (textwrap.shorten(str(stage.get(name)), 80) for stage in (old, new))
                raise StageError(
                    f"stages[{i}].{name}: expected {expected}, with which this run began the stage, got {got}; "
                    "only stages still to come may change"
                )


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
    """Collect the options of optimizers as they are made; some schedulers (OneCycleLR) change them."""
    noted: dict[Optimizer, Options] = {}
    add_param_group = Optimizer.add_param_group

    def add_and_note(optimizer: Optimizer, group: dict[str, Any]) -> None:
        add_param_group(optimizer, group)
        options = {name: value for name, value in optimizer.param_groups[-1].items() if name != "params"}
        noted.setdefault(optimizer, []).append(deepcopy(options))

    with replaced(Optimizer, "add_param_group", add_and_note):
        yield noted
