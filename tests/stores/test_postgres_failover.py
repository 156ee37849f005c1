"""A replica that takes over, and lacks what was committed last."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Iterator

import attrs
import postgres
import pytest
from canary import CANARY_KEY
from entries import entry_of, submitted
from portable import PATIENCE
from postgres import PostgresServer

from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.store import Entry, EntryState

pytestmark = pytest.mark.once


@attrs.frozen
class Pair:
    primary: PostgresServer
    replica: PostgresServer

    @property
    def url(self) -> str:
        """Of whichever is the primary."""
        ports = f"127.0.0.1:{self.primary.port},127.0.0.1:{self.replica.port}"
        return f"postgresql://kie4o@{ports}/postgres?target_session_attrs=read-write"

    def fail_over(self) -> None:
        """The primary is gone for good; what the replica has not received is lost."""
        self.primary.stop(signal.SIGQUIT)
        self.replica.start()
        self.replica.promote()


@pytest.fixture
def pair() -> Iterator[Pair]:
    with postgres.own_server() as primary:
        replica = PostgresServer({"hot_standby": "on"})
        try:
            replica.copy(primary).start()
            yield Pair(primary, replica)
        finally:
            replica.close()


@contextlib.asynccontextmanager
async def process(url: str) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(url, Secret(CANARY_KEY))
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def intent(key: str = "k", **more: str) -> Entry:
    return entry_of(key, state=EntryState.INTENT, sent_at=1.0, submitted_at=1.0, **more)


async def wait_for_replica(store: PostgresStore) -> None:
    """Until it has received everything."""
    sent = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn())"
    async with asyncio.timeout(PATIENCE):
        while await store._database.rows(sent) != [(True,)]:
            await asyncio.sleep(0.05)


async def kill(store: PostgresStore) -> int:
    """As by SIGKILL: it does not leave. Returns its id."""
    await store._close()
    return store._process.id


async def after_its_lease(store: PostgresStore, dead: int) -> None:
    """As if the lease of a dead process, and the one that the failover gave it, had run out."""
    gone = "UPDATE kie4o.process SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s"
    await store._database.rows(gone, dead)
    await store._database.rows("UPDATE kie4o.server SET since = since - kie4o.lease()")


async def test_open_warns_of_replicas_that_commits_do_not_wait_for(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "kie4o")
    async with process(pair.url) as store:
        await wait_for_replica(store)
        caplog.clear()
        async with process(pair.url):
            assert "may be paid twice. Set synchronous_standby_names" in caplog.text
        await store._database.rows("ALTER SYSTEM SET synchronous_standby_names = '*'")
        await store._database.rows("SELECT pg_reload_conf()")
        await asyncio.sleep(0.3)
        caplog.clear()
        async with process(pair.url):
            assert caplog.text == ""


async def test_with_an_asynchronous_replica_a_key_may_be_paid_twice(pair: Pair) -> None:
    """If the claim and the intent are in what is lost. If only the intent is, the outcome is unknown."""
    sender = PostgresStore(pair.url, Secret(CANARY_KEY))
    await sender.open()
    await sender.claim(entry_of("claimed before"))
    await wait_for_replica(sender)
    await asyncio.to_thread(pair.replica.stop)
    await sender.begin(intent("claimed before"))  # the request is sent
    await sender.claim(entry_of("claimed after"))
    await sender.begin(intent("claimed after"))  # the request is sent
    dead = await kill(sender)
    await asyncio.to_thread(pair.fail_over)
    async with process(pair.url) as other:
        assert await other.claim(entry_of("claimed before", ref="another"), wait=False) is None
        await after_its_lease(other, dead)
        unknown = await other.claim(entry_of("claimed before", ref="another"))
        assert unknown is not None
        assert unknown.state is EntryState.UNKNOWN
        await other.claim(entry_of("claimed after", ref="another"))
        await other.begin(intent("claimed after", ref="another"))  # it is sent again


async def test_with_a_synchronous_replica_no_key_is_paid_twice(pair: Pair) -> None:
    """An intent that the replica does not have is not confirmed, so nothing is sent."""
    sender = PostgresStore(pair.url, Secret(CANARY_KEY))
    await sender.open()
    await sender._database.rows("ALTER SYSTEM SET synchronous_standby_names = '*'")
    await sender._database.rows("SELECT pg_reload_conf()")
    await sender.claim(entry_of())
    await wait_for_replica(sender)
    await asyncio.to_thread(pair.replica.stop)
    begun = asyncio.create_task(sender.begin(intent()))
    await asyncio.wait([begun], timeout=1)
    assert not begun.done()
    begun.cancel()
    await asyncio.to_thread(pair.primary.stop, signal.SIGQUIT)
    dead = await kill(sender)
    pair.replica.settings["synchronous_standby_names"] = ""
    await asyncio.to_thread(pair.fail_over)
    async with process(pair.url) as other:
        await other._database.rows("ALTER SYSTEM RESET synchronous_standby_names")
        await after_its_lease(other, dead)
        stored = await other.claim(entry_of(ref="another"))
        assert stored is not None
        assert stored.state is EntryState.UNKNOWN


async def test_a_live_process_saves_again_what_may_be_lost(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it notices that a replica has taken over, which may lack them, with or without their claims."""
    caplog.set_level(logging.WARNING, "kie4o")
    async with process(pair.url) as sender:
        await sender.claim(entry_of("claimed before"))
        await wait_for_replica(sender)
        await asyncio.to_thread(pair.replica.stop)
        for key in ("claimed before", "claimed after", "over"):
            await sender.claim(entry_of(key))
            await sender.begin(intent(key))
        await sender.save(submitted("over"))
        await asyncio.to_thread(pair.fail_over)
        assert await sender.find(key="claimed before") == entry_of("claimed before")
        assert await sender.find(key="claimed after") is None
        async with process(pair.url) as other:
            assert await other.claim(entry_of("claimed before", ref="another"), wait=False) is None
            await postgres.renewed(sender._process)
            assert "a replica has taken over" in caplog.text
            for key in ("claimed before", "claimed after"):
                assert await other.claim(entry_of(key, ref="another"), wait=False) is None
                assert await other.find(key=key) == intent(key)
                await sender.save(submitted(key))
                assert await other.claim(entry_of(key, ref="another")) == submitted(key)
            assert await other.find(key="over") == submitted("over")
