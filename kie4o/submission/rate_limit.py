"""The account's limit: new tasks per time.

Kie admits 20 new tasks in any 10 s, counted when a request reaches it, and refuses the rest (generate
page). The client knows only when a request was sent and when its response arrived. A slot is therefore
taken when the request is sent and counted from the moment of the *response*. The request reached Kie before
that, so no jitter of the network can put a 21st request into Kie's window. This costs one round trip per
slot and window, about 1 %. Leaky buckets and GCRA with a burst of 20 admit up to 40 requests in some
windows of 10 s. Slots counted from the sending were refused in 13 % of submits in simulation.

The clock of the loop ticks, and shows the time of its last tick. A response is therefore taken to have
arrived at the next one, or a slot would be free up to a tick too early.

`SlidingWindow` is arithmetic on times that are passed in; `RateLimiter` adds the waiting. It also announces
slots a little before they are free, so that something can be made ready for those who wait for them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice

import attrs

from .. import clock
from ..events.reporter import LOG, Reporter
from ..models import RateLimit
from ..stores.pauses import REFUSED, PauseLog

_LIBUV = 0.001  # seconds; the clock of libuv, under uvloop, counts whole milliseconds
_ANNOUNCEMENTS = 4  # at most, in a lead or a window: each counts those that wait


class SlidingWindow:
    """Which slots are in use, on any clock that does not jump. Pure."""

    def __init__(self, limit: RateLimit, answered: Iterable[float] = ()) -> None:
        self._limit = limit
        self._open = 0  # taken, and not answered yet
        self._answered = deque(sorted(answered))
        self._held_until = float("-inf")

    @property
    def open(self) -> int:
        return self._open

    @property
    def held_until(self) -> float:
        return self._held_until

    def take(self, now: float) -> bool:
        """Take a slot if one is free."""
        if self.free_at(now) > now:
            return False
        self._open += 1
        return True

    def answered(self, now: float) -> None:
        """The request of a slot was answered or given up: the slot counts for a window from now."""
        self._open -= 1
        self._answered.append(now)

    def give_back(self) -> None:
        """The request of a slot was not sent: the slot does not count."""
        self._open -= 1

    def hold_until(self, time: float) -> None:
        """No slot is free before this time."""
        self._held_until = max(self._held_until, time)

    def free_at(self, now: float) -> float:
        """When a slot is free: at `now` or before if one is, infinity if a response must arrive first."""
        while self._answered and self._answered[0] + self._limit.per <= now:
            self._answered.popleft()
        excess = self._open + len(self._answered) - self._limit.limit
        if excess < 0:
            return max(now, self._held_until)
        if excess >= len(self._answered):
            return float("inf")
        return max(self._answered[excess] + self._limit.per, self._held_until)

    def free_by(self, time: float) -> int:
        """How many slots will be free at this time if none is taken or answered until then."""
        if time < self._held_until:
            return 0
        counted = len(self._answered) - self._expired_by(time)
        return max(0, self._limit.limit - self._open - counted)

    def more_at(self, time: float) -> float:
        """When more slots will be free than at this time; infinity if a response must arrive first."""
        if time < self._held_until:
            return self._held_until if self.free_by(self._held_until) else self.more_at(self._held_until)
        expired = self._expired_by(time)
        return self._answered[expired] + self._limit.per if expired < len(self._answered) else float("inf")

    def used(self, now: float) -> int:
        """How many slots are taken, or were answered less than a window ago."""
        return self._open + len(self._answered) - self._expired_by(now)

    def copy(self) -> SlidingWindow:
        """A copy, for another thread."""
        copied = SlidingWindow(self._limit, list(self._answered))
        copied._open, copied._held_until = self._open, self._held_until
        return copied

    def _expired_by(self, time: float) -> int:
        """How many of those that are answered will not count any more at this time."""
        return bisect_right(self._answered, time, key=lambda stamp: stamp + self._limit.per)


class LocalSlot:
    """A slot of the limiter in this process. It has no state of its own, so one object serves for all."""

    def __init__(self, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self.good_until: float = float("inf")  # no other process can take it over

    def release(self, *, counted: bool) -> None:
        """`counted` unless the request was provably not sent."""
        self._limiter.release(counted=counted)


@attrs.define(eq=False, repr=False)
class RateLimiter:
    """A queue for slots: first come, first served. A waiter that is cancelled leaves no trace.

    Every slot that `acquire` grants is released exactly once.

    `announce` is called `lead()` seconds before slots become free that requests wait for, with their number:
    at most one for each request. A slot may be announced more than once.
    """

    limit: RateLimit
    announce: Callable[[int], None] | None = None
    lead: Callable[[], float] = float  # none
    reporter: Reporter = LOG
    _window: SlidingWindow = attrs.field(init=False)
    _slot: LocalSlot = attrs.field(init=False)
    _waiters: deque[asyncio.Future[None]] = attrs.field(init=False, factory=deque)
    _loop: asyncio.AbstractEventLoop = attrs.field(init=False)  # of those who acquire now
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)
    _announcement: asyncio.TimerHandle | None = attrs.field(init=False, default=None)
    _announced_by: float = attrs.field(init=False, default=float("-inf"))  # slots that are free then
    _announced_at: float = attrs.field(init=False, default=float("-inf"))
    _announced: tuple[float, int] = attrs.field(init=False, default=(0.0, 0))  # due when, how many waited
    _log: PauseLog = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._window = SlidingWindow(self.limit)
        self._slot = LocalSlot(self)
        self._log = PauseLog(self.limit, self.reporter)

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return sum(1 for waiter in list(self._waiters) if not waiter.done())

    @property
    def open(self) -> int:
        """How many slots are taken and not answered yet."""
        return self._window.open

    def used(self, now: float) -> int:
        """How many slots of the window are in use at this loop time."""
        return self._window.copy().used(now)

    def next_slot(self, now: float) -> float | None:
        """Seconds until a slot is free; None if a response must arrive first."""
        free_at = self._window.copy().free_at(now)
        return None if free_at == float("inf") else max(0.0, free_at - now)

    def __repr__(self) -> str:
        loop = getattr(self, "_loop", None)  # none before the first slot
        used = 0 if loop is None else self.used(loop.time())
        return (
            f"<RateLimiter: {used} of {self.limit.limit} slots in use per {self.limit.per:g} s, "
            f"{self.waiting} waiting>"
        )

    def remember(self, ages: Iterable[float]) -> None:
        """Count the slots of an earlier run, given how many seconds ago each was answered."""
        self._loop = loop = asyncio.get_running_loop()
        per, tick = self.limit.per, _tick(loop)
        now = loop.time() + tick
        # An age is the difference of two times, each of which may be a tick behind.
        self._window = SlidingWindow(self.limit, [now - min(per, max(0.0, age - tick)) for age in ages])

    async def acquire(self, *, front: bool = False) -> LocalSlot:
        """Wait for a slot and take it. With `front`, a refused request goes before those that wait."""
        self._loop = asyncio.get_running_loop()
        if self._waiters or not self._window.take(self._loop.time()):
            await self._granted(front)
        return self._slot

    async def _granted(self, front: bool) -> None:
        waiter: asyncio.Future[None] = self._loop.create_future()
        if front:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self._grant()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # granted in the same turn as the cancellation
                self._window.give_back()
            self._grant()
            raise

    def release(self, *, counted: bool) -> None:
        """Give a slot back; `counted` unless the request was provably not sent."""
        if counted:
            self._window.answered(self._loop.time() + _tick(self._loop))
        else:
            self._window.give_back()
        if self._waiters:
            self._grant()

    def hold_all(self) -> float:
        """Grant nothing for a whole window: Kie refused a request for too many calls.

        Returns for how many seconds.
        """
        now = self._loop.time()
        self._window.hold_until(now + _tick(self._loop) + self.limit.per)
        self._grant()
        return self._window.held_until - now

    def _grant(self) -> None:
        """Grant the slots that are free, and come back when the next one is."""
        if self._timer is not None:
            self._timer.cancel()
        while self._waiters:
            if self._waiters[0].done():  # cancelled
                self._waiters.popleft()
            elif self._window.take(self._loop.time()):
                self._waiters.popleft().set_result(None)
            else:
                break
        if self._waiters:
            now = self._loop.time()
            free_at = self._window.free_at(now)
            if free_at != float("inf"):
                self._timer = self._loop.call_at(free_at, self._grant)
                self._log.pause(now, free_at, REFUSED if free_at == self._window.held_until else None)
        self._announce_later()

    def _announce_later(self) -> None:
        """Announce the next slots that were not announced, once they are due in `lead` seconds.

        Twice only to more requests. `_grant` may come a little early, and time does not pass between two
        timers of a virtual clock that are both due.
        """
        if self._announcement is not None:
            self._announcement.cancel()
        if self.announce is None or not self._waiters:
            return
        due = self._window.more_at(max(self._announced_by, self._loop.time()))
        last_due, last_waiting = self._announced
        if due != float("inf") and (due != last_due or len(self._waiters) > last_waiting):
            lead = self.lead()
            at = max(due - lead, self._announced_at + min(lead, self.limit.per) / _ANNOUNCEMENTS)
            self._announcement = self._loop.call_at(at, self._announce, self.announce, due)

    def _announce(self, announce: Callable[[int], None], due: float) -> None:
        self._announced = due, len(self._waiters)
        self._announced_at = now = self._loop.time()
        by = max(due, now + self.lead())
        free = self._window.free_by(by)
        waiting = sum(1 for _ in islice((each for each in self._waiters if not each.done()), free))
        if waiting:
            announce(waiting)
        if waiting == free:  # otherwise some are left for requests that come meanwhile
            self._announced_by = max(due, min(by, now + self.limit.per))  # then they are free once more
            self._announce_later()


def _tick(loop: asyncio.AbstractEventLoop) -> float:
    """By how many seconds the loop's time may be behind; asyncio's own loops read `time.monotonic`."""
    tick = clock.resolution()
    return tick if isinstance(loop, asyncio.BaseEventLoop) else max(tick, _LIBUV)
