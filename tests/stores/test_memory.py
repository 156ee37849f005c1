"""The store in memory: what it drops, and that it serves one client at a time."""

from __future__ import annotations

import pytest
from entries import ended, submitted, unfinished_keys

import kie4o.stores.memory
from kie4o import AsyncKieClient
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import EntryState


async def test_memory_keeps_the_last_ended_and_all_unfinished_entries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ended entries make room for newer ones, in the order in which they ended.

    Unfinished ones are never dropped, even if an earlier task of their key had failed.
    """
    monkeypatch.setattr(kie4o.stores.memory, "KEPT", 100)
    store = MemoryStore()
    await store.save(submitted("unfinished"))
    await store.save(ended(submitted("again", task_id="first"), EntryState.FAILED))
    await store.save(submitted("again", task_id="second"))
    for n in range(150):
        await store.save(ended(submitted(f"{n:03}")))
    kept = [n for n in range(150) if await store.find(key=f"{n:03}") is not None]
    assert kept == list(range(50, 150))
    assert await store.find(task_id="task-of-049") is None
    assert await unfinished_keys(store) == ["unfinished", "again"]


async def test_one_store_object_serves_one_client_at_a_time() -> None:
    """Two clients that did not know of each other would pay twice for a key."""
    store = MemoryStore()
    async with Emulator() as kie, AsyncKieClient("sk-test", base_url=kie.url, store=store) as first:
        await first.submit("x", key="k")
        with pytest.raises(kie4o.StoreLockedError):
            await AsyncKieClient("sk-test", base_url=kie.url, store=store).submit("x", key="k")
    async with AsyncKieClient("sk-test", base_url=kie.url, store=store) as second:
        assert [entry.key async for entry in second.unfinished()] == ["k"]
