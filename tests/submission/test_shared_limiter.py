"""A store may bring the limiter: the client then asks it for slots, and obeys how long they are good."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from alone import Alone

import kie4o
from kie4o import AsyncKieClient, RateLimit, clock
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore


class SharedSlot:
    def __init__(self, limiter: SharedLimiter, good_until: float) -> None:
        self.good_until = good_until
        self._limiter = limiter

    def release(self, *, counted: bool) -> None:
        self._limiter.released.append(counted)


class SharedLimiter:
    """Grants every slot at once, good for `seconds`."""

    waiting = 0

    def __init__(self, limit: RateLimit, seconds: float) -> None:
        self.limit = limit
        self.released: list[bool] = []
        self._seconds = seconds

    async def acquire(self, *, front: bool = False) -> SharedSlot:
        return SharedSlot(self, clock.uptime() + self._seconds)

    def used(self, now: float) -> None:
        pass

    def next_slot(self, now: float) -> None:
        pass

    def hold_all(self) -> None:
        raise AssertionError("nothing is refused here")

    def remember(self, ages: Iterable[float]) -> None:
        assert list(ages) == []


class SharedStore(MemoryStore, Alone):
    """A store that several processes share, as far as its limiter is concerned."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.limiters: list[SharedLimiter] = []
        self.keys_released: list[str] = []
        self.shared = self

    def limiter(self, limit: RateLimit, **_: object) -> SharedLimiter:
        self.limiters.append(SharedLimiter(limit, self.seconds))
        return self.limiters[-1]

    async def release(self, key: str) -> None:
        self.keys_released.append(key)


async def test_slots_come_from_the_store(kie: Emulator, api_key: str) -> None:
    """One limiter with the client's limit; each slot is released once, and so is the key."""
    store = SharedStore(seconds=60.0)
    async with AsyncKieClient(
        api_key, base_url=kie.url, store=store, rate_limit=RateLimit(7, per=3.0)
    ) as client:
        await client.submit("x", key="order-1")
    [limiter] = store.limiters
    assert limiter.limit == RateLimit(7, per=3.0)
    assert limiter.released == [True]
    assert store.keys_released == ["order-1"]
    assert len(kie.submits) == 1


async def test_nothing_is_sent_in_a_slot_that_has_expired(kie: Emulator, api_key: str) -> None:
    """The body is not written after `good_until`: the attempts count as not sent."""
    store = SharedStore(seconds=-0.001)
    async with AsyncKieClient(api_key, base_url=kie.url, store=store) as client:
        with pytest.raises(kie4o.APIConnectionError, match="was not sent"):
            await client.submit("x", key="order-1")
    [limiter] = store.limiters
    assert limiter.released == [False] * 3
    assert len(kie.submits) == 0
