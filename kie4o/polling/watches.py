"""Who waits for a task, and what is known of it meanwhile: the small parts of `polling`.

One `Watch` per task, any number of `Waiter`s per watch: futures that the poller resolves. There
is no coroutine here that sleeps.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable

from ..details import TaskDetails
from ..models import Source
from .outcome import is_final

OnUpdate = Callable[[TaskDetails], Awaitable[object] | None]
"""Called with the details of each status check; may be async. What it raises ends the wait."""

NEVER = float("inf")
NOW = float("-inf")


class Watch:
    """One task that somebody waits for. Slots, and few of them: there may be 10,000."""

    __slots__ = (
        *("task_id", "born", "last", "seen", "looks", "errors", "failure", "empty", "forecasts"),
        *("due", "deadline", "wake", "urgent"),
        *("expecting", "source", "looking", "_waiters"),
    )

    def __init__(self, task_id: str, born: float, last: float, *, aged: bool) -> None:
        self.task_id = task_id
        self.born = born  # when it was submitted, or first asked for
        self.last = last  # when the last look ended
        self.seen: float | None = born if aged else None  # when it was last seen running, if its age is known
        self.looks = self.errors = self.empty = 0
        self.failure: str | None = None  # of the last look
        self.forecasts: tuple[tuple[float, float], ...] = ()  # ages, and the progress seen then
        self.due = NEVER  # when the next look is planned; NOW while it queues, NEVER while looking
        self.deadline: float = NEVER  # the nearest one of the waiters
        self.wake = NEVER  # when the schedule wakes up for it
        self.urgent = False  # a callback has come, or somebody asks for a look
        self.expecting = False  # a callback
        self.source: Source = "poll"
        self.looking: asyncio.Task[None] | None = None
        self._waiters: Waiter | tuple[Waiter, ...] = ()  # mostly one, which needs no tuple

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        return self._waiters if isinstance(self._waiters, tuple) else (self._waiters,)

    @property
    def listened(self) -> bool:
        """Whether anybody may want more than the end: a single plain waiter does not."""
        return type(self._waiters) is not Waiter

    def add(self, waiter: Waiter) -> None:
        self._waiters = (*self.waiters, waiter) if self._waiters else waiter
        self.deadline = min(self.deadline, waiter.deadline)

    def remove(self, waiter: Waiter) -> None:
        waiters = self.waiters
        place = waiters.index(waiter)
        self._waiters = waiters[:place] + waiters[place + 1 :]
        if self.deadline == waiter.deadline:
            self.deadline = min((other.deadline for other in self.waiters), default=NEVER)


class Waiter(asyncio.Future[TaskDetails]):
    """Somebody who wants to know the end of a task, and until when: the future of it."""

    __slots__ = ("deadline", "watch")

    def __init__(self, watch: Watch, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.watch: Watch = watch
        self.deadline: float = deadline

    def hear(self, news: TaskDetails | Exception, *, final: bool) -> None:
        """News of the task; `final` says that there will be no more."""
        if final:
            self.resolve(news)

    def resolve(self, news: TaskDetails | Exception) -> None:
        if self.done():
            return
        if isinstance(news, Exception):
            self.set_exception(news)
        else:
            self.set_result(news)


class OneLook(Waiter):
    """Somebody who wants the next look, whatever it brings."""

    __slots__ = ()

    def hear(self, news: TaskDetails | Exception, *, final: bool) -> None:
        self.resolve(news)


class Listener(Waiter):
    """Somebody who wants every look; what was not taken yet is kept."""

    __slots__ = ("_arrived", "_news", "on_update")

    def __init__(self, watch: Watch, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(watch, deadline, loop)
        self._news: deque[TaskDetails | Exception] = deque()
        self._arrived = asyncio.Event()
        self.on_update: OnUpdate | None = None

    def hear(self, news: TaskDetails | Exception, *, final: bool) -> None:
        if final or not isinstance(news, Exception):
            self._news.append(news)
            self._arrived.set()
        super().hear(news, final=final)

    async def next(self) -> TaskDetails:
        """The next look that was not taken yet; a final failure is raised."""
        await self._arrived.wait()
        news = self._news.popleft()
        if not self._news:
            self._arrived.clear()
        if isinstance(news, Exception):
            raise news
        return news

    async def told(self) -> None:
        """Every look to `on_update`, up to and including the one that shows the end."""
        details = None
        while details is None or not is_final(details):
            details = await self.next()
            outcome = self.on_update(details) if self.on_update is not None else None
            if inspect.isawaitable(outcome):
                await outcome
