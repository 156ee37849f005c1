"""The wall clock and the uptime, in one place so that a simulation can replace them.

They are used for what other processes and people read: time stamps in a store, signatures. Durations within
a process are measured on the clock of the event loop. Where that one is virtual, as in tests with the
emulator, so are these: the loop has a `kie4o_clock` then.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# The clock that also counts while the machine is suspended. Linux has CLOCK_BOOTTIME for it; there,
# CLOCK_MONOTONIC_RAW stands still as the usual one does. On Windows the usual one counts.
_NAME = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
_UPTIME: int | None = getattr(time, _NAME, None)
_thread = threading.local()


def unix_time() -> float:
    """Seconds since 1970. It jumps whenever someone sets it."""
    return _read(time.time)


def uptime() -> float:
    """Seconds since the machine was started. No one can set it, and all processes read the same."""
    return _read(_real_uptime)


def resolution() -> float:
    """By how many seconds `time.monotonic` may be behind: 0.0156 on Windows before Python 3.13."""
    return time.get_clock_info("monotonic").resolution


def working_thread(loop: asyncio.AbstractEventLoop) -> contextlib.AbstractContextManager[None]:
    """Around a wait of the loop for a thread of our own. A virtual clock stands still meanwhile."""
    virtual = getattr(loop, "kie4o_clock", None)
    return contextlib.nullcontext() if virtual is None else virtual.working()


def follow(loop: asyncio.AbstractEventLoop) -> None:
    """In a thread that works for this loop: its clocks are those of the loop."""
    _thread.loop = loop


def _real_uptime() -> float:
    return time.monotonic() if _UPTIME is None else time.clock_gettime(_UPTIME)


def _read(real: Callable[[], float]) -> float:
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        loop = getattr(_thread, "loop", None)
    virtual = getattr(loop, "kie4o_clock", None)
    return real() if virtual is None else virtual.read(real)
