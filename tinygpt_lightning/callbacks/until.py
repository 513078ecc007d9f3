"""When a stage ends before its epochs are over: what is watched, and how it is judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Until:
    """Ends a stage when a logged value is good enough, or no longer gets better.

    Args:
        monitor: Name of the value, as in ``self.log``. It is looked at once an epoch, at its end; with
            ``check_val_every_n_epoch`` above 1, only in epochs that are validated.
        mode: Which values are better: ``min``, the lower ones, or ``max``, the higher ones.
        stopping_threshold: The stage ends when the value is as good as this.
        for_epochs: How many times in a row it must be as good as ``stopping_threshold``.
        patience: The stage ends when the value has not got better so many times in a row; null means never.
        min_delta: By how much more than this it must change to be better.

    Raises:
        ValueError: If there is neither ``stopping_threshold`` nor ``patience``, or a number is out of range.
    """

    monitor: str
    mode: Literal["min", "max"] = "min"
    stopping_threshold: float | None = None
    for_epochs: int = 1
    patience: int | None = None
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ValueError(f"mode: expected min or max, got {self.mode!r}")
        if self.stopping_threshold is None and self.patience is None:
            raise ValueError("expected stopping_threshold, patience or both, got neither")
        if self.for_epochs < 1 or (self.patience is not None and self.patience < 1):
            raise ValueError(f"for_epochs, patience: expected 1 or more, got {self.for_epochs}, {self.patience}")
        if self.min_delta < 0:
            raise ValueError(f"min_delta: expected 0 or more, got {self.min_delta}")


class Watch:
    """Looks at the values of one stage, one after another.

    Args:
        until: What is watched.

    >>> watch = Watch(Until("val/loss", stopping_threshold=0.1, for_epochs=2, patience=3))
    >>> [watch.is_over(loss) for loss in (0.5, 0.09, 0.2, 0.1, 0.05)]
    [False, False, False, False, True]
    >>> watch = Watch(Until("val/loss", patience=2))
    >>> [watch.is_over(loss) for loss in (0.5, 0.6, 0.4, 0.4, 0.5)]
    [False, False, False, False, True]
    """

    def __init__(self, until: Until) -> None:
        self.until = until
        self.best = -math.inf  # the higher the better, as all values here
        self.reached = 0  # in a row
        self.waited = 0

    def is_over(self, value: float) -> bool:
        """Whether the stage is over with this value."""
        until, sign = self.until, 1 if self.until.mode == "max" else -1
        if until.stopping_threshold is not None:
            self.reached = self.reached + 1 if sign * value >= sign * until.stopping_threshold else 0
        if sign * value - until.min_delta > self.best:
            self.best, self.waited = sign * value, 0
        else:
            self.waited += 1
        has_waited = until.patience is not None and self.waited >= until.patience
        return self.reached >= until.for_epochs or has_waited

    def state_dict(self) -> dict[str, Any]:
        """What it has seen, as plain values."""
        return {"best": self.best, "reached": self.reached, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        vars(self).update(state_dict)
