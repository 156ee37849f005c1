"""The thread of a SQLite store: groups of calls, and a disk that does not answer."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clocks import run_virtual
from entries import PATIENCE, submitted, unfinished_keys
from test_sqlite import in_child, opened

from kie4o import StoreError, StoreLockedError, clock
from kie4o.events.reporter import Reporter
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_worker import ThreadWorker


class Disk:
    """A call that blocks the thread of a store, as a disk does that does not answer."""

    def __init__(self) -> None:
        self.blocks = threading.Event()
        self._answers = threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        self.blocks.set()
        self._answers.wait(PATIENCE)

    def answer(self) -> None:
        self._answers.set()

    async def block(self, store: SQLiteStore) -> asyncio.Task[None]:
        """Returns once the thread is in the call."""
        task = asyncio.create_task(store._worker.run(self))
        while not self.blocks.is_set():
            await asyncio.sleep(0.001)
        return task


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    yield disk
    disk.answer()


def fails(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO nothing VALUES (1)")


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("failing", [0, 1, 2])
async def test_each_call_of_a_group_gets_its_own_outcome(
    tmp_path: Path, disk: Disk, size: int, failing: int
) -> None:
    """Of calls that wait together one fails; it raises, and the others return, also in a group of two."""
    async with opened(tmp_path / "run.db") as store:
        blocked = await disk.block(store)
        calls: list[Any] = [store.save(submitted(f"{n}")) for n in range(size)]
        if failing < size:
            calls[failing].close()
            calls[failing] = store._worker.run(fails)
        together = asyncio.gather(*calls, return_exceptions=True)
        await asyncio.sleep(0)
        disk.answer()
        await asyncio.wait([together], timeout=PATIENCE)
        assert together.done()  # none of them waits for ever
        await blocked
        assert [isinstance(outcome, StoreError) for outcome in together.result()] == [
            n == failing for n in range(size)
        ]
        assert await unfinished_keys(store) == [f"{n}" for n in range(size) if n != failing]


async def test_a_call_alone_runs_between_its_neighbours(tmp_path: Path, disk: Disk) -> None:
    """Outside a transaction and in its place in the queue; its error is its own."""
    seen: list[Any] = []

    def look(connection: sqlite3.Connection) -> None:
        [count] = connection.execute("SELECT count(*) FROM entry").fetchone()
        seen.append((connection.in_transaction, count))

    async with opened(tmp_path / "run.db") as store:
        blocked = await disk.block(store)
        together = asyncio.gather(
            store.save(submitted("a")),
            store._worker.run(look, alone=True),
            store._worker.run(fails, alone=True),
            store.save(submitted("b")),
            store._worker.run(look),
            return_exceptions=True,
        )
        await asyncio.sleep(0)
        disk.answer()
        outcomes = await asyncio.wait_for(together, PATIENCE)
        await blocked
    assert seen == [(False, 1), (True, 2)]
    assert [isinstance(outcome, StoreError) for outcome in outcomes] == [False, False, True, False, False]


@pytest.mark.parametrize(("turns", "commits"), [((500, 500, 500), 2), ((499, 500, 500), 1)])
async def test_a_transaction_takes_no_more_calls_once_it_has_a_thousand(
    tmp_path: Path, disk: Disk, turns: tuple[int, ...], commits: int
) -> None:
    """Those of one turn stay together; whoever called first does not wait for all that came later."""
    statements: list[str] = []
    async with opened(tmp_path / "run.db") as store:
        await store._worker.run(lambda connection: connection.set_trace_callback(statements.append))
        blocked = await disk.block(store)
        calls = []
        for size in turns:
            calls += [asyncio.create_task(store._worker.run(lambda _: None)) for _ in range(size)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # handed over
        statements.clear()
        disk.answer()
        await asyncio.wait_for(asyncio.gather(blocked, *calls), PATIENCE)
    assert statements.count("COMMIT") == 1 + commits


def test_a_stuck_disk_does_not_keep_the_loop_from_ending(tmp_path: Path, disk: Disk) -> None:
    """Closing can be given up, and `asyncio.run` then returns; nothing of the loop joins the thread."""

    async def main() -> None:
        store = SQLiteStore(tmp_path / "run.db")
        await store.open()
        blocked = await disk.block(store)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(store.aclose(), 0.05)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(store.open(), 0.05)
        blocked.cancel()

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < PATIENCE / 2


@pytest.mark.parametrize("cancelled", [False, True])
def test_another_loop_waits_for_the_end_of_the_thread(tmp_path: Path, disk: Disk, cancelled: bool) -> None:
    """A store that was closed in one loop opens in the next once its thread has let the file go."""
    store = SQLiteStore(tmp_path / "run.db")

    async def first() -> None:
        await store.open()
        await store.save(submitted("a"))
        blocked = await disk.block(store)
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0.01)
        if cancelled:
            closing.cancel()
        else:
            disk.answer()
        await asyncio.wait([closing])
        blocked.cancel()

    async def second() -> list[str]:
        opening = asyncio.create_task(store.open())
        await asyncio.sleep(0.05)
        assert opening.done() != cancelled
        disk.answer()
        await asyncio.wait_for(opening, PATIENCE)
        keys = await unfinished_keys(store)
        await store.aclose()
        return keys

    asyncio.run(first())
    assert asyncio.run(second()) == ["a"]


@pytest.mark.parametrize("reason", [RuntimeError("can't start new thread"), MemoryError("no memory")])
async def test_without_a_thread_nothing_opens_until_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: Exception
) -> None:
    """A container's limit on processes, or on memory, is a `StoreError`; the next opening works."""

    def start(thread: threading.Thread) -> None:
        raise reason

    store = SQLiteStore(tmp_path / "run.db")
    for _ in range(2):
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", start)
            with pytest.raises(
                StoreError, match=f"run.db cannot be used: {reason}.* raise the limit"
            ) as caught:
                await store.open()
            assert caught.value.__context__ is None
            await asyncio.wait_for(store.aclose(), PATIENCE)
            with pytest.raises(StoreError, match="not open"):
                await store.save(submitted("a"))
        await asyncio.wait_for(store.open(), PATIENCE)
        await store.save(submitted("a"))
        await asyncio.wait_for(store.aclose(), PATIENCE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
async def test_a_thread_that_is_interrupted_as_it_starts_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """By a handler of signals. Otherwise it would keep the file for as long as the process runs."""
    real, started = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        real(thread)
        started.append(thread)
        raise error

    store = SQLiteStore(tmp_path / "run.db")
    with monkeypatch.context() as interrupted:
        interrupted.setattr(threading.Thread, "start", start)
        with pytest.raises(error):
            await store.open()
    [thread] = started
    thread.join(PATIENCE)
    assert not thread.is_alive()
    await store.open()
    await store.aclose()


async def test_the_thread_is_a_daemon(tmp_path: Path) -> None:
    """One that hangs in the disk does not keep the interpreter from ending."""
    async with opened(tmp_path / "run.db"):
        assert [each.daemon for each in threading.enumerate() if each.name == "kie4o store"] == [True]


async def test_what_is_called_before_closing_in_the_same_turn_is_done(tmp_path: Path) -> None:
    """It has not been handed to the thread yet."""
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    await asyncio.wait_for(asyncio.gather(store.save(submitted("a")), store.aclose()), PATIENCE)
    async with opened(tmp_path / "run.db") as store:
        assert await unfinished_keys(store) == ["a"]


async def test_the_main_file_holds_what_was_saved_first(tmp_path: Path) -> None:
    """After the 1st, 2nd, 4th, ... group: a store that loses its log is not empty."""
    path, copy = tmp_path / "run.db", tmp_path / "copy.db"
    held = []
    async with opened(path) as store:
        for number in range(1, 10):
            await store.save(submitted(f"{number}"))
            shutil.copy(path, copy)  # without its log
            with contextlib.closing(sqlite3.connect(copy)) as connection:
                held += connection.execute("SELECT count(*) FROM entry").fetchone()
    assert held == [1, 2, 2, 4, 4, 4, 4, 8, 8]


def test_the_thread_has_the_clocks_of_the_loop(tmp_path: Path) -> None:
    """An intent that it finds counts from then, in virtual time too."""

    async def read() -> None:
        async with opened(tmp_path / "run.db") as store:
            await asyncio.sleep(1000)
            assert await store._worker.run(lambda connection: clock.uptime()) == clock.uptime()

    run_virtual(read())


async def test_of_two_openings_at_once_one_is_refused(tmp_path: Path) -> None:
    """Also while both wait for the end of an earlier thread."""
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    outcomes = await asyncio.gather(store.open(), store.open(), return_exceptions=True)
    await closing
    assert sorted(type(outcome) for outcome in outcomes if outcome is not None) == [StoreLockedError]
    await store.save(submitted("a"))
    await store.aclose()


async def test_a_worker_of_the_caller_runs_the_calls_and_tells_the_reporter(tmp_path: Path) -> None:
    """A simulation gives its own; whom the client tells is set at the store."""
    worker, reporter = ThreadWorker(), Reporter()
    store = SQLiteStore(tmp_path / "run.db", worker=worker)
    store.reporter = reporter
    assert worker.reporter is store.reporter is reporter
    await store.open()
    assert await worker.run(lambda connection: connection.path.name) == "run.db"
    await store.aclose()


async def test_another_process_cannot_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to do; the thread would never answer."""
    async with opened(tmp_path / "run.db") as store:
        with monkeypatch.context() as forked:
            forked.setattr(os, "getpid", lambda: -1)
            with pytest.raises(StoreError, match="before a fork; open it in the child process"):
                await store.find(key="a")
        assert await store.find(key="a") is None


@pytest.mark.posix("fork")
def test_a_forked_child_can_close_it(tmp_path: Path) -> None:
    """The thread is not in the child, so closing there waits for nothing. The parent goes on."""

    async def close() -> None:
        await asyncio.wait_for(store.aclose(), 2)
        raise StoreError("closed")

    store = SQLiteStore(tmp_path / "run.db")
    with asyncio.Runner() as runner:
        runner.run(store.open())
        assert in_child(lambda: asyncio.run(close())) == 0
        runner.run(store.save(submitted("a")))
        runner.run(store.aclose())
