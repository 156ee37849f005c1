"""A relay on loopback that delays what it forwards, as a network of that round trip does.

A connection counts as open one round trip after it was accepted: loopback opens it at once, a network does
not. What arrives earlier is forwarded as if it had arrived then, so that the first answer over plain http
takes two round trips, and over TLS 1.3 three.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

_TURNS = 3  # of the loop, until a server knows a connection that was made before


class _End(asyncio.Protocol):
    """One end of a relayed connection; `other` is set once both are known."""

    def __init__(self, delay: float, ends: set[_End]) -> None:
        self._loop = asyncio.get_running_loop()
        self._delay = delay
        self._ends = ends  # that are open
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._open_at = 0.0
        self._under_way: deque[bytes | None] = deque()  # None: the connection was closed
        self.other: _End | None = None
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # that of uvloop is not a subclass
        self._ends.add(self)

    def data_received(self, data: bytes) -> None:
        self._send(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._ends.discard(self)
        self.lost.set_result(None)
        self._send(None)

    def _send(self, data: bytes | None) -> None:
        self._under_way.append(data)
        self._loop.call_at(max(self._loop.time(), self._open_at) + self._delay, self._arrive)

    def _arrive(self) -> None:
        data = self._under_way.popleft()  # in order, even if two timers are due at the same time
        other = None if self.other is None else self.other.transport
        if other is None or other.is_closing():
            return
        if data is None:
            other.close()
        else:
            other.write(data)


class _Near(_End):
    """The end of the client, which opens the far one."""

    def __init__(self, delay: float, ends: set[_End], port: int, opening: set[asyncio.Task[None]]) -> None:
        super().__init__(delay, ends)
        self._port = port
        self._opening = opening

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._open_at = self._loop.time() + 2 * self._delay
        task = self._loop.create_task(self._connect())
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _connect(self) -> None:
        transport, far = await self._loop.create_connection(
            lambda: _End(self._delay, self._ends), "127.0.0.1", self._port
        )
        self.other, far.other = far, self
        if self not in self._ends and not self._under_way:  # its close has arrived before
            transport.close()


@contextlib.asynccontextmanager
async def relay(port: int, round_trip: float) -> AsyncIterator[int]:
    """Relay to `port`, from a free one, which is returned. Leaving it closes all connections.

    CPython (3.11 to 3.13) never closes a connection that it accepts in the turn in which a server closes.
    """
    ends: set[_End] = set()
    opening: set[asyncio.Task[None]] = set()
    server = await asyncio.get_running_loop().create_server(
        lambda: _Near(round_trip / 2, ends, port, opening), "127.0.0.1", 0, backlog=4096
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        server.close()
        await asyncio.gather(*opening, return_exceptions=True)
        left = list(ends)
        for end in left:
            if end.transport is not None:
                end.transport.abort()
        await asyncio.gather(*(end.lost for end in left))
