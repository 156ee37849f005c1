"""What other processes have written, told by notifications: they save time, never correctness.

A connection of its own listens, past a pooler if the URL of the store says so: one that gives each
transaction another session accepts LISTEN and delivers nothing. So the process notifies itself when it begins
to listen, and again with each renewal of its lease. If it does not hear that, it says so once, and everything
that waits here is checked every second instead. The same holds while there is no connection.

After each connection it listens first, and then has everything checked once that is waited for: what was told
in between is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Iterator
from contextvars import Context
from itertools import chain
from typing import TYPE_CHECKING, Any

from ...errors import StoreError
from ...events import StoreWarned
from . import process
from .database import Database, Row, close, in_schema, working

if TYPE_CHECKING:
    from psycopg import AsyncConnection

HEARD_WITHIN = 2.0  # seconds in which a notification of our own must arrive
_POLL = 1.0  # seconds between two checks while none arrives
_FIRST_DELAY = 0.05  # seconds before it connects again; doubled each time
_LONGEST_DELAY = 1.0
_BACKLOG = 1000  # pieces of news that a reader has not read yet; more count as missed
_PROBE = "probe"  # the first word of a notification to ourselves


class News:
    """The notifications of one schema, as a client hears them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._channel = in_schema("kie4o.news", database.address.schema)
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._readers: set[_Reader] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._heard = asyncio.Event()  # a notification of our own
        self._probe = ""
        self._said = False
        self.works: bool = False

    def start(self) -> None:
        """Listen from now on."""
        for work in (self._listen_always(), self._poll_always()):
            self._tasks.append(asyncio.create_task(work, name="kie4o news", context=Context()))

    async def aclose(self) -> None:
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.contextmanager
    def expected(self, what: str) -> Iterator[asyncio.Future[None]]:
        """A future that ends when this is told, or may have been missed. To be had before asking."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        futures = self._waiting.setdefault(what, set())
        futures.add(future)
        try:
            yield future
        finally:
            futures.discard(future)
            if not futures:
                self._waiting.pop(what, None)

    async def read(self) -> AsyncGenerator[str | None]:
        """All that is told from now on; None when anything may have been missed."""
        reader = _Reader()
        self._readers.add(reader)
        try:
            while True:
                for what in await reader.next():
                    yield what
        finally:
            self._readers.discard(reader)

    # -- listening -----------------------------------------------------------------------------------

    async def _listen_always(self) -> None:
        import psycopg

        delay = _FIRST_DELAY
        while True:
            with contextlib.suppress(StoreError, psycopg.Error):
                if await self._listen():
                    delay = _FIRST_DELAY
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    async def _listen(self) -> bool:
        """Until the connection is lost or nothing arrives any more. Returns whether anything had arrived."""
        connection = await self._database.connect(self._database.address.listen)
        worked, receiving = False, None
        try:
            await self._begin(connection)
            receiving = asyncio.create_task(self._receive(connection), name="kie4o notifications")
            while await self._hears_itself(receiving):
                self.works = worked = True
                await asyncio.wait([receiving], timeout=process.RENEWAL)
            return worked
        finally:
            self.works = False
            if receiving is not None:
                receiving.cancel()
                await asyncio.gather(receiving, return_exceptions=True)
            await close(connection)

    async def _begin(self, connection: AsyncConnection[Row]) -> None:
        with working():
            await connection.execute(_listen_to(self._channel))
        self._tell(None)

    async def _receive(self, connection: AsyncConnection[Row]) -> None:
        async for notification in connection.notifies():
            if notification.payload == self._probe:
                self._heard.set()
            elif not notification.payload.startswith(_PROBE):
                self._tell(notification.payload)

    async def _hears_itself(self, receiving: asyncio.Task[None]) -> bool:
        if receiving.done():
            return False
        self._heard.clear()
        self._probe = f"{_PROBE} {secrets.token_hex(8)}"
        await self._database.rows("SELECT kie4o.tell(%s)", self._probe)
        heard = asyncio.ensure_future(self._heard.wait())
        try:
            with working():
                await asyncio.wait(
                    [heard, receiving], timeout=HEARD_WITHIN, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            heard.cancel()
        if self._heard.is_set() or receiving.done():
            return not receiving.done()
        await self._be_deaf()
        return False

    async def _be_deaf(self) -> None:
        """Listen again when the lease is renewed: this also ends a connection whose other end is gone."""
        self.works = False
        if not self._said:
            self._said = True
            self._database.reporter(StoreWarned(what="deaf", detail=str(self._database.address)))
        await asyncio.sleep(process.RENEWAL)

    async def _poll_always(self) -> None:
        while True:
            await asyncio.sleep(_POLL)
            if not self.works:
                self._tell(None)

    def _tell(self, what: str | None) -> None:
        waiting = chain.from_iterable(self._waiting.values()) if what is None else self._waiting.get(what, ())
        for future in waiting:
            if not future.done():
                future.set_result(None)
        for reader in self._readers:
            reader.add(what)


class _Reader:
    """What was told and not read yet, each thing once."""

    def __init__(self) -> None:
        self._unread: dict[str | None, None] = {}
        self._arrived = asyncio.Event()

    def add(self, what: str | None) -> None:
        if what is None or len(self._unread) >= _BACKLOG:
            self._unread = {None: None}
        else:
            self._unread[what] = None
        self._arrived.set()

    async def next(self) -> list[str | None]:
        await self._arrived.wait()
        self._arrived.clear()
        unread, self._unread = list(self._unread), {}
        return unread


def _listen_to(channel: str) -> Any:
    """The statement; psycopg's types want it to be a literal."""
    quoted = channel.replace('"', '""')
    return f'LISTEN "{quoted}"'


def about_key(hash_of_key: bytes) -> str:
    """What is told when a key passes out of its holder's hands."""
    return f"key {hash_of_key[:16].hex()}"
