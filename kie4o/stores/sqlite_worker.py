"""Where the SQL of a SQLite store runs: on one thread, which owns the connection.

Calls queue up for the thread, and all that wait at the same time share one transaction: durability costs
one fsync per group instead of one per call. `Worker` is the seam at which a simulation puts a worker of its
own, with time and faults under its control; `run_group` is what both do with a group.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..errors import StoreError, StoreLockedError
from .sqlite_file import failure_of, open_file

_T = TypeVar("_T")
Work = Callable[[sqlite3.Connection], _T]
_Job = tuple[Work[Any], asyncio.Future[Any]]
_Outcome = tuple[asyncio.Future[Any], Any, StoreError | None]

_GROUP = 1000  # calls that may share one transaction


class Worker(Protocol):
    """Runs the SQL of one store."""

    async def start(self, path: Path) -> None:
        """Open the file. Raises `StoreError`."""

    async def run(self, work: Work[_T]) -> _T:
        """What `work` returns once its transaction is on disk.

        Cancelling does not undo it. Raises `StoreError`.
        """
        ...

    async def stop(self) -> None:
        """Finish what is queued and close the file."""


class ThreadWorker:
    """The worker of a real store."""

    def __init__(self) -> None:
        self._path = Path()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping: threading.Thread | None = (
            None  # the previous thread, which may still have the file open
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    async def start(self, path: Path) -> None:
        if self._thread is not None:
            raise StoreLockedError(f"the store {path} is already open; give each client its own store")
        await self._join()
        self._path = path
        loop = self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._jobs = queue.SimpleQueue()
        opened: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=_serve, args=(path, loop, self._jobs, opened), name="kie4o store", daemon=True
        )
        self._thread.start()
        try:
            await opened
        except BaseException:
            self._request_stop()
            raise

    async def run(self, work: Work[_T]) -> _T:
        loop = asyncio.get_running_loop()
        if self._thread is None or self._loop is not loop:
            raise StoreError("the store is not open in this event loop")
        if self._pid != os.getpid():
            raise StoreError(f"the store {self._path} was opened before a fork; open it in the child process")
        done: asyncio.Future[_T] = loop.create_future()
        self._jobs.put((work, done))
        return await done

    async def stop(self) -> None:
        if self._thread is not None:
            self._request_stop()
        await self._join()

    def _request_stop(self) -> None:
        self._jobs.put(None)
        self._stopping, self._thread = self._thread, None

    async def _join(self) -> None:
        if self._stopping is not None:
            await asyncio.shield(asyncio.to_thread(self._stopping.join))


def run_group(
    connection: sqlite3.Connection, path: Path, group: Sequence[Work[Any]]
) -> list[tuple[Any, StoreError | None]]:
    """The results of a group in one transaction. If that fails each call gets its own, and its own error."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        results = [work(connection) for work in group]
        connection.execute("COMMIT")
        return [(result, None) for result in results]
    except Exception as error:  # the thread must not die, since callers wait for it
        failure = error if isinstance(error, StoreError) else failure_of(path, error)
    with suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
    if len(group) > 1:
        return [result for work in group for result in run_group(connection, path, [work])]
    return [(None, failure)]


def _serve(
    path: Path,
    loop: asyncio.AbstractEventLoop,
    jobs: queue.SimpleQueue[_Job | None],
    opened: asyncio.Future[None],
) -> None:
    """The thread, from opening the file to closing it."""
    try:
        connection = open_file(path)
    except StoreError as error:
        _report(loop, [(opened, None, error)])
        return
    _report(loop, [(opened, None, None)])
    groups, checkpoint_at = 0, 1
    group, more = _next_group(jobs)
    while group:
        outcomes = run_group(connection, path, [work for work, _ in group])
        groups += 1
        if groups == checkpoint_at:  # 1, 2, 4, ...: a new store is then not only in its log
            checkpoint_at *= 2
            with suppress(sqlite3.Error):  # what was committed stays committed
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        _report(loop, [(done, *outcome) for (_, done), outcome in zip(group, outcomes, strict=True)])
        group, more = _next_group(jobs) if more else ([], False)
    with suppress(sqlite3.Error):
        connection.close()


def _next_group(jobs: queue.SimpleQueue[_Job | None]) -> tuple[list[_Job], bool]:
    """All calls that wait now, at least one; and whether more may follow."""
    group: list[_Job] = []
    job = jobs.get()
    while job is not None:
        group.append(job)
        if len(group) == _GROUP or jobs.empty():
            return group, True
        job = jobs.get()
    return group, False


def _report(loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
    def resolve() -> None:
        for done, value, error in outcomes:
            if done.done():
                continue
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

    with suppress(RuntimeError):  # the loop is closed, so no one waits
        loop.call_soon_threadsafe(resolve)
