"""The store that lives as long as the process: no file, the same promises while it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from .store import LETTERS, Entry, EntryState, mark_of

KEPT = 10_000  # ended entries under a key of the caller's; older ones make room


class MemoryStore:
    """A `Store` in two dicts. Entries that still owe an outcome are never dropped; ended ones are
    kept only if the caller named a key, and at most 10,000 of them."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._key_of_task: dict[str, str] = {}
        self._key_of_mark: dict[bytes, str] = {}
        self._inbox: dict[str, list[str]] = {}
        self._ended: dict[str, None] = {}  # keys in the order in which they ended

    async def open(self) -> None:
        """Nothing to open."""

    async def claim(self, entry: Entry) -> Entry:
        if entry.key not in self._entries:
            self._index(entry)
        return self._entries[entry.key]

    async def save(self, entry: Entry) -> None:
        if entry.state.ended and not entry.keyed:
            await self.forget(entry.key)
            return
        self._index(entry)
        if entry.state.ended:
            self._inbox.pop(entry.ref, None)
            self._ended[entry.key] = None
            if len(self._ended) > KEPT:
                await self.forget(next(iter(self._ended)))
        else:
            self._ended.pop(entry.key, None)

    async def forget(self, key: str) -> None:
        self._ended.pop(key, None)
        self._unindex(key)

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        if task_id is not None:
            key = self._key_of_task.get(task_id)
        elif ref is not None:
            key = self._key_of_mark.get(mark_of(ref))
        return self._entries.get(key) if key is not None else None

    async def deposit(self, ref: str, task_id: str) -> None:
        letters = self._inbox.setdefault(ref, [])
        if task_id not in letters and len(letters) < LETTERS:
            letters.append(task_id)

    async def inbox(self, ref: str) -> Sequence[str]:
        return tuple(self._inbox.get(ref, ()))

    def _index(self, entry: Entry) -> None:
        self._unindex(entry.key, but=entry.ref)
        self._entries[entry.key] = entry
        self._key_of_mark[mark_of(entry.ref)] = entry.key
        if entry.task_id is not None:
            self._key_of_task[entry.task_id] = entry.key

    def _unindex(self, key: str, *, but: str = "") -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._key_of_mark.pop(mark_of(entry.ref), None)
        if entry.ref != but:
            self._inbox.pop(entry.ref, None)
        if entry.task_id is not None:
            self._key_of_task.pop(entry.task_id, None)

    async def unfinished(self) -> AsyncIterator[Entry]:
        for entry in list(self._entries.values()):
            if entry.state in (EntryState.SUBMITTED, EntryState.UNKNOWN):
                yield entry

    async def recent(self, since: float) -> list[float]:
        return []  # this process has its own rate limiter, which knows better

    async def aclose(self) -> None:
        """Nothing to close; what is known stays known as long as the store object lives."""
