"""Who waits for a task, and what is known of it meanwhile: the small parts of `polling`.

One `Watch` per task, any number of `Waiter`s per watch. They hold no coroutine: a waiter is a
future that the poller resolves.
"""

from __future__ import annotations

import asyncio
from collections import deque

from .models import Source, TaskDetails


class Watch:
    """One task that somebody waits for. Slots, and few of them: there may be 10,000."""

    __slots__ = (
        *("task_id", "born", "last", "due", "looks", "errors", "empty"),
        *("expecting", "nudged", "source", "looking", "waiters"),
    )

    def __init__(self, task_id: str, born: float, last: float) -> None:
        self.task_id = task_id
        self.born = born  # when it was submitted, or first asked for
        self.last = last  # when the last look ended
        self.due: float | None = None  # when the next look is planned; None while looking
        self.looks = self.errors = self.empty = 0
        self.expecting = False  # a callback
        self.nudged = False
        self.source: Source = "poll"
        self.looking: asyncio.Task[None] | None = None
        self.waiters: list[Waiter] = []


class Waiter:
    """Somebody who wants to know the end of a task, and until when."""

    __slots__ = ("deadline", "future", "watch")

    def __init__(self, watch: Watch, deadline: float | None) -> None:
        self.watch = watch
        self.deadline = deadline
        self.future: asyncio.Future[TaskDetails] = asyncio.get_running_loop().create_future()

    def hear(self, news: TaskDetails | Exception, *, final: bool) -> None:
        """News of the task; `final` says that there will be no more."""
        if final:
            self._resolve(news)

    def _resolve(self, news: TaskDetails | Exception) -> None:
        if self.future.done():
            return
        if isinstance(news, Exception):
            self.future.set_exception(news)
        else:
            self.future.set_result(news)


class OneLook(Waiter):
    """Somebody who wants the next look, whatever it brings."""

    __slots__ = ()

    def hear(self, news: TaskDetails | Exception, *, final: bool) -> None:
        self._resolve(news)


class Listener(Waiter):
    """Somebody who wants every look; what was not taken yet is kept."""

    __slots__ = ("_arrived", "_news")

    def __init__(self, watch: Watch, deadline: float | None) -> None:
        super().__init__(watch, deadline)
        self._news: deque[TaskDetails | Exception] = deque()
        self._arrived = asyncio.Event()

    def hear(self, news: TaskDetails | Exception, *, final: bool) -> None:
        if final or not isinstance(news, Exception):
            self._news.append(news)
            self._arrived.set()

    async def next(self) -> TaskDetails:
        """The next look that was not taken yet; a final failure is raised."""
        await self._arrived.wait()
        news = self._news.popleft()
        if not self._news:
            self._arrived.clear()
        if isinstance(news, Exception):
            raise news
        return news
