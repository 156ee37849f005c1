"""The store in this process's memory: the same promises as a file, for as long as the process runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from decimal import Decimal

from .. import clock
from ..details import EXPIRY
from ..errors import StoreLockedError
from ..events import StoreWarned
from ..events.reporter import LOG, Reporter
from ..pricing import Spent
from .shared import Shared
from .spending import spent_of
from .store import CALLBACKS_PER_REF, Entry, EntryState, duplicate_task

KEPT = 10_000  # ended entries under a caller's key; older ones are dropped
KEPT_UNKEYED = 1_000  # the same without a key, for repeated callbacks
KEPT_SLOTS = 1_000  # submits that count against the account's limit of 20 in 10 s, for the next client
MOST = 100_000  # entries in all, at 1 to 1.8 KiB each; the account's limit admits as many in 14 hours

_SWEEP = 1_000  # saves after which old entries are looked for


class MemoryStore:
    """A `Store` in dicts.

    Of the entries that have ended it keeps the last 10,000 with a key, and the last 1,000 without. Unfinished
    ones are kept for as long as Kie keeps their tasks, up to 100,000 entries in all.
    """

    shared: Shared | None = None

    def __init__(self) -> None:
        self.reporter: Reporter = LOG
        self._entries: dict[str, Entry] = {}
        self._key_of_task: dict[str, str] = {}
        self._key_of_ref: dict[str, str] = {}  # where the key is not the ref itself
        self._callbacks: dict[str, list[str]] = {}  # task ids by ref
        self._ended: dict[bool, dict[str, None]] = {True: {}, False: {}}  # keys by `keyed`, oldest first
        self._slots: dict[str, float] = {}  # the uptime from which each submit counts, by ref
        self._forgotten: Counter[tuple[EntryState, Decimal | None]] = Counter()  # dropped, by state and price
        self._is_open = False
        self._saves = 0
        self._warned = False

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

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        if superseded is not None:
            await self.save(superseded)
        await self.save(entry)

    async def save(self, entry: Entry) -> None:
        self._check_task_id(entry)
        previous = self._index(entry)
        self._count_slot(entry, previous)
        if entry.state.ended:
            self._callbacks.pop(entry.ref, None)
            ended = self._ended[entry.keyed]
            ended[entry.key] = None
            if len(ended) > (KEPT if entry.keyed else KEPT_UNKEYED):
                self._forget(next(iter(ended)))
        elif previous is not None:
            self._ended[previous.keyed].pop(entry.key, None)
        self._drop_old()

    async def release(self, key: str) -> None:
        entry = self._entries.get(key)
        if entry is not None and entry.state is EntryState.PLANNED:
            self._drop(key)

    async def forget(self, key: str) -> None:
        if key in self._entries:
            self._slots.pop(self._entries[key].ref, None)
        self._drop(key)

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        if task_id is not None:
            key = self._key_of_task.get(task_id)
        elif ref is not None:
            key = self._key_of_ref.get(ref, ref)  # a dict compares hashes first: timing reveals nothing
        entry = self._entries.get(key) if key is not None else None
        return None if entry is None or (ref is not None and entry.ref != ref) else entry

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        return [self._entries.get(key) for key in keys]

    async def keep_callback(self, ref: str, task_id: str) -> None:
        kept = self._callbacks.setdefault(ref, [])
        if task_id not in kept and len(kept) < CALLBACKS_PER_REF:
            kept.append(task_id)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        return tuple(self._callbacks.get(ref, ()))

    def _check_task_id(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED and entry.task_id in self._key_of_task:
            owner = self._entries[self._key_of_task[entry.task_id]]
            if owner.ref != entry.ref:
                raise duplicate_task(entry.task_id, owner)

    def _index(self, entry: Entry) -> Entry | None:
        """Store the entry so that it can be found; return the one it replaces."""
        previous = self._entries.get(entry.key)
        if previous is not None and (
            previous.ref != entry.ref or previous.task_id not in (None, entry.task_id)
        ):
            self._unindex(entry.key, keep_callbacks_of=entry.ref)
        moved_from = self._key_of_ref.get(entry.ref, entry.ref)
        if moved_from != entry.key:
            self._drop(moved_from, keep_callbacks_of=entry.ref)
        self._entries[entry.key] = entry
        if entry.keyed:
            self._key_of_ref[entry.ref] = entry.key
        if entry.task_id is not None:
            self._key_of_task[entry.task_id] = entry.key
        return previous

    def _drop(self, key: str, *, keep_callbacks_of: str = "") -> None:
        for ended in self._ended.values():
            ended.pop(key, None)
        self._unindex(key, keep_callbacks_of=keep_callbacks_of)

    def _drop_old(self) -> None:
        """From time to time drop the unfinished entries whose tasks Kie has forgotten; and the oldest entry
        whenever there are too many."""
        self._saves += 1
        if self._saves % _SWEEP == 0:
            expired = clock.unix_time() - EXPIRY
            for key, entry in list(self._entries.items()):
                if not entry.state.ended and (entry.submitted_at or expired) < expired:
                    self._forget(key)
        if len(self._entries) > MOST:
            key, oldest = next(iter(self._entries.items()))
            if not oldest.state.ended and not self._warned:
                self._warned = True
                self.reporter(StoreWarned(what="full", detail=f"{MOST:,}"))
            self._forget(key)

    def _forget(self, key: str) -> None:
        """Drop an entry that is old, or for want of room; what it cost still counts."""
        entry = self._entries[key]
        if entry.charged:
            self._forgotten[entry.state, entry.price] += 1
        self._drop(key)

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

    async def spent(self) -> Spent:
        filed = self._forgotten + _filed(self._entries.values())
        return spent_of((state, price, count) for (state, price), count in filed.items())

    async def prune(self, before: float) -> int:
        entries = self._entries.values()
        old = [entry.key for entry in entries if entry.ended_at is not None and entry.ended_at < before]
        for key in old:
            self._forget(key)
        return len(old)

    async def recent(self, per: float) -> list[float]:
        now = clock.uptime()
        return [now - at for at in self._slots.values() if now - at < per]  # of an earlier client

    def _count_slot(self, entry: Entry, previous: Entry | None) -> None:
        """Count the submit against the account's limit from now, unless it is counted or was not paid for."""
        same = previous if previous is not None and previous.ref == entry.ref else None
        if previous is not None and previous.ref != entry.ref and previous.state is EntryState.INTENT:
            self._slots.pop(previous.ref, None)  # what was stored before that submit is restored
        if entry.state is EntryState.PLANNED:
            self._slots.pop(entry.ref, None)
        elif entry.submitted_at is not None and not entry.state.ended:
            if same is None and entry.ref in self._slots:
                return  # it moves to another key
            if same is None or same.submitted_at != entry.submitted_at:
                self._slots.pop(entry.ref, None)
                self._slots[entry.ref] = clock.uptime()
                if len(self._slots) > KEPT_SLOTS:
                    del self._slots[next(iter(self._slots))]

    async def aclose(self) -> None:
        """Entries are kept for as long as the store object lives."""
        self._is_open = False


def _filed(entries: Iterable[Entry]) -> Counter[tuple[EntryState, Decimal | None]]:
    """How many of the entries cost something, by state and price."""
    return Counter((entry.state, entry.price) for entry in entries if entry.charged)
