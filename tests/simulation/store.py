"""The SQLite store with a worker on the loop: its SQL runs at drawn times, may fail, and dies with a life."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kie4o.errors import StoreError, StoreLockedError
from kie4o.events.reporter import LOG, Reporter
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import StoreConnection, failure_of, open_file
from kie4o.stores.sqlite_worker import Result, Work, run_alone, run_group

_Job = tuple[float, Work[Any], bool, "asyncio.Future[Any]"]


class LoopWorker:
    """A `Worker`. A call waits, its transaction happens at one moment, and its result takes a while.

    All that is due at that moment is one transaction.
    """

    def __init__(self, seed: str, *, slow: float, failing: float, on_commit: Callable[[], object]) -> None:
        self.reporter: Reporter = LOG
        self._chance = random.Random(f"store:{seed}")
        self._slow = slow  # seconds that each of the two may take
        self._failing = failing  # the share of calls that fail
        self._on_commit = on_commit
        self._path = Path()
        self._connection: StoreConnection | None = None
        self._jobs: deque[_Job] = deque()
        self._last = 0.0
        self._open = False

    async def start(self, path: Path) -> None:
        if self._open:
            raise StoreLockedError(f"the store {path} is already open")
        await asyncio.sleep(0)
        self._path, self._connection, self._open = path, open_file(path, self.reporter), True

    async def run(self, work: Work[Any], *, alone: bool = False) -> Any:
        if not self._open:
            raise StoreError(f"the store {self._path} is not open")
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Any] = loop.create_future()
        self._last = max(self._last, loop.time() + self._delay())
        self._jobs.append((self._last, work, alone, done))
        if self._last <= loop.time():
            loop.call_soon(self._work)
        else:
            loop.call_at(self._last, self._work)
        return await done

    async def stop(self) -> None:
        self._open = False
        while self._jobs and self._connection is not None:
            await asyncio.sleep(0.001)
        self.kill()

    def kill(self) -> None:
        """What is committed stays, and nothing more happens."""
        self._open = False
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _work(self) -> None:
        now, group = asyncio.get_running_loop().time() + 1e-6, []  # a timer may come a little early
        while self._jobs and self._jobs[0][0] <= now and not (group and group[0][2] != self._jobs[0][2]):
            group.append(self._jobs.popleft())
        if not group or self._connection is None:
            return
        failed = [self._failing > self._chance.random() for _ in group]
        run = run_alone if group[0][2] else run_group
        works = [work for (_, work, _, _), fails in zip(group, failed, strict=True) if not fails]
        results = iter(run(self._connection, works))
        self._on_commit()
        for (_, _, _, done), fails in zip(group, failed, strict=True):
            self._resolve_later(done, self._disk_full() if fails else next(results))
        if self._jobs and self._jobs[0][0] <= now:
            self._work()

    def _resolve_later(self, done: asyncio.Future[Any], result: Result) -> None:
        loop, delay = asyncio.get_running_loop(), self._delay()
        if delay:
            loop.call_later(delay, _resolve, done, result)
        else:
            loop.call_soon(_resolve, done, result)

    def _disk_full(self) -> Result:
        """To each call an error of its own, as from the store."""
        return None, failure_of(self._path, sqlite3.OperationalError("database or disk is full"))

    def _delay(self) -> float:
        return (
            self._chance.choice([0.0, 0.0, 0.001, self._slow * self._chance.random()]) if self._slow else 0.0
        )


def _resolve(done: asyncio.Future[Any], result: Result) -> None:
    value, error = result
    if done.done():
        return
    if error is None:
        done.set_result(value)
    else:
        done.set_exception(error)


def reading_store(path: Path) -> SQLiteStore:
    """The store as the next life would find it."""
    return SQLiteStore(path, worker=LoopWorker("reading", slow=0, failing=0, on_commit=lambda: None))
