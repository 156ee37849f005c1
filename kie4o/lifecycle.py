"""The life of one request: submitted, waited for, its end written down.

The verbs of the client that pay or wait are one of these methods with checked arguments; a batch
is many of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import attrs

from .arguments import on_update_of, timeout_of
from .callbacks.delivery import Delivery
from .details import TaskDetails, TaskState
from .errors import KieError, StoreError, SubmissionUnknownError, TaskNotFoundError
from .models import ImageRequest, ImageResult
from .polling.outcome import result_of
from .polling.poller import TaskPoller, Timeout
from .polling.watches import Listener, OnUpdate, Waiter
from .stores.ledger import record_end
from .stores.store import Entry, EntryState, Store
from .submission.pending import Submitted
from .submission.permit import Permit
from .submission.resending import NO_RESUBMIT, Resubmit
from .submission.submissions import Submissions

EXPIRY = 14 * 86400.0  # seconds; images live 14 days (Kie's record-info page)


@attrs.frozen(eq=False)
class Lifecycle:
    """What all requests of one client pass through; `in_flight` bounds how many at once, `ready`
    opens the client or refuses to."""

    ready: Callable[[], Awaitable[None]]
    store: Store
    submissions: Submissions
    poller: TaskPoller
    delivery: Delivery
    callback_url: str | None
    in_flight: asyncio.Semaphore

    async def submit(self, request: ImageRequest, key: str | None, resubmit: Resubmit) -> Submitted:
        """Holds a place for the POST only."""
        await self.in_flight.acquire()
        with Permit(self.in_flight) as permit:
            submitted = await self._submitted(request, key, permit, resubmit)
        if submitted.entry.task_id is None:
            raise submitted.error()
        return submitted

    async def generate(
        self,
        request: ImageRequest,
        key: str | None,
        resubmit: Resubmit = NO_RESUBMIT,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        gate: Callable[[], None] = lambda: None,
    ) -> ImageResult:
        """Holds a place from the submit to the end; `gate` may refuse when a place is free."""
        timeout, on_update = timeout_of(timeout), on_update_of(on_update)
        await self.in_flight.acquire()
        with Permit(self.in_flight) as permit:
            gate()
            submitted = await self._submitted(request, key, permit, resubmit)
            if submitted.entry.task_id is None:
                submitted, timeout = await self._found_again(submitted, timeout)
            return await self.end_of(submitted, timeout, on_update)

    async def _submitted(
        self, request: ImageRequest, key: str | None, permit: Permit, resubmit: Resubmit
    ) -> Submitted:
        """Paid once. A submit that ended unknown before may have had its callback since, which is asked
        before anything is paid anew."""
        if resubmit.after_unknown and key is not None:
            stands = await self.store.find(key=key)
            if stands is not None and stands.state is EntryState.UNKNOWN:
                await self.delivery.recalled(stands.ref)
        try:
            return await self.submissions.submit(request, key, permit, resubmit)
        except SubmissionUnknownError as error:
            return await self._recalled(error)

    async def _recalled(self, unknown: SubmissionUnknownError) -> Submitted:
        """What a callback has said since, or still unknown."""
        try:
            entry = await self.delivery.recalled(unknown.ref or "")
        except StoreError as error:
            raise unknown from error
        if entry is None:
            raise unknown
        return Submitted(entry)

    async def resume(self, entry: Entry) -> ImageResult:
        """Wait for what an earlier life submitted; if its answer was lost, a callback may have come."""
        submitted = Submitted(entry, lost="an earlier run")
        if entry.task_id is None:
            submitted = await self._recalled(submitted.error())
        await self.in_flight.acquire()
        with Permit(self.in_flight):
            return await self.end_of(submitted, ..., None)

    async def end_of(self, submitted: Submitted, timeout: Timeout, on_update: OnUpdate | None) -> ImageResult:
        """The result of what was submitted now, or long ago under the same key."""
        entry = submitted.entry
        if entry.details is not None:
            return result_of(entry.details, "store", entry.request.n_variants)
        try:
            return await self.wait(paid_id(entry), timeout, on_update, submitted.since, entry.request)
        except BaseException as error:  # whatever keeps us from waiting, what was paid for is named
            if isinstance(error, KieError):
                error.task_id = error.task_id or entry.task_id
            else:
                error.add_note(f"Task {entry.task_id} is paid: wait for it again by its id.")
            raise

    def wait(
        self,
        task_id: str,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        since: float | None = None,
        request: ImageRequest | None = None,
    ) -> Coroutine[Any, Any, ImageResult]:
        """Until the end, which is written down; it may be there already."""
        return self._end(self._join(task_id, timeout, on_update, since, request), request)

    async def _end(
        self, joining: Awaitable[Waiter | ImageResult], request: ImageRequest | None
    ) -> ImageResult:
        """The one coroutine that a waiting task costs: few variables, short calls, and only a future
        under it."""
        waiter = await joining
        del joining
        if isinstance(waiter, ImageResult):
            return waiter
        try:
            if isinstance(waiter, Listener):
                await waiter.told()
            await waiter
        except TaskNotFoundError:
            await self._forget_expired(waiter.watch.task_id)
            raise
        finally:
            self.poller.leave(waiter)
        return await self._ended(waiter, request)

    async def _ended(self, waiter: Waiter, request: ImageRequest | None) -> ImageResult:
        await record_end(self.store, waiter.result())
        return result_of(waiter.result(), waiter.watch.source, variants_of(request))

    async def _join(
        self,
        task_id: str,
        timeout: Timeout,
        on_update: OnUpdate | None,
        since: float | None,
        request: ImageRequest | None,
    ) -> Waiter | ImageResult:
        """Begin to wait, unless the store knows the end."""
        timeout, on_update = timeout_of(timeout), on_update_of(on_update)
        await self.ready()
        expecting = self.expects_callback(request)
        if expecting or since is None:
            entry = await self.store.find(task_id=task_id)
            if entry is not None and entry.details is not None:
                return result_of(entry.details, "store", variants_of(request))
        return self.poller.join(
            task_id, timeout=timeout, on_update=on_update, since=since, expecting=expecting
        )

    async def _forget_expired(self, task_id: str) -> None:
        """What Kie no longer knows after its 14 days has failed for good: nothing waits for it."""
        entry = await self.store.find(task_id=task_id)
        if entry is not None and time.time() - (entry.submitted_at or time.time()) > EXPIRY:
            gone = TaskDetails(task_id, state=TaskState.FAILED, error_message="Kie no longer knows the task")
            await record_end(self.store, gone)

    def expects_callback(self, request: ImageRequest | None) -> bool:
        """Whether Kie was told where to call back."""
        return request is not None and (request.callback_url or self.callback_url) is not None

    async def _found_again(self, submitted: Submitted, timeout: Timeout) -> tuple[Submitted, Timeout]:
        """The answer of the submit was lost, but its callback, if one is to come, names the task. With it
        comes what is left of the time."""
        if self.expects_callback(submitted.entry.request):
            limit = self.poller.timeout if timeout is ... else timeout
            try:
                async with asyncio.timeout(limit) as lasting:
                    entry = await self.delivery.found_again(submitted.entry)
            except (TimeoutError, KieError) as error:
                raise submitted.error() from error
            until = lasting.when()
            now = asyncio.get_running_loop().time()
            left = None if until is None else max(0.001, until - now)  # 0 is no time-out
            return Submitted(entry), left
        raise submitted.error()


def variants_of(request: ImageRequest | None) -> int | None:
    """How many images were asked for, if that is known."""
    return None if request is None else request.n_variants


def paid_id(entry: Entry) -> str:
    """The id of a task that was paid for."""
    if entry.task_id is None:
        raise KieError(f"the store holds no task id under key {entry.key!r}", key=entry.key)
    return entry.task_id
