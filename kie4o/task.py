"""The handle of a submitted task: an id, and what can be done with it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any

from .arguments import timeout_of
from .details import TaskDetails
from .lifecycle import Lifecycle
from .models import ImageRequest, ImageResult
from .polling.poller import Timeout
from .polling.watches import OnUpdate


class ImageTask:
    """A submitted task: await it for its images, as often and from wherever you like.

    `request` is None for a task that was taken up by its id.
    """

    __slots__ = ("_life", "_since", "id", "request")

    def __init__(
        self,
        life: Lifecycle,
        task_id: str,
        *,
        request: ImageRequest | None = None,
        since: float | None = None,
    ) -> None:
        self.id = task_id
        self.request = request
        self._life = life
        self._since = since  # loop time of the submit, if it was in this life

    def __await__(self) -> Generator[Any, None, ImageResult]:
        return self.wait().__await__()

    def wait(
        self, *, timeout: Timeout = ..., on_update: OnUpdate | None = None
    ) -> Coroutine[Any, Any, ImageResult]:
        """As `AsyncKieClient.wait`."""
        return self._life.wait(self.id, timeout, on_update, self._since, self.request)

    async def details(self) -> TaskDetails:
        """One look."""
        await self._life.ready()
        return await self._life.poller.look(self.id)

    async def updates(self, *, timeout: Timeout = ...) -> AsyncGenerator[TaskDetails]:
        """The details of every look, the last of which shows the end."""
        await self._life.ready()
        looks = self._life.poller.watch(self.id, timeout=timeout_of(timeout), since=self._since)
        async with contextlib.aclosing(looks):
            async for details in looks:
                yield details

    def __repr__(self) -> str:
        return f"<ImageTask {self.id}>"
