"""What a callback does: it is kept, confirmed by a look at its task, and wakes whoever waits.

A callback is a hint. Its signature covers the task id and the time, not what it says, so nothing it
says is believed until Kie's own record says the same (unless the caller trusts callbacks). What it
does prove, by the ref in its URL, is which request it belongs to: the paid task of a submit whose
answer was lost is found again by it.
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
from ..stores.ledger import record_end
from ..stores.store import Entry, EntryState, Store
from ..transport.retrying import repeated

logger = logging.getLogger("kie4o")

_AGAIN = 30.0  # seconds until what callbacks have named is looked at once more
_WITHOUT_TASK = (EntryState.INTENT, EntryState.UNKNOWN)


class Delivery:
    """The callbacks of one client."""

    def __init__(self, store: Store, poller: TaskPoller, *, trusting: bool = False) -> None:
        self._store = store
        self._poller = poller
        self._trusting = trusting
        self._lost: dict[str, set[asyncio.Future[Entry | None]]] = {}  # who waits for a ref's task
        self._confirming: set[asyncio.Task[None]] = set()
        self._closed = False

    async def deliver(self, callback: Callback) -> TaskDetails:
        """Keep it, confirm it; the details of its task. Raises `CallbackError` for a stranger's."""
        return await self._confirmed(callback, await self.keep(callback))

    async def keep(self, callback: Callback) -> Entry | None:
        """Find what the callback belongs to and keep it as safely as the store can; no look at Kie.

        Unknown ones cost one search, whatever they say. None stands for a task that is waited for
        without having been submitted here.
        """
        if callback.ref is not None:
            entry = await self._store.find(ref=callback.ref)
            if entry is not None and entry.task_id is None and entry.state in _WITHOUT_TASK:
                await self._store.keep_callback(entry.ref, callback.task_id)
                return entry
        elif callback.verified:
            entry = await self._store.find(task_id=callback.task_id)
            if entry is None and self._poller.waits_for(callback.task_id):
                return None
        else:
            entry = None
        if entry is None or entry.task_id != callback.task_id:
            raise CallbackError("this callback belongs to nothing that was submitted here")
        return entry

    async def take(self, callback: Callback, *, most: int) -> bool:
        """What a receiver does before it answers: keep the callback, confirm it in a task of ours.

        False if `most` are waiting to be confirmed already.
        """
        if len(self._confirming) >= most:
            return False
        entry = await self.keep(callback)
        task = asyncio.create_task(self._confirm_quietly(callback, entry), name="kie4o callback")
        self._confirming.add(task)
        task.add_done_callback(self._confirming.discard)
        return True

    async def recalled(self, ref: str) -> Entry | None:
        """The entry of a ref if a callback that was kept, perhaps in an earlier life, names its task."""
        entry = await self._store.find(ref=ref)
        if entry is None:
            return None
        for task_id in await self._store.callbacks_of(ref):
            with contextlib.suppress(KieError):  # it stays unknown, and can be asked for again
                await self._settle(entry, task_id)
        entry = await self._store.find(ref=ref)
        return entry if entry is not None and entry.task_id is not None else None

    async def found_again(self, entry: Entry) -> Entry:
        """Wait until a callback names the task of a submit whose answer was lost. Raises `KieError` if
        the client is closed before."""
        future: asyncio.Future[Entry | None] = asyncio.get_running_loop().create_future()
        waiting = self._lost.setdefault(entry.ref, set())
        waiting.add(future)
        try:
            stands = None
            while stands is None and not self._closed:
                with contextlib.suppress(StoreError):  # it may work again before the callback comes
                    stands = await self.recalled(entry.ref)  # perhaps before we listened
                if stands is None:
                    await asyncio.wait([future], timeout=_AGAIN)
                    stands = future.result() if future.done() else None
        finally:
            waiting.discard(future)
            if not waiting:
                self._lost.pop(entry.ref, None)
        if stands is None:
            raise KieError("the client was closed before a callback came")
        return stands

    async def aclose(self) -> None:
        """Confirmations under way are ended; their tasks are looked at again in another life. Nobody
        waits for a callback any more."""
        self._closed = True
        for future in [future for waiting in self._lost.values() for future in waiting]:
            if not future.done():
                future.set_result(None)
        for task in self._confirming:
            task.cancel()
        await asyncio.gather(*self._confirming, return_exceptions=True)

    # -- confirming ------------------------------------------------------------------------------

    async def _confirm_quietly(self, callback: Callback, entry: Entry | None) -> None:
        try:
            await self._confirmed(callback, entry)
        except KieError as error:
            logger.warning("a callback about task %s could not be confirmed: %s", callback.task_id, error)

    async def _confirmed(self, callback: Callback, entry: Entry | None) -> TaskDetails:
        if entry is not None and entry.details is not None:
            return entry.details  # a repetition
        if entry is not None and entry.task_id is None:
            return await self._settle(entry, callback.task_id)
        if self._trusting and is_final(callback.details):
            details = callback.details
            self._poller.notify(callback.task_id, details)
        else:
            self._poller.notify(callback.task_id)
            details = await self._poller.look(callback.task_id)
        await self._end(details)
        return details

    async def _settle(self, entry: Entry, task_id: str) -> TaskDetails:
        """A callback names the task of a submit without an answer: true if Kie knows that task, and
        it is no other request's."""
        self._poller.notify(task_id)
        details = await repeated(lambda: self._poller.look(task_id))
        stands = await self._store.find(key=entry.key)
        owner = await self._store.find(task_id=task_id)
        if owner is not None and owner.ref != entry.ref:
            return details
        if details.state is TaskState.MISSING or stands is None or stands.ref != entry.ref:
            return details
        if stands.state is EntryState.UNKNOWN:
            stands = stands.become(EntryState.SUBMITTED, task_id=task_id)
            await self._store.save(stands)
            logger.info("task %s, whose submit answer was lost, is found again", task_id)
        for future in self._lost.get(entry.ref, ()):
            if stands.task_id is not None and not future.done():
                future.set_result(stands)
        if stands.task_id == task_id:
            await self._end(details)
        return details

    async def _end(self, details: TaskDetails) -> None:
        """Write an end down that nobody may be waiting for."""
        if is_final(details):
            await record_end(self._store, details)
