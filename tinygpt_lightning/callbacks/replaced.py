"""Attributes and methods of one object, replaced for a while: for moments at which Lightning has no hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


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
def then(instance: object, method: str, hook: Callable[[Any], None]) -> Iterator[None]:
    """Call ``hook`` with the result after each call of a method of ``instance``, until the context ends.

    For moments that Lightning has no hook for, behind a public method of one object.
    """
    call = getattr(instance, method)

    def call_and_hook(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        hook(result)
        return result

    with replaced(instance, method, call_and_hook):
        yield
