"""A store may bring the limiter: the client then asks it for slots, and obeys how long they are good."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest
from alone import Alone
from clocks import VirtualLoop
from window_server import ServerProcess, WindowServer

import kie4o
from kie4o import AsyncKieClient, RateLimit, clock
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.postgres import window as window_module

LIMIT = RateLimit(2, per=10.0)


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


# -- that of a database, over one in memory -------------------------------------------------------------


def window(scenario: Callable[[WindowServer], Coroutine[Any, Any, None]], latency: float) -> None:
    """Plays it in virtual time. Each question and each answer takes `latency` seconds, but for the first."""
    latencies = itertools.chain([0.01, 0.01], itertools.repeat(latency))

    async def run() -> None:
        await scenario(WindowServer(lambda: next(latencies)))

    with pytest.MonkeyPatch.context() as patched, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        for name in ("uptime", "real_uptime"):
            patched.setattr(clock, name, lambda: asyncio.get_running_loop().time())
        runner.run(run())


async def used_up(limiter: window_module.SharedLimiter) -> float:
    """Uses all slots of a window; the loop time at which they were answered."""
    for slot in [await limiter.acquire() for _ in range(limiter.limit.limit)]:
        slot.release(counted=True)
    return asyncio.get_running_loop().time()


def test_a_question_without_an_answer_is_asked_again() -> None:
    """After 10 s, over another connection."""

    async def scenario(server: WindowServer) -> None:
        loop = asyncio.get_running_loop()
        limiter = ServerProcess(server).start(LIMIT)
        (await limiter.acquire()).release(counted=False)
        await asyncio.sleep(1.0)
        server.latency = iter([3600.0, 0.01, 0.01]).__next__
        began = loop.time()
        await limiter.acquire()
        assert loop.time() - began == pytest.approx(10.02, abs=0.001)

    window(scenario, 0.01)


def test_a_refusal_during_a_question_is_told_with_the_next() -> None:
    """And nothing is granted by the answer to the earlier one."""

    async def scenario(server: WindowServer) -> None:
        loop = asyncio.get_running_loop()
        limiter, other = (ServerProcess(server).start(LIMIT) for _ in range(2))
        (await limiter.acquire()).release(counted=True)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.5)
        assert limiter.hold_all() == LIMIT.per
        held_at = loop.time()
        await asyncio.sleep(5.0)
        await asyncio.gather(waiting, other.acquire())
        assert loop.time() - held_at >= LIMIT.per

    window(scenario, 1.0)


def test_a_refusal_shortens_no_longer_pause() -> None:
    """As that after a clock was set."""

    async def scenario(server: WindowServer) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        (await limiter.acquire()).release(counted=True)
        server.offset += 3600.0
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(5.0)
        assert limiter.hold_all() == pytest.approx(LIMIT.per + 2 * window_module.GOOD - 5.0, abs=0.5)
        await waiting

    window(scenario, 0.01)


@pytest.mark.parametrize("ends", ["granted", "cancelled", "closed"])
def test_only_what_still_waits_is_announced(ends: str) -> None:
    """Not one that was cancelled a moment before, of which the database is just told, and nothing is once the
    limiter is closed."""

    async def scenario(server: WindowServer) -> None:
        announced: list[int] = []
        process = ServerProcess(server)
        limiter = process.start(LIMIT, announce=announced.append, lead=lambda: 1.0)
        answered = await used_up(limiter)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(answered + LIMIT.per - 1.1 - asyncio.get_running_loop().time())
        assert announced == []
        if ends == "cancelled":
            waiting.cancel()
        elif ends == "closed":
            await limiter.aclose()
        await asyncio.sleep(20.0)
        assert (waiting.done(), announced) == (ends != "closed", [1] if ends == "granted" else [])
        waiting.cancel()

    window(scenario, 0.2)
