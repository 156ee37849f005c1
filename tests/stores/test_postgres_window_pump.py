"""The pump of the shared limiter, in virtual time over a server in memory.

What holds over a real server is in test_postgres_window.py.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from clocks import VirtualLoop
from window_server import ServerProcess, WindowServer

from kie4o import RateLimit, clock
from kie4o.errors import StoreError
from kie4o.events import Paused, StoreWarned
from kie4o.events.reporter import Reporter
from kie4o.stores.postgres import window as window_module
from kie4o.stores.postgres.window import Offset, SharedLimiter

LIMIT = RateLimit(2, per=10.0)
CALLER = ContextVar("CALLER", default="")


def now() -> float:
    return asyncio.get_running_loop().time()


class Noting(WindowServer):
    """Notes when each question arrives, and what it says."""

    def __init__(self, latency: Callable[[], float]) -> None:
        super().__init__(latency)
        self.asked: list[tuple[float, tuple[Any, ...]]] = []
        self.fails: Exception | None = None
        self.before: Callable[[], None] = lambda: None

    def take(self, *words: Any) -> tuple[Any, ...]:
        self.asked.append((now(), words))
        self.before()
        if self.fails is not None:
            raise self.fails
        return super().take(*words)


def window(scenario: Callable[[Noting], Coroutine[Any, Any, None]], latency: float) -> None:
    """Plays it in virtual time. Each question and each answer takes `latency` seconds, but for the first."""
    latencies = itertools.chain([0.01, 0.01], itertools.repeat(latency))

    async def run() -> None:
        unhandled: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        await scenario(Noting(lambda: next(latencies)))
        assert unhandled == []

    with pytest.MonkeyPatch.context() as patched, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        for name in ("uptime", "real_uptime"):
            patched.setattr(clock, name, lambda: asyncio.get_running_loop().time())
        runner.run(run())


async def used_up(limiter: SharedLimiter) -> float:
    """Uses all slots of a window; the loop time at which they were answered."""
    for slot in [await limiter.acquire() for _ in range(limiter.limit.limit)]:
        slot.release(counted=True)
    return asyncio.get_running_loop().time()


def test_a_question_without_an_answer_is_asked_again() -> None:
    """After 10 s, over another connection."""

    async def scenario(server: Noting) -> None:
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

    async def scenario(server: Noting) -> None:
        loop = asyncio.get_running_loop()
        limiter, other = (ServerProcess(server).start(LIMIT) for _ in range(2))
        (await limiter.acquire()).release(counted=True)
        await limiter.drain()
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.5)
        assert limiter.hold_all() == LIMIT.per
        held_at = loop.time()
        await asyncio.sleep(5.0)
        for each in (waiting, asyncio.create_task(other.acquire())):
            await each
            assert loop.time() - held_at >= LIMIT.per

    window(scenario, 1.0)


def test_a_later_refusal_prolongs_a_pause() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        for _ in range(2):
            assert limiter.hold_all() == LIMIT.per
            began = now()
            await asyncio.sleep(5.0)
        await limiter.acquire()
        assert now() - began >= LIMIT.per

    window(scenario, 0.01)


def test_a_refusal_shortens_no_longer_pause() -> None:
    """As that after a clock was set."""

    async def scenario(server: Noting) -> None:
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

    async def scenario(server: Noting) -> None:
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


# -- clocks ----------------------------------------------------------------------------------------------


def test_an_offset_lies_between_the_question_and_the_answer() -> None:
    assert Offset.seen(100.0, 10.0, 12.0) == Offset(low=88.0, high=90.0, at=12.0)


def test_clocks_may_drift_apart() -> None:
    """By a second, and a thousandth of the time."""
    offset = Offset(88.0, 90.0, at=12.0)
    assert [offset.slack(at) for at in (12.0, 1012.0)] == [1.0, 2.0]


def test_what_a_clock_shows_is_expected_between_two_bounds() -> None:
    """A question that takes two seconds in all, and a clock that drifts by two."""
    assert Offset(88.0, 90.0, at=12.0).expected(1012.0) == (1098.0, 1104.0)


@pytest.mark.parametrize(
    ("low", "high", "moved"),
    [
        (88.0, 90.0, 0.0),
        (92.0, 95.0, 0.0),
        (92.5, 95.0, 2.5),
        (1090.0, 1095.0, 1000.0),
        (80.0, 86.0, 0.0),
        (80.0, 85.5, -2.5),
        (-1000.0, -912.0, -1000.0),
    ],
)
def test_a_clock_moved_if_the_bounds_are_further_apart_than_it_drifts(low, high, moved) -> None:
    """Here by two seconds."""
    assert Offset(88.0, 90.0, at=12.0).moved(Offset(low, high, at=1012.0)) == moved


@pytest.mark.parametrize(("step", "was_set"), [(0.9, False), (1.1, True), (-0.9, False), (-1.1, True)])
def test_the_server_counts_by_no_clock_that_was_set(step: float, was_set: bool) -> None:
    """It answers only if its clock shows what it should, and is asked again if it does not."""

    async def scenario(server: Noting) -> None:
        heard: list[StoreWarned] = []
        reporter = Reporter([(heard.append, (StoreWarned,))])
        limiter = ServerProcess(server).start(LIMIT, reporter=reporter)
        (await limiter.acquire()).release(counted=False)
        await asyncio.sleep(1.0)
        server.offset += step
        server.asked.clear()
        began = now()
        slot = await limiter.acquire()
        assert (len(server.asked) > 1) is was_set
        assert [(event.what, event.detail) for event in heard] == [("clock set", f"{step:.1f}")] * was_set
        assert now() - began == pytest.approx(
            LIMIT.per + 10.0 if was_set else 0.02, abs=0.2 if was_set else 1e-6
        )
        slot.release(counted=False)

    window(scenario, 0.01)


# -- questions -------------------------------------------------------------------------------------------


def test_a_slot_is_good_for_five_seconds_from_the_question() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        began = now()
        slot = await limiter.acquire()
        assert slot.good_until == began + 5.0
        assert (limiter.open, limiter.waiting) == (1, 0)
        slot.release(counted=True)
        assert (limiter.open, limiter.waiting) == (0, 0)

    window(scenario, 1.0)


def test_a_question_says_what_the_client_has() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        first, second = await limiter.acquire(), await limiter.acquire()
        waiting = [asyncio.create_task(limiter.acquire(front=front)) for front in (False, True)]
        await asyncio.sleep(0.005)
        first.release(counted=True)
        await asyncio.sleep(2.0)
        questions = [words for _, words in server.asked]
        assert [words[1] for words in questions] == [*range(1, len(questions) + 1)]
        told = [(words[3], {*words[4]}, words[5]) for words in questions]
        assert [one for one, _ in itertools.groupby(told)] == [
            ([False], set(), []),
            ([False], {first.token}, []),
            ([False, True], {first.token, second.token}, []),
            ([False, True], {second.token}, [first.token]),
            ([False, True], {second.token}, []),
        ]
        assert {words[6:9] for words in questions} == {(2, 10.0, 5.0)}
        for task in waiting:
            task.cancel()

    window(scenario, 0.01)


def test_a_question_is_asked_as_often_as_the_server_says() -> None:
    """Here each second, as no slot is free before."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        await used_up(limiter)
        await limiter.drain()
        server.asked.clear()
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(4.5)
        times = [at for at, _ in server.asked]
        pauses = [after - before for before, after in itertools.pairwise(times)]
        assert pauses == pytest.approx([1.02] * 4)
        waiting.cancel()

    window(scenario, 0.01)


def test_a_question_that_fails_is_repeated_after_longer_and_longer_pauses() -> None:
    """At once at first. An answer begins them anew."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        for _ in range(2):
            server.asked.clear()
            server.fails = StoreError("away")
            waiting = asyncio.create_task(limiter.acquire())
            await asyncio.sleep(5.0)
            server.fails = None
            (await waiting).release(counted=False)
            await limiter.drain()
            times = [at for at, _ in server.asked]
            pauses = [after - before for before, after in itertools.pairwise(times)]
            assert pauses[:8] == pytest.approx([0.01, 0.06, 0.11, 0.21, 0.41, 0.81, 1.01, 1.01])

    window(scenario, 0.01)


@pytest.mark.parametrize("what", ["silent", "away"])
def test_who_has_waited_for_the_database_for_half_a_minute_is_told(what: str) -> None:
    """From then on that it is away, or that one waits: what begins later waits on."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        (await limiter.acquire()).release(counted=False)
        await limiter.drain()
        await asyncio.sleep(60.0)
        if what == "away":
            server.fails = StoreError("it is away")
        else:
            server.latency = itertools.repeat(3600.0).__next__
        began = now()
        first = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(20.0)
        second = asyncio.create_task(limiter.acquire())
        with pytest.raises(StoreError, match="it is away" if what == "away" else "no answer within 10 s"):
            await first
        assert 29.0 <= now() - began <= 42.0
        assert not second.done()
        server.fails, server.latency = None, itertools.repeat(0.01).__next__
        await second

    window(scenario, 0.01)


def test_a_failure_that_does_not_pass_is_told_at_once() -> None:
    """Nor does closing wait for it. What is asked later is tried."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        slot = await limiter.acquire()
        server.fails = RuntimeError("no such function")
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(2)]
        began = now()
        for task in waiting:
            with pytest.raises(StoreError, match="no such function"):
                await task
        assert now() - began < 1.0
        assert limiter.waiting == 0
        slot.release(counted=True)
        await asyncio.sleep(1.0)
        began = now()
        await limiter.drain()
        assert now() == began
        server.fails = None
        await limiter.acquire()

    window(scenario, 0.01)


# -- answers ---------------------------------------------------------------------------------------------


def test_a_slot_that_comes_too_late_is_not_used() -> None:
    """Its waiter asks again at once, and has it then."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        latencies = iter([0.01, 4.99])
        server.latency = lambda: next(latencies, 0.01)
        began = now()
        slot = await limiter.acquire()
        assert slot.good_until - 5.0 == pytest.approx(began + 5.0)
        assert len(server.asked) == 2

    window(scenario, 0.01)


def test_a_caller_who_is_cancelled_as_the_slot_comes_gives_it_back() -> None:
    async def scenario(server: Noting) -> None:
        limiter, loop = ServerProcess(server).start(LIMIT), asyncio.get_running_loop()
        waiting = asyncio.create_task(limiter.acquire())

        def cancel() -> None:
            if limiter.open:
                waiting.cancel()
            else:
                loop.call_soon(cancel)

        loop.call_at(loop.time() + 0.01 + 0.01, cancel)  # when the answer arrives
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await limiter.drain()
        assert (limiter.open, limiter.waiting, server.slots) == (0, 0, {})

    window(scenario, 0.01)


@pytest.mark.parametrize("after", [0.015, 0.02 + 5e-10], ids=["before", "as it comes"])
def test_a_caller_who_is_cancelled_before_the_slot_comes_is_no_failure(after: float) -> None:
    """While the question is under way, or in the turn of the loop in which the answer arrives. The others
    have theirs."""

    async def scenario(server: Noting) -> None:
        limiter, loop = ServerProcess(server).start(LIMIT), asyncio.get_running_loop()
        cancelled, other = (asyncio.create_task(limiter.acquire()) for _ in range(2))
        loop.call_at(loop.time() + after, cancelled.cancel)
        slot = await other
        await limiter.drain()
        assert cancelled.cancelled()
        assert server.slots.keys() == {slot.token}

    window(scenario, 0.01)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_caller_who_is_cancelled_as_the_question_fails_is_cancelled(when: str) -> None:
    """The others have the failure."""

    async def scenario(server: Noting) -> None:
        limiter, loop = ServerProcess(server).start(LIMIT), asyncio.get_running_loop()
        cancelled, other = (asyncio.create_task(limiter.acquire()) for _ in range(2))

        def fail(*_: object) -> None:
            if when == "before":
                cancelled.cancel()
            else:
                loop.call_soon(cancelled.cancel)
            raise RuntimeError("no such function")

        server.before = fail
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        with pytest.raises(StoreError, match="no such function"):
            await other
        assert limiter.waiting == 0

    window(scenario, 0.01)


def test_the_pump_runs_in_no_callers_context() -> None:
    async def scenario(server: Noting) -> None:
        callers = []
        server.latency = lambda: callers.append(CALLER.get()) or 0.01
        limiter = ServerProcess(server).start(LIMIT)
        CALLER.set("a caller")
        await limiter.acquire()
        assert callers == ["", ""]

    window(scenario, 0.01)


def test_what_the_database_is_not_told_is_told_again() -> None:
    """A lost answer, and a lease that was lost, are no end of it."""

    async def scenario(server: Noting) -> None:
        process = ServerProcess(server)
        limiter = process.start(LIMIT)
        first, second = await limiter.acquire(), await limiter.acquire()
        first.release(counted=True)
        process.cut_until = now() + 0.015  # the answer is lost
        await limiter.drain()
        assert server.slots[first.token].answered is not None
        before = process.id
        server.leases[before].expires = now()
        second.release(counted=True)
        await limiter.drain()
        assert process.id != before
        assert server.slots[second.token].answered is not None
        assert len(server.asked) <= 8

    window(scenario, 0.01)


def test_a_refusal_is_told_though_nobody_waits() -> None:
    """Before anything else was asked. Draining waits for it."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        began, held = now(), limiter.hold_all()
        assert held == LIMIT.per
        await limiter.drain()
        assert len(server.asked) == 1
        await ServerProcess(server).start(LIMIT).acquire()
        assert now() - began >= held

    window(scenario, 0.01)


def test_a_pause_is_told_in_the_seconds_that_are_left() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        server.fails = StoreError("away")
        limiter.hold_all()
        began = now()
        await asyncio.sleep(12.0)
        server.fails = None
        await limiter.drain()
        left = [max(0.0, LIMIT.per - (at - began)) for at, _ in server.asked]
        assert [words[-2] for _, words in server.asked] == pytest.approx(left, abs=0.011)
        assert left[0] > 9.9
        assert left[-1] == 0.0

    window(scenario, 0.01)


def test_closing_tells_what_waits_that_it_is_over() -> None:
    """And the database of every slot."""

    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        slots = [await limiter.acquire() for _ in range(2)]
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0.5)
        for slot in slots:
            slot.release(counted=True)
        await limiter.drain()
        assert waiting.cancelled()
        assert [slot.answered is not None for slot in server.slots.values()] == [True, True]
        connection = limiter._connection
        assert connection is not None
        limiter.hold_all()  # as if it was under way
        await limiter.aclose()
        assert "kie4o slots" not in {task.get_name() for task in asyncio.all_tasks()}
        assert connection.closed
        await limiter.aclose()

    window(scenario, 0.01)


# -- pauses ----------------------------------------------------------------------------------------------


def test_the_next_slot_is_the_end_of_a_pause_or_of_the_window() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        assert limiter.next_slot(now()) is None
        assert limiter.used(now()) is None
        answered = await used_up(limiter)
        await limiter.drain()
        assert limiter.next_slot(now()) is None
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(1.0)
        assert limiter.next_slot(now()) == pytest.approx(answered + 10.0 - now(), abs=0.05)
        assert limiter.next_slot(now() + 60.0) == 0.0
        assert repr(limiter) == "<SharedLimiter: 0 of 2 slots per 10 s open here, 1 waiting>"
        other = asyncio.create_task(limiter.acquire())
        await asyncio.gather(waiting, other)
        third = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(1.0)
        assert limiter.next_slot(now()) is None  # none is answered
        third.cancel()
        waiting.result().release(counted=True)
        third = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(1.0)
        assert limiter.next_slot(now()) is not None
        third.cancel()
        await asyncio.wait([third])
        assert limiter.next_slot(now()) is None  # nobody waits for it
        held_until = now() + limiter.hold_all()
        assert limiter.next_slot(now()) == pytest.approx(held_until - now())
        assert limiter.next_slot(held_until) is None

    window(scenario, 0.01)


def test_who_was_refused_goes_first() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        await used_up(limiter)
        ends: list[str] = []
        for name in ("first", "second", "refused"):
            task = asyncio.create_task(limiter.acquire(front=name == "refused"))
            task.add_done_callback(lambda _, name=name: ends.append(name))
            await asyncio.sleep(1.0)
        await asyncio.sleep(8.0)
        assert ends == ["refused", "first"]

    window(scenario, 0.01)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("used up", "the limit of 2 in 10 s is used up"),
        ("refused", "Kie refused one for too many calls"),
        ("clock", "the clock of the database was set"),
        ("replica", "a replica has taken over as the database"),
        ("of a later kie4o", "Kie refused one for too many calls"),
    ],
)
def test_a_pause_says_why(why: str, said: str) -> None:
    """Once in a window, in seconds by the clock of the server."""

    async def scenario(server: Noting) -> None:
        heard: list[Paused] = []
        limiter = ServerProcess(server).start(LIMIT, reporter=Reporter([(heard.append, (Paused,))]))
        if why == "used up":
            await used_up(limiter)
        else:
            await limiter.acquire()
            server._paused_until, server._cause = server.now() + 9.0, why
        began = now()
        await limiter.acquire()
        [pause] = heard
        assert pause.cause == said
        assert pause.seconds == pytest.approx(now() - began, abs=0.1)

    window(scenario, 0.01)


def test_a_pause_in_which_nobody_waits_any_more_is_not_told() -> None:
    async def scenario(server: Noting) -> None:
        heard: list[Paused] = []
        limiter = ServerProcess(server).start(LIMIT, reporter=Reporter([(heard.append, (Paused,))]))
        await used_up(limiter)
        await limiter.drain()
        waiting = asyncio.create_task(limiter.acquire())
        asyncio.get_running_loop().call_later(0.015, waiting.cancel)
        await asyncio.wait([waiting])
        await limiter.drain()
        assert heard == []

    window(scenario, 0.01)


@pytest.mark.parametrize(("earlier", "held"), [(0.0005, True), (0.0015, False)])
def test_a_window_that_is_used_up_is_no_hold(earlier: float, held: bool) -> None:
    """Though one is under way that ends before it."""

    async def scenario(server: Noting) -> None:
        heard: list[Paused] = []
        limiter = ServerProcess(server).start(LIMIT, reporter=Reporter([(heard.append, (Paused,))]))
        await used_up(limiter)
        await limiter.drain()
        first = min(slot.answered or 0.0 for slot in server.slots.values())
        server._paused_until, server._cause = first + LIMIT.per - earlier, "refused"
        await limiter.acquire()
        assert ["refused" in pause.cause for pause in heard] == [held]

    window(scenario, 0.01)


def test_slots_are_announced_before_they_are_free() -> None:
    """Each once, together with those that are free as soon and those that were not taken yet."""

    async def scenario(server: Noting) -> None:
        announced: list[tuple[float, int]] = []

        def announce(number: int) -> None:
            announced.append((round(now() - began, 2), number))

        limit = RateLimit(4, per=10.0)
        limiter = ServerProcess(server).start(limit, announce=announce, lead=lambda: 2.0)
        slots = [await limiter.acquire() for _ in range(4)]
        began = now()
        for some, pause in ((slots[:1], 0.1), (slots[1:2], 2.5), (slots[2:], 0.1)):
            for slot in some:
                slot.release(counted=True)
            await asyncio.sleep(pause)
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(5)]
        await asyncio.gather(*waiting[:4])
        assert [task.done() for task in waiting] == [True] * 4 + [False]
        assert announced == [(8.02, 1), (8.12, 2), (10.62, 2)]
        waiting[4].cancel()

    window(scenario, 0.01)


def test_an_announcement_looks_as_far_ahead_as_it_takes_then() -> None:
    """Which may be longer than when it was planned."""

    async def scenario(server: Noting) -> None:
        announced: list[int] = []
        leads = itertools.chain(itertools.repeat(1.0, 1), itertools.repeat(3.0))
        limiter = ServerProcess(server).start(LIMIT, announce=announced.append, lead=lambda: next(leads))
        for slot in [await limiter.acquire() for _ in range(2)]:
            slot.release(counted=True)
            await asyncio.sleep(2.0)
        await asyncio.sleep(4.9)
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(2)]
        await asyncio.sleep(0.15)
        assert announced == [2]
        await asyncio.gather(*waiting)
        assert announced == [2]

    window(scenario, 0.01)


def test_nobody_has_to_listen_to_announcements() -> None:
    async def scenario(server: Noting) -> None:
        limiter = ServerProcess(server).start(LIMIT)
        await used_up(limiter)
        await limiter.acquire()

    window(scenario, 0.01)
