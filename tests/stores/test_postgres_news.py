"""What one process on a database writes is heard by the others; without notifications they ask.

Each store object is a process to the database. A store that listens at another database stands for one behind
a pooler: LISTEN is accepted there, and nothing arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import postgres
import pytest
from canary import CANARY_KEY
from entries import entry_of, submitted
from portable import PATIENCE

from kie4o.settings import Secret
from kie4o.stores.news import about_task
from kie4o.stores.postgres import PostgresStore, news
from kie4o.stores.postgres import process as process_module
from kie4o.stores.postgres.entries import hash_of_key
from kie4o.stores.postgres.news import about_key
from kie4o.stores.store import Entry, EntryState

CUT = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE query LIKE 'LISTEN%%' AND query LIKE %s ORDER BY backend_start
"""
OpenStore = Callable[..., Awaitable[PostgresStore]]


@pytest.fixture
async def open_store() -> AsyncIterator[OpenStore]:
    """Opens one more process on the same tables, deaf if it shall be."""
    url = postgres.shared_url()
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(*, deaf: bool = False) -> PostgresStore:
            elsewhere = url.partition("?")[0].replace("/postgres", "/template1")
            store = PostgresStore(f"{url}&listen={elsewhere}" if deaf else url, Secret(CANARY_KEY))
            await store.open()
            stack.push_async_callback(store.aclose)
            if not deaf:
                await until(lambda: store._news.works)
            return store

        yield open_one


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def intent(key: str = "k", **more: Any) -> Entry:
    return entry_of(key, state=EntryState.INTENT, sent_at=1.0, submitted_at=1.0, **more)


async def told(store: PostgresStore) -> tuple[list[str | None], asyncio.Task[None]]:
    """What this process hears from now on."""
    heard: list[str | None] = []

    async def listen() -> None:
        async for what in store._machines.news():
            heard.append(what)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    return heard, task


@contextlib.asynccontextmanager
async def hearing(store: PostgresStore) -> AsyncIterator[list[str | None]]:
    heard, task = await told(store)
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wait_for_key(holder: PostgresStore, other: PostgresStore, key: str) -> float:
    """Seconds from the save of a holder, who kept the key for half a second, to the answer of a claim."""
    await holder.claim(entry_of(key))
    waiting = asyncio.create_task(other.claim(entry_of(key, ref=f"other of {key}")))
    await asyncio.sleep(0.5)
    await holder.begin(intent(key))
    began = time.monotonic()
    await holder.save(submitted(key))
    assert (await waiting) == submitted(key)
    return time.monotonic() - began


async def test_a_claim_that_waits_hears_when_the_key_is_free(open_store: OpenStore) -> None:
    """At once, however long it has waited. The control does not listen, and asks again and again."""
    holder, other, deaf = await open_store(), await open_store(), await open_store(deaf=True)
    heard = [await wait_for_key(holder, other, f"heard {number}") for number in range(3)]
    polled = [await wait_for_key(holder, deaf, f"polled {number}") for number in range(3)]
    assert sorted(heard)[1] < 0.1
    assert max(polled) < 2
    assert sorted(heard)[1] < sorted(polled)[1]


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_who_waits_for_a_key_says_so(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Its holder tells of it then. Control: without that the claim asks again, a second later at worst."""
    holder, other = await open_store(), await open_store()

    async def want(*_: object) -> bool:
        return True

    if not kept:
        monkeypatch.setattr(other._entries, "want", want)
    waits = [await wait_for_key(holder, other, f"key {number}") for number in range(3)]
    assert (sorted(waits)[1] < 0.25) is kept


async def test_only_wanted_keys_are_told_of(open_store: OpenStore) -> None:
    """A notification in every commit would cost most of the commits per second."""
    holder, other = await open_store(), await open_store()
    async with hearing(other) as heard:
        for number in range(3):
            key = f"unwanted {number}"
            await holder.claim(entry_of(key))
            await holder.begin(intent(key))
            await holder.save(submitted(key))
        await wait_for_key(holder, other, "wanted")
        await until(lambda: heard)
        assert heard == [about_key(hash_of_key("wanted"))]


async def test_a_released_key_is_told_of(open_store: OpenStore) -> None:
    """Its row is deleted; so is one of a process that closes."""
    holder, other = await open_store(), await open_store()
    ways: list[Callable[[], Awaitable[None]]] = [lambda: holder.release("key 0"), holder.aclose]
    for number, let_go in enumerate(ways):
        await holder.claim(entry_of(f"key {number}"))
        waiting = asyncio.create_task(other.claim(entry_of(f"key {number}", ref=f"another {number}")))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await let_go()
        claimed = await waiting
        assert time.monotonic() - began < 0.5
        assert claimed is not None


async def test_a_task_that_nobody_polls_any_more_is_told_of(open_store: OpenStore) -> None:
    """To those that follow it."""
    polls, follows = await open_store(), await open_store()
    async with hearing(follows) as heard:
        for store in (polls, follows):
            await store._machines.lead(["t"])
        await polls._machines.leave({"t": None})
        await until(lambda: about_task("t") in heard)


async def test_who_waits_is_told_once(open_store: OpenStore) -> None:
    """Also if it is told again in the same turn. Of two that wait for the same one may leave."""
    news = (await open_store())._news
    with news.expected("x") as first:
        with news.expected("x"):
            pass
        for what in ("y", "x", None):
            news._tell(what)
            assert first.done() == (what != "y")


async def test_silence_is_noticed_and_said_once(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything is checked every second then. The control hears itself, and checks nothing."""
    caplog.set_level(logging.WARNING, "kie4o")
    monkeypatch.setattr(process_module, "RENEWAL", 0.2)
    monkeypatch.setattr(news, "HEARD_WITHIN", 0.2)
    monkeypatch.setattr(news, "_POLL", 0.05)
    hearing_one, deaf = await open_store(), await open_store(deaf=True)
    async with hearing(hearing_one) as control, hearing(deaf) as heard:
        await until(lambda: "delivers no notifications" in caplog.text)
        await asyncio.sleep(1)  # several renewals
        assert (hearing_one._machines.heard, deaf._machines.heard) == (True, False)
        assert len(heard) > 5
        assert set(heard) == {None}
        assert control == []
    assert caplog.text.count("delivers no notifications") == 1
    assert CANARY_KEY not in caplog.text


@pytest.mark.parametrize("kept", [True, False], ids=["rule", "control"])
async def test_after_a_cut_what_was_told_meanwhile_is_not_lost(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Everything is checked once after each connection. Control: a listener that only listens again."""
    monkeypatch.setattr(news, "_POLL", 3600.0)
    teller, other = await open_store(), await open_store()
    begin, tell, connected = other._news._begin, other._news._tell, asyncio.Event()

    async def begin_after_the_news(connection: Any) -> None:
        await teller._database.rows("SELECT kie4o.tell('task t')")
        if not kept:
            monkeypatch.setattr(other._news, "_tell", lambda what: None if what is None else tell(what))
        await begin(connection)
        connected.set()

    monkeypatch.setattr(other._news, "_begin", begin_after_the_news)
    async with hearing(other) as heard:
        schema = teller.address.schema if teller.address is not None else ""
        await teller._database.rows(CUT, f"%{schema}%")
        await asyncio.wait_for(connected.wait(), 20)
        await until(lambda: other._news.works)
        await asyncio.sleep(0.2)
        assert heard == ([None] if kept else [])


async def test_after_a_cut_everything_is_checked_once(open_store: OpenStore) -> None:
    """What was told while nobody listened is lost."""
    holder, other = await open_store(), await open_store()
    schema = holder.address.schema if holder.address is not None else ""
    async with hearing(other) as heard:
        for _ in range(3):
            heard.clear()
            await holder._database.rows(CUT, f"%{schema}%")
            await until(lambda: heard and other._news.works)
            assert None in heard
        await until(lambda: holder._news.works)
        heard.clear()
        assert await wait_for_key(holder, other, "after the cuts") < 0.5
