"""What is known of each task that is waited for, and the futures of those who wait.

There is one `Watch` per task and any number of waiters per watch. A waiter is a future that the poller
resolves, so waiting needs no coroutine that sleeps. All times are those of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
from collections import deque
from collections.abc import Awaitable, Callable

import attrs

from ..details import TaskDetails, TaskState
from ..errors import KieError
from ..models import Source
from .learning import FORECASTS, Sighting
from .outcome import is_final

OnUpdate = Callable[[TaskDetails], Awaitable[object] | None]
"""Called with the details of each status check; may be async. What it raises ends the wait."""
Outcome = TaskDetails | Exception  # of one look

NEVER = float("inf")
NOW = float("-inf")
NONE_REFUSED = (0, 0.0)
_KNOWN = 1_000  # tasks that are no longer watched


@attrs.define(eq=False, weakref_slot=False)
class Watch:
    """One task that is waited for."""

    task_id: str
    submitted_at: float  # if that is unknown, when the wait began
    last_running_at: float | None = None  # at first the time of the submit; None if that is unknown
    last_look_at: float = NOW  # when the last look ended
    looks: int = 0
    errors: int = 0  # failed looks in a row
    refusals: tuple[int, float] = NONE_REFUSED  # refused looks in a row, and when the first of them ended
    finding: str | None = None  # what is unusual about the last look
    empty_looks: int = 0  # looks that found a success without images
    forecasts: tuple[tuple[float, float], ...] = ()  # ages, and the progress then
    due: float = NEVER  # when the next look is planned; NOW while it queues, NEVER while it runs
    deadline: float = NEVER  # the nearest of the waiters
    wake_at: float = NEVER  # when the schedule wakes up for this watch
    spared_until: float = NOW  # a look or this time ends waits whose deadline was noticed late; NOW: none
    urgent: bool = False  # a callback has arrived, or a caller has asked for a look
    expecting: bool = False  # a callback
    source: Source = "poll"
    look_task: asyncio.Task[None] | None = None
    # A single waiter is held without a tuple, which saves 48 bytes of 2.3 KiB (benchmarks/memory.py, `hold`).
    _waiters: Waiter | tuple[Waiter, ...] = attrs.field(default=(), init=False)

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        return self._waiters if isinstance(self._waiters, tuple) else (self._waiters,)

    def add(self, waiter: Waiter) -> None:
        self._waiters = (*self.waiters, waiter) if self._waiters else waiter
        self.deadline = min(self.deadline, waiter.deadline)

    def remove(self, waiter: Waiter) -> None:
        if self._waiters is waiter:
            self._waiters, self.deadline = (), NEVER
            return
        self._waiters = tuple(other for other in self.waiters if other is not waiter)
        if self.deadline == waiter.deadline:
            self.deadline = min((other.deadline for other in self.waiters), default=NEVER)

    def sighting(self, now: float) -> Sighting:
        """The age of the task, and its age when a look last found it running."""
        if self.last_running_at is None:
            return Sighting(looks=self.looks)
        return Sighting(now - self.submitted_at, self.last_running_at - self.submitted_at, self.looks)

    def looked(self, outcome: Outcome, now: float) -> Sighting:
        """Count a look after which the task may still be running; what it shows about its age."""
        self.looks += 1
        if self.last_running_at is None:
            return Sighting(looks=self.looks)
        age = now - self.submitted_at
        if not isinstance(outcome, TaskDetails) or outcome.state is not TaskState.RUNNING:
            return Sighting(age, age, self.looks)  # nothing
        last, self.last_running_at = self.last_running_at - self.submitted_at, now
        if outcome.progress:
            self.forecasts = (*self.forecasts[1 - FORECASTS :], (age, outcome.progress))
        return Sighting(age, last, self.looks, outcome.progress)


class Known:
    """Since when tasks are known, also some that are no longer watched: the latest thousand."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}

    def add(self, watch: Watch) -> None:
        """The watch has ended."""
        self._since.setdefault(watch.task_id, watch.submitted_at)
        if len(self._since) > _KNOWN:
            del self._since[next(iter(self._since))]

    def since(self, task_id: str, watch: Watch | None) -> float:
        """The first time of a task, given the watch that it has now; `NEVER` if it is not known."""
        return self._since.get(task_id, NEVER if watch is None else watch.submitted_at)


class Waiter(asyncio.Future[TaskDetails]):
    """A future of a task's last details, with the deadline of its caller."""

    __slots__ = ("deadline", "watch")

    def __init__(self, watch: Watch, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.watch: Watch = watch
        self.deadline: float = deadline

    def deliver(self, outcome: Outcome, *, final: bool) -> None:
        """Accept the outcome of a look; `final` says that no other will follow."""
        if final:
            self.resolve(outcome)

    def resolve(self, outcome: Outcome) -> None:
        if self.done():
            return
        if isinstance(outcome, Exception):
            self.set_exception(own(outcome))
        else:
            self.set_result(outcome)


class OneLook(Waiter):
    """A future of the next look, whatever its outcome."""

    __slots__ = ("too_early",)

    def __init__(self, watch: Watch, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(watch, deadline, loop)
        self.too_early: bool = False  # the look that is running began before what it should show

    def deliver(self, outcome: Outcome, *, final: bool) -> None:
        if final or not self.too_early:
            self.resolve(outcome)
        self.too_early = False


class Listener(Waiter):
    """A waiter that also gets the details of each look; those not read yet are kept."""

    __slots__ = ("_arrived", "_unread", "on_update", "speed")

    def __init__(self, watch: Watch, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(watch, deadline, loop)
        self._unread: deque[Outcome] = deque()
        self._arrived = asyncio.Event()
        self.on_update: OnUpdate | None = None
        self.speed: float = 1.0  # seconds of the deadline's clock in each one of the event loop

    def deliver(self, outcome: Outcome, *, final: bool) -> None:
        if final or not isinstance(outcome, Exception):
            self._unread.append(outcome)
            self._arrived.set()
        super().deliver(outcome, final=final)

    async def next(self) -> TaskDetails:
        """The details of the next look that was not read yet. Raises the error that ends the wait."""
        await self._arrived.wait()
        outcome = self._unread.popleft()
        if not self._unread:
            self._arrived.clear()
        if isinstance(outcome, Exception):
            raise own(outcome)
        return outcome

    async def forward_updates(self) -> None:
        """Call `on_update` with the details of each look until they are final.

        At the deadline it is cancelled, and this returns: awaiting the waiter gives the outcome.
        """
        deadline = None if self.deadline == NEVER else self.deadline / self.speed
        details = None
        while details is None or not is_final(details):
            details = await self.next()
            result = self.on_update(details) if self.on_update is not None else None
            if inspect.isawaitable(result) and not await _ends_before(deadline, result):
                return


async def _ends_before(deadline: float | None, work: Awaitable[object]) -> bool:
    """Await `work` until the deadline, and return whether it has ended by then. Its errors are raised."""
    scope = asyncio.timeout_at(deadline)
    try:
        async with scope:
            await work
    except TimeoutError:
        if not scope.expired():
            raise  # by the caller's own code
    return not scope.expired()


def own(error: Exception) -> Exception:
    """A copy for one task, whose id it gets, or for one waiter: the traceback of a shared error would grow
    with each waiter that raises it."""
    return copy.copy(error) if isinstance(error, KieError) else error
