"""The handle of a submitted task: its id, and what can be done with it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import Any, Protocol

from .details import TaskDetails
from .image_request import ImageRequest
from .lifecycle import Lifecycle
from .models import ImageResult
from .polling.poller import Timeout
from .polling.watches import OnUpdate


class _Client(Protocol):
    def _lifecycle(self) -> Lifecycle: ...


class ImageTask:
    """A submitted task. Await it for its images, as often and from as many places as you like.

    Attributes:
        id: The task id. Keep it: the task is paid, and any process can wait for it for 14 days.
        request: The `ImageRequest`, or None if the handle was created from an id.
    """

    __slots__ = ("_client", "_since", "id", "request")

    def __init__(
        self,
        client: _Client,
        task_id: str,
        *,
        request: ImageRequest | None = None,
        since: float | None = None,
    ) -> None:
        """Handles are created by `AsyncKieClient.submit` and `AsyncKieClient.task`."""
        self.id: str = task_id
        self.request: ImageRequest | None = request
        self._client = client  # not its lifecycle, which changes when it is closed and opened again
        self._since = since  # loop time of the submit, if it was in this run

    @property
    def task_id(self) -> str:
        """The same as `id`: results and errors call it so."""
        return self.id

    def __await__(self) -> Generator[Any, None, ImageResult]:
        # Not self.wait(): one coroutine less saves 0.25 of 2.45 KiB per waiting task (benchmarks/memory.py).
        wait: Any = self._client._lifecycle().wait(self.id, ..., None, self._since, self.request)
        wait.__qualname__ = "ImageTask.__await__"  # for Python's warning about what was never awaited
        steps: Generator[Any, None, ImageResult] = wait.__await__()
        return steps

    async def wait(self, *, timeout: Timeout = ..., on_update: OnUpdate | None = None) -> ImageResult:
        """Wait until the task has ended. Costs no credits.

        Args:
            timeout: Seconds from this call; None waits without limit, the default is the client's
                `wait_timeout`.
            on_update: Called, and awaited if it returns an awaitable, with the `TaskDetails` of every poll.

        Raises:
            TaskFailedError: Kie ended the task without images.
            NoImagesError: It succeeded, but its record shows no images.
            TaskNotFoundError: Kie does not know the task.
            TaskTimeoutError: The time is up; the task is still running and can be waited for again.
        """
        return await self._client._lifecycle().wait(self.id, timeout, on_update, self._since, self.request)

    async def details(self) -> TaskDetails:
        """Poll the task once."""
        return await self._client._lifecycle().details(self.id)

    async def updates(self, *, timeout: Timeout = ...) -> AsyncGenerator[TaskDetails]:
        """The details of every poll of this process until the task has ended; the last shows the outcome.

        Args:
            timeout: As for `wait`.
        """
        updates = self._client._lifecycle().updates(self.id, timeout, self._since)
        async with contextlib.aclosing(updates):
            async for details in updates:
                yield details

    def __repr__(self) -> str:
        return f"<ImageTask {self.id}>"
