"""Virtual time: a clock of the running event loop that stands still while anything is ready.

When nothing is ready, it jumps to the next timer. A task of five minutes then takes milliseconds, and a test
sees the same sequence of events in every run. Everything in the loop takes part: the client, the emulator,
the sleeps and the timeouts of the test. A thread that works for the loop has to be announced, and for answers
of another process there is `grace`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DAY = 86_400.0  # seconds
_PATIENCE = 5.0  # real seconds to wait for an answer from outside if no timer is set
_SHOWN = 8  # waiting tasks in an error
_ASYNCIO = str(Path(asyncio.__file__).parent)


class HangError(RuntimeError):
    """Nothing goes on: virtual time is over, or no timer is set and nothing arrives."""


class LoopClock:
    """The clock of one event loop: virtual while it has holders, and real otherwise, but never set back.

    A loop that runs cannot be exchanged, and asyncio has no public hook for the clock of a loop. `time` and
    `run_in_executor` are public methods, and `_selector` is where each loop of asyncio itself waits.
    """

    def __init__(self, loop: Any) -> None:
        self.holders: list[VirtualTime] = []
        self._loop = loop
        self._working = 0  # threads that will wake the loop
        self._now = 0.0  # virtual
        self._origins: dict[Callable[[], float], float] = {}  # what other clocks showed at loop time 0
        self._offset = 0.0  # of real loop time, after virtual time has run ahead
        self._select: Callable[[float | None], Any] = loop._selector.select
        self._time: Callable[[], float] = loop.time
        self._executor: Callable[..., asyncio.Future[Any]] = loop.run_in_executor
        loop._selector.select = self._wait
        loop.time = self.time
        loop.run_in_executor = self._run_in_executor
        loop.kie4o_clock = self  # for the clocks of kie4o, and for the thread of its SQLite store

    @classmethod
    def of(cls, loop: Any) -> LoopClock:
        """The clock of this loop. Raises `RuntimeError` for loops that are not asyncio's own."""
        clock = getattr(loop, "kie4o_clock", None)
        if isinstance(clock, cls):
            return clock
        if getattr(loop, "_selector", None) is None:
            raise RuntimeError(
                f"virtual time needs an event loop of asyncio itself, but this one is of "
                f"{type(loop).__module__}; use Emulator(clock='real', speed=...) with it"
            )
        return cls(loop)

    def time(self) -> float:
        """Loop time in seconds."""
        return self._now if self.holders else self._time() + self._offset

    def read(self, real: Callable[[], float]) -> float:
        """Another clock, such as `time.time`, as far ahead of its real time as the loop is."""
        origin = self._origins.setdefault(real, real() - self._time() - self._offset)
        return origin + self.time()

    def hold(self, holder: VirtualTime) -> None:
        """Make time virtual until every holder has let go."""
        if not self.holders:  # from a multiple of 2**-10, so that times are rounded alike in every run
            self._now = math.ceil(self.time() * 1024) / 1024
        self.holders.append(holder)

    def let_go(self, holder: VirtualTime) -> None:
        if holder in self.holders:
            self.holders.remove(holder)
            if not self.holders:
                self._offset = self._now - self._time()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Do not jump while a thread works that will wake the loop."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    def _run_in_executor(self, *arguments: Any) -> asyncio.Future[Any]:
        announced = self.working()
        announced.__enter__()
        try:
            future = self._executor(*arguments)
        except BaseException:  # the executor is shut down, or no thread can be started
            announced.__exit__(None, None, None)
            raise
        future.add_done_callback(lambda _: announced.__exit__(None, None, None))
        return future

    def _wait(self, timeout: float | None = None) -> Any:
        """What the loop calls to wait for events, until its next timer is due."""
        if not self.holders:
            return self._select(timeout)
        events = self._select(0)
        if events or timeout == 0:
            return events
        if self._working:
            return self._select(None)
        grace = max(holder.grace for holder in self.holders)
        events = self._select(_PATIENCE if timeout is None else grace)
        if events:
            return events
        if timeout is None:
            raise self._hang("nothing is ready and no timer is set")
        self._now += timeout
        for holder in self.holders:
            holder.jumps += 1
            if self._now > holder.end:
                raise self._hang(f"{holder.limit:g} s of virtual time are over")
        return events

    def _hang(self, reason: str) -> HangError:
        """The error that names what waits. Time is real from here on, so that what follows can clean up."""
        for holder in list(self.holders):
            self.let_go(holder)
        tasks = sorted(asyncio.all_tasks(self._loop), key=lambda task: task.get_name())
        lines = [f"\n  {task.get_name()}: {_where(task)}" for task in tasks[:_SHOWN]]
        more = f"\n  and {len(tasks) - _SHOWN} more" if len(tasks) > _SHOWN else ""
        return HangError(f"{reason}. These tasks wait:{''.join(lines)}{more}")


class VirtualTime:
    """Virtual time in the running loop: `with VirtualTime():`.

    Args:
        grace: Real seconds to wait before each jump, for answers from outside the process. On loopback within
            a process none is needed.
        limit: Virtual seconds after which a `HangError` names what still waits.

    Attributes:
        jumps: How often the clock has jumped.
    """

    def __init__(self, *, grace: float = 0.0, limit: float = DAY) -> None:
        self.grace: float = grace
        self.limit: float = limit
        self.end: float = float("inf")
        self.jumps: int = 0
        self._clock: LoopClock | None = None

    def __enter__(self) -> VirtualTime:
        self._clock = LoopClock.of(asyncio.get_running_loop())
        self._clock.hold(self)
        self.end = self._clock.time() + self.limit
        return self

    def __exit__(self, *_: object) -> None:
        clock, self._clock = self._clock, None
        if clock is not None:
            clock.let_go(self)


def _where(task: asyncio.Task[Any]) -> str:
    """The coroutine of a task and the line at which it waits, of its own rather than of asyncio's."""
    inner: Any = task.get_coro()
    name, line = getattr(inner, "__qualname__", repr(inner)), ""
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        if frame is not None and not (line and frame.f_code.co_filename.startswith(_ASYNCIO)):
            line = f" at {frame.f_code.co_filename}:{frame.f_lineno}"
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return f"{name}{line}"
