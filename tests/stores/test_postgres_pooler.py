"""Behind pgbouncer in transaction mode: everything works, but for notifications.

tests/stores/test_store_suite.py runs over it too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator

import pooler
import postgres
import pytest
from canary import CANARY_KEY
from entries import entry_of, submitted
from portable import PATIENCE

from kie4o import AsyncKieClient, RateLimit
from kie4o.emulator import Emulator
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore, news
from kie4o.stores.postgres import process as process_module
from kie4o.stores.postgres.address import address_of
from kie4o.stores.store import Entry, EntryState

pytestmark = [pytest.mark.once, pytest.mark.posix("pgbouncer")]
DEAF = "delivers no notifications"


@contextlib.asynccontextmanager
async def stores(*urls: str) -> AsyncIterator[list[PostgresStore]]:
    async with contextlib.AsyncExitStack() as stack:
        opened = []
        for url in urls:
            store = PostgresStore(url, Secret(CANARY_KEY))
            await store.open()
            stack.push_async_callback(store.aclose)
            opened.append(store)
        yield opened


def intent(key: str) -> Entry:
    return entry_of(key, state=EntryState.INTENT, sent_at=1.0, submitted_at=1.0)


async def test_two_clients_share_their_keys_and_their_limit() -> None:
    """Through three sessions of the server."""
    url, limit = pooler.pooled_url(), RateLimit(10, per=1.0)
    async with (
        Emulator(clock="real", limit=1000, per=1.0) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=url, rate_limit=limit) as one,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, store=url, rate_limit=limit) as other,
    ):
        submits = [client.submit(f"draw {n}", key=f"{n}") for n in range(15) for client in (one, other)]
        jobs = await asyncio.gather(*submits)
        assert len({job.id for job in jobs}) == kie.paid == 15
        assert kie.windows() <= 10


@pytest.mark.parametrize("past", [False, True], ids=["pooler", "listen="])
async def test_a_pooler_that_delivers_nothing_is_noticed_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, past: bool
) -> None:
    """Waiters ask every second then. With `?listen=` past the pooler they hear at once."""
    caplog.set_level(logging.WARNING, "kie4o")
    monkeypatch.setattr(process_module, "RENEWAL", 0.5)
    monkeypatch.setattr(news, "HEARD_WITHIN", 0.5)
    schema = address_of(direct := postgres.shared_url()).schema
    url = pooler.pooled_url(schema) + (f"&listen={direct.partition('?')[0]}" if past else "")
    async with stores(url, url) as (holder, other):
        async with asyncio.timeout(PATIENCE):
            while not (other._news.works if past else caplog.text.count(DEAF) == 2):
                await asyncio.sleep(0.01)
        await holder.claim(entry_of())
        waiting = asyncio.create_task(other.claim(entry_of(ref="another")))
        await asyncio.sleep(1.5)  # renewals, each with another notification to itself
        await holder.begin(intent("k"))
        began = time.monotonic()
        await holder.save(submitted("k"))
        assert await waiting == submitted("k")
        assert time.monotonic() - began < 3
        assert (holder._news.works, other._news.works) == (past, past)
    assert caplog.text.count(DEAF) == (0 if past else 2)  # each client says so once


async def test_control_prepared_statements_fail_behind_a_pooler() -> None:
    """As psycopg prepares them by default, after some uses of the same one."""
    from psycopg import AsyncConnection, Error

    conninfo, failed = address_of(pooler.pooled_url()).conninfo, 0

    async def ask() -> None:
        nonlocal failed
        async with await AsyncConnection.connect(conninfo, autocommit=True) as connection:
            for number in range(30):
                try:
                    await connection.execute("SELECT %s::int", (number,))
                except Error:
                    failed += 1

    await asyncio.gather(*(ask() for _ in range(8)))
    assert failed > 0
