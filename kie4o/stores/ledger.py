"""The only writer of entries: what is saved about a submit and when, and what happens if that fails.

Before the POST a failed write stops everything: without an INTENT nothing is sent. After it a failed write
must not lose what is known. The task id stays in memory, is logged, is carried by the error, and is saved
again until the store accepts it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import attrs

from ..details import TaskDetails, TaskState
from ..errors import StoreError
from .store import Entry, EntryState, Store

logger: logging.Logger = logging.getLogger("kie4o")

_FIRST_DELAY = 1.0  # seconds before a failed write is repeated; doubled each time
_LONGEST_DELAY = 30.0


class Ledger:
    """The entries of one client, written as its requests proceed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unsaved: dict[str, Entry] = {}  # by key
        self._writer: asyncio.Task[None] | None = None

    # -- a submit --------------------------------------------------------------------------------

    async def claim(self, entry: Entry, takes: tuple[EntryState, ...]) -> Entry:
        """Store the entry if its key is new; return what is stored under the key."""
        unsaved = self._unsaved.get(entry.key)
        if unsaved is not None:
            return unsaved
        stored = await self._store.claim(entry, takes=takes)
        if stored is None:
            raise StoreError(f"key {entry.key!r} is in use by another process", key=entry.key)
        return stored

    def begin(self, entry: Entry) -> Awaitable[None]:
        """Save the INTENT. Raises `StoreError`; then the request must not be sent."""
        return self._store.begin(entry)

    async def submitted(self, entry: Entry) -> None:
        """Save the task id that arrived. Raises a `StoreError` that carries it if that fails."""
        self._unsaved[entry.key] = entry  # also if this call is cancelled
        try:
            await self._store.save(entry)
            self._saved(entry)
            return
        except StoreError as error:
            message = f"task {entry.task_id} is paid but could not be saved: {error}"
        logger.error("%s; it is kept in memory and will be saved again", message)
        if self._writer is None:
            self._writer = asyncio.create_task(self._save_until_done(), name="kie4o store writer")
        raise StoreError(message, task_id=entry.task_id, key=entry.key if entry.keyed else None)

    async def unknown(self, entry: Entry) -> None:
        """Save that the outcome is unknown. A failure is logged only: an INTENT says the same."""
        await self._note(entry)

    async def unpaid(self, entry: Entry, previous: Entry | None = None) -> Entry:
        """Undo the INTENT of a request that was not charged; return the entry as planned.

        The `previous` entry of the key is restored if it had an outcome. Without a key there is nothing to
        keep.
        """
        planned = attrs.evolve(entry, state=EntryState.PLANNED, submitted_at=None)
        if entry.keyed:
            had_outcome = previous is not None and previous.state is not EntryState.PLANNED
            await self._note(previous if previous is not None and had_outcome else planned)
            return planned
        try:
            await self._store.forget(entry.key)
        except StoreError as error:
            logger.error("a submit that was not charged could not be deleted from the store: %s", error)
        return planned

    async def release(self, key: str) -> None:
        """Let go of a key whose submit is over. A failure is logged only: a process's hold expires."""
        if self._store.shared is None:
            return
        try:
            await self._store.release(key)
        except StoreError as error:
            logger.error("a key could not be released: %s", error)

    # -- a task ----------------------------------------------------------------------------------

    async def name_task(self, entry: Entry, task_id: str) -> Entry:
        """Save the task id that a callback named for a submit whose outcome was unknown."""
        named = entry.become(EntryState.SUBMITTED, task_id=task_id)
        await self._store.save(named)
        logger.info("task %s, whose submit response was lost, was found by its callback", task_id)
        return named

    async def finish(self, details: TaskDetails) -> None:
        """Save the final status of a task.

        A failure is logged only: the next process polls again, for free.
        """
        state = EntryState.FAILED if details.state is TaskState.FAILED else EntryState.SUCCEEDED
        try:
            entry = await self._store.find(task_id=details.task_id)
            if entry is not None and not entry.state.ended:
                await self._store.save(entry.become(state, details=details))
        except StoreError as error:
            logger.error("the outcome of task %s could not be saved: %s", details.task_id, error)

    # -- failed writes ---------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Try once more to save what could not be saved."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._save_unsaved()
        for entry in self._unsaved.values():
            logger.error("task %s is paid and was never saved; keep its id for client.wait()", entry.task_id)

    async def _note(self, entry: Entry) -> None:
        try:
            await self._store.save(entry)
        except StoreError as error:
            logger.error("a submit is %s and could not be saved as such: %s", entry.state.value, error)

    async def _save_until_done(self) -> None:
        delay = _FIRST_DELAY
        while self._unsaved:
            await asyncio.sleep(delay)
            await self._save_unsaved()
            delay = min(2 * delay, _LONGEST_DELAY)
        self._writer = None

    async def _save_unsaved(self) -> None:
        for key, entry in list(self._unsaved.items()):
            if self._unsaved.get(key) is not entry:
                continue  # saved meanwhile, perhaps followed by something newer
            try:
                await self._store.save(entry)
            except StoreError:
                continue
            self._saved(entry)

    def _saved(self, entry: Entry) -> None:
        if self._unsaved.get(entry.key) is entry:
            del self._unsaved[entry.key]
