"""The life of one request: submitted, waited for, its end written down.

The verbs of the client that pay or wait are one of these methods with checked arguments; a batch
is many of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import attrs

from .arguments import on_update_of, timeout_of
from .errors import KieError, StoreError, TaskFailedError
from .models import ImageRequest, ImageResult, TaskDetails
from .polling import OnUpdate, TaskPoller, Timeout, result_of
from .store import NEVER_AGAIN, Again, Entry, EntryState, Store
from .submission import Place, Submissions, Submitted

logger = logging.getLogger("kie4o")


@attrs.frozen(eq=False)
class Lifecycle:
    """What all requests of one client pass through; `in_flight` bounds how many at once, `ready`
    opens the client or refuses to."""

    ready: Callable[[], Awaitable[None]]
    store: Store
    submissions: Submissions
    poller: TaskPoller
    in_flight: asyncio.Semaphore

    async def submit(self, request: ImageRequest, key: str | None, again: Again) -> Submitted:
        """Holds a place for the POST only."""
        async with Place(self.in_flight) as place:
            return await self.submissions.submit(request, key, place, again)

    async def generate(
        self,
        request: ImageRequest,
        key: str | None,
        again: Again = NEVER_AGAIN,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        gate: Callable[[], None] = lambda: None,
    ) -> ImageResult:
        """Holds a place from the submit to the end; `gate` may refuse when a place is free."""
        timeout, on_update = timeout_of(timeout), on_update_of(on_update)
        async with Place(self.in_flight) as place:
            gate()
            submitted = await self.submissions.submit(request, key, place, again)
            return await self.end_of(submitted, timeout, on_update)

    async def resume(self, entry: Entry) -> ImageResult:
        """Wait for what an earlier life submitted."""
        async with Place(self.in_flight):
            return await self.end_of(Submitted(entry), ..., None)

    async def end_of(self, submitted: Submitted, timeout: Timeout, on_update: OnUpdate | None) -> ImageResult:
        """The result of what was submitted now, or long ago under the same key."""
        entry = submitted.entry
        if entry.details is not None:
            result = result_of(entry.details, "store")
        else:
            result = await self.wait(paid_id(entry), timeout, on_update, submitted.since)
        return attrs.evolve(result, n_variants=entry.request.n_variants)

    async def wait(
        self, task_id: str, timeout: Timeout, on_update: OnUpdate | None, since: float | None
    ) -> ImageResult:
        """Until the end, which is written down."""
        timeout, on_update = timeout_of(timeout), on_update_of(on_update)
        try:
            result = await self.poller.wait(task_id, timeout=timeout, on_update=on_update, since=since)
        except TaskFailedError as error:
            if error.details is not None:
                await self._record(task_id, EntryState.FAILED, error.details)
            raise
        await self._record(task_id, EntryState.SUCCEEDED, result.details)
        return result

    async def _record(self, task_id: str, state: EntryState, details: TaskDetails) -> None:
        """Write the end down; if that fails the next life looks again, which costs nothing."""
        try:
            entry = await self.store.find(task_id=task_id)
            if entry is not None and not entry.state.ended:
                await self.store.save(attrs.evolve(entry, state=state, details=details))
        except StoreError as error:
            logger.error("the end of task %s could not be written down: %s", task_id, error)


def paid_id(entry: Entry) -> str:
    """The id of a task that was paid for."""
    if entry.task_id is None:
        raise KieError(f"the store holds no task id under key {entry.key!r}", key=entry.key)
    return entry.task_id
