"""What a checkpoint kept of the way to its weights: the moments that the callback `Snapshots` took."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tinygpt_lightning.description import read_weights
from tinygpt_lightning.gpt.checkpoint import CheckpointError
from tinygpt_lightning.gpt.model import GPTConfig

SNAPSHOTS_KEY = "Snapshots"  # under which the callback keeps them, among those of all callbacks


class Moment(NamedTuple):
    """The weights at a moment.

    Args:
        step: Optimizer steps taken so far.
        loss: The training loss with these weights, in nats.
        weights: By the names in `TinyGPT`.
    """

    step: int
    loss: float
    weights: dict[str, Tensor]


class Moments(NamedTuple):
    """All that a run kept.

    Args:
        moments: In order.
        boundaries: Steps after which a stage ended.
    """

    moments: Sequence[Moment] = ()
    boundaries: Sequence[int] = ()


NONE = Moments()


def read_moments(checkpoint: Mapping[str, Any], config: GPTConfig, path: str | os.PathLike[str]) -> Moments:
    """The moments in a checkpoint, whatever somebody may have put there; none where the run kept none.

    Raises:
        CheckpointError: If they are of no model of this size; ``path`` is named.
    """
    callbacks = checkpoint.get("callbacks")
    state = callbacks.get(SNAPSHOTS_KEY) if isinstance(callbacks, Mapping) else None
    if state is None:
        return NONE
    try:
        moments = [_moment(entry, config, path) for entry in state["moments"]]
        boundaries = [_step(step) for step in state["boundaries"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(path, f"has no usable snapshots: {error}") from error
    return Moments(moments, boundaries)


def _moment(entry: Any, config: GPTConfig, path: str | os.PathLike[str]) -> Moment:
    loss = float(entry["loss"])
    if not math.isfinite(loss):
        raise ValueError(f"expected a finite loss, got {loss}")
    return Moment(_step(entry["step"]), loss, read_weights({"state_dict": entry["weights"]}, config, path))


def _step(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"expected a step, 0 or more, got {value!r:.60}")
    return value
