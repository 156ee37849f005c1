"""The other processes on a shared store: which of them polls a task, and what they have found out.

What they write is heard as news, which only saves time: a process that follows a task also asks for its end
once a second, and one that is dead or away is replaced. While the store is away all of them poll.

Nothing is written per poll, so a follower learns of the end and not of the progress before it. It polls by
itself, in turn, once before a deadline and when a callback arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from contextvars import Context
from typing import TypeVar

from .callbacks.delivery import Delivery
from .details import TaskDetails
from .errors import StoreError
from .polling.policy import GAP
from .polling.poller import TaskPoller
from .stores.news import about_task
from .stores.shared import Shared

_ASK = 1.0  # seconds between two questions about tasks that others poll
_CONFIRM = 10.0  # seconds between two about those that we poll: our lease may have been lost
_PATIENCE = 2.0  # seconds for an answer of the store; then we poll without it
_T = TypeVar("_T")


class Neighbours:
    """Shares the polls of one client with those of others. It is the poller's `Sharing`."""

    def __init__(self, shared: Shared, poller: TaskPoller, delivery: Delivery, *, speed: float) -> None:
        self._shared = shared
        self._poller = poller
        self._delivery = delivery
        self._gap = GAP / speed
        self._new: set[str] = set()  # tasks for which nobody was asked yet
        self._led: set[str] = set()
        self._followed: set[str] = set()
        self._left: dict[str, TaskDetails | None] = {}  # those to be given up, with their ends
        self._urgent: set[str] = set()  # those of which there is news
        self._work = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        poller.share(self)

    def start(self) -> None:
        """Begin, once the store is open."""
        for work in (self._hear_always(), self._ask_always()):
            self._tasks.append(asyncio.create_task(work, name="kie4o neighbours", context=Context()))

    async def aclose(self) -> None:
        """Give up what is polled here, if the store answers."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if tasks:
            await self._give_up()

    # -- for the poller --------------------------------------------------------------------------------

    def joined(self, task_id: str) -> None:
        self._new.add(task_id)
        self._work.set()

    def left(self, task_id: str, details: TaskDetails | None) -> None:
        for tasks in (self._new, self._led, self._followed, self._urgent):
            tasks.discard(task_id)
        self._left[task_id] = details
        self._work.set()

    async def turn(self, task_id: str) -> TaskDetails | None:
        while True:
            answer = await self._answer(self._shared.turn(task_id, self._gap))
            if answer is None or isinstance(answer, TaskDetails):
                return answer
            if answer == 0:
                return None
            await asyncio.sleep(answer)

    # -- in the background -----------------------------------------------------------------------------

    async def _hear_always(self) -> None:
        async with contextlib.aclosing(self._shared.news()) as news:
            async for what in news:
                self._hear(what)

    def _hear(self, what: str | None) -> None:
        self._delivery.recheck(what)
        waited = self._led | self._followed
        told = waited if what is None else {task_id for task_id in waited if about_task(task_id) == what}
        if told:
            self._urgent |= told
            self._work.set()

    async def _ask_always(self) -> None:
        loop = asyncio.get_running_loop()
        asked_at = confirmed_at = loop.time()
        while True:
            timeout = _ASK if self._followed or self._left else _CONFIRM if self._led else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._work.wait()
            self._work.clear()
            await self._give_up()
            asked, now = self._new | self._urgent, loop.time()
            if now >= asked_at + _ASK:
                asked, asked_at = asked | self._followed, now
            if now >= confirmed_at + _CONFIRM:
                asked, confirmed_at = asked | self._led, now
            self._new, self._urgent = set(), set()
            if asked:
                await self._ask(asked)

    async def _ask(self, task_ids: set[str]) -> None:
        led = await self._answer(self._shared.lead(task_ids))
        for task_id in task_ids:
            if task_id in self._left or task_id in self._new:
                continue  # it is not waited for any more, or is again
            if led is None:
                self._lead(task_id)  # the store is away
            elif task_id not in led:
                self._follow(task_id)
            elif (details := led[task_id]) is None:
                self._lead(task_id)
            else:
                self._poller.found(details)

    def _lead(self, task_id: str) -> None:
        self._followed.discard(task_id)
        self._led.add(task_id)
        self._poller.lead(task_id)

    def _follow(self, task_id: str) -> None:
        self._led.discard(task_id)
        self._followed.add(task_id)
        self._poller.follow(task_id)

    async def _give_up(self) -> None:
        left, self._left = self._left, {}
        if left and await self._answer(self._written(left)) is None:
            self._left = {**left, **self._left}  # while we live, nobody else would poll them

    async def _written(self, left: dict[str, TaskDetails | None]) -> bool:
        await self._shared.leave(left)
        return True

    async def _answer(self, question: Awaitable[_T]) -> _T | None:
        """None if the store does not answer soon."""
        try:
            async with asyncio.timeout(_PATIENCE):
                return await question
        except (StoreError, TimeoutError):
            return None
