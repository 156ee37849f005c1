"""Whose turn it is to be looked at: one heap and one timer for all watches.

A watch is on the heap once, at the time of its next look or of its next deadline. What is due is
queued, and turns are granted in the order in which they came due: at most `AT_ONCE` looks under way,
and so many per second over all tasks, so that ten thousand waiting tasks share fairly what one
would have for itself. What a look is and what it brings is `polling`'s business.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable

from .waiting import NEVER, NOW, Watch

AT_ONCE = 64  # looks under way over all tasks, so that many waiters need few connections
_BURST = 0.2  # seconds' worth of looks that may start together
_STALE = 64  # entries of the heap that may be out of date before it is tidied


class Schedule:
    """Calls `begin` when a watch's turn to look has come, and `expire` when one of its deadlines
    has; a look that takes longer than `longest` seconds is cancelled."""

    def __init__(
        self,
        begin: Callable[[Watch], None],
        expire: Callable[[Watch, float], None],
        *,
        per_second: float,
        longest: float,
    ) -> None:
        self._begin = begin
        self._expire = expire
        self._spacing = 1 / per_second
        self._longest = longest
        self._heap: list[tuple[float, Watch]] = []
        self._stale = 0
        self._queue: deque[Watch] = deque()
        self._booked = 0.0  # until when the looks that were granted take up the rate
        self._under_way: dict[Watch, float] = {}  # since when; the oldest first
        self._timer: asyncio.TimerHandle | None = None
        self.loop: asyncio.AbstractEventLoop  # of those who wait now
        self._closed = False

    # -- what the poller says --------------------------------------------------------------------

    def plan(self, watch: Watch, at: float, now: float) -> None:
        """Look at `at`, or as soon as its turn comes then."""
        watch.due = at
        if at > now:
            self.refresh(watch)
        else:
            self._queue_up(watch, now)
            self._arm_for_next()

    def refresh(self, watch: Watch) -> None:
        """Wake up for whatever comes first for this watch, its look or a deadline."""
        wake = watch.deadline if watch.due == NOW else min(watch.due, watch.deadline)
        if wake == watch.wake:
            return
        self._stale += watch.wake != NEVER
        watch.wake = wake
        if wake != NEVER:
            heapq.heappush(self._heap, (wake, watch))
            self._arm(wake)
        if self._stale > _STALE and 2 * self._stale > len(self._heap):
            self._tidy()

    def forget(self, watch: Watch, now: float) -> None:
        """No more turns; the look that nobody wants any more is dropped."""
        watch.due = watch.deadline = NEVER
        self.refresh(watch)
        if watch.looking is not None:
            watch.looking.cancel()
            self.looked(watch, now)

    def looked(self, watch: Watch, now: float) -> None:
        """The look is over: its place goes to the next."""
        watch.looking = None
        if self._under_way.pop(watch, None) is not None and self._queue:
            self._grant(now)
            self._arm_for_next()

    async def aclose(self) -> None:
        """Looks under way are dropped, nothing begins any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        looks = [watch.looking for watch in self._under_way if watch.looking is not None]
        for look in looks:
            look.cancel()
        await asyncio.gather(*looks, return_exceptions=True)

    # -- time ------------------------------------------------------------------------------------

    def _arm(self, at: float) -> None:
        """Tick at this time, if not before."""
        if self._timer is not None:
            if self._timer.when() <= at:
                return
            self._timer.cancel()
        if not self._closed:
            self._timer = self.loop.call_at(at, self._tick)

    def _tick(self) -> None:
        now = self.loop.time()
        while self._heap and self._heap[0][0] <= now:
            wake, watch = heapq.heappop(self._heap)
            if watch.wake == wake:
                watch.wake = NEVER
                self._awake(watch, now)
            else:
                self._stale -= 1
        self._give_up_on_slow(now)
        self._grant(now)
        self._timer = None
        self._arm_for_next()

    def _arm_for_next(self) -> None:
        """The next planned turn, the next one that the rate allows, or the end of a slow look."""
        if self._heap:
            self._arm(self._heap[0][0])
        if self._queue and len(self._under_way) < AT_ONCE:
            self._arm(self._booked - _BURST)
        if self._under_way:
            self._arm(next(iter(self._under_way.values())) + self._longest)

    def _awake(self, watch: Watch, now: float) -> None:
        if watch.deadline <= now:
            self._expire(watch, now)
        if NOW < watch.due <= now:
            self._queue_up(watch, now)
        else:
            self.refresh(watch)

    def _queue_up(self, watch: Watch, now: float) -> None:
        watch.due = NOW
        if watch.urgent:
            self._queue.appendleft(watch)
        else:
            self._queue.append(watch)
        self._grant(now)
        if watch.due == NOW or watch.wake != NEVER:  # it keeps its deadline
            self.refresh(watch)

    def _grant(self, now: float) -> None:
        """Turns, as long as there are any."""
        while self._queue and len(self._under_way) < AT_ONCE and self._booked - _BURST <= now:
            watch = self._queue.popleft()
            if watch.due != NOW or self._closed:
                continue  # it has left, or came twice
            watch.due = NEVER
            watch.urgent = False
            self._booked = max(self._booked, now) + self._spacing
            self._under_way[watch] = now
            self._begin(watch)
            if watch.deadline < now + self._longest:
                self.refresh(watch)

    def _give_up_on_slow(self, now: float) -> None:
        """Looks that take too long, oldest first. One that was cancelled before it began (the loop is
        being torn down) cannot say so itself."""
        while self._under_way:
            watch, since = next(iter(self._under_way.items()))
            if since + self._longest > now:
                return
            del self._under_way[watch]
            look, watch.looking = watch.looking, None
            if look is not None and not look.cancel():
                self.plan(watch, now, now)

    def _tidy(self) -> None:
        self._heap = [entry for entry in self._heap if entry[1].wake == entry[0]]
        heapq.heapify(self._heap)
        self._stale = 0
