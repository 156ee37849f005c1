"""The event loops of the tests: which kind a run uses, and clocks that do not follow the wall clock.

The environment variable KIE4O_TEST_LOOP is "asyncio" (the default) or "uvloop". `run_virtual` is for what
happens in one loop, also over sockets: time jumps to the next timer whenever nothing is ready. It always
takes a loop of asyncio. `run_timelapse` is for what another process takes part in. Its clock runs `speed`
times faster than the wall clock: at 20, ten seconds of a rate limit take half a second. `run_scaled` is the
first on asyncio, and the second on uvloop, which has no virtual time.

`VirtualLoop` is the base of loops with clocks of their own, such as one that sleeps.
"""

import asyncio
import contextlib
import math
import os
import selectors
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar
from unittest import mock

from kie4o import closing
from kie4o.emulator.clock import VirtualTime
from kie4o.stores import guard

KIND = os.environ.get("KIE4O_TEST_LOOP") or "asyncio"

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
    """Its clock stands still while anything is ready, and jumps to the next timer otherwise.

    It calls a timer up to `resolution` seconds early, as asyncio's loops do by that of their clock.
    """

    def __init__(self, resolution: float = 1e-9) -> None:
        self._clock = _Jumping()
        super().__init__(self._clock)
        self._clock_resolution = resolution

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
        self._start = time.perf_counter()  # of Windows the fine clock
        super().__init__(selector)
        self._clock_resolution = time.get_clock_info("perf_counter").resolution * speed

    def time(self) -> float:
        return self._start + (time.perf_counter() - self._start) * self._speed


def _loops_of_uvloop() -> tuple[Callable[[], asyncio.AbstractEventLoop], type[asyncio.AbstractEventLoop]]:
    import uvloop  # not on every platform

    class TimelapseUvloop(uvloop.Loop):
        """As `TimelapseLoop`. Every timer of the loop is set by `call_later` or `call_at`."""

        def __init__(self, speed: float) -> None:
            super().__init__()
            self._speed = speed
            self._start = super().time()

        def time(self) -> float:
            return self._start + (super().time() - self._start) * self._speed

        def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
            # uvloop rounds to milliseconds. That is up: half of one is 10 ms at 20 times the speed.
            real = math.ceil(delay / self._speed * 1000) / 1000 if math.isfinite(delay) else delay
            return super().call_later(real, callback, *args, context=context)

        def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
            return self.call_later(when - self.time(), callback, *args, context=context)

    return uvloop.new_event_loop, TimelapseUvloop


LOOPS = {"asyncio": lambda: (asyncio.new_event_loop, TimelapseLoop), "uvloop": _loops_of_uvloop}
new_loop, timelapse_loop = LOOPS[KIND]()


async def _virtually(main: Coroutine[Any, Any, _T]) -> _T:
    with VirtualTime(limit=30 * 86_400):
        return await main


def run_virtual(main: Coroutine[Any, Any, _T]) -> _T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(_virtually(main))


def run_scaled(main: Coroutine[Any, Any, _T], speed: float) -> _T:
    """`asyncio.run` in virtual time, or `run_timelapse` on a loop that has none."""
    return run_virtual(main) if KIND == "asyncio" else run_timelapse(main, speed)


def run_timelapse(main: Coroutine[Any, Any, _T], speed: float) -> _T:
    """`asyncio.run` in a time-lapse loop."""
    with real_time_for_stores(speed), asyncio.Runner(loop_factory=lambda: timelapse_loop(speed)) as runner:
        return runner.run(main)


@contextlib.contextmanager
def real_time_for_stores(speed: float) -> Iterator[None]:
    """Inside, the limits of the calls of a store are real seconds though the clock of the loop is `speed`
    times faster: its thread, or its server, works in real time."""
    with contextlib.ExitStack() as stack:
        for module, name in ((guard, "LIMIT"), (guard, "SHORTEST"), (closing, "CLOSING")):
            stack.enter_context(mock.patch.object(module, name, speed * getattr(module, name)))
        yield
