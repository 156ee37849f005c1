"""The limiter says a little earlier that slots will be free: how many, when, and never too early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from clocks import run_virtual
from hypothesis import given
from hypothesis import strategies as st

from kie4o import RateLimit, clock
from kie4o.submission.rate_limit import RateLimiter, SlidingWindow

LEAD = 0.3
TWENTY = RateLimit(20, per=10.0)


@pytest.fixture(autouse=True)
def exact_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux: a slot is free to the microsecond."""
    monkeypatch.setattr(clock, "resolution", lambda: 1e-9)


class Watched:
    """A limiter, and what it announced: seconds since the start, and how many."""

    def __init__(self, limit: RateLimit, lead: float = LEAD) -> None:
        self.limiter = RateLimiter(limit, announce=self._announced, lead=lambda: lead)
        self.announced: list[tuple[float, int]] = []
        self.granted: list[float] = []
        self.start = asyncio.get_running_loop().time()

    def now(self) -> float:
        return round(asyncio.get_running_loop().time() - self.start, 3)

    def _announced(self, count: int) -> None:
        self.announced.append((self.now(), count))

    async def submit(self, took: float = 0.0) -> None:
        await self.limiter.acquire()
        self.granted.append(self.now())
        await asyncio.sleep(took)
        self.limiter.release(counted=True)

    def submits(self, count: int) -> list[asyncio.Task[None]]:
        return [asyncio.create_task(self.submit()) for _ in range(count)]


Announced = list[tuple[float, int]]


def announced(
    scenario: Callable[[Watched], Coroutine[Any, Any, object]], limit: RateLimit = TWENTY, lead: float = LEAD
) -> Announced:
    async def run() -> Announced:
        watched = Watched(limit, lead)
        await scenario(watched)
        return watched.announced

    return run_virtual(run())


def test_a_burst_that_waits_is_announced_before_its_slots_are_free() -> None:
    """All of it, once for each window; nothing for those that find free slots."""

    async def scenario(watched: Watched) -> None:
        await asyncio.gather(*watched.submits(50))
        assert watched.granted == [0.0] * 20 + [10.0] * 20 + [20.0] * 10

    assert announced(scenario) == [(9.7, 20), (19.7, 10)]


@pytest.mark.timeout(20)
def test_a_lead_that_is_shorter_than_the_clock_can_tell() -> None:
    """The slots are granted all the same. Without a memory of what was announced, both timers were set anew
    for ever at one and the same time."""

    async def scenario(watched: Watched) -> None:
        await asyncio.gather(*watched.submits(50))
        assert watched.granted == [0.0] * 20 + [10.0] * 20 + [20.0] * 10

    assert announced(scenario, lead=4e-11) == [(10.0, 20), (20.0, 10)]


def test_one_slot_at_a_time_is_announced_one_at_a_time() -> None:
    """Each once."""

    async def scenario(watched: Watched) -> None:
        for _ in range(4):
            await watched.submit()
            await asyncio.sleep(2)
        await asyncio.gather(*watched.submits(4))

    assert announced(scenario, RateLimit(4, per=10.0)) == [(9.7, 1), (11.7, 1), (13.7, 1), (15.7, 1)]


def test_an_announcement_that_comes_late_is_of_all_slots_of_its_lead() -> None:
    """The second comes a quarter of the lead after the first, when all four slots are due in a lead."""

    async def scenario(watched: Watched) -> None:
        for _ in range(4):
            await watched.submit()
            await asyncio.sleep(0.02)
        await asyncio.gather(*watched.submits(4))

    assert announced(scenario, RateLimit(4, per=10.0), lead=0.25) == [(9.75, 1), (9.813, 4)]


def test_slots_that_follow_closely_are_announced_together() -> None:
    """Those that are free by the end of the lead, and were not taken yet."""

    async def scenario(watched: Watched) -> None:
        for _ in range(4):
            await watched.submit()
            await asyncio.sleep(0.1)
        await asyncio.gather(*watched.submits(4))

    assert announced(scenario, RateLimit(4, per=10.0), lead=0.25) == [
        (9.75, 1),
        (9.85, 2),
        (9.95, 3),
        (10.05, 3),
    ]


def test_the_end_of_a_pause_is_announced() -> None:
    """After a refusal all wait for a whole window; then all slots are free at once."""

    async def scenario(watched: Watched) -> None:
        await watched.submit()
        await asyncio.sleep(3)
        watched.limiter.hold_all()
        await asyncio.gather(*watched.submits(5))
        assert watched.granted == [0.0] + [13.0] * 5

    assert announced(scenario) == [(12.7, 5)]


def test_a_pause_that_begins_after_the_announcement_is_announced_again() -> None:
    """What was made ready has expired by then."""

    async def scenario(watched: Watched) -> None:
        first = watched.submits(23)
        await asyncio.sleep(9.8)
        watched.limiter.hold_all()
        await asyncio.gather(*first)

    assert announced(scenario) == [(9.7, 3), (19.5, 3)]


def test_waiters_that_are_cancelled_are_not_announced() -> None:
    """Nor if all are."""

    async def scenario(watched: Watched) -> None:
        tasks = watched.submits(26)
        await asyncio.sleep(5)
        for task in tasks[20:24]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        others = watched.submits(20)
        await asyncio.sleep(0)
        for task in others:
            task.cancel()
        await asyncio.sleep(30)

    assert announced(scenario) == [(9.7, 2)]


def test_a_request_that_comes_shortly_before_its_slot_is_announced_at_once() -> None:
    """Together with those that were announced before, since none of them has its slot yet."""

    async def scenario(watched: Watched) -> None:
        tasks = watched.submits(21)
        await asyncio.sleep(9.9)
        tasks += watched.submits(2)
        await asyncio.gather(*tasks)

    assert announced(scenario) == [(9.7, 1), (9.9, 3)]


def test_an_hour_of_waiting_announces_nothing_early() -> None:
    """However long the window is."""

    async def scenario(watched: Watched) -> None:
        await asyncio.gather(*watched.submits(3))

    assert announced(scenario, RateLimit(2, per=3600.0)) == [(3599.7, 1)]


def test_while_responses_are_awaited_nothing_is_announced() -> None:
    """When their slots will be free is not known before."""

    async def scenario(watched: Watched) -> None:
        slow = asyncio.create_task(watched.submit(took=100.0))
        await asyncio.sleep(1)
        await asyncio.gather(slow, *watched.submits(1))

    assert announced(scenario, RateLimit(1, per=10.0)) == [(109.7, 1)]


def test_a_window_that_is_shorter_than_the_lead_is_announced_too() -> None:
    """With an emulator that is a thousand times as fast."""

    async def scenario(watched: Watched) -> None:
        await asyncio.gather(*watched.submits(60))
        assert watched.granted == [0.0] * 20 + [0.01] * 20 + [0.02] * 20

    assert [count for _, count in announced(scenario, RateLimit(20, per=0.01))] == [20, 20]


def test_requests_that_were_all_cancelled_are_not_announced() -> None:
    """In the turn in which they would be."""

    async def scenario(watched: Watched) -> None:
        tasks = watched.submits(23)
        await asyncio.sleep(1.0)
        timer = watched.limiter._announcement
        assert timer is not None
        for task in tasks[20:]:
            asyncio.get_running_loop().call_at(timer.when() - 1e-10, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert len(watched.granted) == 20

    assert announced(scenario) == []


def test_without_anyone_to_tell_nothing_changes() -> None:
    """No timer is set."""

    async def run() -> bool:
        limiter = RateLimiter(RateLimit(1, per=10.0))
        for _ in range(2):
            await limiter.acquire()
            limiter.release(counted=True)
        return limiter._announcement is None

    assert run_virtual(run())


def test_control_announced_when_they_are_free_is_too_late() -> None:
    """Control: without a lead, the call comes in the moment of the grant."""

    async def scenario(watched: Watched) -> None:
        await asyncio.gather(*watched.submits(40))

    assert announced(scenario, lead=0.0) in ([(10.0, 20)], [])


@given(
    st.integers(1, 4),
    st.lists(st.floats(0, 12), max_size=12),
    st.integers(0, 3),
    st.floats(0, 15),
    st.floats(0, 30),
)
def test_what_will_be_free_is_what_is_free_then(
    limit: int, answered: list[float], taken: int, held: float, later: float
) -> None:
    """`free_by` foretells how many can be taken, and between now and `more_at` there are no more."""
    window = SlidingWindow(RateLimit(limit, per=10.0), answered)
    window.hold_until(held)
    window._open = min(taken, limit)
    more = window.more_at(later)
    assert more > later
    for time in (later, (later + more) / 2):
        if time < more < float("inf"):
            assert window.free_by(time) == window.free_by(later)
    foretold, count = window.free_by(later), 0
    while window.take(later):
        count += 1
    assert count == foretold
