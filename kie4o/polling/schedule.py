"""Whose turn it is to be looked at: one heap of times and one timer for all watches.

A watch stands at one time, that of its next look or of its next deadline. What is due is
queued, and turns are granted in the order in which they came due: at most `AT_ONCE` looks under way,
and so many per second over all tasks, so that ten thousand waiting tasks share fairly what one
would have for itself. What a look is and what it brings is `polling`'s business.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import deque
from collections.abc import Callable

from .watches import NEVER, NOW, Watch

AT_ONCE = 64  # looks under way over all tasks, so that many waiters need few connections
_BURST = 0.2  # seconds' worth of looks that may start together
_CROWD = 256  # different times from which on those to come are grouped
_GRAIN = 0.25  # seconds
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
        self._times: list[float] = []  # a heap
        self._at: dict[float, list[Watch]] = {}  # who wakes at each of these times
        self._stale = self._entries = 0
        self._queue: deque[Watch] = deque()
        self._booked = 0.0  # until when the looks that were granted take up the rate
        self._under_way: dict[Watch, float] = {}  # since when; the oldest first
        self._dropped: set[asyncio.Task[None]] = set()  # cancelled looks that have not ended yet
        self._timer: asyncio.TimerHandle | None = None
        self.loop: asyncio.AbstractEventLoop  # of those who wait now
        self._closed = False

    # -- what the poller says --------------------------------------------------------------------

    def plan(self, watch: Watch, at: float, now: float) -> None:
        """Look at `at`, or as soon as its turn comes then."""
        if at > now:
            watch.due = self.about(at, now)
            self.refresh(watch)
        else:
            self._queue_up(watch, now)
            self._arm_for_next()

    def about(self, at: float, now: float) -> float:
        """This time, or in a crowd a little later: up to a 64th of the way there, a quarter of a second
        at most. Many fall on the same time then; a heap of ten thousand different ones would be walked
        through cold memory at every look."""
        if len(self._times) < _CROWD or at <= now or at == NEVER:
            return at
        grain = min(_GRAIN, math.ldexp(1.0, math.frexp(at - now)[1] - 7))
        return math.ceil(at / grain) * grain

    def refresh(self, watch: Watch) -> None:
        """Wake up for whatever comes first for this watch, its look or a deadline."""
        wake = watch.deadline if watch.due == NOW else min(watch.due, watch.deadline)
        if wake == watch.wake:
            return
        self._stale += watch.wake != NEVER
        watch.wake = wake
        if wake != NEVER:
            self._put(wake, watch)
        if self._stale > _STALE and 2 * self._stale > self._entries:
            self._tidy()

    def _put(self, wake: float, watch: Watch) -> None:
        self._entries += 1
        others = self._at.get(wake)
        if others is None:
            self._at[wake] = [watch]
            heapq.heappush(self._times, wake)
            self._arm(wake)
        else:
            others.append(watch)

    def forget(self, watch: Watch, now: float) -> None:
        """No more turns; the look that nobody wants any more is dropped."""
        watch.due = watch.deadline = NEVER
        self.refresh(watch)
        if watch.looking is not None:
            watch.looking.cancel()
            self._dropped.add(watch.looking)
            watch.looking.add_done_callback(self._dropped.discard)
            self.looked(watch, now)

    def looked(self, watch: Watch, now: float) -> None:
        """The look is over: its place goes to the next."""
        watch.looking = None
        if self._under_way.pop(watch, None) is not None and self._queue:
            self._grant(now)
            self._arm_for_next()

    def gave_up(self, watch: Watch) -> bool:
        """Whether the look that is ending took too long."""
        return watch not in self._under_way

    def close(self) -> None:
        """Nothing begins any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def drained(self) -> None:
        """Once all is forgotten: until the looks that were dropped have ended."""
        await asyncio.gather(*self._dropped, return_exceptions=True)

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
        while self._times and self._times[0] <= now:
            wake = heapq.heappop(self._times)
            for watch in self._at.pop(wake):
                self._entries -= 1
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
        if self._times:
            self._arm(self._times[0])
        if self._queue and len(self._under_way) < AT_ONCE:
            self._arm(self._booked - _BURST)
        if self._under_way:
            self._arm(next(iter(self._under_way.values())) + self._longest)

    def _awake(self, watch: Watch, now: float) -> None:
        if watch.deadline <= now:
            watch.deadline = NEVER
            self.loop.call_soon(self._expire, watch, now)  # an answer that is there already is read first
        if NOW < watch.due <= now:
            self._queue_up(watch, now)
        else:
            self.refresh(watch)

    def _queue_up(self, watch: Watch, now: float) -> None:
        if watch.due == NOW:  # it queues already, and may go to the front
            self._queue.remove(watch)
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
                continue  # it has left
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
            if watch.looking is not None and not watch.looking.cancel():
                watch.looking = None
                self.plan(watch, now, now)
            else:
                self.refresh(watch)  # it may take its time to end: deadlines hold

    def _tidy(self) -> None:
        live = {watch for watches in self._at.values() for watch in watches if watch.wake != NEVER}
        self._at.clear()
        self._times.clear()
        self._stale = self._entries = 0
        for watch in live:
            self._put(watch.wake, watch)
