"""Which task is next: one heap of times and one timer for all watches.

A watch wakes up at one time, that of its next look or of its nearest deadline. A watch that is due
queues for a turn. Turns are granted in the order of the queue: at most `AT_ONCE` looks at a time and
so many per second over all tasks, so that ten thousand waiting tasks share fairly what one would have
for itself. What a look is and what its outcome means is up to `poller`. Durations are seconds.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Callable

from ..clock import FastLoop
from .watches import NEVER, NOW, Watch

AT_ONCE = 64  # looks at a time over all tasks, so that many waiters need few connections
_BURST = 0.2  # looks that the rate allows in this time may start together
_CROWD = 256  # different times in the heap from which on those to come are grouped
_LATEST, _LATEST_SHARE = 0.25, 1 / 64  # by how much grouping may move a time, also as a share of the wait
# asyncio calls a timer early by the resolution of its clock: 15.6 ms on Windows before Python 3.13.
_EARLY = time.get_clock_info("monotonic").resolution
_STALE = 64  # entries of the heap that may be out of date before it is rebuilt


class Schedule:
    """Starts the look of each watch when it is its turn, and reports deadlines that have passed.

    Args:
        start_look: Called with a watch whose turn it is.
        expire: Called with a watch of which a deadline has passed, and the time.
        per_second: The most looks per second over all watches; None for no limit.
        look_timeout: A look that takes longer is cancelled.
    """

    def __init__(
        self,
        start_look: Callable[[Watch], None],
        expire: Callable[[Watch, float], None],
        *,
        per_second: float | None,
        look_timeout: float,
    ) -> None:
        self._start_look = start_look
        self._expire = expire
        self._spacing = 0.0 if per_second is None else 1 / per_second
        self.look_timeout = look_timeout
        self._times: list[float] = []  # a heap
        self._watches_at: dict[float, list[Watch]] = {}  # by each of these times
        self._entries = 0  # watches in these lists
        self._stale = 0  # those that wake up at another time by now
        self._queue: deque[Watch] = deque()
        self._booked_until = 0.0  # looks granted so far use up the rate until then
        self._running: dict[Watch, float] = {}  # when each look started; the oldest first
        self._cancelled: set[asyncio.Task[None]] = set()  # looks that have not ended yet
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = NEVER  # kept here, because the handles of uvloop may have no `when`
        self._closed = False
        self.loop: asyncio.AbstractEventLoop | FastLoop  # set by the poller at each wait

    # -- what the poller calls -------------------------------------------------------------------

    def plan(self, watch: Watch, at: float, now: float) -> None:
        """Look at `at`, or as soon after it as it is the watch's turn."""
        if at > now:
            watch.due = self.grouped(at, now)
            self.refresh(watch)
        else:
            self._enqueue(watch, now)
            self._arm_for_next()

    def grouped(self, at: float, now: float) -> float:
        """This time, or in a crowd one a little later that other watches may share.

        A heap of ten thousand different times is walked through cold memory at each look. Without groups
        a look among 10,000 waiting tasks costs 2.1 times as much as one among 100, with groups 1.2 times
        (benchmarks/memory.py, `look`).
        """
        if len(self._times) < _CROWD or at <= now or at == NEVER:
            return at
        grain = 2.0 ** math.floor(math.log2(min(_LATEST, (at - now) * _LATEST_SHARE)))
        return math.ceil(at / grain) * grain

    def refresh(self, watch: Watch) -> None:
        """Wake up for what is next of this watch, its look or its deadline."""
        wake_at = watch.deadline if watch.due == NOW else min(watch.due, watch.deadline)
        if wake_at == watch.wake_at:
            return
        if watch.wake_at != NEVER:
            self._stale += 1
        watch.wake_at = wake_at
        if wake_at != NEVER:
            self._put(watch)
        if self._stale > _STALE and 2 * self._stale > self._entries:
            self._rebuild()

    def remove(self, watch: Watch, now: float) -> None:
        """Grant no more turns to this watch, and cancel its look."""
        watch.due = watch.deadline = NEVER
        self.refresh(watch)
        if watch.look_task is not None:
            watch.look_task.cancel()
            self._cancelled.add(watch.look_task)
            watch.look_task.add_done_callback(self._cancelled.discard)
            self.look_ended(watch, now)

    def look_ended(self, watch: Watch, now: float) -> None:
        """The look of this watch is over, so that another may start."""
        watch.look_task = None
        if self._running.pop(watch, None) is not None and self._queue:
            self._grant(now)
            self._arm_for_next()

    def began_at(self, watch: Watch) -> float:
        """When the look that is running began; NOW if that is long ago."""
        return self._running.get(watch, NOW)

    def timed_out(self, watch: Watch) -> bool:
        """Whether the look that is ending took too long."""
        return watch not in self._running

    def close(self) -> None:
        """Start no more looks."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    async def drain(self) -> None:
        """Wait for cancelled looks to end, once all watches are removed."""
        await asyncio.gather(*self._cancelled, return_exceptions=True)

    # -- time ------------------------------------------------------------------------------------

    def _put(self, watch: Watch) -> None:
        self._entries += 1
        others = self._watches_at.get(watch.wake_at)
        if others is None:
            self._watches_at[watch.wake_at] = [watch]
            heapq.heappush(self._times, watch.wake_at)
            self._arm(watch.wake_at)
        else:
            others.append(watch)

    def _arm(self, at: float) -> None:
        """Tick at this time, if not earlier."""
        if self._closed or self._timer_at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self.loop.call_at(at + _EARLY, self._tick), at

    def _tick(self) -> None:
        # A loop may call early: uvloop rounds to milliseconds. What the timer was set for is due now, since
        # a timer for the rest of the millisecond would be rounded to 0 and fire again and again.
        now = max(self.loop.time(), self._timer_at)
        while self._times and self._times[0] <= now:
            at = heapq.heappop(self._times)
            for watch in self._watches_at.pop(at):
                self._entries -= 1
                if watch.wake_at == at:
                    watch.wake_at = NEVER
                    self._wake(watch, now)
                else:
                    self._stale -= 1
        self._cancel_slow_looks(now)
        self._grant(now)
        self._timer, self._timer_at = None, NEVER
        self._arm_for_next()

    def _arm_for_next(self) -> None:
        """For the next planned time, the next turn that the rate allows, or the timeout of a look."""
        if self._times:
            self._arm(self._times[0])
        if self._queue and len(self._running) < AT_ONCE:
            self._arm(self._booked_until - _BURST)
        if self._running:
            self._arm(next(iter(self._running.values())) + self.look_timeout)

    def _wake(self, watch: Watch, now: float) -> None:
        if watch.deadline <= now:
            watch.deadline = NEVER
            self.loop.call_soon(self._expire, watch, now)  # an answer that has arrived is read first
        if NOW < watch.due <= now:
            self._enqueue(watch, now)
        else:
            self.refresh(watch)

    def _rebuild(self) -> None:
        """Drop entries that are out of date."""
        live = {watch for watches in self._watches_at.values() for watch in watches if watch.wake_at != NEVER}
        self._watches_at.clear()
        self._times.clear()
        self._stale = self._entries = 0
        for watch in live:
            self._put(watch)

    # -- turns -----------------------------------------------------------------------------------

    def _enqueue(self, watch: Watch, now: float) -> None:
        if watch.due == NOW:  # it queues already, and may move to the front
            self._queue.remove(watch)
        watch.due = NOW
        if watch.urgent:
            self._queue.appendleft(watch)
        else:
            self._queue.append(watch)
        self._grant(now)
        if watch.due == NOW or watch.wake_at != NEVER:  # its deadline holds while it queues
            self.refresh(watch)

    def _grant(self, now: float) -> None:
        """Start looks as long as there are turns."""
        while self._queue and len(self._running) < AT_ONCE and self._booked_until - _BURST <= now:
            watch = self._queue.popleft()
            if watch.due != NOW or self._closed:
                continue  # it was removed
            watch.due = NEVER
            watch.urgent = False
            self._booked_until = max(self._booked_until, now) + self._spacing
            self._running[watch] = now
            self._start_look(watch)
            if watch.deadline < now + self.look_timeout:
                self.refresh(watch)

    def _cancel_slow_looks(self, now: float) -> None:
        """Cancel looks that take too long, the oldest first.

        A look that was cancelled before its first step (the loop is shutting down) cannot end itself,
        so its watch is planned again here.
        """
        while self._running:
            watch, started_at = next(iter(self._running.items()))
            if started_at + self.look_timeout > now:
                return
            del self._running[watch]
            if watch.look_task is not None and not watch.look_task.cancel():
                watch.look_task = None
                self.plan(watch, now, now)
            else:
                self.refresh(watch)  # it may take its time to end, but deadlines hold
