"""One request from the submit to its saved result.

The client's verbs that pay or wait are one of these methods with checked arguments; a batch is many of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

import attrs

from . import clock
from .arguments import on_update_of, private_urls, task_id_of, timeout_of, warn_private
from .callbacks.delivery import Delivery
from .details import EXPIRY, TaskDetails, TaskState
from .errors import KieError, StoreError, SubmissionUnknownError, TaskNotFoundError
from .events import AnswerAwaited, Recalled
from .events.calling import told
from .events.reporter import Reporter
from .image_request import ImageRequest
from .models import HasTaskId, ImageResult
from .polling.outcome import images_of, is_final, result_of
from .polling.poller import TaskPoller, Timeout
from .polling.watches import Listener, OnUpdate, Waiter
from .stores.guard import limited
from .stores.ledger import Ledger
from .stores.store import Entry, EntryState, Store
from .submission.pending import NO_ANSWER, NOBODY, Observer, Submitted, not_charged
from .submission.permit import Permit, Permits
from .submission.reports import recalled
from .submission.resending import NO_RESUBMIT, Resubmit
from .submission.submissions import Submissions


@attrs.frozen(eq=False, kw_only=True)
class Lifecycle:
    """What every request of one client passes through. `ready` opens the client, or raises."""

    ready: Callable[[], Awaitable[object]]
    store: Store
    ledger: Ledger
    submissions: Submissions
    poller: TaskPoller
    delivery: Delivery
    callback_url: str | None
    loopback: bool
    permits: Permits
    reporter: Reporter

    def submit(
        self, request: ImageRequest, key: str | None, resubmit: Resubmit
    ) -> Coroutine[Any, Any, Submitted]:
        """Submit only; the permit is held until the response."""
        submit = functools.partial(self._submit, request, key, resubmit)
        return told(self.reporter, "submit", submit, key=key)

    async def _submit(self, request: ImageRequest, key: str | None, resubmit: Resubmit) -> Submitted:
        with await self.permits.acquire() as permit:
            submitted = await self._submitted(request, key, permit, resubmit)
        if submitted.entry.task_id is None:
            raise submitted.unknown_error()
        return submitted

    def generate(
        self,
        request: ImageRequest,
        key: str | None,
        resubmit: Resubmit = NO_RESUBMIT,
        *,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        wait: bool = True,
        observer: Observer = NOBODY,
    ) -> Coroutine[Any, Any, ImageResult]:
        """Submit and wait; the permit is held until the result.

        With `wait=False` it raises `KeyInUseError` if another process has the key in hand.
        """
        generate = functools.partial(
            self._generate, request, key, resubmit, timeout, on_update, wait, observer
        )
        return told(self.reporter, "generate", generate, key=key)

    async def _generate(
        self,
        request: ImageRequest,
        key: str | None,
        resubmit: Resubmit,
        timeout: Timeout,
        on_update: OnUpdate | None,
        wait: bool,
        observer: Observer,
    ) -> ImageResult:
        timeout, on_update = timeout_of(timeout), on_update_of(on_update)
        permit = (await self.permits.acquire()).hold()
        try:  # not `with`, which would hold a bound method while this waits
            observer.admitted()
            with limited(self._seconds(timeout)):
                submitted = await self._submitted(request, key, permit, resubmit, wait=wait)
            observer.submitted(submitted)
            if submitted.entry.task_id is None:
                submitted, timeout = await self._named(submitted, timeout)
            entry = submitted.entry
            if entry.details is not None:
                return result_of(entry.details, "store", entry.request.n_variants)
            waiting = self._wait(known_task_id(entry), timeout, on_update, submitted.since, entry.request)
            del submitted, entry  # with a file as the store, nothing else holds them while this waits
            return await waiting
        finally:
            permit.release()

    def resume(self, entry: Entry, on_update: OnUpdate | None = None) -> Coroutine[Any, Any, ImageResult]:
        """Wait for what an earlier run submitted.

        If its response was lost, a callback may have named the task.
        """
        resume = functools.partial(self._resume, entry, on_update)
        return told(
            self.reporter, "wait", resume, key=entry.callers_key, task_id=entry.task_id, trace=entry.trace
        )

    async def _resume(self, entry: Entry, on_update: OnUpdate | None) -> ImageResult:
        self._report_recalled(entry)
        submitted = Submitted(entry, reason=NO_ANSWER)
        if entry.task_id is None:
            submitted = await self._named_by_callback(submitted.unknown_error())
        entry = submitted.entry
        with await self.permits.acquire():
            return await self._wait(known_task_id(entry), ..., on_update, request=entry.request)

    async def details(self, task_id: str) -> TaskDetails:
        """Poll a task once. If it has ended, that is saved."""
        await self.ready()
        return await self._saved(await self.poller.look(task_id))

    async def images_of(self, result: HasTaskId | str) -> ImageResult:
        """The result itself, or what one poll shows of a finished task. What Kie has deleted may be in the
        store."""
        if isinstance(result, ImageResult):
            return result
        task_id = task_id_of(result)
        details = await self.details(task_id)
        if details.state is TaskState.MISSING:
            with contextlib.suppress(StoreError):
                entry = await self.store.find(task_id=task_id)
                details = details if entry is None or entry.details is None else entry.details
        return images_of(details)

    async def updates(
        self, task_id: str, timeout: Timeout = ..., since: float | None = None
    ) -> AsyncGenerator[TaskDetails]:
        """The details of each poll until the task has ended, and that is saved."""
        await self.ready()
        updates = self.poller.watch(task_id, timeout=timeout_of(timeout), since=since)
        async with contextlib.aclosing(updates):
            try:
                async for details in updates:
                    yield await self._saved(details)
            except TaskNotFoundError:
                await self._fail_expired(task_id)
                raise

    def wait(
        self,
        task_id: str,
        timeout: Timeout = ...,
        on_update: OnUpdate | None = None,
        since: float | None = None,
        request: ImageRequest | None = None,
    ) -> Coroutine[Any, Any, ImageResult]:
        """Until the task has ended, and its outcome is saved. `since` is the loop time of the submit."""
        wait = functools.partial(self._wait, task_id, timeout, on_update, since, request)
        return told(self.reporter, "wait", wait, task_id=task_id)

    async def _wait(
        self,
        task_id: str,
        timeout: Timeout,
        on_update: OnUpdate | None,
        since: float | None = None,
        request: ImageRequest | None = None,
    ) -> ImageResult:
        timeout, on_update = timeout_of(timeout), on_update_of(on_update)
        try:
            waiter = await self._join(task_id, timeout, on_update, since, request)
            if isinstance(waiter, ImageResult):
                return waiter
            try:
                if isinstance(waiter, Listener):
                    await waiter.forward_updates()
                await waiter
            finally:
                self.poller.leave(waiter)
            return await self._finished(waiter, timeout, request)
        except BaseException as error:  # whatever interrupts the wait, the error names the paid task
            if isinstance(error, TaskNotFoundError):
                await self._fail_expired(task_id)
            name_task(error, task_id)
            raise

    async def _finished(self, waiter: Waiter, timeout: Timeout, request: ImageRequest | None) -> ImageResult:
        """Save the outcome that a waiter has, and return its images."""
        with limited(self._seconds(timeout)):
            await self.ledger.finish(waiter.result())
        return result_of(waiter.result(), waiter.watch.source, variants_of(request))

    def expects_callback(self, request: ImageRequest | None) -> bool:
        """Whether Kie was told where to call back."""
        return request is not None and (request.callback_url or self.callback_url) is not None

    def _seconds(self, timeout: Timeout) -> float | None:
        return self.poller.timeout if timeout is ... else timeout

    async def _saved(self, details: TaskDetails) -> TaskDetails:
        """The same details. If they are final, they are saved."""
        if is_final(details):
            await self.ledger.finish(details)
        return details

    async def _report(self, on_update: OnUpdate, details: TaskDetails) -> None:
        """Call `on_update`, after the end of the task is saved: it may raise, or run into the deadline."""
        saved = await self._saved(details)
        try:
            result = on_update(saved)
            if inspect.isawaitable(result):
                await result
        except StopAsyncIteration as error:  # which would end the loop over a batch as if it were complete
            raise RuntimeError("on_update raised StopAsyncIteration") from error

    async def _join(
        self,
        task_id: str,
        timeout: Timeout,
        on_update: OnUpdate | None,
        since: float | None,
        request: ImageRequest | None,
    ) -> Waiter | ImageResult:
        """Start to wait, unless the store knows the outcome."""
        await self.ready()
        expecting = self.expects_callback(request)
        if expecting or since is None:
            with limited(self._seconds(timeout)):
                entry = await self.store.find(task_id=task_id)
            if entry is not None and request is None:  # the caller knows only the task
                self._report_recalled(entry)
            if entry is not None and entry.details is not None:
                return result_of(entry.details, "store", variants_of(request))
        report = None if on_update is None else functools.partial(self._report, on_update)
        return self.poller.join(task_id, timeout=timeout, on_update=report, since=since, expecting=expecting)

    def _report_recalled(self, entry: Entry) -> None:
        if Recalled in self.reporter.wanted:
            self.reporter(recalled(entry), entry.name)

    async def _fail_expired(self, task_id: str) -> None:
        """A task that Kie has forgotten after its 14 days has failed: nothing should wait for it again."""
        entry = None
        with contextlib.suppress(StoreError):  # a later wait comes to the same end
            entry = await self.store.find(task_id=task_id)
        if entry is None or entry.submitted_at is None:
            return
        if clock.unix_time() - entry.submitted_at > EXPIRY:
            message = "Kie no longer knows the task"
            await self.ledger.finish(TaskDetails(task_id, state=TaskState.FAILED, error_message=message))

    # -- submits whose response was lost -----------------------------------------------------------

    async def _submitted(
        self,
        request: ImageRequest,
        key: str | None,
        permit: Permit,
        resubmit: Resubmit,
        *,
        wait: bool = True,
    ) -> Submitted:
        """Pay once. After an unknown outcome a callback may have named the task: that is checked first."""
        if not self.loopback:  # where an emulator opens them
            await self._warn_unreachable(request, key)
        if resubmit.after_unknown and key is not None:
            stored = await self.store.find(key=key)
            if stored is not None and stored.state is EntryState.UNKNOWN:
                await self.delivery.named_task(stored.ref)
        try:
            return await self.submissions.submit(request, key, permit, resubmit, wait=wait)
        except SubmissionUnknownError as error:
            return await self._named_by_callback(error)

    async def _warn_unreachable(self, request: ImageRequest, key: str | None) -> None:
        """Warn of URLs that Kie cannot open, unless the store has the request, whose author was warned."""
        unreachable = private_urls(request)
        if unreachable and (key is None or await self.store.find(key=key) is None):
            for name, url in unreachable:
                warn_private(name, url)

    async def _named_by_callback(self, unknown: SubmissionUnknownError) -> Submitted:
        """The task that a stored callback names; otherwise `unknown` is raised."""
        try:
            entry = await self.delivery.named_task(unknown.ref or "")
        except StoreError as error:
            raise unknown from error
        if entry is None:
            raise unknown
        return Submitted(entry)

    async def _named(self, submitted: Submitted, timeout: Timeout) -> tuple[Submitted, Timeout]:
        """Wait for the callback that names the task, and return what is left of the timeout."""
        if not self.expects_callback(submitted.entry.request):
            raise submitted.unknown_error()
        seconds = self._seconds(timeout)
        entry = submitted.entry
        self.reporter(AnswerAwaited(ref_hash=entry.ref_hash, key=entry.callers_key, seconds=seconds))
        try:
            async with asyncio.timeout(seconds) as deadline:
                entry = await self.delivery.wait_for_name(submitted.entry)
        except (TimeoutError, KieError) as error:
            raise submitted.unknown_error() from error
        if entry.task_id is None:
            raise not_charged(entry)
        self._report_recalled(entry)
        until = deadline.when()
        if until is None:
            return Submitted(entry), None
        left = until - asyncio.get_running_loop().time()
        return Submitted(entry), max(0.001, left)  # 0 is not a timeout


def variants_of(request: ImageRequest | None) -> int | None:
    """How many images were requested, if that is known."""
    return None if request is None else request.n_variants


def known_task_id(entry: Entry) -> str:
    """The task id of an entry that must have one."""
    if entry.task_id is None:
        raise KieError(f"the store has no task id under key {entry.key!r}; check kie.ai/logs", key=entry.key)
    return entry.task_id


def name_task(error: BaseException, task_id: str) -> None:
    """Say on an error that interrupts a wait which paid task it is about."""
    if isinstance(error, KieError):
        error.task_id = error.task_id or task_id
    else:
        error.add_note(f"Task {task_id} is paid; client.wait({task_id!r}) resumes it.")
