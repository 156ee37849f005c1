"""What a callback does: it is kept, confirmed by a poll of its task, and wakes the callers that wait.

A callback is a hint. Its signature covers the task id and the time, not the result, so nothing it says is
believed until Kie's own record says the same (unless the client trusts callbacks). The ref in its URL does
prove which request it belongs to. That is how a paid task is found again whose submit response was lost.

Kie does not repeat a callback that was answered with 200, so its confirmation is repeated here: polls may
fail, and the record may lag behind the callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs

from ..clock import sleeper
from ..details import TaskDetails, TaskState
from ..errors import (
    CallbackError,
    KieError,
    StoreError,
    TaskNotFoundError,
    client_closed,
    worth_repeating,
)
from ..events import CallbackReceived, CallbackUnconfirmed
from ..events.reporter import LOG, Reporter
from ..models import Callback
from ..polling.findings import EMPTY_LOOKS, GRACE
from ..polling.outcome import is_final
from ..polling.poller import TaskPoller
from ..stores.ledger import Ledger
from ..stores.news import about_ref
from ..stores.store import Entry, EntryState, Store
from ..transport.retrying import repeated

PENDING = 1000  # callbacks that may wait for their confirmation
_FIRST_DELAY = 1.0  # seconds until a callback that could not be confirmed is tried again; then doubled
_LONGEST_DELAY = 30.0
_GIVE_UP = 3600.0  # seconds after which a confirmation is not repeated any more
_RECHECK = 30.0  # seconds until the task ids that callbacks have named are checked once more
_T = TypeVar("_T")
_WITHOUT_TASK = (EntryState.INTENT, EntryState.UNKNOWN, EntryState.FAILED)  # FAILED: a person said so


@attrs.define(eq=False)
class _Confirmation:
    """A callback that has to be confirmed; `since` is the loop time of the latest one of its task."""

    callback: Callback
    since: float
    empty_looks: int = 0  # that have found a success without images


class Delivery:
    """The callbacks of one client. It reads from the store and writes through the ledger."""

    def __init__(
        self,
        store: Store,
        ledger: Ledger,
        poller: TaskPoller,
        *,
        trusting: bool = False,
        speed: float = 1.0,
        reporter: Reporter = LOG,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._poller = poller
        self._trusting = trusting
        self._reporter = reporter
        self._speed = speed  # seconds of Kie, or of an emulator, in each real one
        self._sleep = sleeper(speed)
        self._unnamed: dict[str, set[asyncio.Future[Entry | None]]] = {}  # waiters for the task of a ref
        self._confirming: set[asyncio.Task[None]] = set()
        self._keeping = 0  # callbacks that are being stored, to be confirmed then
        # By ref and task id whose confirmation is repeated.
        self._repeating: dict[tuple[str, str], _Confirmation] = {}
        self._closed = False
        self.heard_at: float | None = None  # loop time of the last callback

    @property
    def pending(self) -> int:
        """How many callbacks are being confirmed, and callers wait for one that names their task."""
        return len(self._confirming) + sum(len(waiters) for waiters in self._unnamed.values())

    async def deliver(self, callback: Callback) -> TaskDetails:
        """Keep and confirm a callback; return the details of its task.

        If they are not final, the confirmation is repeated in the background. Raises `CallbackError` if the
        callback is unknown, and the error of the last poll if three have failed.
        """
        since = asyncio.get_running_loop().time()
        entry = await self.keep(callback)
        self._notify(callback, entry)
        details, confirmed = await self._repeated(lambda: self._check(callback, entry, since))
        if not confirmed and entry is not None and len(self._confirming) < PENDING and not self._closed:
            self._start(callback, entry, since, delayed=True)
        return details

    async def keep(self, callback: Callback) -> Entry | None:
        """Find the entry that a callback belongs to, and store the task id it names. Polls nothing.

        For an entry that has its task id nothing is stored: it is unfinished, and whatever waits for it in
        the next run polls it at once. An unknown callback costs one search, whatever it says. The entry is
        None for a task that is waited for and was not submitted here.
        """
        entry = None
        if callback.ref is not None:
            entry = await self._store.find(ref=callback.ref)
            if entry is not None and entry.task_id is None and entry.state in _WITHOUT_TASK:
                await self._store.keep_callback(entry.ref, callback.task_id)
                return entry
        elif callback.verified:
            entry = await self._store.find(task_id=callback.task_id)
            if entry is None and self._poller.waits_for(callback.task_id):
                return None
        if entry is None or entry.task_id != callback.task_id:
            waited = self._poller.waits_for(callback.task_id)
            if entry is None and callback.verified and not waited:  # anyone may send one that is not signed
                self._poller.notify_stray(callback.task_id)
            raise CallbackError(
                "unknown callback: it matches no request submitted by this client; pass the ref from its URL "
                "to parse_callback"
            )
        return entry

    async def accept(self, callback: Callback, *, limit: int) -> bool:
        """Keep a callback, and confirm it in a background task, so that a receiver can answer at once.

        Returns False, and keeps nothing, if `limit` callbacks are being confirmed already.
        """
        if len(self._confirming) + self._keeping >= limit:
            return False
        since = asyncio.get_running_loop().time()
        self._keeping += 1
        try:
            entry = await self.keep(callback)
        finally:
            self._keeping -= 1
        if self._closed:
            raise client_closed()
        self._notify(callback, entry)
        if entry is not None:
            self._start(callback, entry, since)
        return True

    async def named_task(self, ref: str) -> Entry | None:
        """The entry of a ref with its task id, if a stored callback names one that Kie confirms."""
        entry = await self._looked_for(ref)
        return entry if entry is not None and entry.task_id is not None else None

    async def wait_for_name(self, entry: Entry) -> Entry:
        """Wait until a callback names the task of a submit whose response was lost.

        The entry has no task id if a person says meanwhile that it was not charged. Raises `KieError` if the
        client is closed before.
        """
        found = None
        while found is None and not self._closed:
            waiter: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
            self._unnamed.setdefault(entry.ref, set()).add(waiter)
            try:
                with contextlib.suppress(StoreError):  # the store may work again before the callback arrives
                    found = _known(await self._looked_for(entry.ref))  # it may have arrived before this call
                if found is None:
                    await asyncio.wait([waiter], timeout=_RECHECK / self._speed)
                    found = waiter.result() if waiter.done() else None
            finally:
                self._unnamed[entry.ref].discard(waiter)
                if not self._unnamed[entry.ref]:
                    del self._unnamed[entry.ref]
        if found is None:
            raise KieError("the client was closed before a callback arrived; check kie.ai/logs")
        return found

    async def _looked_for(self, ref: str) -> Entry | None:
        """The entry of a ref, once the tasks that stored callbacks name have been polled."""
        entry = await self._store.find(ref=ref)
        if entry is None:
            return None
        for task_id in await self._store.callbacks_of(ref):
            self._poller.notify(task_id)
            with contextlib.suppress(KieError):  # it stays unknown and can be asked for again
                look = functools.partial(self._poller.look, task_id)
                details = await self._repeated(look)
                await self._name(entry, details)
                await self._finish(details)
        return await self._store.find(ref=ref)

    def wake(self, entry: Entry) -> None:
        """Wake those who wait for the name of its task, if there is nothing to wait for any more."""
        for waiter in self._unnamed.get(entry.ref, ()):
            if _known(entry) is not None and not waiter.done():
                waiter.set_result(entry)

    def recheck(self, news: str | None) -> None:
        """Have those who wait for the name of a task look for it: another process may know it.

        `news` is `about_ref`, or None for all.
        """
        for ref, waiters in self._unnamed.items():
            if news is None or news == about_ref(ref):
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_result(None)

    async def aclose(self) -> None:
        """Cancel the confirmations under way, whose tasks the next run polls again, and end all waits."""
        self._closed = True
        for waiter in [waiter for waiters in self._unnamed.values() for waiter in waiters]:
            if not waiter.done():
                waiter.set_result(None)
        for task in self._confirming:
            task.cancel()
        await asyncio.gather(*self._confirming, return_exceptions=True)

    # -- confirming ------------------------------------------------------------------------------

    def _notify(self, callback: Callback, entry: Entry | None) -> None:
        """Nudge the poller, unless the callback is a repetition."""
        self.heard_at = asyncio.get_running_loop().time()
        received = CallbackReceived(
            task_id=callback.task_id,
            state=callback.details.state.value,
            verified=callback.verified,
            trace=None if entry is None else entry.trace,
        )
        self._reporter(received)
        if entry is None or entry.details is None:
            details = callback.details if self._trusts(callback, entry) else None
            self._poller.notify(callback.task_id, details)
        else:
            self._poller.notify_late(callback.task_id)

    async def _repeated(self, call: Callable[[], Awaitable[_T]]) -> _T:
        return await repeated(call, sleep=self._sleep, reporter=self._reporter)

    def _trusts(self, callback: Callback, entry: Entry | None) -> bool:
        is_named = entry is None or entry.task_id is not None
        return self._trusting and is_named and is_final(callback.details)

    def _start(self, callback: Callback, entry: Entry, since: float, *, delayed: bool = False) -> None:
        confirmation = self._confirm(callback, entry, since, delayed=delayed)
        task = asyncio.create_task(confirmation, name="kie4o callback")
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)

    async def _confirm(self, callback: Callback, entry: Entry, since: float, *, delayed: bool) -> None:
        """Confirm a callback that arrived at `since`, and repeat that until it succeeds."""
        confirmation, name = _Confirmation(callback, since), (entry.ref, callback.task_id)
        if not delayed and await self._is_settled(confirmation, entry):
            return
        first = self._repeating.setdefault(name, confirmation)
        first.since = max(since, first.since)
        if first is not confirmation:  # that of an earlier callback of the same task goes on
            return
        try:
            await self._repeat(confirmation, entry.ref)
        finally:
            del self._repeating[name]

    async def _repeat(self, confirmation: _Confirmation, ref: str) -> None:
        task_id = confirmation.callback.task_id
        delay, loop = _FIRST_DELAY, asyncio.get_running_loop()
        while loop.time() < confirmation.since + _GIVE_UP / self._speed:
            await self._sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
            with contextlib.suppress(StoreError):  # the store may work again later
                stored = await self._store.find(ref=ref)
                if stored is None or stored.task_id not in (None, task_id):
                    return
                if await self._is_settled(confirmation, stored):
                    return
        self._reporter(CallbackUnconfirmed(task_id=task_id))

    async def _is_settled(self, confirmation: _Confirmation, entry: Entry) -> bool:
        """Try to confirm a callback; False if it should be tried again later."""
        callback = confirmation.callback
        watched = entry.task_id is not None and self._poller.waits_for(entry.task_id)
        if watched and entry.details is None:
            return False  # the wait, which was nudged, saves the end of the task
        try:
            details, settled = await self._check(callback, entry, confirmation.since)
        except KieError as error:
            if worth_repeating(error) or isinstance(error, StoreError):
                return False
            self._reporter(CallbackUnconfirmed(task_id=callback.task_id, cause=str(error)))
            return True
        if self._stays_empty(confirmation, details):
            self._reporter(CallbackUnconfirmed(task_id=callback.task_id, cause="its record lists no images"))
            return True
        return settled

    def _stays_empty(self, confirmation: _Confirmation, details: TaskDetails) -> bool:
        """Whether the task is a success without images that may be taken as final, as a wait for it does."""
        if details.state is TaskState.SUCCEEDED and not details.urls:
            confirmation.empty_looks += 1
        return confirmation.empty_looks >= EMPTY_LOOKS and self._is_old(confirmation.since)

    def _is_old(self, since: float) -> bool:
        """Whether the time is over in which a record may be late."""
        return (asyncio.get_running_loop().time() - since) * self._speed > GRACE

    async def _check(self, callback: Callback, entry: Entry | None, since: float) -> tuple[TaskDetails, bool]:
        """The details of the callback's task, and whether nothing is left to confirm. Four cases:

        1. The entry has ended: the callback is a repetition.
        2. The callback is trusted.
        3. The entry has no task id: the callback names it.
        4. The task is polled now instead of later.
        """
        if entry is not None and entry.details is not None:
            return entry.details, True
        if self._trusts(callback, entry):
            details = callback.details
        else:
            details = await self._poller.look(callback.task_id, since=since)
            if details.state is TaskState.MISSING and self._is_old(since):
                raise TaskNotFoundError("Kie does not know the task", task_id=callback.task_id)
        if entry is not None and entry.task_id is None:
            entry = await self._name(entry, details)
        await self._finish(details)
        return details, entry is None or (entry.task_id is not None and is_final(details))

    async def _name(self, entry: Entry, details: TaskDetails) -> Entry | None:
        """Give the entry the task of these details, provided that Kie knows it and no other entry has it.

        Returns the entry as it is stored then. It has no task id yet if Kie does not know the task, or while
        the submit is under way. None if the entry has another task, or another entry has this one.
        """
        stored = await self._store.find(ref=entry.ref)
        owner = await self._store.find(task_id=details.task_id)
        if stored is None or (owner is not None and owner.ref != entry.ref):
            return None
        if details.state is not TaskState.MISSING:
            stored = await self._ledger.name_task(stored, details.task_id)
        self.wake(stored)
        return stored if stored.task_id in (None, details.task_id) else None

    async def _finish(self, details: TaskDetails) -> None:
        """Save the outcome of a task that may have no waiter."""
        if is_final(details):
            await self._ledger.finish(details)


def _known(entry: Entry | None) -> Entry | None:
    """The entry if it is known what became of its submit: its task, or that it was not charged."""
    if entry is None or (entry.task_id is None and entry.state is not EntryState.FAILED):
        return None
    return entry
