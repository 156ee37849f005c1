"""A store file that was damaged, belongs to somebody else, or cannot be written.

Opening gives what was committed up to some point, entry for entry, or a `StoreError`: never an
entry that nobody wrote, never an exception of another kind, and never nothing where there was
something. Under HYPOTHESIS_PROFILE=deep files are cut at every 97th byte, by default at fewer.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
from crashing import DEEP
from paths import SUPPORT

from kie4o import ImageRequest, StoreError, TaskDetails, TaskState
from kie4o.stores.packing import packed
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import SCHEMA
from kie4o.stores.store import Entry, EntryState

State = frozenset[bytes]

CUT = 97  # bytes between two truncations
MOST = 10_000 if DEEP else 120  # damages of one kind to one file: all of them, or some from everywhere
MOST_OLD = MOST // 4  # where the log has megabytes
PATIENCE = 10.0  # seconds for opening a file of a few hundred kilobytes
FULL_DISK = SUPPORT / "full_disk.py"

# -- a store with a known past -------------------------------------------------------------------


@attrs.frozen
class Past:
    """The bytes of a store, and the states that it went through (after each commit)."""

    main: bytes = attrs.field(repr=False)
    wal: bytes = attrs.field(repr=False)
    keys: tuple[str, ...]
    states: tuple[State, ...] = attrs.field(repr=False)


def state_of(entries: Iterable[Entry]) -> State:
    """What opening makes of these entries: an intent of a dead process is unknown."""
    return frozenset(packed(_as_opened(entry)) for entry in entries)


def _as_opened(entry: Entry) -> Entry:
    if entry.state in (EntryState.INTENT, EntryState.UNKNOWN):
        return attrs.evolve(entry, state=EntryState.UNKNOWN, submitted_at=None)
    return entry


def commits(count: int) -> Iterator[Entry]:
    """What batches write, in an order of their own: every item through its states, some stop early."""
    numbers = random.Random(count)
    going: list[Iterator[Entry]] = []
    for number in range(count):
        going.append(_life(number, numbers))
        for life in numbers.sample(going, min(len(going), 5)):
            entry = next(life, None)
            if entry is None:
                going.remove(life)
            else:
                yield entry


def _life(number: int, numbers: random.Random) -> Iterator[Entry]:
    request = ImageRequest(f"picture {number} " + "é" * numbers.randint(0, 40), size="3:2")
    entry = Entry(f"item-{number}", request=request, ref=f"ref-{number}")
    yield entry
    yield (entry := attrs.evolve(entry, state=EntryState.INTENT, submitted_at=1e9 + number))
    if number % 9 == 4:
        yield attrs.evolve(entry, state=EntryState.UNKNOWN)
        return
    task_id = f"{number:032x}"
    yield (entry := attrs.evolve(entry, state=EntryState.SUBMITTED, task_id=task_id))
    failed = number % 7 == 3
    details = TaskDetails(
        task_id,
        state=TaskState.FAILED if failed else TaskState.SUCCEEDED,
        urls=() if failed else (f"https://example.com/{task_id}.png",),
        error_code=500 if failed else None,
        raw={"successFlag": 3 if failed else 1, "taskId": task_id},
    )
    yield attrs.evolve(entry, state=EntryState.FAILED if failed else EntryState.SUCCEEDED, details=details)


def past_of(folder: Path, count: int, *, closed: bool) -> Past:
    """Write the history one commit at a time, and take the bytes with the store open or closed."""

    async def write() -> Past:
        path = folder / "past.db"
        store = SQLiteStore(path)
        await store.open()
        entries: dict[str, Entry] = {}
        states = [state_of([])]
        for entry in commits(count):
            if entry.state is EntryState.PLANNED:
                await store.claim(entry)
            else:
                await store.save(entry)
            entries[entry.key] = entry
            states.append(state_of(entries.values()))
        if closed:
            await store.aclose()
        wal = path.with_name("past.db-wal")
        past = Past(path.read_bytes(), b"" if closed else wal.read_bytes(), tuple(entries), tuple(states))
        await store.aclose()
        return past

    folder.mkdir()
    return asyncio.run(write())


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Closed as it should be: everything is in the main file."""
    return past_of(tmp_path_factory.mktemp("closed") / "p", 90, closed=True)


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Killed early: the main file holds the first commits, the log about as many more."""
    folder = tmp_path_factory.mktemp("young")
    return _from_the_main_file(folder, past_of(folder / "p", 20, closed=False))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Killed late: the main file holds the beginning, the log the end, and behind it the frames of an
    earlier round."""
    folder = tmp_path_factory.mktemp("old")
    past = past_of(folder / "p", 110, closed=False)
    assert len(past.states) > 400
    return _from_the_main_file(folder, past)


def _from_the_main_file(folder: Path, past: Past) -> Past:
    """What can be opened at worst is what the main file alone holds, which is never nothing."""
    (folder / "main").mkdir()
    beginning = Opener(folder / "main", past.keys)(past.main, b"")
    assert isinstance(beginning, frozenset)
    at = past.states.index(beginning)
    assert 0 < at < len(past.states) - 5
    return attrs.evolve(past, states=past.states[at:])


# -- damage ------------------------------------------------------------------------------------


class Opener:
    """Opens given bytes as a store: its state, or the `StoreError`. Anything else is raised."""

    def __init__(self, folder: Path, keys: tuple[str, ...]) -> None:
        self._path = folder / "run.db"
        self._keys = keys

    def __call__(self, main: bytes, wal: bytes) -> State | StoreError:
        with asyncio.Runner() as runner:
            return runner.run(self.opened(main, wal))

    async def opened(self, main: bytes, wal: bytes) -> State | StoreError:
        for ending in ("", "-wal", "-journal", "-shm"):
            self._path.with_name("run.db" + ending).unlink(missing_ok=True)
        self._path.write_bytes(main)
        if wal:
            self._path.with_name("run.db-wal").write_bytes(wal)
        loop = asyncio.get_running_loop()
        died: asyncio.Future[None] = loop.create_future()
        hook, threading.excepthook = threading.excepthook, _reporting(loop, died)
        try:
            return await _first_of(died, self._read(SQLiteStore(self._path)))
        finally:
            threading.excepthook = hook

    async def _read(self, store: SQLiteStore) -> State | StoreError:
        try:
            await store.open()
        except StoreError as error:
            return error
        try:
            found = await asyncio.gather(*(store.find(key=key) for key in self._keys))
            entries = [entry for entry in found if entry is not None]
            owed = {entry.key async for entry in store.unfinished()}
        except StoreError as error:
            return error
        finally:
            await store.aclose()
        open_ends = (EntryState.SUBMITTED, EntryState.UNKNOWN)
        assert owed == {entry.key for entry in entries if entry.state in open_ends}
        assert all(entry.state is not EntryState.INTENT for entry in entries)
        return state_of(entries)


def _reporting(loop: asyncio.AbstractEventLoop, died: asyncio.Future[None]) -> Callable[[Any], None]:
    def report(args: threading.ExceptHookArgs) -> None:
        error = RuntimeError(f"the store's thread died of {args.exc_type.__name__}: {args.exc_value}")
        loop.call_soon_threadsafe(lambda: died.done() or died.set_exception(error))

    return report


async def _first_of(died: asyncio.Future[None], reading: Any) -> State | StoreError:
    task = asyncio.ensure_future(reading)
    await asyncio.wait((died, task), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        died.cancel()
        return task.result()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    if died.done():
        died.result()
    raise AssertionError("opening hung")


Kind = Callable[[str, bytes], "Damages"]
Damages = list[tuple[str, Callable[[], bytes]]]  # made when they are needed: there are thousands


def cut(name: str, data: bytes) -> Damages:
    return [
        (f"{name} cut to {size} bytes", lambda size=size: data[:size]) for size in range(0, len(data), CUT)
    ]


def zeroed(name: str, data: bytes) -> Damages:
    """The tail is zeroes, as after a crash of a file system that had grown the file already."""
    return [
        (f"{name} zeroed from {start}", lambda start=start: data[:start] + bytes(len(data) - start))
        for start in range(0, len(data), 5 * CUT)
    ]


def flipped(name: str, data: bytes) -> Damages:
    """One byte is another, everywhere."""
    numbers = random.Random(len(data))
    places = (at + numbers.randrange(CUT) for at in range(0, len(data) - CUT, CUT))
    return [_flip(name, data, at, numbers) for at in places]


def flipped_head(name: str, data: bytes) -> Damages:
    """One byte is another: each of the first 200 in several ways."""
    numbers = random.Random(len(data))
    return [_flip(name, data, at, numbers) for at in range(200) for _ in range(8 if DEEP else 2)]


def _flip(name: str, data: bytes, at: int, numbers: random.Random) -> tuple[str, Callable[[], bytes]]:
    other = data[at] ^ numbers.choice((1, 1, 2, 4, 8, 16, 32, 64, 128, 255, numbers.randint(1, 255)))
    label = f"{name} byte {at}: {data[at]:02x} is {other:02x}"
    return label, lambda: data[:at] + bytes([other]) + data[at + 1 :]


KINDS = (cut, zeroed, flipped, flipped_head)


@attrs.frozen
class Judged:
    """How many damaged stores opened with a state that they had been in, how many were refused, and
    what any did instead."""

    opened: int
    refused: int
    faults: list[str]


def judged(folder: Path, past: Past, damages: Damages, *, file: str, may_be_empty: bool) -> Judged:
    """Open every damaged store; `file` says which of the two is damaged."""
    most = MOST if len(past.wal) < 2 * 2**20 else MOST_OLD
    allowed = set(past.states) if may_be_empty else set(past.states) - {frozenset()}
    opener = Opener(folder, past.keys)
    outcomes: Counter[str] = Counter()
    faults: list[str] = []

    async def run() -> None:
        for name, damaged in damages[:: max(1, len(damages) // most)]:
            main, wal = (damaged(), past.wal) if file == "main" else (past.main, damaged())
            try:
                state = await opener.opened(main, wal)
            except Exception as error:
                faults.append(f"{name}: {type(error).__name__}: {error}")
                continue
            if isinstance(state, StoreError):
                outcomes["refused"] += 1
            elif state in allowed:
                outcomes["opened"] += 1
            else:
                faults.append(f"{name}: opened as nothing that it ever was ({len(state)} entries)")

    with asyncio.Runner() as runner:
        runner.run(run())
    return Judged(outcomes["opened"], outcomes["refused"], faults)


def test_the_undamaged_files_open_whole(tmp_path: Path, closed: Past, young: Past, old: Past) -> None:
    """The control: without damage everything that was committed is there."""
    for past in (closed, young, old):
        assert Opener(tmp_path, past.keys)(past.main, past.wal) == past.states[-1]


def changed(folder: Path, past: Past, statement: str) -> State | StoreError:
    """How the store opens after SQLite itself changed something, so that the file is sound."""
    path = folder / "changed.db"
    path.write_bytes(past.main)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(statement)
    connection.close()
    return Opener(folder, past.keys)(path.read_bytes(), b"")


def test_a_missing_entry_is_seen(tmp_path: Path, closed: Past) -> None:
    """The control of the judge: without one row the store is in no state that it ever was in."""
    state = changed(tmp_path, closed, "DELETE FROM entry WHERE key = 'item-1'")
    assert isinstance(state, frozenset)
    assert len(state) == len(closed.keys) - 1
    assert state not in closed.states


@pytest.mark.parametrize(
    "change",
    [
        "body = CAST(replace(body, '0001', '0002') AS BLOB)",
        "body = CAST(body AS TEXT)",
        "body = 7",
        "body = x''",
        "checksum = x'0011223344556677'",
        "checksum = 'text'",
        "task_id = 'another'",
        "state = 'planned'",
        "submitted_at = submitted_at + 1",
        "submitted_at = 'soon'",
        "key = 'item-x'",
    ],
)
def test_a_changed_entry_is_refused(tmp_path: Path, closed: Past, change: str) -> None:
    """A row that is not as it was written is refused, whatever it is that changed, even if the file
    is sound for SQLite. One flipped bit in its header makes the text of a row out of its bytes."""
    state = changed(tmp_path, closed, f"UPDATE entry SET {change} WHERE key = 'item-1'")
    assert isinstance(state, StoreError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_store_that_was_damaged(tmp_path: Path, closed: Past, kind: Kind) -> None:
    """Cut or with a tail of zeroes it is refused; a flipped byte is refused or lies where nothing is."""
    was = judged(tmp_path, closed, kind("main", closed.main), file="main", may_be_empty=False)
    assert was.faults == []
    assert was.refused
    if kind in (cut, zeroed):
        assert was.opened <= 1  # the last byte of a page may be zero anyway


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("age", ["young", "old"])
def test_a_damaged_log(tmp_path: Path, young: Past, old: Past, kind: Kind, age: str) -> None:
    """It opens with a prefix of what was committed, never with less than the main file holds; where its
    beginning is damaged and SQLite would skip all of it, it is refused."""
    past = young if age == "young" else old
    was = judged(tmp_path, past, kind("log", past.wal), file="log", may_be_empty=False)
    assert was.faults == []
    assert was.refused if kind is flipped_head else was.opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("age", ["young", "old"])
def test_a_damaged_main_file_beside_a_log(
    tmp_path: Path, young: Past, old: Past, kind: Kind, age: str
) -> None:
    """The main file may be cut, zeroed or wrong while a log stands beside it."""
    past = young if age == "young" else old
    was = judged(tmp_path, past, kind("main", past.main), file="main", may_be_empty=False)
    assert was.faults == []
    assert was.opened + was.refused


# -- files that are not ours, or not for us ------------------------------------------------------


async def refusal(path: Path) -> str:
    store = SQLiteStore(path)
    with pytest.raises(StoreError) as caught:
        await asyncio.wait_for(store.open(), PATIENCE)
    assert caught.value.__context__ is None
    return str(caught.value)


async def made(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.aclose()


async def test_a_newer_schema_is_refused_with_a_sentence(tmp_path: Path) -> None:
    """A file of a later kie4o says what to do, and is left as it is."""
    path = tmp_path / "run.db"
    await made(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    before = path.read_bytes()
    assert "upgrade kie4o" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """A SQLite file that is not ours is refused, and none of its data is touched."""
    path = tmp_path / "run.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entry (key TEXT)")
        connection.execute("INSERT INTO entry VALUES ('theirs')")
    connection.close()
    assert "not a kie4o store" in await refusal(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT * FROM entry").fetchall() == [("theirs",)]
    connection.close()


@pytest.mark.parametrize("content", [b"", b"no database at all\n" * 1000, bytes(8192), b"SQLite format 3\0"])
async def test_a_file_that_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    """Empty, text, zeroes or half a header: refused and left as it is, never begun anew."""
    path = tmp_path / "run.db"
    path.write_bytes(content)
    await refusal(path)
    assert path.read_bytes() == content


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A path to a directory is no store."""
    await refusal(tmp_path)


READ_ONLY = """
import asyncio, sys
from kie4o import StoreError
from kie4o.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    try:
        await asyncio.wait_for(store.open(), 10)
    except StoreError as error:
        print("refused:", error)
    else:
        print("opened")
        await store.aclose()

asyncio.run(main())
"""
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1  # linux/prctl.h, linux/capability.h


def _without_privilege() -> None:
    """Root may write anywhere; what it executes from here on may not."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="root gives up its privilege by a call of Linux")
@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_directory_is_refused(tmp_path: Path, exists: bool) -> None:
    """Where nothing can be written nothing is opened, be the file there or not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "run.db"
    if exists:
        asyncio.run(made(path))
        path.chmod(0o400)
    folder.chmod(0o500)
    try:
        command = [sys.executable, "-c", READ_ONLY, str(path)]
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=60, preexec_fn=_without_privilege
        )
    finally:
        folder.chmod(0o700)
    assert ran.stdout.startswith("refused: "), ran
    assert ran.stderr == ""
    assert [file.name for file in folder.iterdir()] == (["run.db"] if exists else [])


# -- a full disk ---------------------------------------------------------------------------------


def full_disk(path: Path, state: str) -> tuple[dict[str, Any], str]:
    """One submit whose write of that state meets a full disk, and a second after there is room
    again: what the process saw, and what it logged."""
    ran = subprocess.run(
        [sys.executable, FULL_DISK, str(path), state], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr
    return json.loads(ran.stdout), ran.stderr


def kept_in(path: Path, key: str) -> Entry | None:
    async def read() -> Entry | None:
        store = SQLiteStore(path)
        await store.open()
        try:
            return await store.find(key=key)
        finally:
            await store.aclose()

    return asyncio.run(read())


@pytest.mark.parametrize("state", ["claim", "intent"])
def test_without_an_intent_on_the_disk_nothing_is_sent(tmp_path: Path, state: str) -> None:
    """A full disk before the POST: StoreError, no request, and the same key works when there is room."""
    path = tmp_path / "run.db"
    seen, _ = full_disk(path, state)
    assert seen["error"] == "StoreError"
    assert seen["task_id"] is None
    assert seen["posts"] == 0
    assert seen["again"] == "task-1"
    assert seen["posts_in_the_end"] == 1
    kept = kept_in(path, "order-1")
    assert kept is not None
    assert kept.task_id == "task-1"


def test_a_task_id_that_cannot_be_written_is_told_kept_and_written_again(tmp_path: Path) -> None:
    """A full disk after the POST: the StoreError carries the task id, a log record at ERROR names
    it, the same key gives the task without a second POST, and once there is room it is written."""
    path = tmp_path / "run.db"
    seen, log = full_disk(path, "submitted")
    assert seen["error"] == "StoreError"
    assert seen["task_id"] == "task-1"
    assert seen["key"] == "order-1"
    assert "ERROR" in log
    assert "task-1" in log
    assert seen["while_full"] == "task-1"
    assert seen["written"] == "task-1"
    assert seen["again"] == "task-1"
    assert seen["posts_in_the_end"] == 1
    kept = kept_in(path, "order-1")
    assert kept is not None
    assert (kept.state, kept.task_id) == (EntryState.SUBMITTED, "task-1")


def test_a_task_id_that_is_never_written_is_unknown_in_the_next_life(tmp_path: Path) -> None:
    """If there is no room until the end, the next life holds the key as unknown and sends nothing."""
    path = tmp_path / "run.db"
    seen, log = full_disk(path, "submitted for ever")
    assert seen["task_id"] == "task-1"
    assert "was never saved" in log
    kept = kept_in(path, "order-1")
    assert kept is not None
    assert kept.state is EntryState.UNKNOWN
