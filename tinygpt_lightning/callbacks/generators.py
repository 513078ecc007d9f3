"""Random number generators: the global ones, and those that a loader, its sampler or its dataset brings."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

DEPTH = 5  # of attributes in attributes, from the loader on
LENGTH = 64  # longer lists hold data
PLAIN = (str, int, float, type(None))  # most attributes by far


def seed_all(*key: int | str) -> None:
    """Seed torch (CPU and the accelerators in use), numpy and Python from ``key``.

    Unlike :func:`torch.manual_seed`, fast enough for every step: that one formats a stack trace wherever
    CUDA is not in use.

    >>> seed_all("step", 7)
    >>> first = torch.rand(2), random.random()
    >>> seed_all("step", 7)
    >>> (torch.rand(2), random.random())[1] == first[1]
    True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    seed = int.from_bytes(digest[:8], "little")
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)
    np.random.seed(np.frombuffer(digest, dtype="<u4"))
    random.seed(digest)


def seed_each(generators: Sequence[Any], *key: int | str) -> None:
    """Seed generators of :func:`find_generators` from ``key``, each differently."""
    for i, generator in enumerate(generators):
        seed = int.from_bytes(hashlib.sha256(repr((*key, i)).encode()).digest()[:8], "little")
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed)
        elif isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.seed(seed % 2**32)


def find_generators(owners: Sequence[object]) -> list[Any]:
    """Return the generators in the attributes of loaders, and in the attributes of those, in a fixed order.

    >>> loader = torch.utils.data.DataLoader([1, 2], shuffle=True, generator=torch.Generator())
    >>> len(find_generators([loader]))
    1
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()
    level = list(owners)
    for _ in range(DEPTH):
        values = (value for owner in level for value in _attributes(owner))
        level = [value for value in values if not isinstance(value, PLAIN) and id(value) not in seen]
        for value in level:
            seen.add(id(value))
            if isinstance(value, torch.Generator | np.random.Generator | np.random.RandomState | random.Random):
                found[id(value)] = value
    return list(found.values())


def _attributes(owner: object) -> list[Any]:
    if isinstance(owner, list | tuple):
        return list(owner) if len(owner) <= LENGTH else []
    if isinstance(owner, dict):
        return list(owner.values()) if len(owner) <= LENGTH else []
    if isinstance(owner, type) or not hasattr(owner, "__dict__"):
        return []
    # The iterator holds copies.
    return [value for name, value in vars(owner).items() if name != "_iterator"]
