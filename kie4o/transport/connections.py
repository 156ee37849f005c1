"""The connections of a session: how many there may be, and when idle ones are not used any more.

A process may have 256 open files in a shell of macOS, and other parts of the program need some of them.
Each pool of connections takes a share. If no file is left all the same, a call waits (`when_free`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TypeVar

import aiohttp

from .. import clock

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows, where sockets do not count as files
    resource = None

_SHARE = 8  # a pool takes this part of the files: there are three, and a transfer needs two files
_FEWEST = 20  # a client that submits one task at a time may still wait for many
_PAUSE = 0.1  # seconds
_SLEPT = 1.0  # seconds; less is a clock that is being adjusted
# EMFILE is the limit of the process, ENFILE that of the machine, WSAEMFILE the one of Windows.
_NO_FILE = frozenset(
    getattr(errno, name) for name in ("EMFILE", "ENFILE", "WSAEMFILE") if hasattr(errno, name)
)
_T = TypeVar("_T")


def most_connections(max_in_flight: int) -> int:
    """How many connections a pool may have: one per task in flight, but only a share of the files."""
    most = max(max_in_flight, _FEWEST)
    if resource is None:
        return most
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if files == resource.RLIM_INFINITY else max(1, min(most, files // _SHARE))


def no_file_left(error: BaseException) -> bool:
    """Whether a file or a socket could not be opened because too many are open."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):  # a resolver without a file knows no host
        return _is_full()
    return isinstance(error, OSError) and error.errno in _NO_FILE


def _is_full() -> bool:
    try:
        socket.socket().close()
    except OSError as error:
        return error.errno in _NO_FILE
    return False


async def when_free(
    call: Callable[[], Awaitable[_T]],
    *,
    seconds: float = 30.0,
    waits_for: Callable[[Exception], bool] = no_file_left,
) -> _T:
    """The result of `call`, which is called again while it fails because too many files are open.

    Raises the last failure unchanged after `seconds`.
    """
    loop = asyncio.get_running_loop()
    last = loop.time() + seconds - _PAUSE
    while True:
        try:
            return await call()
        except Exception as error:
            if not waits_for(error) or loop.time() > last:
                raise
        await asyncio.sleep(_PAUSE)


class Connections:
    """A session with its connections, and the number of calls that are using it."""

    __slots__ = ("calls", "session")

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session: aiohttp.ClientSession = session
        self.calls: int = 0


class Pool:
    """Connections that are replaced once the machine has slept.

    Loop time stands still meanwhile, so that idle connections count as young, but the server has closed them.
    What is sent over one may be swallowed.
    """

    def __init__(self, new_session: Callable[[], aiohttp.ClientSession]) -> None:
        self._new_session = new_session
        self._current: Connections | None = None
        self._replaced: list[Connections] = []  # with calls that are running
        self._closing: set[asyncio.Task[None]] = set()
        self._sleeps = Sleeps()

    def enter(self) -> Connections:
        """Those for one call, which must `leave` them."""
        current = self._current
        if self._sleeps.noticed(asyncio.get_running_loop().time()) and current is not None:
            self._replaced.append(current)
            self._close_unused()
            current = None
        if current is None:
            current = self._current = Connections(self._new_session())
        current.calls += 1
        return current

    def leave(self, connections: Connections) -> None:
        """A call is over. Connections that were replaced are closed after their last call."""
        connections.calls -= 1
        if connections is not self._current:
            self._close_unused()

    async def aclose(self) -> None:
        """Close everything, also under calls that are running."""
        current, self._current = self._current, None
        last = [*self._replaced, *([] if current is None else [current])]
        self._replaced.clear()
        async with contextlib.AsyncExitStack() as stack:  # closes all, also if a cancel interrupts one
            for task in self._closing:
                stack.push_async_callback(asyncio.wait, [task])
            for connections in last:
                stack.push_async_callback(connections.session.close)

    def _close_unused(self) -> None:
        for connections in [each for each in self._replaced if each.calls == 0]:
            self._replaced.remove(connections)
            close = connections.session.close()
            task = asyncio.get_running_loop().create_task(close, name="kie4o connections")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


class Sleeps:
    """Notices that the machine slept, because another clock has gone on by more than the loop's.

    That is the uptime where it counts sleep, and the wall clock everywhere: after a virtual machine was
    paused, it is right again as soon as it is set. One that is set forward is taken for a sleep.
    """

    def __init__(self) -> None:
        self._wall = self._uptime = float("inf")  # the least by which each was ahead of loop time

    def noticed(self, now: float) -> bool:
        """Whether there was a sleep before this loop time that was not noticed yet."""
        wall, uptime = clock.unix_time() - now, clock.uptime() - now
        slept = wall > self._wall + _SLEPT or uptime > self._uptime + _SLEPT
        if slept or wall < self._wall:
            self._wall = wall
        if slept or uptime < self._uptime:
            self._uptime = uptime
        return slept
