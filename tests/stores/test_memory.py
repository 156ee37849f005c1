"""The store in memory: what it drops, and that it serves one client at a time."""

from __future__ import annotations

import asyncio
import time
import tracemalloc

import pytest
from canary import CANARY_KEY
from clients import client_of, until
from entries import ended, entry_of, submitted, unfinished_keys
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
    """300 submits that are refused, and 300 that are called off before they are sent."""
    store = MemoryStore()
    async with FaultServer(answer(b'{"code":402,"msg":"no credits"}')) as kie:
        limit = RateLimit(300, per=3600.0)
        async with client_of(kie.url, store, rate_limit=limit, max_in_flight=600) as client:
            for after in (0, 300):
                calls = [
                    asyncio.create_task(client.submit(f"x{n}", key=key and key.format(n + after)))
                    for n in range(300)
                ]
                if after:
                    await until(lambda: client._runtime.limiter.waiting == 300)
                    for call in calls:
                        call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
                await until(lambda: client._runtime.submissions.live == 0)
                assert len(store._entries) == 0
        assert kie.posts == 300


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
    await store.save(submitted("young", submitted_at=old + 60))
    await store.save(submitted("younger"))
    assert await unfinished_keys(store) == ["young", "younger"]
    assert await store.find(task_id="task-of-old 1") is None
    assert await store.find(ref="ref of old 1") is None
    assert await store.find(key="ended 3") is not None


async def test_submits_that_are_never_waited_for_are_bounded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """20,000 of them with room for 5,000: the newest stay, in less than 2 KiB each, and one warning is
    logged."""
    monkeypatch.setattr(kie4o.stores.memory, "MOST", 5_000)
    store = MemoryStore()
    tracemalloc.start()
    try:
        for n in range(20_000):
            await store.save(submitted(f"{n:05}", prompt="a prompt of usual length " * 8))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept = await unfinished_keys(store)
    assert kept == [f"{n:05}" for n in range(15_000, 20_000)]
    assert used / len(kept) < 2048
    assert len(store._key_of_task) == len(store._key_of_ref) == len(kept)
    assert [record.levelname for record in caplog.records if "store in memory" in record.message] == [
        "WARNING"
    ]


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
