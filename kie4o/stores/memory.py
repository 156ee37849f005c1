"""The store that lives as long as the process: no file, the same promises while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ..errors import StoreLockedError
from .store import CALLBACKS_PER_REF, Entry, EntryState

KEPT = 10_000  # ended entries under a key of the caller's; older ones make room
KEPT_UNKEYED = 1_000  # the same without a key: for callbacks that are repeated


class MemoryStore:
    """A `Store` in dicts. Entries that still owe an outcome are never dropped; of those that have
    ended the last 10,000 are kept, and 1,000 that have no key of the caller's."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._key_of_task: dict[str, str] = {}
        self._key_of_ref: dict[str, str] = {}  # if it is not the ref itself
        self._inbox: dict[str, list[str]] = {}
        self._ended: dict[bool, dict[str, None]] = {True: {}, False: {}}  # by keyed; in order
        self._is_open = False

    async def open(self) -> None:
        if self._is_open:
            raise StoreLockedError("this store is open already: give each client its own")
        self._is_open = True

    async def claim(self, entry: Entry) -> Entry:
        if entry.key not in self._entries:
            self._index(entry)
        return self._entries[entry.key]

    async def save(self, entry: Entry) -> None:
        stood = self._index(entry)
        if entry.state.ended:
            self._inbox.pop(entry.ref, None)
            ended = self._ended[entry.keyed]
            ended[entry.key] = None
            if len(ended) > (KEPT if entry.keyed else KEPT_UNKEYED):
                oldest = next(iter(ended))
                del ended[oldest]
                self._unindex(oldest)
        elif stood is not None and stood.state.ended:
            self._ended[stood.keyed].pop(entry.key, None)

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
            key = self._key_of_ref.get(ref, ref)  # a dict compares keyed hashes first: no secret in its time
        entry = self._entries.get(key) if key is not None else None
        return None if entry is None or (ref is not None and entry.ref != ref) else entry

    async def keep_callback(self, ref: str, task_id: str) -> None:
        letters = self._inbox.setdefault(ref, [])
        if task_id not in letters and len(letters) < CALLBACKS_PER_REF:
            letters.append(task_id)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        return tuple(self._inbox.get(ref, ()))

    def _index(self, entry: Entry) -> Entry | None:
        """Keep the entry so that it is found; what stood in its place."""
        stood = self._entries.get(entry.key)
        if stood is not None and (stood.ref != entry.ref or stood.task_id not in (None, entry.task_id)):
            self._unindex(entry.key, but=entry.ref)
        self._entries[entry.key] = entry
        if entry.keyed:
            self._key_of_ref[entry.ref] = entry.key
        if entry.task_id is not None:
            self._key_of_task[entry.task_id] = entry.key
        return stood

    def _unindex(self, key: str, *, but: str = "") -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._key_of_ref.pop(entry.ref, None)
        if entry.ref != but:
            self._inbox.pop(entry.ref, None)
        if entry.task_id is not None:
            self._key_of_task.pop(entry.task_id, None)

    async def unfinished(self) -> AsyncIterator[Entry]:
        for entry in list(self._entries.values()):
            if entry.state in (EntryState.SUBMITTED, EntryState.UNKNOWN):
                yield entry

    async def recent(self, since: float) -> list[float]:
        stamps = [entry.submitted_at for entry in self._entries.values() if entry.submitted_at is not None]
        return [stamp for stamp in stamps if stamp > since]  # of another client on this store

    async def aclose(self) -> None:
        """What is known stays known as long as the store object lives."""
        self._is_open = False
