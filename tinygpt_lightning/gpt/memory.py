"""What becomes of memory between two training steps."""

from __future__ import annotations

import ctypes
import platform


def keep_freed_memory() -> None:
    """Ask glibc to keep what a step frees for the next one.

    By default it returns large blocks to the system, which has to clear them again at every step: a third of
    the time of small models that train together, a twentieth of the default model's. Other C libraries are left as
    they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD in malloc.h
            libc.mallopt(option, 2**31 - 1)
