"""The store in one SQLite file: what a batch needs to survive a crash.

A write is on the disk when it returns (`synchronous=FULL`): no INTENT there, no POST. One
connection lives on one thread; calls queue up for it, and all that are waiting share one commit,
so that durability costs one fsync per group. The file is locked for as long as it is open, since
two processes that do not know of each other would pay twice; `kill -9` frees it.

What SQLite does not notice we check when opening: an empty file that should not be, rows whose
checksum does not fit. A damaged store is an error, never a silent start from zero.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ..errors import StoreError, StoreLockedError
from .packing import checksum, unpacked
from .sqlite_file import SAVE, failure_of, open_file, row_of
from .store import CALLBACKS_PER_REF, Entry, EntryState, mark_of

_T = TypeVar("_T")
_Work = Callable[[sqlite3.Connection], Any]
_Job = tuple[_Work, asyncio.Future[Any]]
_GROUP = 1000  # calls that may share one commit
_PAGE = 500  # entries fetched at once


class SQLiteStore:
    """A `Store` in the file at `path`, made if it is missing (mode 0600)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._leaving: threading.Thread | None = None  # the one before, which may still hold the file
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()
        self._commits = 0

    async def open(self) -> None:
        """Raises `StoreLockedError` if it is open elsewhere, `StoreError` if it is damaged."""
        if self._thread is not None:
            raise StoreLockedError(f"the store {self.path} is open already: give each client its own")
        await self._left()
        loop = self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._jobs = queue.SimpleQueue()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=self._serve, args=(loop, self._jobs, opened), name="kie4o store", daemon=True
        )
        self._thread.start()
        try:
            await opened
        except BaseException:
            self._leave()
            raise

    async def claim(self, entry: Entry) -> Entry:
        row = row_of(entry)

        def work(connection: sqlite3.Connection) -> Entry:
            stands = _find(connection, column="key", value=entry.key)
            if stands is None:
                connection.execute(SAVE, row)
            return stands or entry

        return await self._do(work)

    async def save(self, entry: Entry) -> None:
        row, mark = row_of(entry), mark_of(entry.ref)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(SAVE, row)
            if entry.state is EntryState.PLANNED:
                connection.execute("DELETE FROM slot WHERE mark = ?", (mark,))
            elif entry.submitted_at is not None:
                connection.execute("INSERT OR REPLACE INTO slot VALUES (?, ?)", (mark, entry.submitted_at))
            if entry.state.ended:
                connection.execute("DELETE FROM callback WHERE mark = ?", (mark,))

        await self._do(work)

    async def forget(self, key: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            for mark in connection.execute("SELECT mark FROM entry WHERE key = ?", (key,)).fetchall():
                connection.execute("DELETE FROM slot WHERE mark = ?", mark)
                connection.execute("DELETE FROM callback WHERE mark = ?", mark)
            connection.execute("DELETE FROM entry WHERE key = ?", (key,))

        await self._do(work)

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        if ref is not None:
            return await self._do(partial(_find, column="mark", value=mark_of(ref)))
        if task_id is not None:
            return await self._do(partial(_find, column="task_id", value=task_id))
        return await self._do(partial(_find, column="key", value=key))

    async def keep_callback(self, ref: str, task_id: str) -> None:
        mark = mark_of(ref)

        def work(connection: sqlite3.Connection) -> None:
            [count] = connection.execute("SELECT count(*) FROM callback WHERE mark = ?", (mark,)).fetchone()
            if count < CALLBACKS_PER_REF:
                row = (mark, task_id, checksum(mark + task_id.encode()))
                connection.execute("INSERT INTO callback VALUES (?, ?, ?) ON CONFLICT DO NOTHING", row)

        await self._do(work)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        mark = mark_of(ref)
        sql = "SELECT task_id, checksum FROM callback WHERE mark = ?"
        rows = await self._do(lambda connection: connection.execute(sql, (mark,)).fetchall())
        return tuple(task_id for task_id, check in rows if checksum(mark + task_id.encode()) == check)

    async def unfinished(self) -> AsyncIterator[Entry]:
        last = 0
        while page := await self._do(partial(_unfinished, after=last)):
            for _, entry in page:
                yield entry
            last = page[-1][0]

    async def recent(self, since: float) -> list[float]:
        sql = "SELECT at FROM slot WHERE at > ?"
        rows = await self._do(lambda connection: connection.execute(sql, (since,)).fetchall())
        return [row[0] for row in rows]

    async def aclose(self) -> None:
        if self._thread is not None:
            self._leave()
        await self._left()

    def _leave(self) -> None:
        self._jobs.put(None)
        self._leaving, self._thread = self._thread, None

    async def _left(self) -> None:
        if self._leaving is not None:
            await asyncio.shield(asyncio.to_thread(self._leaving.join))

    # -- the thread ------------------------------------------------------------------------------

    async def _do(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Have the thread do it; done and on the disk when this returns. Cancelling does not undo."""
        loop = asyncio.get_running_loop()
        if self._thread is None or self._loop is not loop:
            raise StoreError(f"the store {self.path} is not open here")
        if self._pid != os.getpid():
            raise StoreError(f"the store {self.path} was opened before a fork: open it in the child")
        done: asyncio.Future[_T] = loop.create_future()
        self._jobs.put((work, done))
        return await done

    def _serve(
        self,
        loop: asyncio.AbstractEventLoop,
        jobs: queue.SimpleQueue[_Job | None],
        opened: asyncio.Future[None],
    ) -> None:
        try:
            connection = open_file(self.path)
        except StoreError as error:
            _report(loop, [(opened, None, error)])
            return
        _report(loop, [(opened, None, None)])
        going = True
        while going:
            group: list[_Job] = []
            job = jobs.get()
            while job is not None:
                group.append(job)
                if len(group) == _GROUP or jobs.empty():
                    break
                job = jobs.get()
            going = job is not None
            if group:
                _report(loop, self._commit(connection, group))
        with suppress(sqlite3.Error):
            connection.close()

    def _commit(self, connection: sqlite3.Connection, group: list[_Job]) -> list[_Outcome]:
        """One transaction for the group; if it fails, one for each, so that each learns its own."""
        try:
            connection.execute("BEGIN IMMEDIATE")
            values = [work(connection) for work, _ in group]
            connection.execute("COMMIT")
            self._commits += 1
            if self._commits.bit_count() == 1:  # 1, 2, 4, ...: a young store is not in its log alone
                with suppress(sqlite3.Error):  # what was committed stays committed
                    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
            return [(done, value, None) for (_, done), value in zip(group, values, strict=True)]
        except Exception as error:  # the thread must not die: others wait for it
            failure = error if isinstance(error, StoreError) else failure_of(self.path, error)
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        if len(group) > 1:
            return [outcome for job in group for outcome in self._commit(connection, [job])]
        return [(group[0][1], None, failure)]


_Outcome = tuple[asyncio.Future[Any], Any, StoreError | None]


def _report(loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
    def resolve() -> None:
        for done, value, error in outcomes:
            if done.done():
                continue
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

    with suppress(RuntimeError):  # the loop is gone, and whoever asked with it
        loop.call_soon_threadsafe(resolve)


def _find(connection: sqlite3.Connection, *, column: str, value: object) -> Entry | None:
    sql = f"SELECT body, checksum FROM entry WHERE {column} = ?"  # noqa: S608  # three columns of ours
    row = connection.execute(sql, (value,)).fetchone()
    return None if row is None else unpacked(*row)


def _unfinished(connection: sqlite3.Connection, after: int) -> list[tuple[int, Entry]]:
    sql = (
        "SELECT id, body, checksum FROM entry "
        "WHERE state IN ('submitted', 'unknown') AND id > ? ORDER BY id LIMIT ?"
    )
    return [(number, unpacked(*row)) for number, *row in connection.execute(sql, (after, _PAGE))]
