"""What clients that are closed have left in a database, by the books of its server.

`async with Books.opened() as books:` watches a schema that this process has for itself, since a new one for
each client would take 0.2 s. Each client has an account in it, and connections, that have its name.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import postgres
from canary import CANARY_KEY

from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.postgres.database import Database

PATIENCE = 10.0  # seconds for a server to notice that a connection was closed
# A slot that was answered counts until its window has passed, also without its process.
_LEFT = {
    "leases": "SELECT count(*) FROM kie4o.process",
    "places in the window": "SELECT count(*) FROM kie4o.slot WHERE answered_at IS NULL",
    "held keys": "SELECT count(*) FROM kie4o.entry WHERE holder IS NOT NULL",
    "polled tasks": "SELECT count(*) FROM kie4o.watch WHERE holder IS NOT NULL",
    "connections": "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'cancelled %%'",
}


def store_of(name: str) -> PostgresStore:
    """A store with an account of its own."""
    return PostgresStore(_url(f"cancelled {name}"), Secret(f"{CANARY_KEY} {name}"))


def _url(application: str) -> str:
    schema = f"cancelled_{os.getpid()}"
    return f"{postgres.shared_url(schema)}&application_name={application.replace(' ', '%20')}"


@attrs.frozen
class Books:
    """A connection that no client knows."""

    _database: Database

    @classmethod
    @asynccontextmanager
    async def opened(cls) -> AsyncIterator[Books]:
        first = store_of("first")
        await first.open()  # creates the tables
        await first.aclose()
        async with postgres.opened(_url("books")) as database:
            yield cls(database)

    async def left(self) -> dict[str, int]:
        """How many there are of what is left, without what there is none of."""
        columns = ", ".join(f"({query})" for query in _LEFT.values())
        [row] = await self._database.rows(f"SELECT {columns}")
        return {what: count for what, count in zip(_LEFT, row, strict=True) if count}

    async def nothing_left(self) -> None:
        """A connection that was closed is gone a moment later."""
        start = time.monotonic()
        while left := await self.left():
            assert time.monotonic() - start < PATIENCE, left
            await asyncio.sleep(0.001)
