"""Connections that are opened before they are needed: how early, how many, and which submit gets one.

The limiter knows when it will admit the next submits. A connection that is opened a little earlier saves each
of them the handshakes, which over TLS take two or three times as long as the POST itself. It is never older
than 2 s when it is used, and is closed if it is not used by then.

Nothing is sent here. A failure to open is not reported: the submit opens a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import TYPE_CHECKING

import attrs

from .connections import no_file_left

if TYPE_CHECKING:
    from aiohttp.client_reqrep import ConnectionKey
    from aiohttp.connector import Connection

_MARGIN = 1.5  # times what opening usually takes: how early it begins
FIRST_LEAD = 0.3  # seconds, until a connection was opened
_LEAST_LEAD = 0.01  # seconds; later is too late on a busy machine
_DECAY = 0.8  # of the longest time that opening took, at each that took less


@attrs.frozen(eq=False)
class Held:
    """A connection outside of aiohttp's pool."""

    connection: Connection
    key: ConnectionKey
    since: tuple[float, float, float]  # by the loop, the wall clock and the uptime


class Ahead:
    """What is opened ahead and not used yet. Each connection is given to one `take`, or closed."""

    def __init__(self, kept: float) -> None:
        self.usual: float = FIRST_LEAD / _MARGIN  # seconds that opening took recently
        self.ready: list[Held] = []  # the oldest first
        self._kept = kept
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: dict[asyncio.Future[None], None] = {}  # in the order of their arrival
        self._expiry: asyncio.TimerHandle | None = None
        self._paused_until = float("-inf")

    @property
    def opening(self) -> int:
        """How many are being opened."""
        return len(self._tasks)

    def lead(self) -> float:
        """How many seconds before it is needed a connection is opened: at most half of those it is kept."""
        return min(self._kept / 2, max(_LEAST_LEAD, _MARGIN * self.usual))

    def took(self, seconds: float) -> None:
        """A connection was opened in this time. Longer than one is kept, nothing waits for another."""
        self.usual = min(self._kept, max(seconds, _DECAY * self.usual))

    def open(self, count: int, call: Callable[[], Awaitable[None]]) -> None:
        """Run `call`, which holds what it opens, `count` times, each in a task."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until:
            return
        for _ in range(count):
            # Not in the context of the verb that waits for the slot: its variables are not ours.
            task = loop.create_task(self._open(call), name="kie4o connection", context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._on_done)

    def hold(self, held: Held) -> None:
        """Keep it until it is taken or too old."""
        self.ready.append(held)
        self.ready.sort(key=lambda each: each.since[0])
        self._expire()

    def take(self, fits: Callable[[Held], bool]) -> Held | None:
        """The oldest one that fits. Those that do not are closed."""
        while self.ready:
            held = self.ready.pop(0)
            if fits(held):
                return held
            held.connection.close()
        return None

    async def wait(self, until: float) -> bool:
        """Wait for one that is being opened, or until that time. False if there is none to wait for."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0 or len(self._tasks) <= len(self._waiters):
            return False
        waiter = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        try:
            await asyncio.wait([waiter], timeout=left)
        except asyncio.CancelledError:
            if waiter.done():
                self._wake()  # the next one gets what this one was told of
            raise
        finally:
            self._waiters.pop(waiter, None)
        return True

    async def stop(self) -> None:
        """Cancel what is under way. Each that ends tells one of those who wait."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """Close what is held."""
        if self._expiry is not None:
            self._expiry.cancel()
        while self.ready:
            self.ready.pop().connection.close()

    async def _open(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except Exception as error:
            if no_file_left(error):  # leave what is left to those who need it now
                self._paused_until = asyncio.get_running_loop().time() + self.lead()

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake()

    def _wake(self) -> None:
        """Tell the first who waits that one was opened, or could not be."""
        if self._waiters:
            waiter = next(iter(self._waiters))
            del self._waiters[waiter]
            waiter.set_result(None)

    def _expire(self) -> None:
        """Close what is too old, and come back when the next one will be."""
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        loop = asyncio.get_running_loop()
        while self.ready and self.ready[0].since[0] + self._kept <= loop.time():
            self.ready.pop(0).connection.close()
        if self.ready:
            self._expiry = loop.call_at(self.ready[0].since[0] + self._kept, self._expire)
