"""Where the SQL of a SQLite store runs: on one thread, which owns the connection.

The calls of one turn of the loop are handed over together, and all that wait at the same time share one
transaction: durability costs one fsync per group instead of one per call. `Worker` is the seam at which a
simulation puts a worker of its own, with time and faults under its control; `run_group` is what both do with
a group.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from .. import clock
from ..errors import StoreError, StoreLockedError, reason_of
from ..events import Event
from ..events.reporter import LOG, Reporter
from .sqlite_file import StoreConnection, failure_of, open_file

_T = TypeVar("_T")
Work = Callable[[StoreConnection], _T]
Result = tuple[Any, StoreError | None]
_Outcome = tuple[asyncio.Future[Any], Any, StoreError | None]

_GROUP = 1000  # calls after which a transaction takes no more


class Worker(Protocol):
    """Runs the SQL of one store."""

    reporter: Reporter  # of what happens as the file is opened

    async def start(self, path: Path) -> None:
        """Open the file. Raises `StoreError`."""

    async def run(self, work: Work[_T], *, alone: bool = False) -> _T:
        """What `work` returns once its transaction is on disk, or, with `alone`, outside any transaction.

        Cancelling does not undo it. Raises `StoreError`.
        """
        ...

    async def stop(self) -> None:
        """Finish what is queued and close the file. If this is cancelled it goes on, and the next `stop` or
        `start` waits for it."""


class _Job(NamedTuple):
    work: Work[Any]
    done: asyncio.Future[Any]
    alone: bool


_Queue = queue.SimpleQueue[list[_Job]]
_STOP: list[_Job] = []


class ThreadWorker:
    """The worker of a real store.

    Its thread is a daemon, and no executor joins it: one that hangs in the disk keeps neither the event loop
    nor the interpreter from ending.
    """

    _path: Path  # of the latest opening, as its process is
    _pid: int

    def __init__(self) -> None:
        self.reporter: Reporter = LOG
        self._arrived: list[_Job] = []  # in this turn of the loop
        self._jobs: _Queue = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None  # in which it is open
        self._ended: Future[None] | None = None  # of the latest thread, which may still have the file open

    async def start(self, path: Path) -> None:
        if self._loop is None:
            await self._end()
        if self._loop is not None:
            raise StoreLockedError(f"the store {path} is already open; give each client its own store")
        loop = asyncio.get_running_loop()
        jobs: _Queue = queue.SimpleQueue()
        ended: Future[None] = Future()
        ended.set_running_or_notify_cancel()  # a waiter that is cancelled cannot cancel it
        opened: asyncio.Future[None] = loop.create_future()
        report = partial(_report_event, loop, self.reporter)
        _start_thread(path, report, loop, jobs, opened, ended)
        self._path, self._pid, self._loop, self._jobs, self._ended = path, os.getpid(), loop, jobs, ended
        try:
            with clock.working_thread(loop):
                await opened
        except BaseException:
            self._request_stop()
            raise

    async def run(self, work: Work[_T], *, alone: bool = False) -> _T:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            raise StoreError("the store is not open in this event loop")
        if self._pid != os.getpid():
            raise StoreError(f"the store {self._path} was opened before a fork; open it in the child process")
        done: asyncio.Future[_T] = loop.create_future()
        if not self._arrived:
            loop.call_soon(self._hand_over)
        self._arrived.append(_Job(work, done, alone))
        with clock.working_thread(loop):
            return await done

    async def stop(self) -> None:
        if self._loop is not None:
            self._request_stop()
        await self._end()

    def _hand_over(self) -> None:
        """Handed over one by one, the first call of a turn would wake the thread for a transaction of its
        own: a batch would have a third more transactions, each of which takes 0.3 ms."""
        if self._arrived:
            self._jobs.put(self._arrived)
            self._arrived = []

    def _request_stop(self) -> None:
        self._hand_over()
        self._jobs.put(_STOP)
        self._loop = None

    async def _end(self) -> None:
        """Wait for the end of the latest thread. After a fork it is not in this process."""
        if self._ended is not None and self._pid == os.getpid():
            with clock.working_thread(asyncio.get_running_loop()):
                await asyncio.wrap_future(self._ended)


def run_group(connection: StoreConnection, group: Sequence[Work[Any]]) -> list[Result]:
    """The results of a group in one transaction. If that fails each call gets its own, and its own error."""
    try:
        connection.check_in_place()
        connection.execute("BEGIN IMMEDIATE")
        results = [work(connection) for work in group]
        connection.execute("COMMIT")
        connection.check_in_place()  # or it was committed to a file that no one will find
        return [(result, None) for result in results]
    except Exception as error:  # the thread must not die, since callers wait for it
        failure = error if isinstance(error, StoreError) else failure_of(connection.path, error)
    with contextlib.suppress(sqlite3.Error):
        connection.execute("ROLLBACK")
    if len(group) > 1:
        return [result for work in group for result in run_group(connection, [work])]
    return [(None, failure)]


def run_alone(connection: StoreConnection, group: Sequence[Work[Any]]) -> list[Result]:
    """The results of calls that are not part of a transaction."""
    results: list[Result] = []
    for work in group:
        try:
            connection.check_in_place()
            results.append((work(connection), None))
        except Exception as error:
            failure = error if isinstance(error, StoreError) else failure_of(connection.path, error)
            results.append((None, failure))
    return results


def _start_thread(
    path: Path,
    report: Callable[[Event], None],
    loop: asyncio.AbstractEventLoop,
    jobs: _Queue,
    opened: asyncio.Future[None],
    ended: Future[None],
) -> None:
    """Raises `StoreError` if the system, such as a container with a limit on processes, allows no more."""
    arguments = (path, report, loop, jobs, opened, ended)
    try:
        threading.Thread(target=_serve, args=arguments, name="kie4o store", daemon=True).start()
        return
    except (RuntimeError, MemoryError) as error:
        reason = reason_of(error)
    except BaseException:
        jobs.put(_STOP)  # interrupted; it may have started
        raise
    raise StoreError(
        f"the store {path} cannot be used: {reason}. It needs a thread of its own; raise the limit on "
        "processes or memory"
    )


def _serve(
    path: Path,
    report: Callable[[Event], None],
    loop: asyncio.AbstractEventLoop,
    jobs: _Queue,
    opened: asyncio.Future[None],
    ended: Future[None],
) -> None:
    """The thread, from opening the file to closing it."""
    clock.follow(loop)
    try:
        with contextlib.closing(open_file(path, report)) as connection:
            _report(loop, [(opened, None, None)])
            _work(connection, loop, jobs)
    except StoreError as error:
        _report(loop, [(opened, None, error)])
    finally:
        ended.set_result(None)


def _report_event(loop: asyncio.AbstractEventLoop, reporter: Reporter, event: Event) -> None:
    """Tell of an event in the loop, which is where hooks are called."""
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(reporter, event)


def _work(connection: StoreConnection, loop: asyncio.AbstractEventLoop, jobs: _Queue) -> None:
    """What the thread does until it is stopped."""
    checkpoint_at = 1
    for number, group in enumerate(_groups(jobs), 1):
        outcomes: list[_Outcome] = []
        for alone, jobs_alike in itertools.groupby(group, lambda job: job.alone):
            part = list(jobs_alike)
            results = (run_alone if alone else run_group)(connection, [job.work for job in part])
            outcomes += [(job.done, *result) for job, result in zip(part, results, strict=True)]
        if number == checkpoint_at:  # 1, 2, 4, ...: a new store is then not only in its log
            checkpoint_at *= 2
            with contextlib.suppress(sqlite3.Error):  # what was committed stays committed
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        _report(loop, outcomes)


def _groups(jobs: _Queue) -> Iterator[list[_Job]]:
    """All calls that wait at a time, at least one, until the thread is stopped."""
    group: list[_Job] = []
    while arrived := jobs.get():
        group += arrived
        if len(group) >= _GROUP or jobs.empty():
            yield group
            group = []
    if group:
        yield group


def _report(loop: asyncio.AbstractEventLoop, outcomes: list[_Outcome]) -> None:
    def resolve() -> None:
        for done, value, error in outcomes:
            if done.done():
                continue
            if error is None:
                done.set_result(value)
            else:
                done.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is closed, so no one waits
        loop.call_soon_threadsafe(resolve)
