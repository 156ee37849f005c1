"""The wall clock, the uptime and faster clocks, in one place so that a simulation can replace them.

They are used for what other processes and people read: time stamps in a store, signatures. Durations within
a process are measured on the clock of the event loop. Where that one is virtual, as in tests with the
emulator, so are these: the loop has a `kie4o_clock` then. Beside an emulator whose time runs faster than the
real one, what a client waits for is measured by a `FastLoop` and slept by a `sleeper`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

# The clock that also counts while the machine is suspended. Linux has CLOCK_BOOTTIME for it; there,
# CLOCK_MONOTONIC_RAW stands still as the usual one does. On Windows the usual one counts.
_NAME = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
_UPTIME: int | None = getattr(time, _NAME, None)
real_uptime: Callable[[], float] = (  # `uptime`, also where the clock of the loop is virtual
    time.monotonic if _UPTIME is None else functools.partial(time.clock_gettime, _UPTIME)
)
_thread = threading.local()
_UNCHANGED = contextlib.nullcontext()
_T = TypeVar("_T")


def unix_time() -> float:
    """Seconds since 1970. It jumps whenever someone sets it."""
    return _read(time.time)


def uptime() -> float:
    """Seconds since the machine was started. No one can set it, and all processes read the same."""
    return _read(real_uptime)


@functools.cache
def resolution() -> float:
    """By how many seconds `time.monotonic` may be behind: 0.0156 on Windows before Python 3.13."""
    return time.get_clock_info("monotonic").resolution


def working_thread(loop: asyncio.AbstractEventLoop) -> contextlib.AbstractContextManager[None]:
    """Around a wait of the loop for a thread of our own. A virtual clock stands still meanwhile."""
    virtual = getattr(loop, "kie4o_clock", None)
    return _UNCHANGED if virtual is None else virtual.working()


def follow(loop: asyncio.AbstractEventLoop) -> None:
    """In a thread that works for this loop: its clocks are those of the loop."""
    _thread.loop = loop


class FastLoop:
    """An event loop of which `speed` seconds pass in each real one, as far as the clock and timers go."""

    __slots__ = ("_loop", "_speed", "call_soon")

    def __init__(self, loop: asyncio.AbstractEventLoop, speed: float) -> None:
        self._loop = loop
        self._speed = speed
        self.call_soon: Callable[..., asyncio.Handle] = loop.call_soon

    def time(self) -> float:
        return self._loop.time() * self._speed

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self._loop.call_at(when / self._speed, callback)

    def create_task(self, coroutine: Coroutine[Any, Any, _T], *, name: str) -> asyncio.Task[_T]:
        return self._loop.create_task(coroutine, name=name)


def fast_loop(loop: asyncio.AbstractEventLoop, speed: float) -> asyncio.AbstractEventLoop | FastLoop:
    """This loop, or what shows its time at this speed."""
    return loop if speed == 1 else FastLoop(loop, speed)


def sleeper(speed: float) -> Callable[[float], Awaitable[object]]:
    """`asyncio.sleep` for seconds of which `speed` pass in each real one."""
    return asyncio.sleep if speed == 1 else lambda seconds: asyncio.sleep(seconds / speed)


def _read(real: Callable[[], float]) -> float:
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        loop = getattr(_thread, "loop", None)
    virtual = getattr(loop, "kie4o_clock", None)
    return real() if virtual is None else virtual.read(real)
