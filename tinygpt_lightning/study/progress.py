"""How far a study is, and how long it will still take."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TextIO


class Progress:
    """One line that is written over in a terminal; elsewhere a new one every ten seconds.

    Args:
        total: Units of work in all: epochs times seeds.
        stream: Where to write.
    """

    def __init__(self, total: int, stream: TextIO) -> None:
        self.total = total
        self.done = 0
        self.stream = stream
        self._start = self._last = time.monotonic()

    def advance(self, units: int) -> None:
        """Count ``units`` of work, and say so once in a while."""
        self.done += units
        now = time.monotonic()
        terminal = self.stream.isatty()
        if now - self._last >= (0.2 if terminal else 10) or self.done >= self.total:
            self._last = now
            end = "\r" if terminal and self.done < self.total else "\n"
            print(self.line(now - self._start), end=end, file=self.stream, flush=True)

    def line(self, seconds: float) -> str:
        """The state after so many seconds.

        >>> import sys
        >>> progress = Progress(200, sys.stderr)
        >>> progress.done = 50
        >>> progress.line(30)
        'study: 50 of 200 seed-epochs (25 %), 0:00:30 gone, about 0:01:30 left'
        """
        left = seconds * (self.total - self.done) / self.done
        return (
            f"study: {self.done} of {self.total} seed-epochs ({100 * self.done // self.total} %), "
            f"{timedelta(seconds=round(seconds))} gone, about {timedelta(seconds=round(left))} left"
        )
