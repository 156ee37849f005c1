"""The two limits: new tasks per time, and tasks in flight.

Kie admits 20 new tasks in any 10 s, counted when a request reaches it, and refuses the rest. We
know only when a request left and when its answer came back. A slot is therefore taken when the
request leaves and counted from the moment of the *answer*: the request reached Kie before that,
so no jitter of the network can push a 21st into Kie's window. It costs one round trip per slot
and window, about one per cent. Leaky buckets and GCRA with a burst of 20 admit up to 40 in some
10 s, and a slot counted from its sending was refused in 13 % of submits in simulation.

`SlidingWindow` is arithmetic on times handed in; `RateLimiter` adds the waiting. A `Place` is one of
the tasks in flight.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

import attrs

from ..models import RateLimit


class SlidingWindow:
    """Which slots are taken, on any clock that does not jump. Pure."""

    def __init__(self, limit: RateLimit, answered: Iterable[float] = ()) -> None:
        self._limit = limit
        self._open = 0  # taken, answer not back
        self._answered = deque(sorted(answered))
        self._held_until = float("-inf")

    @property
    def open(self) -> int:
        return self._open

    def take(self, now: float) -> bool:
        """Take a slot if one is free."""
        if self.free_at(now) > now:
            return False
        self._open += 1
        return True

    def answered(self, now: float) -> None:
        """The answer of one taken slot is back (or given up on): it counts for a window from now."""
        self._open -= 1
        self._answered.append(now)

    def give_back(self) -> None:
        """The request of one taken slot never left: it counts for nothing."""
        self._open -= 1

    def hold_until(self, until: float) -> None:
        """Nobody before `until`: Kie refused one although we counted it free."""
        self._held_until = max(self._held_until, until)

    def free_at(self, now: float) -> float:
        """When a slot is free: `now` or earlier if one is, infinity if an answer must come first."""
        while self._answered and self._answered[0] + self._limit.per <= now:
            self._answered.popleft()
        over = self._open + len(self._answered) - self._limit.limit
        if over < 0:
            return max(now, self._held_until)
        if over >= len(self._answered):
            return float("inf")
        return max(self._answered[over] + self._limit.per, self._held_until)


@attrs.define(eq=False)
class RateLimiter:
    """The queue for slots: first come, first served; a waiter that is cancelled leaves no trace.

    Every `acquire` is followed by exactly one `release`.
    """

    limit: RateLimit
    _window: SlidingWindow = attrs.field(init=False)
    _waiting: deque[asyncio.Future[None]] = attrs.field(init=False, factory=deque)
    _loop: asyncio.AbstractEventLoop = attrs.field(init=False)  # of those who acquire now
    _timer: asyncio.TimerHandle | None = attrs.field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._window = SlidingWindow(self.limit)

    @property
    def waiting(self) -> int:
        return sum(not waiter.done() for waiter in self._waiting)

    @property
    def open(self) -> int:
        """Slots whose answer is not back."""
        return self._window.open

    def remember(self, ages: Iterable[float]) -> None:
        """Count slots of an earlier life, by how many seconds ago they were answered."""
        now, per = asyncio.get_running_loop().time(), self.limit.per
        self._window = SlidingWindow(self.limit, [now - min(per, max(0.0, age)) for age in ages])

    def take(self) -> bool:
        """Take a slot if one is free and nobody is before us."""
        self._loop = asyncio.get_running_loop()
        return not self._waiting and self._window.take(self._loop.time())

    async def acquire(self, *, front: bool = False) -> None:
        """Wait for a slot and take it. `front`: one that was refused goes before those who wait."""
        if self.take():
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        if front:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        self._serve()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():  # granted in the very tick of the cancel
                self._window.give_back()
            self._serve()
            raise

    def release(self, *, counted: bool) -> None:
        """Hand a slot back: `counted` unless the request provably never left."""
        if counted:
            self._window.answered(self._loop.time())
        else:
            self._window.give_back()
        if self._waiting:
            self._serve()

    def hold_all(self) -> None:
        """After a refusal for too many calls everybody waits for a whole window."""
        self._window.hold_until(self._loop.time() + self.limit.per)
        self._serve()

    def _serve(self) -> None:
        """Grant what is free, and come back when the next slot is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            if self._waiting[0].done():  # cancelled
                self._waiting.popleft()
            elif self._window.take(self._loop.time()):
                self._waiting.popleft().set_result(None)
            else:
                break
        if self._waiting:
            free_at = self._window.free_at(self._loop.time())
            if free_at != float("inf"):
                self._timer = self._loop.call_at(free_at, self._serve)
