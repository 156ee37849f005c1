"""What a callback does: it is kept, confirmed by a poll of its task, and wakes the callers that wait.

A callback is a hint. Its signature covers the task id and the time, not the result, so nothing it says is
believed until Kie's own record says the same (unless the client trusts callbacks). The ref in its URL does
prove which request it belongs to. That is how a paid task is found again whose submit response was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from ..details import TaskDetails, TaskState
from ..errors import CallbackError, KieError, StoreError
from ..models import Callback
from ..polling.outcome import is_final
from ..polling.poller import TaskPoller
from ..stores.ledger import Ledger
from ..stores.store import Entry, EntryState, Store
from ..transport.retrying import repeated

logger: logging.Logger = logging.getLogger("kie4o")

_RECHECK = 30.0  # seconds until the task ids that callbacks have named are checked once more
_WITHOUT_TASK = (EntryState.INTENT, EntryState.UNKNOWN)


class Delivery:
    """The callbacks of one client. It reads from the store and writes through the ledger."""

    def __init__(self, store: Store, ledger: Ledger, poller: TaskPoller, *, trusting: bool = False) -> None:
        self._store = store
        self._ledger = ledger
        self._poller = poller
        self._trusting = trusting
        self._unnamed: dict[str, set[asyncio.Future[Entry | None]]] = {}  # waiters for the task of a ref
        self._confirming: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pending(self) -> int:
        """How many callbacks are being confirmed, and callers wait for one that names their task."""
        return len(self._confirming) + sum(len(waiters) for waiters in self._unnamed.values())

    async def deliver(self, callback: Callback) -> TaskDetails:
        """Keep and confirm a callback; return the details of its task.

        Raises `CallbackError` if it is unknown.
        """
        return await self._confirmed(callback, await self.keep(callback))

    async def keep(self, callback: Callback) -> Entry | None:
        """Find the entry that a callback belongs to, and store the task id it names. Polls nothing.

        An unknown callback costs one search, whatever it says. The entry is None for a task that is waited
        for and was not submitted here.
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
            raise CallbackError(
                "unknown callback: it matches no request submitted by this client; pass the ref from its URL "
                "to parse_callback"
            )
        return entry

    async def accept(self, callback: Callback, *, limit: int) -> bool:
        """Keep a callback, and confirm it in a background task, so that a receiver can answer at once.

        Returns False, and keeps nothing, if `limit` callbacks are being confirmed already.
        """
        if len(self._confirming) >= limit:
            return False
        entry = await self.keep(callback)
        task = asyncio.create_task(self._confirm(callback, entry), name="kie4o callback")
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)
        return True

    async def named_task(self, ref: str) -> Entry | None:
        """The entry of a ref with its task id, if a stored callback names one that Kie confirms."""
        entry = await self._store.find(ref=ref)
        if entry is None:
            return None
        for task_id in await self._store.callbacks_of(ref):
            with contextlib.suppress(KieError):  # it stays unknown and can be asked for again
                await self._check_name(entry, task_id)
        entry = await self._store.find(ref=ref)
        return entry if entry is not None and entry.task_id is not None else None

    async def wait_for_name(self, entry: Entry) -> Entry:
        """Wait until a callback names the task of a submit whose response was lost.

        Raises `KieError` if the client is closed before.
        """
        waiter: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        waiters = self._unnamed.setdefault(entry.ref, set())
        waiters.add(waiter)
        try:
            named = None
            while named is None and not self._closed:
                with contextlib.suppress(StoreError):  # the store may work again before the callback arrives
                    named = await self.named_task(entry.ref)  # it may have arrived before this call
                if named is None:
                    await asyncio.wait([waiter], timeout=_RECHECK)
                    named = waiter.result() if waiter.done() else None
        finally:
            waiters.discard(waiter)
            if not waiters:
                self._unnamed.pop(entry.ref, None)
        if named is None:
            raise KieError("the client was closed before a callback arrived; check kie.ai/logs")
        return named

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

    async def _confirm(self, callback: Callback, entry: Entry | None) -> None:
        try:
            await self._confirmed(callback, entry)
        except KieError as error:
            logger.warning("the callback for task %s could not be confirmed: %s", callback.task_id, error)

    async def _confirmed(self, callback: Callback, entry: Entry | None) -> TaskDetails:
        """The details of the callback's task. Three cases:

        1. The entry has ended: the callback is a repetition.
        2. The entry has no task id: the callback names it.
        3. The task is polled now instead of later, or the callback is trusted.
        """
        if entry is not None and entry.details is not None:
            return entry.details
        if entry is not None and entry.task_id is None:
            return await self._check_name(entry, callback.task_id)
        if self._trusting and is_final(callback.details):
            details = callback.details
            self._poller.notify(callback.task_id, details)
        else:
            self._poller.notify(callback.task_id)
            details = await self._poller.look(callback.task_id)
        await self._finish(details)
        return details

    async def _check_name(self, entry: Entry, task_id: str) -> TaskDetails:
        """Give the entry this task id, provided that Kie knows the task and no other entry has it."""
        self._poller.notify(task_id)
        details = await repeated(lambda: self._poller.look(task_id))
        stored = await self._store.find(key=entry.key)
        owner = await self._store.find(task_id=task_id)
        if owner is not None and owner.ref != entry.ref:
            return details
        if details.state is TaskState.MISSING or stored is None or stored.ref != entry.ref:
            return details
        if stored.state is EntryState.UNKNOWN:
            stored = await self._ledger.name_task(stored, task_id)
        for waiter in self._unnamed.get(entry.ref, ()):
            if stored.task_id is not None and not waiter.done():
                waiter.set_result(stored)
        if stored.task_id == task_id:
            await self._finish(details)
        return details

    async def _finish(self, details: TaskDetails) -> None:
        """Save the outcome of a task that may have no waiter."""
        if is_final(details):
            await self._ledger.finish(details)
