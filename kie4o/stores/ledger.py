"""What is written about a submit and when, and what happens when it cannot be written.

Before the POST a failed write stops everything: no intent, no money spent. After it a failed write
must not lose what is known: the task id is kept here, logged, carried by the error, and written
again until it is on the disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

import attrs

from ..details import TaskDetails, TaskState
from ..errors import StoreError
from .store import Entry, EntryState, Store

logger = logging.getLogger("kie4o")

_FIRST_PAUSE = 1.0  # seconds before a failed write is tried again; doubled each time
_LONGEST_PAUSE = 30.0


class Ledger:
    """The store as the paid call uses it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: dict[str, Entry] = {}
        self._writer: asyncio.Task[None] | None = None

    async def claim(self, entry: Entry) -> Entry:
        """What stands under the key."""
        return self._unwritten.get(entry.key) or await self._store.claim(entry)

    def intent(self, entry: Entry) -> Awaitable[None]:
        """Raises `StoreError`: then the request must not leave."""
        return self._store.save(entry)

    async def paid(self, entry: Entry) -> None:
        """A task id has arrived. Raises `StoreError` that carries it if it could not be written."""
        self._unwritten[entry.key] = entry  # also if we are cancelled meanwhile
        try:
            await self._store.save(entry)
            self._written(entry)
            return
        except StoreError as error:
            sentence = f"task {entry.task_id} is paid, but could not be written down: {error}"
        logger.error("%s; it is kept in memory and written again", sentence)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_again(), name="kie4o store writer")
        raise StoreError(sentence, task_id=entry.task_id, key=entry.key if entry.keyed else None)

    async def note(self, entry: Entry) -> None:
        """Something that the store would conclude by itself from the intent it holds."""
        try:
            await self._store.save(entry)
        except StoreError as error:
            logger.error("a submit is %s and could not be written down: %s", entry.state.value, error)

    async def unpaid(self, entry: Entry, stood: Entry | None = None) -> Entry:
        """Nothing was paid: what `stood` under the key before stands again, if it came to anything;
        else the key may be used again, and without a key there is nothing to know."""
        planned = attrs.evolve(entry, state=EntryState.PLANNED, submitted_at=None)
        if entry.keyed:
            await self.note(stood if stood is not None and stood.state is not EntryState.PLANNED else planned)
            return planned
        try:
            await self._store.forget(entry.key)
        except StoreError as error:
            logger.error("a submit that was not paid could not be forgotten: %s", error)
        return planned

    async def aclose(self) -> None:
        """One last try for what could not be written."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        await self._write()
        for entry in self._unwritten.values():
            logger.error("task %s is paid and was never written down", entry.task_id)

    async def _write_again(self) -> None:
        pause = _FIRST_PAUSE
        while self._unwritten:
            await asyncio.sleep(pause)
            await self._write()
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._writer = None

    async def _write(self) -> None:
        for key, entry in list(self._unwritten.items()):
            if self._unwritten.get(key) is not entry:
                continue  # written meanwhile, and perhaps something newer after it
            try:
                await self._store.save(entry)
            except StoreError:
                continue
            self._written(entry)

    def _written(self, entry: Entry) -> None:
        if self._unwritten.get(entry.key) is entry:
            del self._unwritten[entry.key]


async def record_end(store: Store, details: TaskDetails) -> None:
    """Write the end of a task down; if that fails the next life looks again, which costs nothing."""
    state = EntryState.FAILED if details.state is TaskState.FAILED else EntryState.SUCCEEDED
    try:
        entry = await store.find(task_id=details.task_id)
        if entry is not None and not entry.state.ended:
            await store.save(entry.become(state, details=details))
    except StoreError as error:
        logger.error("the end of task %s could not be written down: %s", details.task_id, error)
