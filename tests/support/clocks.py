"""Two event loops that do not follow the wall clock: one jumps, one runs fast.

`VirtualLoop` is for code without sockets. Whenever nothing is ready its clock jumps to the next timer: a day
takes milliseconds, and runs are repeatable. `TimelapseLoop` is for real sockets. Its clock runs `speed` times
faster than the wall clock: at 20, ten seconds of a rate limit take half a second.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest import mock

from kie4o import client
from kie4o.stores import guard

_T = TypeVar("_T")


class _Jumping(selectors.DefaultSelector):
    now = 1000.0  # not 0.0, which could be mistaken for "no time"

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("nothing is ready and no timer is set: this would wait forever")
        if not events and timeout is not None:
            self.now += max(timeout, 0)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock stands still while anything is ready, and jumps to the next timer otherwise."""

    def __init__(self) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class _Hurried(selectors.DefaultSelector):
    speed = 1.0

    def select(self, timeout: float | None = None) -> Any:
        return super().select(timeout if timeout is None else timeout / self.speed)


class TimelapseLoop(asyncio.SelectorEventLoop):
    """Its clock and timers run `speed` times faster than the wall clock."""

    def __init__(self, speed: float) -> None:
        selector = _Hurried()
        selector.speed = self._speed = speed
        self._start = time.monotonic()
        super().__init__(selector)

    def time(self) -> float:
        return self._start + (time.monotonic() - self._start) * self._speed


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` in a `VirtualLoop`."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def run_scaled(main: Coroutine[Any, Any, _T], speed: float) -> _T:
    """`asyncio.run` in a `TimelapseLoop`.

    The thread of a SQLite store works in real time, so the limits for its calls are not scaled.
    """
    with contextlib.ExitStack() as stack:
        for module, name in ((guard, "LIMIT"), (guard, "SHORTEST"), (client, "CLOSING")):
            stack.enter_context(mock.patch.object(module, name, speed * getattr(module, name)))
        runner = stack.enter_context(asyncio.Runner(loop_factory=lambda: TimelapseLoop(speed)))
        return runner.run(main)
