"""Waiting for tasks: one scheduler for any number of them. When to look is `pacing`'s business.

A waiting task costs an entry in one heap and a future, not a coroutine that sleeps. Whoever wants
something of a task (a `wait`, a `watch`, a single `look`) joins its `Watch`; looks belong to the
watch, so that ten waiters of one task cause the looks of one. A callback is a nudge (`notify`):
the poller looks now instead of later. The task itself is never judged here by anything but its
state (`wire` decides that), and an error of a look says nothing about the task.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
import inspect
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import EllipsisType
from typing import TypeVar

from .errors import (
    APIConnectionError,
    KieError,
    NoImagesError,
    TaskNotFoundError,
    TaskTimeoutError,
)
from .models import ImageResult, TaskDetails, TaskState
from .outcome import is_final, result_of
from .pacing import GAP, PollPolicy
from .retrying import worth_repeating
from .waiting import Listener, OneLook, Waiter, Watch

Look = Callable[[str], Awaitable[TaskDetails]]
Timeout = float | EllipsisType | None  # ... means the poller's own
OnUpdate = Callable[[TaskDetails], Awaitable[object] | None]

GRACE = 90.0  # seconds during which a task that Kie does not know may still appear
EMPTY_LOOKS = 5  # looks at a success without images before it is taken as final: the record lags
LOOKS_AT_ONCE = 64  # looks under way over all tasks, so that many waiters need few connections
CALLED = 10_000  # callbacks remembered for tasks that nobody waits for yet
SILENT = 3  # ends without their callback after which callbacks are no longer relied on
_ERROR_PAUSE = 30.0  # seconds, the longest pause while looks keep failing


_W = TypeVar("_W", bound=Waiter)


class TaskPoller:
    """Waits for tasks by looking at them.

    `look` fetches the details of one task and raises a `KieError` if it cannot. Waiting needs no
    client: any `look` will do, so that it can be tested and reused on its own.
    """

    def __init__(
        self,
        look: Look,
        *,
        policy: PollPolicy | None = None,
        timeout: float | None = 900.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._look_at = look
        self._policy = policy or PollPolicy()
        self._timeout = timeout
        self._chance = chance
        self._watches: dict[str, Watch] = {}
        self._recent: OrderedDict[str, float] = OrderedDict()  # last looks at tasks no longer watched
        self._called: OrderedDict[str, None] = OrderedDict()
        self._heap: list[tuple[float, int, Watch | Waiter]] = []
        self._order = itertools.count()
        self._ready: deque[Watch] = deque()
        self._looks: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._silent = 0  # ends in a row that a callback should have told, and a look did

    # -- what callers do -------------------------------------------------------------------------

    async def wait(
        self,
        task_id: str,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        since: float | None = None,
        expecting: bool = False,
    ) -> ImageResult:
        """Until the task has ended: its images, or `TaskFailedError`, `NoImagesError`,
        `TaskNotFoundError`, `TaskTimeoutError` (the task lives on and can be waited for again).

        `timeout` is in seconds, None waits for ever. `on_update` is called, and awaited if it
        must be, with the details of every look. `since` is the loop time of the submit, if known.
        With `expecting` a callback is on its way, and looks are a rare safety net.
        """
        if on_update is None:
            waiter = self._join(Waiter, task_id, timeout, since, expecting)
            try:
                details = await waiter.future
            finally:
                self._leave(waiter)
        else:
            waiter = self._join(Listener, task_id, timeout, since, expecting)
            try:
                details = await waiter.next()
                await _tell(on_update, details)
                while not is_final(details):
                    details = await waiter.next()
                    await _tell(on_update, details)
            finally:
                self._leave(waiter)
        return result_of(details, waiter.watch.source)

    async def watch(
        self, task_id: str, *, timeout: Timeout = ..., since: float | None = None
    ) -> AsyncGenerator[TaskDetails]:
        """The details of every look, up to and including the one that shows the end."""
        listener = self._join(Listener, task_id, timeout, since)
        try:
            while True:
                details = await listener.next()
                yield details
                if is_final(details):
                    return
        finally:
            self._leave(listener)

    async def look(self, task_id: str) -> TaskDetails:
        """One look, now: shared with one that is under way, and never closer to the last than
        Kie allows. Raises what the look raised."""
        one = self._join(OneLook, task_id, None, None)
        self._hasten(one.watch)
        try:
            return await one.future
        finally:
            self._leave(one)

    def notify(self, task_id: str, details: TaskDetails | None = None) -> bool:
        """A callback has come: look at the task now, or take the word of `details` if they are
        given. Returns whether anybody waits for it."""
        self._silent = 0
        watch = self._watches.get(task_id)
        if watch is None:
            self._called[task_id] = None
            if len(self._called) > CALLED:
                self._called.popitem(last=False)
            return False
        watch.source = "callback"
        if details is not None and is_final(details):
            self._end(watch, details)
        else:
            watch.nudged = True
            self._hasten(watch)
        return True

    def waits_for(self, task_id: str) -> bool:
        """Whether anybody waits for this task."""
        return task_id in self._watches

    @property
    def timeout(self) -> float | None:
        """Seconds that a wait takes at most if it says nothing else."""
        return self._timeout

    @property
    def waiting(self) -> int:
        """How many tasks are being waited for."""
        return len(self._watches)

    async def aclose(self) -> None:
        """Whoever still waits gets an error that carries the task id; looks under way are dropped."""
        self._closed = True
        for watch in list(self._watches.values()):
            self._end(watch, KieError("the client was closed while waiting; the task lives on"))
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)

    # -- joining and leaving ---------------------------------------------------------------------

    def _join(
        self,
        kind: type[_W],
        task_id: str,
        timeout: Timeout,
        since: float | None,
        expecting: bool = False,
    ) -> _W:
        if self._closed:
            raise KieError("the poller is closed: make a new one", task_id=task_id)
        now = asyncio.get_running_loop().time()
        watch = self._watches.get(task_id)
        if watch is None:
            last = self._recent.pop(task_id, float("-inf"))
            watch = self._watches[task_id] = Watch(task_id, now if since is None else since, last)
            watch.expecting = expecting
            if task_id in self._called:  # the callback was faster than whoever waits
                del self._called[task_id]
                watch.source = "callback"
            at_once = since is None or watch.source == "callback"
            self._plan(watch, now if at_once else watch.born + self._pause(watch))
        seconds = self._timeout if timeout is ... else timeout
        waiter = kind(watch, None if seconds is None else now + seconds)
        watch.waiters.append(waiter)
        if waiter.deadline is not None:
            self._push(waiter.deadline, waiter)
        return waiter

    def _leave(self, waiter: Waiter) -> None:
        """The last one to leave takes the watch along, and the look that nobody wants any more."""
        watch = waiter.watch
        if not waiter.future.cancel() and not waiter.future.cancelled():
            waiter.future.exception()  # seen, also if the waiter was cancelled in the same tick
        watch.waiters.remove(waiter)
        if not watch.waiters:
            self._drop(watch)
        self._forget_stale()

    def _drop(self, watch: Watch) -> None:
        """No more looks; whoever asks for the task from now on gets a watch of his own."""
        if self._watches.get(watch.task_id) is not watch:
            return
        now = asyncio.get_running_loop().time()
        del self._watches[watch.task_id]
        watch.due = None
        if watch.looking is not None:
            watch.looking.cancel()
            watch.last = now
        while self._recent and next(iter(self._recent.values())) + GAP < now:
            self._recent.popitem(last=False)
        if watch.last + GAP > now:
            self._recent[watch.task_id] = watch.last

    def _end(self, watch: Watch, news: TaskDetails | Exception) -> None:
        """The last news of a task for those who wait for it now."""
        self._silent += watch.expecting and watch.source == "poll"
        self._drop(watch)
        self._tell_all(watch, news, final=True)

    def _tell_all(self, watch: Watch, news: TaskDetails | Exception, *, final: bool) -> None:
        if isinstance(news, KieError) and news.task_id is None:
            news.task_id = watch.task_id
        for waiter in watch.waiters:  # each raises its own
            waiter.hear(copy.copy(news) if isinstance(news, KieError) else news, final=final)

    # -- the schedule ----------------------------------------------------------------------------

    def _plan(self, watch: Watch, at: float) -> None:
        watch.due = max(at, watch.last + GAP)
        self._push(watch.due, watch)

    def _hasten(self, watch: Watch) -> None:
        """Look as soon as it is allowed (after a look that is under way, if it was nudged)."""
        if watch.looking is None and watch.due is not None:
            self._plan(watch, asyncio.get_running_loop().time())

    def _push(self, at: float, what: Watch | Waiter) -> None:
        heapq.heappush(self._heap, (at, next(self._order), what))
        if self._heap[0][2] is what:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._tick)

    def _tick(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            at, _, what = heapq.heappop(self._heap)
            if isinstance(what, Waiter):
                self._expire(what)
            elif what.due == at:
                what.due = None
                self._ready.append(what)
        self._start_looks()
        self._timer = None
        self._arm()

    def _expire(self, waiter: Waiter) -> None:
        if waiter in waiter.watch.waiters:
            watch = waiter.watch
            sentence = f"task {watch.task_id} has not ended in time; it lives on: wait for it again by its id"
            waiter.hear(TaskTimeoutError(sentence, task_id=watch.task_id), final=True)

    def _forget_stale(self) -> None:
        """Entries of those who have left stay in the heap until they are due, or most are such."""
        if len(self._heap) > 64 + 4 * len(self._watches):
            self._heap = [entry for entry in self._heap if _is_live(entry)]
            heapq.heapify(self._heap)
            self._arm()

    # -- looking ---------------------------------------------------------------------------------

    def _start_looks(self) -> None:
        while self._ready and len(self._looks) < LOOKS_AT_ONCE and not self._closed:
            watch = self._ready.popleft()
            if watch.waiters and watch.looking is None:
                watch.nudged = False
                watch.looking = asyncio.create_task(self._look(watch), name=f"kie4o look {watch.task_id}")
                self._looks.add(watch.looking)
                watch.looking.add_done_callback(self._looked)

    def _pause(self, watch: Watch) -> float:
        """Until the next look: rarely while a callback is expected and callbacks do come."""
        net = watch.expecting and watch.source == "poll" and self._silent < SILENT
        return self._policy.pause(watch.looks, self._chance(), net=net)

    async def _look(self, watch: Watch) -> None:
        news: TaskDetails | Exception
        try:
            news = await self._look_at(watch.task_id)
        except asyncio.CancelledError:
            if self._closed or not watch.waiters:
                raise
            news = APIConnectionError("the look was cancelled")  # by itself: nobody here wanted that
        except Exception as error:  # a foreign `look` may raise anything; whoever waits gets to see it
            news = error
        watch.last = asyncio.get_running_loop().time()
        watch.looking = None
        if watch.waiters:
            self._digest(watch, news)

    def _looked(self, look: asyncio.Task[None]) -> None:
        self._looks.discard(look)
        self._start_looks()

    def _digest(self, watch: Watch, news: TaskDetails | Exception) -> None:
        """What a look brought: the end, or news and the plan of the next look."""
        now = watch.last
        if isinstance(news, TaskDetails):
            watch.errors = 0
            news = _verdict_on(watch, news, now)
            final = isinstance(news, Exception) or is_final(news)
        else:
            watch.errors += 1
            final = not worth_repeating(news)
        if final:
            self._end(watch, news)
            return
        self._tell_all(watch, news, final=False)
        watch.looks += 1
        pause = self._pause(watch)
        if watch.errors:
            pause = max(pause, min(_ERROR_PAUSE, GAP * 2 ** min(watch.errors, 10)))
        self._plan(watch, now if watch.nudged else now + pause)


def _verdict_on(watch: Watch, details: TaskDetails, now: float) -> TaskDetails | KieError:
    """The details, or the error that they amount to once patience is over."""
    if details.state is TaskState.MISSING and now - watch.born > GRACE:
        sentence = f"Kie does not know task {watch.task_id}: wrong id, other account, or over 14 days old"
        return TaskNotFoundError(sentence, task_id=watch.task_id)
    if details.state is TaskState.SUCCEEDED and not details.urls:
        watch.empty += 1
        if watch.empty >= EMPTY_LOOKS:
            sentence = f"task {watch.task_id} succeeded without images; it is paid: look again later"
            return NoImagesError(sentence, task_id=watch.task_id)
    return details


def _is_live(entry: tuple[float, int, Watch | Waiter]) -> bool:
    at, _, what = entry
    return what in what.watch.waiters if isinstance(what, Waiter) else what.due == at


async def _tell(on_update: OnUpdate, details: TaskDetails) -> None:
    outcome = on_update(details)
    if inspect.isawaitable(outcome):
        await outcome
