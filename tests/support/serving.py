"""What servers of tests have in common: a task for each connection, and an end that leaves nothing."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Self

from canary import WATCH

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_TURNS = 3  # of the loop, until a server knows a connection that was made before


class LoopbackServer:
    """`async with` a subclass: what `_serve` does for a connection is over when it is left. Its tasks have
    "_serve" in their names, so that a test can tell them from others."""

    port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self._server = await asyncio.start_server(self._serve_connection, "127.0.0.1", 0, ssl=self._context())
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        # CPython (3.11 to 3.13) never closes what it accepts in the turn in which a server closes.
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            with contextlib.suppress(AttributeError):  # CPython's, where one that was closed writing has gone
                writer.transport.abort()  # what is written and not read would keep it open
        await asyncio.sleep(0)

    async def settled(self) -> None:
        """Wait until every connection is served. Those of a killed process are closed, so all it sent is
        counted."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _context(self) -> ssl.SSLContext | None:
        return None

    async def _serve_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        watched: Any = reader
        watched.feed_data = _searching(watched.feed_data)
        # An SSLError is data that arrives after the server has closed its side.
        ends = (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError)
        try:
            with contextlib.suppress(*ends):
                await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


def _searching(feed: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """What arrives is searched for the API key."""

    def feed_data(data: bytes) -> None:
        WATCH.search_sent(bytes(data))
        feed(data)

    return feed_data


class Serving(LoopbackServer):
    """`async with Serving(serve)`, for a function that serves a connection."""

    def __init__(self, serve: Serve) -> None:
        self._call = serve

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._call(reader, writer)
