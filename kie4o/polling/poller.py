"""Waiting for any number of tasks, by polling, by callback, or both.

Every `wait`, `watch` and `look` of a task joins its `Watch`, and looks belong to the watch: ten waiters of
one task cause the looks of one. A waiting task costs an entry in one heap and a future, not a coroutine that
sleeps. A callback is a nudge (`notify`): the poller looks now instead of later.

`learning` says when to look, and `schedule` which task is next. The outcome of a task is read from its state
only. An error of a look says nothing about the task.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import EllipsisType
from typing import TypeVar

from ..clock import fast_loop
from ..details import TaskDetails
from ..errors import APIConnectionError, APITimeoutError, KieError, TaskTimeoutError
from ..events import CallbacksMissing, Finished, Polled
from ..events.reporter import LOG, Reporter
from ..models import ImageResult
from .findings import teach, weigh
from .learning import Pace, Sighting
from .outcome import is_final, result_of
from .policy import GAP, PollPolicy
from .reports import Failures, polled, report_end, report_end_of
from .schedule import Schedule
from .sharing import Leadership, Sharing
from .trust import CallbackTrust
from .watches import NEVER, NOW, Known, Listener, OneLook, OnUpdate, Outcome, Waiter, Watch, own

Look = Callable[[str], Awaitable[TaskDetails]]
Timeout = float | EllipsisType | None  # seconds; None waits without limit, ... is the default of the poller

_EARLY_CALLBACKS = 10_000  # callbacks remembered for tasks that are not waited for yet
_LAST_LOOK = 1.0  # seconds before a deadline, enough for one look
_LATE = 0.5  # seconds after which a deadline is noticed late: the process slept, or the loop was blocked
_LONGEST_ERROR_DELAY = 30.0  # seconds between looks that keep failing

_W = TypeVar("_W", bound=Waiter)


class TaskPoller:
    """Waits for tasks by polling them. It needs no client: any `look` will do.

    Args:
        look: A coroutine function that fetches the details of the task with this id. It raises
            a `KieError` if it cannot. Temporary errors are retried until the deadline. An
            `APIStatusError` or `APIConnectionError` that is not `retryable` ends the wait if it is the third
            in a row over at least 10 s, any other exception at once.
        policy: When to poll; None is `PollPolicy()`, plain exponential back-off. Two looks at one task
            are never closer than 0.34 s (Kie's record-info page: 3 queries per second per task).
        timeout: Seconds that a wait takes at most unless it has its own; None waits without limit.
        look_timeout: Seconds after which one look is cancelled and tried again later.
        chance: Returns a random number from 0 to 1, for jitter.
        speed: How many of the seconds between looks pass in each real second; only for an emulator that is
            as fast. `timeout` and `look_timeout` are real seconds.
        reporter: Who is told of events; the log by default.
    """

    def __init__(
        self,
        look: Look,
        *,
        policy: PollPolicy | None = None,
        timeout: float | None = 900.0,
        look_timeout: float = 30.0,
        chance: Callable[[], float] = random.random,
        speed: float = 1.0,
        reporter: Reporter = LOG,
    ) -> None:
        policy = policy or PollPolicy()
        self._fetch = look
        self._timeout = timeout
        self._chance = chance
        self._speed = speed
        self._reporter = reporter
        self._pace = Pace(policy)
        self._schedule = Schedule(
            self._start_look,
            self._expire,
            per_second=policy.looks_per_second,
            look_timeout=look_timeout * speed,
        )
        self._watches: dict[str, Watch] = {}
        self._recent: OrderedDict[str, float] = OrderedDict()  # last looks at tasks no longer watched
        self._known = Known()
        self._early_callbacks: OrderedDict[str, None] = OrderedDict()
        self._leadership = Leadership()
        self._trust = CallbackTrust()
        self._failures = Failures(reporter)
        self._closed = False

    # -- for callers -----------------------------------------------------------------------------

    async def wait(
        self,
        task_id: str,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        since: float | None = None,
        expecting: bool = False,
    ) -> ImageResult:
        """Wait until the task has finished, and return its images.

        Args:
            task_id: The task to wait for.
            timeout: Seconds; None waits without limit. The default is the poller's.
            on_update: Called with the details of each look, and awaited if it returns an awaitable.
            since: The event loop's time at the submit, if it is known.
            expecting: A callback is expected, so looks are rare. They return to their usual pace if
                callbacks do not arrive.

        Raises:
            TaskFailedError: The task failed.
            NoImagesError: The task succeeded, but its record still lists no images after 5 looks.
            TaskNotFoundError: Kie has not known the task for 90 s.
            TaskTimeoutError: The time is up. The task is still running and can be waited for again.
        """
        waiter = self.join(task_id, timeout=timeout, on_update=on_update, since=since, expecting=expecting)
        try:
            if isinstance(waiter, Listener):
                await waiter.forward_updates()
            return result_of(await waiter, waiter.watch.source)
        finally:
            self.leave(waiter)

    async def watch(
        self, task_id: str, *, timeout: Timeout = ..., since: float | None = None
    ) -> AsyncGenerator[TaskDetails]:
        """Yield the details of each look until they are final. Those of a failed task are the last item.

        Args:
            task_id: The task to watch.
            timeout: As for `wait`.
            since: As for `wait`.

        Raises:
            NoImagesError, TaskNotFoundError, TaskTimeoutError: As for `wait`.
        """
        listener = self._join(Listener, task_id, timeout=timeout, since=since)
        try:
            while True:
                details = await listener.next()
                yield details
                if is_final(details):
                    return
        finally:
            self.leave(listener)

    async def look(self, task_id: str, *, since: float = NOW) -> TaskDetails:
        """Check the status of a task once, as soon as Kie's limit per task allows.

        It shares a look that is running. Raises the error of the look.

        Args:
            task_id: The task to check.
            since: The event loop's time before which the look must not have begun. Another one follows
                a look that is running and began earlier, unless that finds the task finished.
        """
        one = self._join(OneLook, task_id, timeout=None)
        one.too_early = self._look_soon(one.watch, since * self._speed)
        try:
            return await one
        finally:
            self.leave(one)

    def notify(self, task_id: str, details: TaskDetails | None = None) -> bool:
        """Report that a callback about a task has arrived: the poller looks at the task now.

        Args:
            task_id: The task that the callback names.
            details: What the callback says. If it is final, it is trusted, and there is no look.

        Returns:
            Whether the task is waited for. If it is not, its next wait begins with a look.
        """
        self._trust.arrived(task_id)
        watch = self._watches.get(task_id)
        if watch is None:
            if details is not None and is_final(details):
                report_end(self._reporter, details, "callback")
            self._early_callbacks[task_id] = None
            if len(self._early_callbacks) > _EARLY_CALLBACKS:
                self._early_callbacks.popitem(last=False)
            return False
        watch.source = "callback"
        if details is not None and is_final(details):
            self._finish(watch, details)
        else:
            self._look_soon(watch, NEVER)  # another look follows one that is running
        return True

    def knew(self, task_id: str, before: float) -> bool:
        """Whether a task was waited for, or looked at, before some time.

        Args:
            task_id: The task, which may have ended since.
            before: That time, by the event loop.
        """
        return self._known.since(task_id, self._watches.get(task_id)) < before * self._speed

    def notify_late(self, task_id: str) -> None:
        """Report that a callback about a task has arrived whose end is known already.

        Args:
            task_id: The task that the callback names.
        """
        self._trust.arrived(task_id)

    def notify_stray(self, task_id: str) -> None:
        """Report that a verified callback about a task of another client has arrived.

        Callbacks then reach the wrong process, perhaps those of the tasks that are waited for here as well,
        so the poller looks at its usual pace until callbacks of its own arrive.

        Args:
            task_id: The task that the callback names.
        """
        self._rely_less(self._trust.strayed, CallbacksMissing(task_id=task_id, stray=True))

    def share(self, sharing: Sharing) -> None:
        """Poll only tasks that this process leads; others poll the rest.

        Args:
            sharing: Who knows which.
        """
        self._leadership.sharing = sharing

    def lead(self, task_id: str) -> None:
        """Poll a task at the usual pace from now on.

        Args:
            task_id: The task, which is waited for.
        """
        watch = self._watches.get(task_id)
        if watch is None or not self._leadership.lead(task_id):
            return
        if watch.due != NOW and watch.look_task is None:
            now = self._schedule.loop.time()
            soon = watch.source == "callback" or (watch.last_running_at is None and not watch.looks)
            self._plan(watch, now if soon else self._usual(watch), now)

    def follow(self, task_id: str) -> None:
        """Leave the polls of a task to another process.

        Args:
            task_id: The task, which is waited for.
        """
        watch = self._watches.get(task_id)
        if watch is not None and self._leadership.follow(task_id) and NOW < watch.due < NEVER:
            self._plan(watch, NEVER, self._schedule.loop.time())

    def found(self, details: TaskDetails) -> None:
        """Report the final details of a task, which another process has found.

        Args:
            details: Those that Kie gave.
        """
        watch = self._watches.get(details.task_id)
        if watch is not None:
            if watch.source == "poll":
                watch.source = "store"
            self._leadership.left(details.task_id, None)  # the others know the end
            teach(self._pace, watch, details, self._schedule.loop.time())
            self._finish(watch, details)

    def waits_for(self, task_id: str) -> bool:
        """Whether a task is waited for.

        Args:
            task_id: The task.
        """
        return task_id in self._watches

    @property
    def timeout(self) -> float | None:
        """The default timeout of a wait, in seconds; None waits without limit."""
        return self._timeout

    @property
    def waiting(self) -> int:
        """The number of tasks that are waited for."""
        return len(self._watches)

    @property
    def callbacks_missing(self) -> bool:
        """Whether callbacks cannot be relied on, so that tasks are polled at the usual pace."""
        return not self._trust.relied_on

    def __repr__(self) -> str:
        return f"<TaskPoller: {self.waiting} tasks waited for>"

    async def aclose(self) -> None:
        """End all waits with a `KieError` that has the task's id, and cancel the looks that are running."""
        self._closed = True
        self._schedule.close()
        for watch in list(self._watches.values()):
            message = f"the client was closed while waiting for task {watch.task_id}; it is still running: "
            message += "wait for it with a new client"
            self._finish(watch, KieError(message, task_id=watch.task_id))
        await self._schedule.drain()

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
        """Begin to wait, and return a future of the last details. The caller has to call `leave` in the end.

        Args:
            task_id: As for `wait`.
            timeout: As for `wait`.
            on_update: As for `wait`. The future is then a `Listener`, whose `forward_updates` has to be
                awaited as well.
            since: As for `wait`.
            expecting: As for `wait`.
        """
        if on_update is None:
            return self._join(Waiter, task_id, timeout=timeout, since=since, expecting=expecting)
        listener = self._join(Listener, task_id, timeout=timeout, since=since, expecting=expecting)
        listener.on_update, listener.speed = on_update, self._speed
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
            raise KieError("the poller is closed; create a new TaskPoller", task_id=task_id)
        self._reporter.refresh()
        loop = asyncio.get_running_loop()
        self._schedule.loop = fast_loop(loop, self._speed)
        now = self._schedule.loop.time()
        if since is not None and self._speed != 1:  # otherwise a second float, which each wait would hold
            since *= self._speed
        since = None if since is None or since > now else since  # later than now: of another loop
        seconds = self._timeout if timeout is ... else timeout
        deadline = NEVER if seconds is None else self._schedule.grouped(now + seconds * self._speed, now)
        watch = self._watches.get(task_id)
        is_new, waits = watch is None, kind is not OneLook
        if watch is None:
            watch = self._watches[task_id] = self._new_watch(task_id, now, since, expecting)
            if waits:  # one look may be too early: the callback is kept for a real wait
                self._early_callbacks.pop(task_id, None)
        if waits:
            self._leadership.joined(task_id)
        waiter = kind(watch, deadline, loop)
        watch.add(waiter)
        if not is_new:
            self._replan(watch, now)
        elif since is None or watch.source == "callback":
            self._plan(watch, now, now)
        else:
            self._plan(watch, since + self._delay(watch, watch.sighting(since)), now)
        return waiter

    def _new_watch(self, task_id: str, now: float, since: float | None, expecting: bool) -> Watch:
        watch = Watch(task_id, now if since is None else since, since, expecting=expecting)
        watch.last_look_at = self._recent.pop(task_id, watch.last_look_at)
        if task_id in self._early_callbacks:
            watch.source = "callback"
        return watch

    def leave(self, waiter: Waiter) -> None:
        """Stop waiting. The last waiter of a task ends its watch and cancels its look.

        Args:
            waiter: What `join` returned.
        """
        watch = waiter.watch
        if not waiter.cancel() and not waiter.cancelled():
            waiter.exception()  # retrieved, also if the caller was cancelled in the same tick
        watch.remove(waiter)
        if self._watches.get(watch.task_id) is not watch:
            return  # it has finished
        if watch.waiters:
            self._schedule.refresh(watch)
        else:
            self._remove(watch)

    def _remove(self, watch: Watch, outcome: Outcome | None = None) -> None:
        """End the watch. A later wait for the same task gets a new one."""
        now = self._schedule.loop.time()
        del self._watches[watch.task_id]
        end = outcome if isinstance(outcome, TaskDetails) and is_final(outcome) else None
        self._leadership.left(watch.task_id, end)
        if watch.look_task is not None:
            watch.last_look_at = now
        self._schedule.remove(watch, now)
        while self._recent and next(iter(self._recent.values())) + GAP < now:
            self._recent.popitem(last=False)
        if watch.last_look_at + GAP > now:
            self._recent[watch.task_id] = watch.last_look_at
        self._known.add(watch)

    def _finish(self, watch: Watch, outcome: Outcome) -> None:
        """Deliver the outcome of the task to its waiters and end the watch."""
        self._remove(watch, outcome)
        for waiter in watch.waiters:
            waiter.deliver(outcome, final=True)
        if Finished in self._reporter.wanted and isinstance(outcome, TaskDetails):
            report_end_of(self._reporter, watch, outcome, self._schedule.loop.time())
        # Only for a task that has finished: closing the client and refused polls end waits too. And only if
        # that happened during the wait: the callback of an earlier run's task may have reached that run.
        finished = isinstance(outcome, TaskDetails) and (watch.last_running_at is not None or watch.looks > 0)
        if finished and watch.expecting and watch.source == "poll":
            missed = functools.partial(self._trust.missed, watch.task_id)
            self._rely_less(missed, CallbacksMissing(task_id=watch.task_id, stray=False))

    def _expire(self, watch: Watch, now: float) -> None:
        """Time out the waiters whose deadline has passed; they leave after that.

        If that is noticed late, because the process or its machine slept, the task is looked at once before.
        """
        if self._watches.get(watch.task_id) is not watch:
            return  # it has just finished
        due = [waiter for waiter in watch.waiters if waiter.deadline <= now and not waiter.done()]
        on_time = [waiter for waiter in due if waiter.deadline >= now - _LATE]
        if len(on_time) < len(due) and watch.spared_until == NOW:
            watch.spared_until = now + self._schedule.look_timeout
            self._look_soon(watch, now)
        if watch.spared_until > now:
            due = on_time
        else:
            watch.spared_until = NOW
        found = watch.finding or "it is still running"
        message = f"timed out waiting for task {watch.task_id}; {found}: "
        message += f"call client.wait({watch.task_id!r}) to resume"
        for waiter in due:
            waiter.deliver(TaskTimeoutError(message, task_id=watch.task_id), final=True)
        times = (*(waiter.deadline for waiter in watch.waiters), watch.spared_until)
        watch.deadline = min((time for time in times if time > now), default=NEVER)
        self._replan(watch, now)

    # -- planning --------------------------------------------------------------------------------

    def _plan(self, watch: Watch, at: float, now: float) -> None:
        """Plan the next look, no later than shortly before a deadline: no wait times out without one."""
        if not watch.urgent and not self._leadership.leads(watch.task_id):
            at = NEVER
        last = watch.deadline - _LAST_LOOK
        at = last if now + GAP < last < at else at
        self._schedule.plan(watch, max(at, watch.last_look_at + GAP), now)

    def _usual(self, watch: Watch) -> float:
        """When the next look is due at the usual pace."""
        last = max(watch.submitted_at, watch.last_look_at)
        return last + self._delay(watch, watch.sighting(last))

    def _replan(self, watch: Watch, now: float) -> None:
        """Plan again after deadlines have changed."""
        if NOW < watch.due < NEVER:
            self._plan(watch, watch.due, now)
        else:
            self._schedule.refresh(watch)

    def _rely_less(self, count: Callable[[], None], reason: CallbacksMissing) -> None:
        """Count evidence against callbacks. Once it suffices, the usual pace holds at once for all tasks that
        wait for one, as if it had held since their last look."""
        relied_on = self._trust.relied_on
        count()
        if self._trust.relied_on or not relied_on:
            return
        self._reporter(reason)
        for watch in list(self._watches.values()):
            if watch.expecting and NOW < watch.due < NEVER:
                self._plan(watch, min(self._usual(watch), watch.due), self._schedule.loop.time())

    def _look_soon(self, watch: Watch, since: float) -> bool:
        """Look as soon as the limit allows. A look that is running will do if it began at `since` or later;
        otherwise another one follows it, and the result is True."""
        if watch.look_task is None:
            watch.urgent = True
            now = self._schedule.loop.time()
            self._schedule.plan(watch, max(now, watch.last_look_at + GAP), now)
            return False
        too_early = self._schedule.began_at(watch) < since
        watch.urgent |= too_early
        return too_early

    def _delay(self, watch: Watch, sighting: Sighting) -> float:
        """Until the next look: long if a callback is expected and callbacks can be relied on."""
        relying = watch.expecting and watch.source == "poll" and self._trust.relied_on
        return self._pace.delay(sighting, self._chance(), safety_net=relying)

    # -- looking ---------------------------------------------------------------------------------

    def _start_look(self, watch: Watch) -> None:
        task = self._schedule.loop.create_task(self._look_at(watch), name="kie4o look")
        watch.look_task = None if task.done() else task  # a loop with eager tasks may have finished it

    async def _look_at(self, watch: Watch) -> None:
        outcome: Outcome
        self._reporter.enter(watch.task_id)
        try:
            outcome = await self._leadership.turn(watch.task_id) or await self._fetch(watch.task_id)
        except asyncio.CancelledError:
            if self._closed or self._watches.get(watch.task_id) is not watch:
                raise
            if self._schedule.timed_out(watch):
                outcome = APITimeoutError("the status check took too long and was cancelled")
            else:  # from outside: the poller did not cancel it
                outcome = APIConnectionError("the status check was cancelled")
        except Exception as error:  # a caller's `look` may raise anything, and its waiters get it
            outcome = own(error)
        now = watch.last_look_at = self._schedule.loop.time()
        self._schedule.look_ended(watch, now)
        if watch.waiters:
            self._process(watch, outcome, now)

    def _process(self, watch: Watch, outcome: Outcome, now: float) -> None:
        """Finish the watch with the outcome of a look, or plan the next look."""
        if Polled in self._reporter.wanted and isinstance(outcome, TaskDetails):
            self._reporter(polled(watch, outcome))
        ended = weigh(watch, outcome, now)
        if ended is not None:
            teach(self._pace, watch, ended, now)
            self._finish(watch, ended)
            return
        error_delay = min(_LONGEST_ERROR_DELAY, GAP * 2 ** min(watch.errors, 10)) if watch.errors else 0.0
        for waiter in watch.waiters:
            waiter.deliver(outcome, final=False)
        delay = max(error_delay, self._delay(watch, watch.looked(outcome, now)))
        self._plan(watch, now if watch.urgent else now + delay, now)
        if isinstance(outcome, Exception):
            self._failures.log(watch, outcome, now)
        if watch.spared_until > NOW and isinstance(outcome, TaskDetails) and not watch.urgent:
            watch.spared_until = now
            self._expire(watch, now)
