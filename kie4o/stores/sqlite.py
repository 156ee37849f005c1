"""The store in one SQLite file: what a batch needs to survive a crash.

A write is on disk when it returns (`synchronous=FULL`): without an INTENT there is no POST. The file is
locked while it is open, since two processes that do not know of each other would pay twice; the lock ends
with the process. Before each group of calls the path is compared with the open file: what is written into a
file that no one can find again is lost.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from .. import clock
from ..events.reporter import Reporter
from ..pricing import Spent
from .packing import checksum, unpacked
from .shared import Shared
from .spending import spent_of
from .sqlite_backup import copy_to
from .sqlite_file import CLAIM, SAVE, StoreConnection, ages_of_slots, count_slot, row_of
from .sqlite_pruning import give_back, prune_page, shrink
from .sqlite_worker import ThreadWorker, Worker
from .store import CALLBACKS_PER_REF, Entry, EntryState, duplicate_task, hash_of_ref

_PAGE = 500  # entries fetched at once
# What `SAVE` does where the entry is under its key already, as in nearly every write: with the task that it
# has, or with a new one that no other entry has. `SAVE` writes the entry into each index again, and two other
# statements have to look before it; that would be a third of the instructions of the thread.
_REPLACE = """
UPDATE entry SET state = ?, submitted_at = ?, price = ?, body = ?, checksum = ?
WHERE key = ? AND ref_hash = ? AND task_id IS ?
"""
_REPLACE_WITH_TASK = """
UPDATE entry SET task_id = ?, state = ?, submitted_at = ?, price = ?, body = ?, checksum = ?
WHERE key = ? AND ref_hash = ?
    AND NOT EXISTS (SELECT * FROM entry AS other WHERE other.task_id = ? AND other.ref_hash <> ?)
"""
# A new submit of a key that is replaced by what was stored before it was not paid for.
_GIVE_UP_SLOT = """
DELETE FROM slot WHERE ref_hash IN
    (SELECT ref_hash FROM entry WHERE key = ? AND state = 'intent' AND ref_hash <> ?)
"""

# As `Entry.charged` says.
_SPENT = """
SELECT state, price, count(*) FROM entry
WHERE state <> 'planned' AND (state <> 'failed' OR task_id IS NOT NULL) GROUP BY state, price
UNION ALL SELECT state, nullif(price, ''), tasks FROM pruned
"""


class SQLiteStore:
    """A `Store` in the file at `path`, created if it is missing (mode 0600 on POSIX)."""

    shared: Shared | None = None

    def __init__(self, path: str | os.PathLike[str], *, worker: Worker | None = None) -> None:
        self.path: Path = Path(path)
        self._worker = worker or ThreadWorker()

    @property
    def reporter(self) -> Reporter:
        """Who is told of what happens to the store."""
        return self._worker.reporter

    @reporter.setter
    def reporter(self, reporter: Reporter) -> None:
        self._worker.reporter = reporter

    async def open(self) -> None:
        """Raises `StoreLockedError` if the file is open elsewhere, `StoreError` if it is damaged."""
        await self._worker.start(self.path)

    async def claim(
        self, entry: Entry, *, takes: Collection[EntryState] = (EntryState.PLANNED,), wait: bool = True
    ) -> Entry | None:
        row = row_of(entry)

        def work(connection: StoreConnection) -> Entry | None:
            if connection.execute(CLAIM, row).rowcount:
                return entry
            return _find(connection, column="key", value=entry.key)

        return await self._worker.run(work)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        writes = [_Write(each) for each in (superseded, entry) if each is not None]

        def work(connection: StoreConnection) -> None:
            for write in writes:
                write(connection)

        await self._worker.run(work)

    async def save(self, entry: Entry) -> None:
        await self._worker.run(_Write(entry))

    async def release(self, key: str) -> None:
        sql = "DELETE FROM entry WHERE key = ? AND state = 'planned'"
        await self._worker.run(lambda connection: connection.execute(sql, (key,)))

    async def forget(self, key: str) -> None:
        def work(connection: StoreConnection) -> None:
            for row in connection.execute("SELECT ref_hash FROM entry WHERE key = ?", (key,)).fetchall():
                connection.execute("DELETE FROM slot WHERE ref_hash = ?", row)
                connection.execute("DELETE FROM callback WHERE ref_hash = ?", row)
            connection.execute("DELETE FROM entry WHERE key = ?", (key,))

        await self._worker.run(work)

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        if ref is not None:
            return await self._worker.run(partial(_find, column="ref_hash", value=hash_of_ref(ref)))
        if task_id is not None:
            return await self._worker.run(partial(_find, column="task_id", value=task_id))
        return await self._worker.run(partial(_find, column="key", value=key))

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        def work(connection: StoreConnection) -> list[tuple[Any, Any] | None]:
            return [_row(connection, column="key", value=key) for key in keys]

        rows = await self._worker.run(work)
        # Not on the worker's thread, where unpacking 20,000 entries takes 52 us each instead of 34.
        return [None if row is None else unpacked(*row) for row in rows]

    async def keep_callback(self, ref: str, task_id: str) -> None:
        ref_hash = hash_of_ref(ref)

        def work(connection: StoreConnection) -> None:
            sql = "SELECT count(*) FROM callback WHERE ref_hash = ?"
            [count] = connection.execute(sql, (ref_hash,)).fetchone()
            if count < CALLBACKS_PER_REF:
                row = (ref_hash, task_id, checksum(ref_hash + task_id.encode()))
                connection.execute("INSERT INTO callback VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)

        await self._worker.run(work)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        ref_hash = hash_of_ref(ref)
        sql = "SELECT task_id, checksum FROM callback WHERE ref_hash = ?"
        rows = await self._worker.run(lambda connection: connection.execute(sql, (ref_hash,)).fetchall())
        return tuple(task_id for task_id, check in rows if checksum(ref_hash + task_id.encode()) == check)

    async def unfinished(self) -> AsyncIterator[Entry]:
        last = 0
        while page := await self._worker.run(partial(_unfinished, after=last)):
            for _, entry in page:
                yield entry
            last = page[-1][0]

    async def spent(self) -> Spent:
        rows = await self._worker.run(lambda connection: connection.execute(_SPENT).fetchall())
        return spent_of(
            (EntryState(state), None if price is None else Decimal(price), count)
            for state, price, count in rows  # 6 and 6.0 are two texts, each with a row of its own
        )

    async def prune(self, before: float) -> int:
        """Also gives the space back, if the file was created by a kie4o that has this method."""
        removed, last = 0, 0
        while page := await self._worker.run(partial(prune_page, after=last, before=before)):
            removed, last = removed + page.removed, page.last
        while await self._worker.run(give_back, alone=True):
            pass
        await self._worker.run(shrink, alone=True)
        return removed

    async def recent(self, per: float) -> list[float]:
        return await self._worker.run(partial(ages_of_slots, per=per))

    async def backup(self, path: str | os.PathLike[str]) -> None:
        await self._worker.run(partial(copy_to, target=Path(path)), alone=True)

    async def aclose(self) -> None:
        await self._worker.stop()


class _Write:
    """The SQL that stores an entry, packed when it is created: on the loop, not on the worker's thread."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._row = row_of(entry)
        self._ref_hash: bytearray = self._row[1]
        self._uptime = clock.uptime()

    def __call__(self, connection: StoreConnection) -> None:
        entry, ref_hash = self._entry, self._ref_hash
        key, _, task_id, *values = self._row
        if entry.state is EntryState.SUBMITTED:
            words: list[Any] = [task_id, *values, key, ref_hash, task_id, ref_hash]
            replaced = connection.execute(_REPLACE_WITH_TASK, words)
        else:
            replaced = connection.execute(_REPLACE, [*values, key, ref_hash, task_id])
        if not replaced.rowcount:
            self._move(connection)
        count_slot(connection, entry, ref_hash, self._uptime)
        if entry.state.ended:
            connection.execute("DELETE FROM callback WHERE ref_hash = ?", (ref_hash,))

    def _move(self, connection: StoreConnection) -> None:
        """Store the entry where another is, or none; if it is under another key, it moves from there."""
        entry, ref_hash = self._entry, self._ref_hash
        if entry.state is EntryState.SUBMITTED:
            owner = _find(connection, column="task_id", value=entry.task_id)
            if owner is not None and owner.ref != entry.ref:
                raise duplicate_task(owner.task_id or "", owner)
        connection.execute("DELETE FROM entry WHERE ref_hash = ? AND key <> ?", (ref_hash, entry.key))
        connection.execute(_GIVE_UP_SLOT, (entry.key, ref_hash))
        connection.execute(SAVE, self._row)


def _find(connection: StoreConnection, *, column: str, value: object) -> Entry | None:
    row = _row(connection, column=column, value=value)
    return None if row is None else unpacked(*row)


def _row(connection: StoreConnection, *, column: str, value: object) -> tuple[Any, Any] | None:
    sql = f"SELECT body, checksum FROM entry WHERE {column} = ?"  # noqa: S608  # one of three columns named above
    row: tuple[Any, Any] | None = connection.execute(sql, (value,)).fetchone()
    return row


def _unfinished(connection: StoreConnection, after: int) -> list[tuple[int, Entry]]:
    sql = (
        "SELECT id, body, checksum FROM entry "
        "WHERE state IN ('submitted', 'unknown') AND id > ? ORDER BY id LIMIT ?"
    )
    return [(number, unpacked(*row)) for number, *row in connection.execute(sql, (after, _PAGE))]
