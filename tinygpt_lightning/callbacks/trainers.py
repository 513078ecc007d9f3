"""Trainers: their package is checked, and attributes and methods are replaced for a while where they have no hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint


def check_package(trainer: object, callback: object) -> None:
    """Refuse the trainer of the package ``pytorch_lightning``, whose classes are not those of ``lightning.pytorch``.

    Raises:
        MisconfigurationException: The message names the callback and both packages.
    """
    if not isinstance(trainer, Trainer):
        raise MisconfigurationException(
            f"{type(callback).__name__}: expected a Trainer of lightning.pytorch, got one of "
            f"{type(trainer).__module__}; write `import lightning.pytorch as pl`"
        )


@contextmanager
def replaced(instance: object, name: str, value: object) -> Iterator[None]:
    """Give an attribute of ``instance`` another value until the context ends."""
    before = vars(instance).copy()
    setattr(instance, name, value)
    try:
        yield
    finally:
        if name in before:
            setattr(instance, name, before[name])
        else:
            delattr(instance, name)


@contextmanager
def then(trainer: Any, callback: object, instance: object, method: str, hook: Callable[[Any], None]) -> Iterator[None]:
    """Call ``hook`` with the result after each call of a method of ``instance``, until the context ends.

    For moments that Lightning has no hook for, behind a public method of one object. While Lightning's tuner has put
    ``callback`` aside, nothing is called.
    """
    call = getattr(instance, method)

    def call_and_hook(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if callback in trainer.callbacks:
            hook(result)
        return result

    with replaced(instance, method, call_and_hook):
        yield


@contextmanager
def before_savers(trainer: Any, pl_module: LightningModule, hook: str) -> Iterator[None]:
    """Call a hook of the module before callbacks that save, as Lightning does at an epoch's end, and no second time."""
    savers = [callback for callback in trainer.callbacks if isinstance(callback, Checkpoint)]  # the last ones
    call, is_called = getattr(pl_module, hook), False

    def call_once(*args: Any) -> None:
        nonlocal is_called
        if not is_called:
            call(*args)
        is_called = False

    with ExitStack() as stack:
        if savers:
            save = getattr(savers[0], hook)

            def call_and_save(trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
                nonlocal is_called
                call(*args)
                is_called = True
                save(trainer, pl_module, *args)

            stack.enter_context(replaced(savers[0], hook, call_and_save))
        stack.enter_context(replaced(pl_module, hook, call_once))
        yield
