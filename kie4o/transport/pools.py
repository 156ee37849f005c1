"""The pools of connections, and which connection a request gets.

A read gets one that was idle for less than 15 s, or a new one. The paid POST gets the first of these:

1. One that was opened ahead, because the account's limit is about to admit a submit (`ahead`).
2. One that is just proven: its last answer was complete less than 2 s ago, in either pool.
3. One that is being opened ahead, for which it waits as long as opening usually takes.
4. A new one, in the pool of the reads, where status checks keep it proven. If that one has no room, or idle
   connections that are old for a POST, which aiohttp would hand out before, it is in the pool of the POST.

For a POST an age counts by the clock of the loop, by the wall clock and by the uptime, since some of them
stand still while a machine sleeps; for a read by the first two. A connection that is found unfit is closed:
put back, it would look young.

aiohttp documents no way to choose a connection. `connect` is overridden, and nothing with an underscore is
used; `can_choose` tells whether this version of aiohttp still calls it as it is overridden here.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.connector import Connection
from aiohttp.tracing import Trace

from .. import clock
from .ahead import Ahead, Held

_RECEIVE_AT_ONCE = 64 * 1024  # bytes
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)

Moment = tuple[float, float, float]  # the time of the loop, the wall clock and the uptime
_NEW: tuple[None, None] = (None, None)


def moment() -> Moment:
    return asyncio.get_running_loop().time(), clock.unix_time(), clock.uptime()


def younger(since: Moment, now: Moment, seconds: float) -> bool:
    """Whether less than `seconds` have passed by each clock. Of one that went back nothing is known."""
    return (
        0 <= now[0] - since[0] < seconds
        and 0 <= now[1] - since[1] < seconds
        and 0 <= now[2] - since[2] < seconds
    )


def can_choose(connect: Callable[..., Any] = aiohttp.TCPConnector.connect) -> bool:
    """Whether connectors are asked for connections in the way that `Pool` overrides."""
    return list(inspect.signature(connect).parameters) == ["self", "req", "traces", "timeout"]


def plain_pool(*, limit: int, kept: float) -> aiohttp.TCPConnector:
    """A pool of aiohttp's own, in which nothing is known of the age by other clocks. 0 keeps nothing."""
    if kept == 0:
        return aiohttp.TCPConnector(limit=limit, force_close=True, socket_factory=_socket)
    return aiohttp.TCPConnector(limit=limit, keepalive_timeout=kept, socket_factory=_socket)


class Pool(aiohttp.TCPConnector):
    """Reuses what was idle for less than `kept` seconds."""

    def __init__(self, *, limit: int, kept: float, ssl: bool = True) -> None:
        super().__init__(limit=limit, keepalive_timeout=kept, ssl=ssl, socket_factory=_socket)
        self.kept: float = kept
        self.calls: int = 0  # that have a connection or wait for one
        self.idle: dict[ResponseHandler | None, tuple[ConnectionKey, Moment]] = {}  # since when

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        return (await self.take(req, traces, timeout, self._is_recent))[0]

    async def take(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,
        fits: Callable[[Connection, Moment], bool],
    ) -> tuple[Connection, Moment | None]:
        """One that fits, and since when it was idle, or a new one.

        aiohttp hands out the longest idle first. Those that do not fit are closed.
        """
        self.calls += 1
        # Asked for now over a proxy: aiohttp adds to the headers for one as it connects.
        new_key = None if req.proxy is None else req.connection_key
        try:
            while True:
                connection = await super().connect(req, traces, timeout)
                key, since = self.idle.pop(connection.protocol, _NEW)
                if since is None or fits(connection, since):
                    break
                connection.close()
        except BaseException:
            self.calls -= 1
            raise
        if since is None:
            self._forget_closed()
        connection.add_callback(
            functools.partial(self._let_go, key or new_key or req.connection_key, connection.protocol)
        )
        return connection, since

    def proven(self, key: ConnectionKey | None, seconds: float) -> int:
        """How many were let go less than `seconds` ago, and can be used for requests of this key, if any."""
        now = moment()
        return sum(
            key in (None, its_key) and younger(since, now, seconds) and is_clean(protocol)
            for protocol, (its_key, since) in self.idle.items()
        )

    def is_proven(self, key: ConnectionKey, now: Moment, seconds: float) -> bool:
        """Whether there is one. The latest are asked first, so that a POST usually compares one key."""
        return any(
            younger(since, now, seconds) and key == its_key and is_clean(protocol)
            for protocol, (its_key, since) in reversed(self.idle.items())
        )

    def _is_recent(self, _: Connection, since: Moment) -> bool:
        """aiohttp looks at the clock of the loop. The wall clock is enough for a read, which may be repeated:
        three clocks would take 1.2 us of a status check of 120 us (`python -m benchmarks --only cpu`)."""
        return 0 <= clock.unix_time() - since[1] < self.kept

    def _let_go(self, key: ConnectionKey, protocol: ResponseHandler | None) -> None:
        self.calls -= 1
        self.idle[protocol] = key, moment()  # perhaps it is being closed: `is_clean` tells

    def _forget_closed(self) -> None:
        for protocol in [each for each in self.idle if each is None or not each.is_connected()]:
            del self.idle[protocol]


class PaidPool(Pool):
    """The connections of the paid POST, which also takes those of the reads: see the module's docstring."""

    def __init__(self, reads: Pool, *, limit: int, kept: float) -> None:
        super().__init__(limit=limit, kept=kept)
        self.ahead: Ahead = Ahead(kept)
        self._reads = reads
        self._key: ConnectionKey | None = None  # of the latest POST

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        if not can_be_opened_ahead(req):
            return (await self.take(req, traces, timeout, self._fits))[0]
        loop, ahead = asyncio.get_running_loop(), self.ahead
        until = loop.time() + ahead.usual
        self._key = key = req.connection_key
        while True:
            held = ahead.take(functools.partial(self._held_fits, key))
            if held is not None:
                return held.connection
            now = moment()
            for pool in (self, self._reads):
                if pool.is_proven(key, now, self.kept):
                    return (await pool.take(req, traces, timeout, self._fits))[0]
            if not await ahead.wait(until):
                break
        began = loop.time()
        reads = self._reads
        in_use = reads.calls >= reads.limit or reads.is_proven(key, moment(), reads.kept)
        pool = self if in_use else reads
        connection, since = await pool.take(req, traces, timeout, self._fits)
        if since is None:
            ahead.took(loop.time() - began)
        return connection

    def missing(self, due: int) -> int:
        """How many connections have to be opened so that each of the submits that are due finds one.

        What will be too old for them does not count.
        """
        seconds, key = self.kept - self.ahead.lead(), self._key
        now = moment()
        held = [each for each in self.ahead.ready if self._held_fits(key, each)]
        ready = sum(younger(each.since, now, seconds) for each in held)
        proven = self.proven(key, seconds) + self._reads.proven(key, seconds)
        return max(0, min(due - ready - self.ahead.opening - proven, self.limit - self.calls))

    async def open_ahead(self, req: aiohttp.ClientRequest) -> None:
        """Open a connection for such a request and hold it, and also proven ones that come before it."""
        if not can_be_opened_ahead(req):
            return None
        loop = asyncio.get_running_loop()
        self._key = key = req.connection_key
        began = loop.time()
        while True:
            connection, since = await self.take(req, [], _NO_TIMEOUT, self._fits)
            self.ahead.hold(Held(connection, key, since or moment()))
            if since is None:
                return self.ahead.took(loop.time() - began)

    def _fits(self, connection: Connection, since: Moment) -> bool:
        return younger(since, moment(), self.kept) and is_clean(connection.protocol)

    def _held_fits(self, key: ConnectionKey | None, held: Held) -> bool:
        return held.key == key and self._fits(held.connection, held.since)


def is_clean(protocol: ResponseHandler | None) -> bool:
    """Whether it is connected, and no data has arrived that was not requested."""
    return protocol is not None and protocol.is_connected() and not protocol.should_close


def can_be_opened_ahead(req: aiohttp.ClientRequest) -> bool:
    """Not over a proxy to plain http: aiohttp writes the proxy's password into the request as it connects."""
    return req.proxy is None or req.is_ssl()


class _Socket(socket.socket):
    """Receives less at once than the 256 KiB that asyncio asks for.

    glibc maps and unmaps a buffer of that size for each answer, until the process has freed one of
    them for another reason. That is 15 us of a status check of 110 us (`python -m benchmarks --only
    cpu`, glibc 2.36). Over TLS asyncio has a buffer of its own, and this changes nothing.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        return super().recv(min(size, _RECEIVE_AT_ONCE), flags)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    return _Socket(*address[:3])
