"""The wall clock and the uptime, in one place so that a simulation can replace them.

They are used for what other processes and people read: time stamps in a store, signatures. Durations within
a process are measured on the clock of the event loop.
"""

from __future__ import annotations

import time

_UPTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)  # Linux: also counts while it is suspended


def unix_time() -> float:
    """Seconds since 1970. It jumps whenever someone sets it."""
    return time.time()


def uptime() -> float:
    """Seconds since the machine was started. No one can set it, and all processes read the same."""
    return time.monotonic() if _UPTIME is None else time.clock_gettime(_UPTIME)
