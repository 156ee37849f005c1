"""The wall clock and the uptime, in one place so that a simulation can replace them.

They are used for what other processes and people read: time stamps in a store, signatures. Durations within
a process are measured on the clock of the event loop.
"""

from __future__ import annotations

import sys
import time

# The clock that also counts while the machine is suspended. Linux has CLOCK_BOOTTIME for it; there,
# CLOCK_MONOTONIC_RAW stands still as the usual one does. On Windows the usual one counts.
_NAME = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
_UPTIME: int | None = getattr(time, _NAME, None)


def unix_time() -> float:
    """Seconds since 1970. It jumps whenever someone sets it."""
    return time.time()


def uptime() -> float:
    """Seconds since the machine was started. No one can set it, and all processes read the same."""
    return time.monotonic() if _UPTIME is None else time.clock_gettime(_UPTIME)


def resolution() -> float:
    """By how many seconds `time.monotonic` may be behind: 0.0156 on Windows before Python 3.13."""
    return time.get_clock_info("monotonic").resolution
