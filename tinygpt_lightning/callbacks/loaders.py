"""The loaders of a run that is resumed: brought to where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader, _shutdown_workers_and_reset_iterator


def start_workers_anew(loaders: CombinedLoader | None) -> None:
    """End the workers of loaders that would keep them: their generators hold what earlier epochs have left there."""
    for loader in loaders.flattened if loaders is not None else []:
        if getattr(loader, "persistent_workers", False):
            _shutdown_workers_and_reset_iterator(loader)


def begin_epoch(trainer: Trainer) -> None:
    """Begin to fetch the epoch's batches, where Lightning would go on with an iterator from before now."""
    loop: Any = trainer.fit_loop
    start_workers_anew(loop._combined_loader)
    if trainer.current_epoch == 0 or loop.is_resuming or loop.epoch_loop.restarting:
        iter(loop._data_fetcher)


def go_on(trainer: Trainer, seed: Callable[[str, int], None], batches: int) -> None:
    """Bring the loaders to where an interrupted epoch was: what it has used is fetched again and dropped.

    Args:
        trainer: The trainer, when training is about to start.
        seed: Seeds all generators for a moment (``epoch``, ``fetch``) and its number.
        batches: The batches done since the start of the run.
    """
    loop: Any = trainer.fit_loop
    fetcher, loaders = loop._data_fetcher, loop._combined_loader
    done = loop.epoch_loop.batch_progress.current.processed
    if any(isinstance(loader, _Stateful) for loader in loaders.flattened):
        seed("fetch", batches)
    elif done >= trainer.num_training_batches:  # that epoch is over but for its end
        fetcher.done = True
        seed("fetch", batches)
    else:
        start_workers_anew(loaders)
        for loader in loaders.flattened:
            _set_sampler_epoch(loader, trainer.current_epoch)
        seed("epoch", trainer.current_epoch)
        iter(fetcher)
        for batch in range(batches - done, batches):
            next(fetcher)
            seed("fetch", batch + 1)
        fetcher.fetched = 0  # Lightning adds the batches done by itself
    fetcher.iterator = _undisturbed(fetcher.iterator, trainer)


def _undisturbed(iterator: Iterator[Any], trainer: Trainer) -> Iterable[Any]:
    """Go on with ``iterator`` later as if now: passing over a validation, Lightning begins with its loader."""
    states = _collect_rng_states()

    def items() -> Iterator[Any]:
        start_workers_anew(trainer.fit_loop.epoch_loop.val_loop._combined_loader)
        _set_rng_states(states)
        yield from map(next, repeat(iterator))  # ``iter`` would start it again

    return items()
