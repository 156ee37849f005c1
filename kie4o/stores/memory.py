"""The store in this process's memory: the same promises as a file, for as long as the process runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence

from ..errors import StoreLockedError
from .shared import Shared
from .store import CALLBACKS_PER_REF, Entry, EntryState

KEPT = 10_000  # ended entries under a caller's key; older ones are dropped
KEPT_UNKEYED = 1_000  # the same without a key, for repeated callbacks


class MemoryStore:
    """A `Store` in dicts.

    Unfinished entries are never dropped. Of those that have ended it keeps the last 10,000 with a key, and
    the last 1,000 without.
    """

    shared: Shared | None = None

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._key_of_task: dict[str, str] = {}
        self._key_of_ref: dict[str, str] = {}  # where the key is not the ref itself
        self._callbacks: dict[str, list[str]] = {}  # task ids by ref
        self._ended: dict[bool, dict[str, None]] = {True: {}, False: {}}  # keys by `keyed`, oldest first
        self._is_open = False

    async def open(self) -> None:
        if self._is_open:
            raise StoreLockedError("this store is already open; give each client its own store")
        self._is_open = True

    async def claim(
        self, entry: Entry, *, takes: Collection[EntryState] = (EntryState.PLANNED,), wait: bool = True
    ) -> Entry | None:
        if entry.key not in self._entries:
            self._index(entry)
        return self._entries[entry.key]

    async def begin(self, entry: Entry) -> None:
        await self.save(entry)

    async def save(self, entry: Entry) -> None:
        previous = self._index(entry)
        if entry.state.ended:
            self._callbacks.pop(entry.ref, None)
            ended = self._ended[entry.keyed]
            ended[entry.key] = None
            if len(ended) > (KEPT if entry.keyed else KEPT_UNKEYED):
                oldest = next(iter(ended))
                del ended[oldest]
                self._unindex(oldest)
        elif previous is not None and previous.state.ended:
            self._ended[previous.keyed].pop(entry.key, None)

    async def release(self, key: str) -> None:
        """No other process can want the key."""

    async def forget(self, key: str) -> None:
        for ended in self._ended.values():
            ended.pop(key, None)
        self._unindex(key)

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        if task_id is not None:
            key = self._key_of_task.get(task_id)
        elif ref is not None:
            key = self._key_of_ref.get(ref, ref)  # a dict compares hashes first: timing reveals nothing
        entry = self._entries.get(key) if key is not None else None
        return None if entry is None or (ref is not None and entry.ref != ref) else entry

    async def keep_callback(self, ref: str, task_id: str) -> None:
        kept = self._callbacks.setdefault(ref, [])
        if task_id not in kept and len(kept) < CALLBACKS_PER_REF:
            kept.append(task_id)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        return tuple(self._callbacks.get(ref, ()))

    def _index(self, entry: Entry) -> Entry | None:
        """Store the entry so that it can be found; return the one it replaces."""
        previous = self._entries.get(entry.key)
        if previous is not None and (
            previous.ref != entry.ref or previous.task_id not in (None, entry.task_id)
        ):
            self._unindex(entry.key, keep_callbacks_of=entry.ref)
        self._entries[entry.key] = entry
        if entry.keyed:
            self._key_of_ref[entry.ref] = entry.key
        if entry.task_id is not None:
            self._key_of_task[entry.task_id] = entry.key
        return previous

    def _unindex(self, key: str, *, keep_callbacks_of: str = "") -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._key_of_ref.pop(entry.ref, None)
        if entry.ref != keep_callbacks_of:
            self._callbacks.pop(entry.ref, None)
        if entry.task_id is not None:
            self._key_of_task.pop(entry.task_id, None)

    async def unfinished(self) -> AsyncIterator[Entry]:
        for entry in list(self._entries.values()):
            if entry.state in (EntryState.SUBMITTED, EntryState.UNKNOWN):
                yield entry

    async def recent(self, since: float) -> list[float]:
        times = [entry.submitted_at for entry in self._entries.values() if entry.submitted_at is not None]
        return [time for time in times if time > since]  # of an earlier client on this store

    async def aclose(self) -> None:
        """Entries are kept for as long as the store object lives."""
        self._is_open = False
