"""Waiting for tasks: any number of them, by looking or by being called.

A waiting task costs an entry in one heap and a future, not a coroutine that sleeps. Whoever wants
something of a task (a `wait`, a `watch`, a single `look`) joins its `Watch`; looks belong to the
watch, so that ten waiters of one task cause the looks of one. A callback is a nudge (`notify`):
the poller looks now instead of later. When to look is `pacing`'s and `learning`'s business, whose turn it is
`scheduling`'s. The task itself is never judged here by anything but its state (`wire` decides
that), and an error of a look says nothing about the task.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import EllipsisType
from typing import TypeVar

from ..details import TaskDetails, TaskState
from ..errors import (
    APIConnectionError,
    APITimeoutError,
    KieError,
    NoImagesError,
    TaskNotFoundError,
    TaskTimeoutError,
    worth_repeating,
)
from ..models import ImageResult
from .learning import Pace
from .outcome import is_final, result_of
from .policy import GAP, PollPolicy
from .schedule import Schedule
from .watches import NEVER, NOW, Listener, OneLook, OnUpdate, Waiter, Watch

Look = Callable[[str], Awaitable[TaskDetails]]
Timeout = float | EllipsisType | None  # ... means the poller's own

GRACE = 90.0  # seconds during which a task that Kie does not know may still appear
EMPTY_LOOKS = 5  # looks at a success without images before it is taken as final: the record lags
CALLED = 10_000  # callbacks remembered for tasks that nobody waits for yet
SILENT = 3  # ends without their callback after which callbacks are no longer relied on
_LAST = 1.0  # seconds before a deadline, enough for one look
_ERROR_PAUSE = 30.0  # seconds, the longest pause while looks keep failing
_NO_LOOK = float("-inf")
_FORECASTS = 7  # values of progress that are remembered of a task, beside the last

_W = TypeVar("_W", bound=Waiter)


class TaskPoller:
    """Waits for tasks by looking at them.

    `look` fetches the details of one task and raises a `KieError` if it cannot. Waiting needs no
    client: any `look` will do, so that it can be tested and reused on its own. `timeout` is for one
    wait, `look_timeout` for one look, both in seconds.
    """

    def __init__(
        self,
        look: Look,
        *,
        policy: PollPolicy | None = None,
        timeout: float | None = 900.0,
        look_timeout: float = 30.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        policy = policy or PollPolicy()
        self._look_at = look
        self._timeout = timeout
        self._chance = chance
        self._policy = policy
        self._pace = None if policy.price is None else Pace(policy)
        self._schedule = Schedule(
            self._begin, self._expire, per_second=policy.looks_per_second, longest=look_timeout
        )
        self._watches: dict[str, Watch] = {}
        self._recent: OrderedDict[str, float] = OrderedDict()  # last looks at tasks no longer watched
        self._called: OrderedDict[str, None] = OrderedDict()
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
        waiter = self.join(task_id, timeout=timeout, on_update=on_update, since=since, expecting=expecting)
        try:
            if isinstance(waiter, Listener):
                await waiter.told()
            return result_of(await waiter, waiter.watch.source)
        finally:
            self.leave(waiter)

    async def watch(
        self, task_id: str, *, timeout: Timeout = ..., since: float | None = None
    ) -> AsyncGenerator[TaskDetails]:
        """The details of every look, up to and including the one that shows the end."""
        listener = self._join(Listener, task_id, timeout=timeout, since=since)
        try:
            while True:
                details = await listener.next()
                yield details
                if is_final(details):
                    return
        finally:
            self.leave(listener)

    async def look(self, task_id: str) -> TaskDetails:
        """One look, now: shared with one that is under way, and never closer to the last than
        Kie allows. Raises what the look raised."""
        one = self._join(OneLook, task_id, timeout=None)
        self._hasten(one.watch)
        try:
            return await one
        finally:
            self.leave(one)

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
            if watch.looking is None:
                self._hasten(watch)
            else:
                watch.urgent = True  # and once more after this one, which may have been too early
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
        self._schedule.close()
        for watch in list(self._watches.values()):
            self._end(watch, KieError("the client was closed while waiting; the task lives on"))
        await self._schedule.drained()

    # -- joining and leaving ---------------------------------------------------------------------

    def join(
        self,
        task_id: str,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        since: float | None = None,
        expecting: bool = False,
    ) -> Waiter:
        """Begin to wait as `wait` does: a future of the last details, and for a `Listener` also `told`.
        `leave` must follow."""
        if on_update is None:
            return self._join(Waiter, task_id, timeout=timeout, since=since, expecting=expecting)
        listener = self._join(Listener, task_id, timeout=timeout, since=since, expecting=expecting)
        listener.on_update = on_update
        return listener

    def _join(
        self,
        kind: type[_W],
        task_id: str,
        *,
        timeout: Timeout = ...,
        since: float | None = None,
        expecting: bool = False,
    ) -> _W:
        if self._closed:
            raise KieError("the poller is closed: make a new one", task_id=task_id)
        loop = self._schedule.loop = asyncio.get_running_loop()  # asked once: it costs a system call
        now = loop.time()
        seconds = self._timeout if timeout is ... else timeout
        deadline = NEVER if seconds is None else self._schedule.about(now + seconds, now)
        watch = self._watches.get(task_id)
        is_new = watch is None
        if watch is None:
            watch = self._watches[task_id] = self._new_watch(task_id, now, since, expecting)
            if kind is not OneLook:  # one look may be too early: whoever waits for the end is to know
                self._called.pop(task_id, None)
        waiter = kind(watch, deadline, loop)
        watch.add(waiter)
        if is_new:
            if since is None or watch.source == "callback":
                at = now
            else:
                at = since + self._pause(watch, since, since)
            self._plan(watch, at, now)
        else:
            self._plan_anew(watch, now)
        return waiter

    def _plan(self, watch: Watch, at: float, now: float) -> None:
        """The next look: no later than shortly before a deadline, so that nobody hears it unseen."""
        last = watch.deadline - _LAST
        at = last if now + GAP < last < at else at
        self._schedule.plan(watch, max(at, watch.last + GAP), now)

    def _plan_anew(self, watch: Watch, now: float) -> None:
        """The deadlines have changed."""
        if NOW < watch.due < NEVER:
            self._plan(watch, watch.due, now)
        else:
            self._schedule.refresh(watch)

    def _new_watch(self, task_id: str, now: float, since: float | None, expecting: bool) -> Watch:
        last = self._recent.pop(task_id, _NO_LOOK)
        watch = Watch(task_id, now if since is None else since, last, aged=since is not None)
        watch.expecting = expecting
        if task_id in self._called:  # the callback was faster than whoever waits
            watch.source = "callback"
        return watch

    def leave(self, waiter: Waiter) -> None:
        """The last one to leave takes the watch along, and the look that nobody wants any more."""
        watch = waiter.watch
        if not waiter.cancel() and not waiter.cancelled():
            waiter.exception()  # seen, also if the waiter was cancelled in the same tick
        watch.remove(waiter)
        if self._watches.get(watch.task_id) is not watch:
            return  # it has ended
        if watch.waiters:
            self._schedule.refresh(watch)
        else:
            self._drop(watch)

    def _drop(self, watch: Watch) -> None:
        """No more looks; whoever asks for the task from now on gets a watch of his own."""
        now = self._schedule.loop.time()
        del self._watches[watch.task_id]
        if watch.looking is not None:
            watch.last = now
        self._schedule.forget(watch, now)
        while self._recent and next(iter(self._recent.values())) + GAP < now:
            self._recent.popitem(last=False)
        if watch.last + GAP > now:
            self._recent[watch.task_id] = watch.last

    def _end(self, watch: Watch, news: TaskDetails | Exception) -> None:
        """The last news of a task for those who wait for it now."""
        self._silent += watch.expecting and watch.source == "poll"
        self._drop(watch)
        _tell_all(watch, news, final=True)

    def _expire(self, watch: Watch, now: float) -> None:
        """Deadlines have passed: those who waited until then hear it, and will leave."""
        if self._watches.get(watch.task_id) is not watch:
            return  # it has ended just now
        sentence = f"task {watch.task_id} has not ended in time; it lives on: wait for it again by its id"
        if watch.failure is not None:
            sentence += f" (but the last look failed: {watch.failure})"
        for waiter in watch.waiters:
            if waiter.deadline <= now:
                waiter.hear(TaskTimeoutError(sentence, task_id=watch.task_id), final=True)
        others = (waiter.deadline for waiter in watch.waiters if waiter.deadline > now)
        watch.deadline = min(others, default=NEVER)
        self._plan_anew(watch, now)

    # -- looking ---------------------------------------------------------------------------------

    def _hasten(self, watch: Watch) -> None:
        """Look as soon as it is allowed; a look that is under way will do."""
        if watch.looking is None:
            watch.urgent = True
            now = self._schedule.loop.time()
            self._schedule.plan(watch, max(now, watch.last + GAP), now)

    def _pause(self, watch: Watch, now: float, seen: float, progress: float | None = None) -> float:
        """Until the next look: rarely while a callback is expected and callbacks do come. `seen` is
        when the look before this one found it running."""
        net = watch.expecting and watch.source == "poll" and self._silent < SILENT
        if self._pace is None or watch.seen is None:
            return self._policy.delay(watch.looks, self._chance(), net=net)
        born = watch.born
        return self._pace.pause(
            now - born, watch.looks, self._chance(), low=seen - born, net=net, progress=progress
        )

    def _begin(self, watch: Watch) -> None:
        look = self._schedule.loop.create_task(self._look(watch), name="kie4o look")
        watch.looking = None if look.done() else look  # an eager one may be over

    async def _look(self, watch: Watch) -> None:
        news: TaskDetails | Exception
        try:
            news = await self._look_at(watch.task_id)
        except asyncio.CancelledError:
            if self._closed or self._watches.get(watch.task_id) is not watch:
                raise
            if self._schedule.gave_up(watch):
                news = APITimeoutError("a look took too long and was given up")
            else:  # by itself: nobody here wanted that
                news = APIConnectionError("the look was cancelled")
        except Exception as error:  # a foreign `look` may raise anything; whoever waits gets to see it
            news = error
        now = watch.last = self._schedule.loop.time()
        self._schedule.looked(watch, now)
        if watch.waiters:
            self._digest(watch, news, now)

    def _digest(self, watch: Watch, news: TaskDetails | Exception, now: float) -> None:
        """What a look brought: the end, or news and the plan of the next look."""
        seen, progress, pause = now, None, 0.0
        if not isinstance(news, TaskDetails):
            watch.errors += 1
            watch.failure = str(news)  # its traceback would keep the answer
            if not worth_repeating(news):
                self._end(watch, news)
                return
            pause = min(_ERROR_PAUSE, GAP * 2 ** min(watch.errors, 10))
        elif news.state is TaskState.RUNNING:
            watch.errors, watch.failure = 0, None
            if watch.seen is not None:
                seen, watch.seen, progress = watch.seen, now, news.progress
                if progress:
                    watch.forecasts = (*watch.forecasts[-_FORECASTS:], (now - watch.born, progress))
        else:
            watch.errors, watch.failure = 0, None
            news = _verdict_on(watch, news, now)
            if isinstance(news, Exception) or is_final(news):
                self._learn(watch, news, now)
                self._end(watch, news)
                return
        if watch.listened:
            _tell_all(watch, news, final=False)
        watch.looks += 1
        pause = max(pause, self._pause(watch, now, seen, progress))
        self._plan(watch, now + (0.0 if watch.urgent else pause), now)

    def _learn(self, watch: Watch, news: TaskDetails | Exception, now: float) -> None:
        """When this task ended, for the pace of others."""
        if self._pace is None or not isinstance(news, TaskDetails):
            return
        took = None
        if news.created_at is not None and news.completed_at is not None:
            took = (news.completed_at - news.created_at).total_seconds()
        if watch.seen is None:
            self._pace.ended(0.0, NEVER, took, born=watch.born)
        else:
            low, high = watch.seen - watch.born, now - watch.born
            self._pace.ended(low, high, took, watch.forecasts, born=watch.born)


def _tell_all(watch: Watch, news: TaskDetails | Exception, *, final: bool) -> None:
    if isinstance(news, TaskDetails):
        for waiter in watch.waiters:
            waiter.hear(news, final=final)
        return
    if isinstance(news, KieError) and news.task_id is None:
        news.task_id = watch.task_id
    for waiter in watch.waiters:  # each raises its own
        waiter.hear(copy.copy(news) if isinstance(news, KieError) else news, final=final)


def _verdict_on(watch: Watch, details: TaskDetails, now: float) -> TaskDetails | KieError:
    """The details, or the error that they amount to once patience is over."""
    if details.state is TaskState.MISSING and now - (watch.seen or watch.born) > GRACE:
        sentence = f"Kie does not know task {watch.task_id}: wrong id, other account, or over 14 days old"
        return TaskNotFoundError(sentence, task_id=watch.task_id)
    if details.state is TaskState.SUCCEEDED and not details.urls:
        watch.empty += 1
        if watch.empty >= EMPTY_LOOKS:
            sentence = f"task {watch.task_id} succeeded without images; it is paid: look again later"
            return NoImagesError(sentence, task_id=watch.task_id)
    return details
