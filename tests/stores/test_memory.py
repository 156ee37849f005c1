"""The store in memory: what it drops, and that it serves one client at a time."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import pytest
from canary import CANARY_KEY
from clients import client_of, until
from entries import A_DAY_AGO, ended, entry_of, submitted, unfinished_keys
from faults import FaultServer, answer

import kie4o.stores.memory
from kie4o import AsyncKieClient, RateLimit
from kie4o.details import EXPIRY
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import EntryState


@pytest.mark.parametrize(("keyed", "kept"), [(True, 10_000), (False, 1_000)])
async def test_memory_keeps_the_last_ended_and_all_unfinished_entries(keyed: bool, kept: int) -> None:
    """Ended entries make room for newer ones, in the order in which they ended.

    Unfinished ones are never dropped, even if an earlier task of their key had failed.
    """
    store = MemoryStore()
    await store.save(submitted("unfinished"))
    await store.save(ended(submitted("again", task_id="first"), EntryState.FAILED))
    await store.save(submitted("again", task_id="second"))
    for n in range(kept + 50):
        await store.save(ended(submitted(f"{n:05}", keyed=keyed)))
    found = [n for n in range(kept + 50) if await store.find(key=f"{n:05}") is not None]
    assert found == list(range(50, kept + 50))
    assert await store.find(task_id="task-of-00049") is None
    assert await unfinished_keys(store) == ["unfinished", "again"]


@pytest.mark.parametrize("key", ["k{}", None])
async def test_refused_and_called_off_submits_leave_nothing(key: str | None) -> None:
    """100 submits that are refused, and 100 that are called off before they are sent."""
    store = MemoryStore()
    async with FaultServer(answer(b'{"code":402,"msg":"no credits"}')) as kie:
        limit = RateLimit(100, per=3600.0)
        async with client_of(kie.url, store, rate_limit=limit, max_in_flight=200) as client:
            for after in (0, 100):
                calls = [
                    asyncio.create_task(client.submit(f"x{n}", key=key and key.format(n + after)))
                    for n in range(100)
                ]
                if after:
                    await until(lambda: client._runtime.limiter.waiting == 100)
                    for call in calls:
                        call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                await until(lambda: client._runtime.submissions.live == 0)
                assert len(store._entries) == 0
        assert kie.posts == 100


async def test_unfinished_entries_go_when_kie_has_forgotten_their_tasks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After 14 days; what is younger, and what has ended, stays."""
    monkeypatch.setattr(kie4o.stores.memory, "_SWEEP", 10)
    store = MemoryStore()
    old = time.time() - EXPIRY - 1
    for n in range(4):
        await store.save(submitted(f"old {n}", submitted_at=old))
        await store.save(ended(submitted(f"ended {n}", submitted_at=old)))
    assert len(await unfinished_keys(store)) == 4  # every tenth save looks for them
    await store.save(submitted("young", submitted_at=old + 60))
    await store.save(submitted("younger"))
    assert await unfinished_keys(store) == ["young", "younger"]
    assert await store.find(task_id="task-of-old 1") is None
    assert await store.find(ref="ref of old 1") is None
    assert await store.find(key="ended 3") is not None


async def test_submits_that_are_never_waited_for_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """8,000 of them with room for 2,000: the newest stay, in less than 2 KiB each, and one warning is
    logged."""
    monkeypatch.setattr(kie4o.stores.memory, "MOST", 2_000)
    store = MemoryStore()
    tracemalloc.start()
    try:
        for n in range(8_000):
            await store.save(submitted(f"{n:05}", prompt="a prompt of usual length " * 8))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = await unfinished_keys(store)
    assert kept == [f"{n:05}" for n in range(6_000, 8_000)]
    assert used / len(kept) < 2048
    assert len(store._key_of_task) == len(store._key_of_ref) == len(kept)
    assert [record.levelname for record in caplog.records if "store in memory" in record.message] == [
        "WARNING"
    ]


async def test_there_is_room_for_as_many_entries_as_is_written() -> None:
    """100,000. All but the last two are put there at once; saving each would take a second."""
    store = MemoryStore()
    store._entries.update(dict.fromkeys(map(str, range(99_999)), submitted("0")))
    await store.save(submitted("the last"))
    assert await store.find(key="0") is not None
    await store.save(submitted("one too many"))
    assert await store.find(key="0") is None
    assert len(store._entries) == 100_000


async def test_an_entry_is_as_old_as_its_first_save(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that takes long makes it no younger than those that were sent meanwhile."""
    monkeypatch.setattr(kie4o.stores.memory, "MOST", 2)
    store = MemoryStore()
    await store.save(entry_of("a", state=EntryState.INTENT))
    await store.save(submitted("b"))
    await store.save(submitted("a"))
    assert await unfinished_keys(store) == ["a", "b"]
    await store.save(submitted("c"))
    assert await unfinished_keys(store) == ["b", "c"]


async def test_a_key_is_no_ref() -> None:
    """Whoever knows it must not find the entry by it, as a callback does."""
    store = MemoryStore()
    await store.save(submitted("k"))
    assert await store.find(ref="k") is None


async def test_a_key_that_is_not_there_is_released() -> None:
    """It may have been dropped, or forgotten, since it was claimed."""
    store = MemoryStore()
    await store.release("k")
    assert await store.find(key="k") is None


# -- submits that count against the account's limit -----------------------------------------------------


async def test_a_submit_counts_though_its_key_is_stored_anew() -> None:
    """It was answered: the account's limit has counted it. An INTENT that is replaced was not sent."""
    store = MemoryStore()
    await store.save(submitted("a", ref="first"))
    await store.save(submitted("a", ref="second", task_id="second"))
    assert len(await store.recent(10)) == 2
    await store.save(entry_of("b", ref="third", state=EntryState.INTENT, submitted_at=A_DAY_AGO))
    await store.save(submitted("b", ref="fourth"))
    assert len(await store.recent(10)) == 3


async def test_what_was_saved_twice_counts_once() -> None:
    """An INTENT too, whose time has not changed."""
    store = MemoryStore()
    for state in (EntryState.INTENT, EntryState.INTENT, EntryState.UNKNOWN):
        await store.save(entry_of(state=state, submitted_at=A_DAY_AGO))
        assert len(await store.recent(10)) == 1


async def test_an_entry_without_a_time_does_not_count() -> None:
    """It is of a submit that was not answered in this process."""
    store = MemoryStore()
    await store.save(entry_of(state=EntryState.UNKNOWN))
    assert await store.recent(10) == []


async def test_a_submit_that_was_answered_late_is_not_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts from its answer. Of three submits the memory has room for two: the oldest goes."""
    now = 0.0
    monkeypatch.setattr(kie4o.clock, "uptime", lambda: now)
    monkeypatch.setattr(kie4o.stores.memory, "KEPT_SLOTS", 2)
    store = MemoryStore()
    await store.save(entry_of("a", state=EntryState.INTENT, submitted_at=A_DAY_AGO))
    for now, key in enumerate("bac", 1):
        await store.save(submitted(key, submitted_at=A_DAY_AGO + now))
    assert sorted(await store.recent(10)) == [0, 1]


async def test_a_key_that_gets_another_entry_keeps_nothing_of_the_first() -> None:
    """Neither its ref nor what callbacks have named for it; nothing would ever remove them."""
    store = MemoryStore()
    await store.save(entry_of(ref="first"))
    await store.keep_callback("first", "task")
    await store.save(entry_of(ref="second"))
    assert await store.find(ref="first") is None
    assert await store.callbacks_of("first") == ()
    assert await store.find(ref="second") == entry_of(ref="second")


async def test_an_ended_entry_makes_room_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing waits for it any more."""
    monkeypatch.setattr(kie4o.stores.memory, "MOST", 2)
    store = MemoryStore()
    await store.save(ended(submitted("ended")))
    for key in "ab":
        await store.save(submitted(key))
    assert await store.find(key="ended") is None
    assert caplog.records == []
    await store.save(submitted("c"))
    assert await unfinished_keys(store) == ["b", "c"]
    assert len(caplog.records) == 1


async def test_one_store_object_serves_one_client_at_a_time() -> None:
    """Two clients that did not know of each other would pay twice for a key."""
    store = MemoryStore()
    async with Emulator() as kie, AsyncKieClient(CANARY_KEY, base_url=kie.url, store=store) as first:
        await first.submit("x", key="k")
        with pytest.raises(kie4o.StoreLockedError):
            await AsyncKieClient(CANARY_KEY, base_url=kie.url, store=store).submit("x", key="k")
    async with AsyncKieClient(CANARY_KEY, base_url=kie.url, store=store) as second:
        assert [entry.key async for entry in second.unfinished()] == ["k"]
