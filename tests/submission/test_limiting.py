"""The rate limiter, on a virtual clock and against a server that counts."""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from typing import Any

import pytest
from clocks import VirtualLoop, run_virtual
from hypothesis import given
from hypothesis import strategies as st

from kie4o import ConfigurationError, RateLimit, clock
from kie4o.submission.rate_limit import RateLimiter, SlidingWindow

LIMIT = RateLimit(20, per=10.0)


class StrictServer:
    """Admits `limit` requests in any window, counted on arrival, and counts those it refuses."""

    def __init__(self, limit: RateLimit = LIMIT) -> None:
        self.limit = limit
        self.accepted: deque[float] = deque()
        self.refused = 0
        self.last = 0.0

    def arrive(self, now: float) -> bool:
        while self.accepted and self.accepted[0] <= now - self.limit.per:
            self.accepted.popleft()
        if len(self.accepted) >= self.limit.limit:
            self.refused += 1
            return False
        self.accepted.append(now)
        self.last = now
        return True


@pytest.mark.usefixtures("exact_clock")
def test_ideal_burst_and_pace() -> None:
    """Without latency the first 20 go at once, and every further 20 exactly one window later."""

    async def run() -> list[float]:
        limiter, times = RateLimiter(LIMIT), []
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def one() -> None:
            await limiter.acquire()
            times.append(loop.time() - start)
            limiter.release(counted=True)

        await asyncio.gather(*(one() for _ in range(60)))
        return times

    times = run_virtual(run())
    assert [round(t, 3) for t in times] == [0.0] * 20 + [10.0] * 20 + [20.0] * 20


def short_tail(rng: random.Random) -> float:
    return rng.uniform(0, 1.5) if rng.random() < 0.05 else 0.08


def anything(rng: random.Random) -> float:
    return rng.uniform(0, 1.5)


@pytest.mark.parametrize(("latency", "least"), [(short_tail, 0.97), (anything, 0.88)])
@pytest.mark.parametrize("seed", range(5))
def test_no_jitter_leads_to_a_21st_request(latency, least, seed) -> None:
    """A strict server refuses none, however the network delays requests and answers.

    The long-run rate stays near the ideal of 2 per second.
    """
    total = 2000

    async def run() -> tuple[StrictServer, float]:
        rng, server, limiter = random.Random(seed), StrictServer(), RateLimiter(LIMIT)
        loop = asyncio.get_running_loop()
        start = loop.time()

        async def one() -> None:
            await limiter.acquire()
            there_and_back = latency(rng)
            there = rng.random() * there_and_back
            await asyncio.sleep(there)
            server.arrive(loop.time())
            await asyncio.sleep(there_and_back - there)
            limiter.release(counted=True)

        await asyncio.gather(*(one() for _ in range(total)))
        return server, server.last - start

    server, took = run_virtual(run())
    assert server.refused == 0
    assert (total - 20) / 2.0 / took >= least


def test_control_slots_counted_from_sending_are_refused() -> None:
    """Control: the server refuses some if a slot counts from the moment of sending."""

    async def run() -> int:
        rng, server, limiter = random.Random(1), StrictServer(), RateLimiter(LIMIT)
        loop = asyncio.get_running_loop()

        async def one() -> None:
            await limiter.acquire()
            limiter.release(counted=True)  # wrong on purpose
            await asyncio.sleep(short_tail(rng))
            server.arrive(loop.time())

        await asyncio.gather(*(one() for _ in range(400)))
        return server.refused

    assert run_virtual(run()) > 0


@given(
    st.integers(1, 5),
    st.floats(0.1, 20),
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3), st.booleans()), max_size=60),
)
def test_window_is_exact(limit: int, per: float, steps: list[tuple[float, float, bool]]) -> None:
    """No window has more than `limit` slots that were taken and counted, for any order of events.

    A free slot is never withheld.
    """
    window = SlidingWindow(RateLimit(limit, per=per))
    now, open_, stamps = 0.0, 0, []
    for wait, _, counted in steps:
        now += wait
        live = [stamp for stamp in stamps if stamp + per > now]
        free = open_ + len(live) < limit
        assert (window.free_at(now) <= now) is free
        assert window.take(now) is free
        open_ += free
        if open_ and counted:
            window.answered(now)
            stamps.append(now)
            open_ -= 1
        elif open_ and not free:
            window.give_back()
            open_ -= 1
        assert window.open == open_


def test_first_come_first_served_without_those_cancelled() -> None:
    """Waiters are served in the order of their arrival, and a cancelled one takes no slot."""

    async def run() -> tuple[list[int], int, int]:
        limiter, order = RateLimiter(RateLimit(2, per=10.0)), []

        async def one(number: int) -> None:
            await limiter.acquire()
            order.append(number)
            limiter.release(counted=True)

        tasks = [asyncio.create_task(one(number)) for number in range(8)]
        await asyncio.sleep(1)
        for number in (2, 5):
            tasks[number].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return order, limiter.waiting, limiter.open

    assert run_virtual(run()) == ([0, 1, 3, 4, 6, 7], 0, 0)


def test_cancelled_in_the_tick_of_the_grant_gives_the_slot_back() -> None:
    """A waiter that is cancelled in the tick in which it is served passes the slot on."""

    async def run() -> tuple[bool, int]:
        limiter = RateLimiter(RateLimit(1, per=10.0))
        await limiter.acquire()
        unlucky = asyncio.create_task(limiter.acquire())
        next_one = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        limiter.release(counted=False)  # grants to `unlucky`, which has not run yet
        unlucky.cancel()
        await asyncio.wait([unlucky, next_one], timeout=1)
        return next_one.done() and not next_one.cancelled(), limiter.open

    assert run_virtual(run()) == (True, 1)


async def test_a_slot_that_is_freed_in_the_tick_of_a_cancel_is_not_lost() -> None:
    """A slot is not granted to a cancelled waiter that is still in the queue.

    `release` raises nothing, the cancel is not swallowed, and the next waiter gets the slot.
    """
    limiter = RateLimiter(RateLimit(1, per=10.0))
    await limiter.acquire()
    first, second = asyncio.create_task(limiter.acquire()), asyncio.create_task(limiter.acquire())
    await asyncio.sleep(0)
    first.cancel()
    limiter.release(counted=False)
    with pytest.raises(asyncio.CancelledError):
        await first
    await asyncio.wait_for(second, 1.0)
    assert (limiter.open, limiter.waiting) == (1, 0)


def test_a_slot_that_is_given_back_does_not_count() -> None:
    """A request that was never sent takes no part of the window."""

    async def run() -> float:
        limiter, loop = RateLimiter(RateLimit(1, per=10.0)), asyncio.get_running_loop()
        start = loop.time()
        for _ in range(50):
            await limiter.acquire()
            limiter.release(counted=False)
        return loop.time() - start

    assert run_virtual(run()) < 0.01


@pytest.mark.usefixtures("exact_clock")
def test_a_limiter_that_announces_nothing_has_no_more_to_do() -> None:
    """No call of the loop fails while requests wait for slots. Before the first it shows none in use."""
    failures: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        limiter = RateLimiter(RateLimit(1, per=10.0), lead=lambda: 1.0)
        assert repr(limiter) == "<RateLimiter: 0 of 1 slots in use per 10 s, 0 waiting>"
        for _ in range(3):
            (await limiter.acquire()).release(counted=True)

    run_virtual(run())
    assert failures == []


@pytest.mark.usefixtures("exact_clock")
def test_the_lead_is_asked_for_only_if_a_slot_will_be_free_for_someone() -> None:
    """Neither while a response must arrive first, nor once nobody waits."""
    asked = 0

    def lead() -> float:
        nonlocal asked
        asked += 1
        return 1.0

    async def run() -> None:
        limiter = RateLimiter(RateLimit(2, per=10.0), announce=lambda _: None, lead=lead)
        first, second = await limiter.acquire(), await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(1)
        assert asked == 0
        first.release(counted=True)
        await asyncio.sleep(1)
        second.release(counted=True)
        await asyncio.sleep(8.5)  # it has been announced
        before = asked
        assert before > 0
        await waiter
        await asyncio.sleep(20)
        assert asked == before

    run_virtual(run())


def test_those_who_wait_share_a_timer() -> None:
    """Each request that comes sets it anew, and thousands of timers would all wake the limiter at once."""
    timers: list[asyncio.TimerHandle] = []

    class Loop(VirtualLoop):
        def call_at(self, *args: Any, **more: Any) -> asyncio.TimerHandle:
            timers.append(super().call_at(*args, **more))
            return timers[-1]

    async def run() -> None:
        limiter = RateLimiter(RateLimit(1, per=10.0))
        (await limiter.acquire()).release(counted=True)
        waiters = [asyncio.create_task(limiter.acquire()) for _ in range(50)]
        await asyncio.sleep(0)
        assert limiter.waiting == 50
        assert [timer.cancelled() for timer in timers].count(False) == 1
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters)
        assert all(timer.cancelled() for timer in timers)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())


def test_a_newcomer_waits_behind_those_who_wait_though_a_slot_is_free() -> None:
    """A busy loop serves them late: a task that is ready runs before the timer that is due."""

    async def run() -> list[str]:
        loop, limiter, served = asyncio.get_running_loop(), RateLimiter(RateLimit(1, per=0.02)), []

        async def one(name: str) -> None:
            (await limiter.acquire()).release(counted=True)
            served.append(name)

        await one("first")
        waiter = asyncio.create_task(one("waiter"))
        await asyncio.sleep(0)
        until = loop.time() + 0.05
        while loop.time() < until:
            pass
        await asyncio.gather(asyncio.create_task(one("newcomer")), waiter)
        return served

    assert asyncio.run(run()) == ["first", "waiter", "newcomer"]


@pytest.mark.usefixtures("exact_clock")
def test_what_is_in_use_and_when_a_slot_is_free() -> None:
    """None while a response must arrive first; a pause counts too. Looking changes nothing."""

    async def run() -> None:
        limiter, loop = RateLimiter(RateLimit(2, per=10.0)), asyncio.get_running_loop()

        def shown() -> tuple[int, float | None]:
            left = limiter.next_slot(loop.time())
            return limiter.used(loop.time()), None if left is None else round(left, 6)

        first, second = await limiter.acquire(), await limiter.acquire()
        assert shown() == (2, None)
        first.release(counted=True)
        await asyncio.sleep(4)
        assert shown() == (2, 6.0)
        second.release(counted=True)
        await asyncio.sleep(7)
        assert shown() == (1, 0.0)
        limiter.hold_all()
        assert shown() == (1, 10.0)
        await asyncio.sleep(12)
        assert shown() == (0, 0.0)

    run_virtual(run())


def test_another_loop_than_those_of_asyncio_counts_whole_milliseconds() -> None:
    """So does uvloop: a slot is not free until its clock has shown one more."""
    uvloop = pytest.importorskip("uvloop")

    async def run() -> float:
        limiter = RateLimiter(RateLimit(1, per=10.0))
        (await limiter.acquire()).release(counted=False)
        return limiter.hold_all()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == pytest.approx(10.001)


def test_hold_all_delays_every_waiter_for_a_window() -> None:
    """After `hold_all` no waiter is served for a whole window, though slots are free; `front=True` goes
    first."""

    async def run() -> list[tuple[str, float]]:
        limiter, loop = RateLimiter(RateLimit(5, per=10.0)), asyncio.get_running_loop()
        start, served = loop.time(), []

        async def one(name: str, *, front: bool) -> None:
            await limiter.acquire(front=front)
            served.append((name, round(loop.time() - start, 3)))
            limiter.release(counted=True)

        await limiter.acquire()
        limiter.release(counted=True)
        await asyncio.sleep(3)
        limiter.hold_all()
        await asyncio.gather(one("new", front=False), one("again", front=True))
        return served

    assert run_virtual(run()) == [("again", 13.0), ("new", 13.0)]


@pytest.mark.usefixtures("exact_clock")
def test_remembered_slots_count() -> None:
    """Remembered slots delay the first new one until they have aged out of the window."""

    async def run() -> float:
        limiter, loop = RateLimiter(RateLimit(2, per=10.0)), asyncio.get_running_loop()
        start = loop.time()
        limiter.remember([4, 1])
        await limiter.acquire()
        return round(loop.time() - start, 3)

    assert run_virtual(run()) == 6.0


@pytest.mark.parametrize(
    ("limit", "per"),
    [(0, 1.0), (-1, 1.0), (True, 1.0), (1.5, 1.0), (1, 0.0), (1, float("inf")), (1, float("nan"))],
)
def test_impossible_limits_are_refused(limit, per) -> None:
    """A limit that cannot work is refused when it is created."""
    with pytest.raises(ConfigurationError):
        RateLimit(limit, per=per)


@given(st.lists(st.floats(0, 15), min_size=10, max_size=40))
def test_remembered_slots_come_in_any_order(ages: list[float]) -> None:
    """However the ages of an earlier run are ordered, no window holds more than the limit."""

    async def run() -> list[float]:
        loop, limiter, granted = asyncio.get_running_loop(), RateLimiter(LIMIT), []
        limiter.remember(ages)
        start = loop.time()

        async def one() -> None:
            await limiter.acquire()
            granted.append(loop.time() - start)
            limiter.release(counted=True)

        await asyncio.gather(*(one() for _ in range(30)))
        return granted

    granted = run_virtual(run())
    submits = granted + [-age for age in ages]
    for at in granted:
        assert sum(at - LIMIT.per + 1e-6 < submit <= at for submit in submits) <= LIMIT.limit


@pytest.fixture
def exact_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux: a slot is free to the microsecond."""
    monkeypatch.setattr(clock, "resolution", lambda: 1e-9)


class TickingLoop(VirtualLoop):
    """Its clock shows the time of its last tick, every 1/64 s, as `time.monotonic` does on Windows until
    Python 3.12; `exact` is the time."""

    def time(self) -> float:
        return math.floor(self.exact * 64) / 64

    @property
    def exact(self) -> float:
        return super().time()

    async def exchange(self, seconds: float) -> None:
        """Time that passes between two turns of the loop, without a timer."""
        await asyncio.sleep(0)
        self._clock.now += seconds


def refused_on_a_ticking_clock(seed: int, remembered: int = 0) -> tuple[int, float]:
    """How many of 200 requests a strict server with an exact clock refuses on a fast link, and how long they
    took. The first `remembered` are of an earlier process, which the limiter is told of."""

    async def run() -> tuple[int, float]:
        rng, server, limiter = random.Random(seed), StrictServer(), RateLimiter(LIMIT)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TickingLoop)
        answered = []
        for _ in range(remembered):
            await loop.exchange(rng.uniform(0, 0.05))
            assert server.arrive(loop.exact)
            answered.append(loop.time())
        await loop.exchange(rng.uniform(0, 0.05))
        ages = [loop.time() - at for at in answered]
        await loop.exchange(rng.uniform(0, 0.02))
        limiter.remember(ages)
        start = loop.exact

        async def one() -> None:
            await limiter.acquire()
            await loop.exchange(rng.uniform(0, 0.0002))
            server.arrive(loop.exact)
            await loop.exchange(rng.uniform(0, 0.0002))
            limiter.release(counted=True)
            await loop.exchange(rng.uniform(0, 0.02))

        for _ in range(10):
            await asyncio.gather(*(one() for _ in range(20)))
        return server.refused, server.last - start

    with asyncio.Runner(loop_factory=TickingLoop) as runner:
        return runner.run(run())


@pytest.mark.parametrize("remembered", [0, 20])
@pytest.mark.parametrize("seed", range(5))
def test_a_coarse_clock_leads_to_no_21st_request(
    monkeypatch: pytest.MonkeyPatch, seed: int, remembered: int
) -> None:
    """A slot is free a window after the response, not after the tick before it. That costs a tick or two per
    window."""
    monkeypatch.setattr("kie4o.clock.resolution", lambda: 1 / 64)
    refused, took = refused_on_a_ticking_clock(seed, remembered)
    assert refused == 0
    assert took < (90 + remembered / 2) * 1.005


def test_control_a_coarse_clock_that_is_taken_as_exact_leads_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: without what the platform says of its clock, some are refused."""
    monkeypatch.setattr(clock, "resolution", lambda: 0.0)
    assert sum(refused_on_a_ticking_clock(seed)[0] for seed in range(5)) > 0


@pytest.mark.usefixtures("exact_clock")
def test_a_clock_that_does_not_tick_is_not_corrected() -> None:
    """On Linux a window is no longer than a window, to the microsecond."""

    async def run() -> float:
        loop, limiter = asyncio.get_running_loop(), RateLimiter(RateLimit(1, per=10.0))
        start = loop.time()
        for _ in range(2):
            await limiter.acquire()
            limiter.release(counted=True)
        return loop.time() - start

    assert 10.0 <= run_virtual(run()) < 10.000001
