"""The worst moments: a commit whose reply is lost, a crash, a replica that does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from typing import Literal
from urllib.parse import urlsplit

import postgres
import pytest
from canary import CANARY_KEY
from entries import entry_of, submitted
from portable import PATIENCE
from postgres import opened
from proving import DEEP, tried
from serving import LoopbackServer

from kie4o import StoreError
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.store import Entry, EntryState

RIVALS = 3
ROUNDS = 50 if DEEP else 10
Cut = Literal["before", "after"]


class CuttingProxy(LoopbackServer):
    """Passes a connection on to the server, and cuts it at a statement: before it arrives, or after it was
    executed and before the reply."""

    def __init__(self, url: str) -> None:
        self._there = urlsplit(url)
        self.cut: Cut | None = None  # at the next statement of this kind
        self.dies = False  # the sender never comes back after the cut
        self._refuses = False

    @property
    def url(self) -> str:
        user, _, _ = self._there.netloc.partition("@")
        return self._there._replace(netloc=f"{user}@127.0.0.1:{self.port}").geturl()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            return
        there = await asyncio.open_connection(self._there.hostname, self._there.port)
        with contextlib.closing(there[1]):
            replies = asyncio.create_task(_copy(there[0], writer))
            with contextlib.suppress(ConnectionError):
                if await self._pass_on(reader, there[1], replies) == "after":
                    await there[0].read(1)
                    self.cut = None
            replies.cancel()

    async def _pass_on(
        self, reader: asyncio.StreamReader, there: asyncio.StreamWriter, replies: asyncio.Task[None]
    ) -> Cut | None:
        """Until the connection ends, or is to be cut."""
        while data := await reader.read(65536):
            at = self.cut if b"begin_submit" in data else None
            if at is not None:
                self._refuses = self.dies
            if at == "before":
                self.cut = None
                return at
            if at == "after":
                replies.cancel()
                await asyncio.wait([replies])
            there.write(data)
            await there.drain()
            if at == "after":
                return at
        return None


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def stores(*urls: str) -> AsyncIterator[list[PostgresStore]]:
    async with contextlib.AsyncExitStack() as stack:
        opened_ones = []
        for url in urls:
            store = PostgresStore(url, Secret(CANARY_KEY))
            await store.open()
            stack.push_async_callback(store.aclose)
            opened_ones.append(store)
        yield opened_ones


def intent(key: str, ref: str) -> Entry:
    return entry_of(key, ref=ref, state=EntryState.INTENT, sent_at=1.0, submitted_at=1.0)


async def submit(store: PostgresStore, key: str, ref: str, posts: Counter[str]) -> EntryState:
    """A submit in its smallest form, and what is then known."""
    while (stored := await store.claim(entry_of(key, ref=ref), wait=False)) is None:
        await asyncio.sleep(0.005)
    if stored.state is not EntryState.PLANNED:
        return stored.state
    await store.begin(intent(key, ref))
    posts[key] += 1
    await store.save(submitted(key, ref=ref, task_id=f"task-{key}-{posts[key]}"))
    return EntryState.SUBMITTED


# -- the reply to the commit of an intent ----------------------------------------------------------------


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("rounds", [5, pytest.param(ROUNDS, marks=pytest.mark.sweep)])
async def test_a_sender_that_loses_the_reply_asks_again(cut: Cut, rounds: int) -> None:
    """It is told yes, and sends once; the rivals for the key wait for it."""
    url = postgres.shared_url()
    posts: Counter[str] = Counter()
    async with CuttingProxy(url) as proxy, stores(proxy.url, *[url] * RIVALS) as (sender, *rivals):
        for number in range(rounds):
            key = f"{cut} {number} of {rounds}"
            await sender.claim(entry_of(key, ref=f"{key} 0"))
            tried()
            proxy.cut = cut
            tries = [submit(rival, key, f"{key} {n}", posts) for n, rival in enumerate(rivals, 1)]
            states = await asyncio.gather(submit(sender, key, f"{key} 0", posts), *tries)
            assert proxy.cut is None
            assert states == [EntryState.SUBMITTED] * (1 + RIVALS)
    assert set(posts.values()) == {1}
    assert len(posts) == rounds


@pytest.mark.parametrize(("cut", "count"), [("before", 1), ("after", 0)])
@pytest.mark.parametrize("rounds", [3, pytest.param(ROUNDS // 2, marks=pytest.mark.sweep)])
async def test_a_sender_that_dies_without_the_reply(cut: Cut, count: int, rounds: int) -> None:
    """If its intent did not arrive, one rival sends. If it did, the outcome is unknown: nobody can tell that
    nothing was sent."""
    posts: Counter[str] = Counter()
    for number in range(rounds):
        url = postgres.shared_url("lost_replies")
        key = f"{cut} {number} of {rounds} {url}"
        async with CuttingProxy(url) as proxy, stores(*[url] * RIVALS) as rivals:
            sender = PostgresStore(proxy.url, Secret(CANARY_KEY))
            await sender.open()
            await sender.claim(entry_of(key, ref=f"{key} 0"))
            tried()
            proxy.cut, proxy.dies = cut, True
            dying = asyncio.create_task(sender.begin(intent(key, f"{key} 0")))
            async with asyncio.timeout(PATIENCE):
                while proxy.cut is not None:
                    await asyncio.sleep(0.001)
            gone = "UPDATE kie4o.process SET expires_at = clock_timestamp() - interval '1 s' WHERE id = %s"
            await rivals[0]._database.rows(gone, sender._process.id)
            tries = [submit(rival, key, f"{key} {n}", posts) for n, rival in enumerate(rivals, 1)]
            states = await asyncio.gather(*tries)
            assert set(states) == {EntryState.SUBMITTED if count else EntryState.UNKNOWN}
            assert posts[key] == count
            dying.cancel()
            await asyncio.wait([dying])
            await sender._close()


# -- crashes of the server -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crashes", "size"), [(2, 60), pytest.param(ROUNDS // 5, 50, marks=pytest.mark.sweep)], ids=["2", "many"]
)
async def test_what_was_saved_survives_a_crash(crashes: int, size: int) -> None:
    """Also where the server's default is not to wait for the disk. Control: a plain write then gets lost."""
    with postgres.own_server(synchronous_commit="off", wal_writer_delay="10s") as server:
        async with stores(server.url) as [store], opened(server.url) as database:
            await database.rows("CREATE TABLE plain (number integer)")
            lost = []
            for crash in range(crashes):
                for number in range(size):
                    await store.save(submitted(f"{crash} {number}"))
                    key = f"held {crash} {number}"
                    await store.claim(entry_of(key))
                    await store.begin(intent(key, f"ref of {key}"))
                for number in range(size):
                    await database.rows("INSERT INTO plain VALUES (%s)", crash * size + number)
                await asyncio.to_thread(server.restart, signal.SIGQUIT)
                for number in range(size):
                    assert await store.find(key=f"{crash} {number}") == submitted(f"{crash} {number}")
                    entry = await store.find(key=f"held {crash} {number}")
                    assert entry is not None
                    assert entry.state is EntryState.INTENT
                [(kept,)] = await database.rows("SELECT count(*) FROM plain")
                lost.append((crash + 1) * size - kept)
                await database.rows("DELETE FROM plain")
                await database.rows("INSERT INTO plain SELECT generate_series(1, %s)", (crash + 1) * size)
            assert sum(lost) > 0


# -- a replica that does not answer ----------------------------------------------------------------------


async def test_an_intent_that_no_replica_has_is_not_saved() -> None:
    """A commit that is cancelled while it waits reports success, with a warning: nothing may be sent.

    Control: without looking for the warning it succeeds.
    """
    with postgres.own_server() as server:
        async with stores(server.url) as [store], opened(server.url) as database:
            for key in ("k", "control"):
                await store.claim(entry_of(key))
            await database.rows("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            await database.rows("SELECT pg_reload_conf()")
            await asyncio.sleep(0.2)

            async def cancel() -> None:
                waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                async with asyncio.timeout(PATIENCE):
                    while not await database.rows(waiting):
                        await asyncio.sleep(0.01)

            with pytest.raises(StoreError, match="may not have saved it: canceling wait for synchronous"):
                await asyncio.gather(store.begin(intent("k", "ref of k")), cancel())
            rows = store._database.rows

            async def blindly(*words: object, durably: bool = False) -> object:
                return await rows(*words)  # type: ignore[arg-type]

            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(store._database, "rows", blindly)
                await asyncio.gather(store.begin(intent("control", "ref of control")), cancel())
            await database.rows("ALTER SYSTEM RESET synchronous_standby_names")
            await database.rows("SELECT pg_reload_conf()")


async def test_a_begin_that_waits_for_a_replica_is_not_cancelled_in_the_server() -> None:
    """It is shielded from the cancellation of its caller, and saved when the replica is there."""
    with postgres.own_server() as server:
        async with stores(server.url) as [store], opened(server.url) as database:
            await store.claim(entry_of())
            await database.rows("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
            await database.rows("SELECT pg_reload_conf()")
            await asyncio.sleep(0.2)
            begun = asyncio.create_task(store.begin(intent("k", "ref of k")))
            count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            async with asyncio.timeout(PATIENCE):
                while await database.rows(count) == [(0,)]:
                    await asyncio.sleep(0.01)
            begun.cancel()
            with pytest.raises(asyncio.CancelledError):
                await begun
            await asyncio.sleep(0.1)
            assert await database.rows(count) == [(1,)]
            await database.rows("ALTER SYSTEM RESET synchronous_standby_names")
            await database.rows("SELECT pg_reload_conf()")
            await store._database.drain()
            entry = await store.find(key="k")
            assert entry is not None
            assert entry.state is EntryState.INTENT
