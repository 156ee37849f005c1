"""The tasks of a run: handed out as they finish, and none is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ..waiting import wait_uncancelled

_ALIVE: set[asyncio.Task[Any]] = set()  # a loop does not keep its tasks from being collected


class Tasks:
    """Tasks that are handed out one by one as they finish."""

    def __init__(self) -> None:
        self._started: set[asyncio.Task[Any]] = set()  # and not handed out
        self._done: asyncio.Queue[asyncio.Task[Any]] = asyncio.Queue()

    def start(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._started.add(task)
        _ALIVE.add(task)
        task.add_done_callback(_ALIVE.discard)
        task.add_done_callback(self._done.put_nowait)
        return task

    async def next(self) -> asyncio.Task[Any] | None:
        """The next task that is done, or None if there is none to wait for."""
        while self._started:
            task = await self._done.get()
            if task in self._started:
                self._started.remove(task)
                return task
        return None

    async def cancel(self, *tasks: asyncio.Task[Any]) -> None:
        """Cancel these tasks, or all, and wait for them. They are not handed out."""
        cancelled = tasks or tuple(self._started)
        self._started.difference_update(cancelled)
        for task in cancelled:
            task.cancel()
        await wait_uncancelled(cancelled)
