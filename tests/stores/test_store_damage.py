"""A store file that was damaged, belongs to another program, or cannot be written.

Opening returns what was committed up to some point, entry for entry, or raises `StoreError`: never an entry
that was not written, never another exception, and never an empty store where there were entries.
HYPOTHESIS_PROFILE=deep cuts files at every 97th byte; the default is fewer.
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
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import attrs
import pytest
from paths import SUPPORT
from proving import DEEP

from kie4o import ImageRequest, StoreError, TaskDetails, TaskState
from kie4o.stores import sqlite_check
from kie4o.stores.packing import checksum, packed
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_creation import SCHEMA
from kie4o.stores.sqlite_file import SAVE, row_of
from kie4o.stores.store import Entry, EntryState, hash_of_ref

State = frozenset[bytes]

CUT = 97  # bytes between two truncations
MOST = 10_000 if DEEP else 25  # damages of one kind to one file: all, or a sample of them
MOST_OLD = MOST // 4  # for a log of megabytes
PATIENCE = 10.0  # seconds for opening a file of a few hundred kilobytes
FULL_DISK = SUPPORT / "full_disk.py"

# -- a store with a known past ---------------------------------------------------------------------


@attrs.frozen
class Past:
    """The bytes of a store, and its state after each commit."""

    main: bytes = attrs.field(repr=False)
    wal: bytes = attrs.field(repr=False)
    keys: tuple[str, ...]
    states: tuple[State, ...] = attrs.field(repr=False)


def state_of(entries: Iterable[Entry]) -> State:
    """What opening makes of these entries: the intent of a dead process is unknown."""
    return frozenset(packed(_as_opened(entry)) for entry in entries)


def _as_opened(entry: Entry) -> Entry:
    if entry.state in (EntryState.INTENT, EntryState.UNKNOWN):
        return attrs.evolve(entry, state=EntryState.UNKNOWN, submitted_at=None)
    return entry


def commits(count: int) -> Iterator[Entry]:
    """What batches write, in random order: each item passes through its states, some stop early."""
    numbers = random.Random(count)
    going: list[Iterator[Entry]] = []
    for number in range(count):
        going.append(_states_of(number, numbers))
        for states in numbers.sample(going, min(len(going), 5)):
            entry = next(states, None)
            if entry is None:
                going.remove(states)
            else:
                yield entry


def _states_of(number: int, numbers: random.Random) -> Iterator[Entry]:
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
    """Write the history one commit at a time; take the bytes with the store open or closed."""

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
    """Closed normally: everything is in the main file."""
    return past_of(tmp_path_factory.mktemp("closed") / "p", 90, closed=True)


@pytest.fixture(scope="module")
def young(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Killed early: the main file has the first commits, the log about as many more."""
    folder = tmp_path_factory.mktemp("young")
    return _from_the_main_file(folder, past_of(folder / "p", 20, closed=False))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Past:
    """Killed late: the main file has the beginning, the log the end, followed by frames of an earlier
    round."""
    folder = tmp_path_factory.mktemp("old")
    past = past_of(folder / "p", 110, closed=False)
    assert len(past.states) > 400
    return _from_the_main_file(folder, past)


def _from_the_main_file(folder: Path, past: Past) -> Past:
    """Without the log the store has what the main file holds, which is never nothing."""
    (folder / "main").mkdir()
    beginning = Opener(folder / "main", past.keys)(past.main, b"")
    assert isinstance(beginning, frozenset)
    at = past.states.index(beginning)
    assert 0 < at < len(past.states) - 5
    return attrs.evolve(past, states=past.states[at:])


# -- damage ----------------------------------------------------------------------------------------


class Opener:
    """Opens bytes as a store: its state, or the `StoreError`. Other errors are raised."""

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
            unfinished = {entry.key async for entry in store.unfinished()}
        except StoreError as error:
            return error
        finally:
            await store.aclose()
        open_ends = (EntryState.SUBMITTED, EntryState.UNKNOWN)
        assert unfinished == {entry.key for entry in entries if entry.state in open_ends}
        assert all(entry.state is not EntryState.INTENT for entry in entries)
        return state_of(entries)


def _reporting(loop: asyncio.AbstractEventLoop, died: asyncio.Future[None]) -> Callable[[Any], None]:
    def report(args: threading.ExceptHookArgs) -> None:
        error = RuntimeError(f"the thread of the store died: {args.exc_type.__name__}: {args.exc_value}")
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
Damages = list[tuple[str, Callable[[], bytes]]]  # created when they are needed: there are thousands


def cut(name: str, data: bytes) -> Damages:
    return [
        (f"{name} cut to {size} bytes", lambda size=size: data[:size]) for size in range(0, len(data), CUT)
    ]


def zeroed(name: str, data: bytes) -> Damages:
    """The tail is zeroes, as after a crash of a file system that had already grown the file."""
    return [
        (f"{name} zeroed from {start}", lambda start=start: data[:start] + bytes(len(data) - start))
        for start in range(0, len(data), 5 * CUT)
    ]


def flipped(name: str, data: bytes) -> Damages:
    """One byte is different, anywhere."""
    numbers = random.Random(len(data))
    positions = (at + numbers.randrange(CUT) for at in range(0, len(data) - CUT, CUT))
    return [_flip(name, data, at, numbers) for at in positions]


def flipped_head(name: str, data: bytes) -> Damages:
    """One byte is different: each of the first 200, in several ways."""
    numbers = random.Random(len(data))
    return [_flip(name, data, at, numbers) for at in range(200) for _ in range(8 if DEEP else 2)]


def _flip(name: str, data: bytes, at: int, numbers: random.Random) -> tuple[str, Callable[[], bytes]]:
    other = data[at] ^ numbers.choice((1, 1, 2, 4, 8, 16, 32, 64, 128, 255, numbers.randint(1, 255)))
    label = f"{name} byte {at}: {data[at]:02x} is {other:02x}"
    return label, lambda: data[:at] + bytes([other]) + data[at + 1 :]


KINDS = (cut, zeroed, flipped, flipped_head)


@attrs.frozen
class Judged:
    """How many damaged stores opened in an earlier state, how many were refused, and all other outcomes."""

    opened: int
    refused: int
    faults: list[str]


def judged(folder: Path, past: Past, damages: Damages, *, file: str, may_be_empty: bool) -> Judged:
    """Open every damaged store; `file` says which of the two files is damaged."""
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
                faults.append(f"{name}: opened in a state that it never had ({len(state)} entries)")

    with asyncio.Runner() as runner:
        runner.run(run())
    return Judged(outcomes["opened"], outcomes["refused"], faults)


def test_the_undamaged_files_open_whole(tmp_path: Path, closed: Past, young: Past, old: Past) -> None:
    """Control: without damage everything that was committed is there."""
    for past in (closed, young, old):
        assert Opener(tmp_path, past.keys)(past.main, past.wal) == past.states[-1]


def changed(folder: Path, past: Past, statement: str) -> State | StoreError:
    """How the store opens after a change through SQLite, which leaves the file sound."""
    path = folder / "changed.db"
    path.write_bytes(past.main)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute(statement)
    connection.close()
    return Opener(folder, past.keys)(path.read_bytes(), b"")


def test_a_missing_entry_is_seen(tmp_path: Path, closed: Past) -> None:
    """Control: without one row the store is in no state that it had."""
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
    """A row that differs from what was written is refused, even if the file is sound for SQLite.

    One flipped bit in its header turns the bytes of a row into text.
    """
    state = changed(tmp_path, closed, f"UPDATE entry SET {change} WHERE key = 'item-1'")
    assert isinstance(state, StoreError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_store_that_was_damaged(tmp_path: Path, closed: Past, kind: Kind) -> None:
    """Cut or zeroed at the end, it is refused; with a flipped byte it is refused, or the byte is unused."""
    was = judged(tmp_path, closed, kind("main", closed.main), file="main", may_be_empty=False)
    assert was.faults == []
    assert was.refused
    if kind in (cut, zeroed):
        assert was.opened <= 1  # the last byte of a page may be zero anyway


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("age", ["young", "old"])
def test_a_damaged_log(tmp_path: Path, young: Past, old: Past, kind: Kind, age: str) -> None:
    """It opens with a prefix of what was committed, never with less than the main file has.

    If its beginning is damaged, so that SQLite would ignore all of it, it is refused.
    """
    past = young if age == "young" else old
    was = judged(tmp_path, past, kind("log", past.wal), file="log", may_be_empty=False)
    assert was.faults == []
    assert was.refused if kind is flipped_head else was.opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("age", ["young", "old"])
def test_a_damaged_main_file_beside_a_log(
    tmp_path: Path, young: Past, old: Past, kind: Kind, age: str
) -> None:
    """It opens in an earlier state or is refused."""
    past = young if age == "young" else old
    was = judged(tmp_path, past, kind("main", past.main), file="main", may_be_empty=False)
    assert was.faults == []
    assert was.opened + was.refused


@pytest.mark.posix("symbolic links")
@pytest.mark.parametrize("link", ["file", "folder", "dangling before"])
def test_a_damaged_log_beside_the_target_of_a_link(tmp_path: Path, young: Past, link: str) -> None:
    """The log lies beside the file that the link leads to, and is checked there."""
    (tmp_path / "data").mkdir()
    real, opened_as = tmp_path / "data" / "run.db", tmp_path / "run.db"
    if link == "folder":
        (tmp_path / "link").symlink_to(real.parent)
        opened_as = tmp_path / "link" / "run.db"
    else:
        opened_as.symlink_to(real)
    real.write_bytes(young.main)
    real.with_name("run.db-wal").write_bytes(bytes([young.wal[0] ^ 1]) + young.wal[1:])
    assert "its log cannot be read" in asyncio.run(refusal(opened_as))
    real.with_name("run.db-wal").write_bytes(young.wal)
    assert kept_in(opened_as, young.keys[-1]) is not None


@pytest.mark.parametrize(
    "owner", ["entry_of_ref", "entry_of_task", "sqlite_autoindex_entry_1", "slot", "callback"]
)
def test_a_damaged_page_of_an_index_is_refused(tmp_path: Path, closed: Past, owner: str) -> None:
    """The rows of the entries are sound, and SQLite finds out when it looks everywhere.

    An entry that its index does not lead to would be submitted again.
    """
    path = tmp_path / "run.db"
    path.write_bytes(closed.main)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        [size] = connection.execute("PRAGMA page_size").fetchone()
        connection.execute("INSERT INTO callback VALUES (x'00', 'task', x'00')")
        [root] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (owner,)).fetchone()
    connection.close()
    main = bytearray(path.read_bytes())
    start = (root - 1) * size
    main[start + 3 : start + 5] = bytes(2)  # the number of cells on the page: none
    state = Opener(tmp_path, closed.keys)(bytes(main), b"")
    assert isinstance(state, StoreError)
    assert "is damaged" in str(state)


INDEXES = {
    "sqlite_autoindex_entry_1": "keys",
    "entry_of_ref": "refs",
    "entry_of_task": "tasks",
    "entry_unfinished": "unfinished entries",
}


def findings(path: Path, check: str) -> list[str]:
    """What SQLite says about a file."""
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(f"PRAGMA {check}")]


def page_of(path: Path, name: str) -> slice:
    """Where the only page of an index or of a table is."""
    with closing(sqlite3.connect(path)) as connection:
        [size] = connection.execute("PRAGMA page_size").fetchone()
        [root] = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    return slice((root - 1) * size, root * size)


async def written(path: Path, *keys: str) -> bytes:
    """The file with these entries, which are SUBMITTED."""
    store = SQLiteStore(path)
    await store.open()
    for key in keys:
        request, task_id = ImageRequest(f"picture {key}"), f"task-{key}"
        entry = Entry(key, request=request, ref=f"ref-{key}", task_id=task_id, submitted_at=1e9)
        await store.save(attrs.evolve(entry, state=EntryState.SUBMITTED))
    await store.aclose()
    return path.read_bytes()


@pytest.mark.parametrize("index", INDEXES)
async def test_a_page_of_an_index_that_was_not_written_is_refused(tmp_path: Path, index: str) -> None:
    """A disk that loses one write leaves a file whose pages fit together. An index that does not lead to an
    entry would have it submitted again."""
    path = tmp_path / "run.db"
    earlier = await written(path, "a", "b")
    later = await written(path, "c")
    assert findings(path, "integrity_check") == ["ok"]
    page = page_of(path, index)
    path.write_bytes(later[: page.start] + earlier[page] + later[page.stop :])
    assert findings(path, "quick_check") == ["ok"]  # control: only the comparison finds it
    assert findings(path, "integrity_check") != ["ok"]
    assert f"the index of {INDEXES[index]} does not match the entries" in await refusal(path)


@pytest.mark.parametrize(
    ("index", "value", "reason"),
    [
        ("sqlite_autoindex_entry_1", b"key", "a value of a wrong type"),
        ("entry_of_task", b"task-key", "a value of a wrong type"),
        ("entry_of_ref", hash_of_ref("ref-key"), "Could not decode"),
    ],
)
async def test_an_index_with_a_value_of_another_type_is_refused(
    tmp_path: Path, index: str, value: bytes, reason: str
) -> None:
    """One bit in an index turns text into bytes, which have the same hash and are not found as text; or
    bytes into text."""
    path = tmp_path / "run.db"
    main, page = bytearray(await written(path, "key")), page_of(path, index)
    main[main.index(value, page.start, page.stop) - 2] ^= 1  # its length and type; the row's id is 1
    path.write_bytes(main)
    assert findings(path, "quick_check") == ["ok"]
    assert reason in await refusal(path)


@pytest.mark.parametrize("table", ["slot", "callback"])
async def test_a_table_that_is_out_of_order_is_refused(tmp_path: Path, table: str) -> None:
    """SQLite would not find what is in the wrong place."""
    path = tmp_path / "run.db"
    await written(path, "a", "b")
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO callback SELECT ref_hash, 'task', x'00' FROM slot")
    main, page = bytearray(path.read_bytes()), page_of(path, table)
    last = max(hash_of_ref(f"ref-{key}") for key in "ab")
    main[main.index(last, page.start, page.stop)] = 0
    path.write_bytes(main)
    assert "is not in order" in await refusal(path)


async def test_an_entry_with_another_text_is_named(tmp_path: Path) -> None:
    """With its file: who has several has to know which one to restore."""
    path = tmp_path / "run.db"
    main = await written(path, "a", "b")
    path.write_bytes(main.replace(b'"ref":"ref-b"', b'"ref":"ref-c"'))
    assert f"the store {path} is damaged (entry 'b' is not what was written)" in await refusal(path)


async def test_two_entries_under_one_key_are_refused(tmp_path: Path) -> None:
    """Two lost writes may leave both the earlier submit and its successor; only one would be found."""
    path = tmp_path / "run.db"
    await written(path, "key-1", "key-2")
    second = Entry("key-1", request=ImageRequest("x"), ref="ref-2")
    with closing(sqlite3.connect(path)) as connection, connection:
        columns = "task_id = NULL, state = ?, submitted_at = NULL, body = ?, checksum = ?, ref_hash = ?"
        _, ref_hash, _, state, _, _, *text = row_of(second)
        connection.execute(f"UPDATE entry SET {columns} WHERE id = 2", (state, *text, ref_hash))
    path.write_bytes(path.read_bytes().replace(b"key-2", b"key-1"))
    assert findings(path, "quick_check") == ["ok"]
    assert "the index of keys is not in order" in await refusal(path)


@pytest.mark.parametrize(
    "text",
    [b'{"key":"k","request":{"prompt":"x","size":"7:7"},"ref":"r"}', b'{"key":"k","request":0,"ref":"r"}'],
)
async def test_a_text_that_is_no_entry_is_found_when_it_is_read(tmp_path: Path, text: bytes) -> None:
    """No accident writes one under its checksum. The other entries can be used."""
    path = tmp_path / "run.db"
    await written(path, "a")
    with closing(sqlite3.connect(path)) as connection, connection:
        row = ("k", hash_of_ref("r"), None, "planned", None, None, text, checksum(text))
        connection.execute(SAVE, row)
    store = SQLiteStore(path)
    await store.open()
    assert await store.find(key="a") is not None
    with pytest.raises(StoreError, match="an entry of the store is damaged"):
        await store.find(key="k")
    await store.aclose()


@pytest.mark.parametrize(
    "text",
    [
        b"[]",
        b"7",
        b'{"key":"k","ref":"r"}',
        b'{"key":"k","request":{},"ref":7}',
        b'{"key":"k","request":{},"ref":"r","colour":1}',
        b'{"key":"k","request":{},"ref":"r"} ',
        b'{"key":"k","request":{"extra":' + b"[" * 100_000 + b"]" * 100_000 + b'},"ref":"r"}',
        b'{"key":"k","request":{"prompt":"\xe9"},"ref":"r"}',
    ],
    ids=range(8),
)
async def test_a_text_of_another_shape_is_refused(tmp_path: Path, text: bytes) -> None:
    """Also under a checksum that matches."""
    path = tmp_path / "run.db"
    await written(path, "a")
    with closing(sqlite3.connect(path)) as connection, connection:
        row = ("k", hash_of_ref("r"), None, "planned", None, None, text, checksum(text))
        connection.execute(SAVE, row)
    assert "damaged" in await refusal(path)


async def test_the_check_of_a_large_store_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A line for each part of it, and none for a store that takes a second."""
    path = tmp_path / "run.db"
    await written(path, "a")
    with closing(sqlite3.connect(path)) as connection, connection:
        for number in range(40):
            planned = Entry(f"{number}", request=ImageRequest("x"), ref=f"{number}")
            connection.execute(SAVE, row_of(planned))
    caplog.set_level("INFO", logger="kie4o")
    assert sqlite_check.PROGRESS % sqlite_check._PAGE == 0  # a line is due between two pages
    monkeypatch.setattr(sqlite_check, "_PAGE", 10)
    for most in (100_000, 41):
        monkeypatch.setattr(sqlite_check, "PROGRESS", most)
        assert await written(path)
        assert caplog.messages == []
    monkeypatch.setattr(sqlite_check, "PROGRESS", 20)
    assert await written(path)
    assert [line.partition("checked: ")[2] for line in caplog.messages] == [
        "0 of 41 entries",
        "20 of 41 entries",
        "40 of 41 entries",
    ]


@pytest.mark.parametrize(
    ("column", "value"),
    [("state", "unknown"), ("price", "7"), ("price", "six"), ("tasks", 3), ("tasks", 2.5), ("checksum", b"")],
    ids=range(6),
)
async def test_a_changed_count_of_what_was_removed_is_refused(
    tmp_path: Path, column: str, value: object
) -> None:
    """`spent` would return another sum, or fail."""
    path = tmp_path / "run.db"
    store = SQLiteStore(path)
    await store.open()
    for number in range(2):
        details = TaskDetails(f"task-{number}", state=TaskState.SUCCEEDED, urls=("https://example.com",))
        entry = Entry(f"{number}", request=ImageRequest("x"), ref=f"{number}", task_id=details.task_id)
        await store.save(
            attrs.evolve(
                entry, state=EntryState.SUCCEEDED, submitted_at=1e9, price=Decimal(6), details=details
            )
        )
    assert await store.prune(2e9) == 2
    spent = await store.spent()
    await store.aclose()
    await store.open()
    assert await store.spent() == spent
    await store.aclose()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE pruned SET {column} = ?", (value,))
    assert "is damaged" in await refusal(path)


@pytest.mark.parametrize("column", ["task_id", "ref_hash", "checksum"])
async def test_a_changed_callback_is_ignored(tmp_path: Path, column: str) -> None:
    """A kept task id that differs from what was written would bind another task to the request."""
    path = tmp_path / "run.db"
    store = SQLiteStore(path)
    await store.open()
    await store.keep_callback("ref", "task-1")
    assert list(await store.callbacks_of("ref")) == ["task-1"]
    changes = {"task_id": "'task-2'", "ref_hash": f"x'{hash_of_ref('other').hex()}'", "checksum": "x'00'"}
    sql = f"UPDATE callback SET {column} = {changes[column]}"
    await store._worker.run(lambda connection: connection.execute(sql))
    assert list(await store.callbacks_of("ref")) == []
    assert list(await store.callbacks_of("other")) == []
    await store.aclose()


# -- files of other programs, and without permission -----------------------------------------------


async def refusal(path: Path) -> str:
    store = SQLiteStore(path)
    with pytest.raises(StoreError) as caught:
        await asyncio.wait_for(store.open(), PATIENCE)
    assert caught.value.__context__ is None
    return str(caught.value)


async def create(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.aclose()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """The error of a file of a later kie4o says what to do, and the file is left unchanged."""
    path = tmp_path / "run.db"
    await create(path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    connection.close()
    before = path.read_bytes()
    assert "upgrade kie4o" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Its data is left unchanged."""
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
    """Empty, text, zeroes or half a header: refused, left unchanged, and never started anew."""
    path = tmp_path / "run.db"
    path.write_bytes(content)
    await refusal(path)
    assert path.read_bytes() == content


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A directory is not a store."""
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
    """Root may write anywhere; a process that it starts after this may not."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.mark.posix("prctl")
@pytest.mark.skipif(sys.platform != "linux", reason="uses prctl to drop a privilege of root")
@pytest.mark.parametrize("exists", [False, True])
def test_a_read_only_directory_is_refused(tmp_path: Path, exists: bool) -> None:
    """Without permission to write nothing is opened, whether the file exists or not."""
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "run.db"
    if exists:
        asyncio.run(create(path))
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


# -- a full disk -----------------------------------------------------------------------------------


def full_disk(path: Path, state: str) -> tuple[dict[str, Any], str]:
    """A submit whose save of that state meets a full disk, then another with room again: results and log."""
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


@pytest.mark.posix("a limit on the size of files")
@pytest.mark.parametrize("state", ["claim", "intent"])
def test_without_an_intent_on_the_disk_nothing_is_sent(tmp_path: Path, state: str) -> None:
    """A full disk before the POST: `StoreError`, no request, and the same key works once there is room."""
    path = tmp_path / "run.db"
    seen, _ = full_disk(path, state)
    assert seen["error"] == "StoreError"
    assert seen["task_id"] is None
    assert seen["posts"] == 0
    assert seen["again"] == "task-1"
    assert seen["posts_after"] == 1
    kept = kept_in(path, "order-1")
    assert kept is not None
    assert kept.task_id == "task-1"


@pytest.mark.posix("a limit on the size of files")
def test_a_task_id_that_cannot_be_saved_is_reported_and_saved_later(tmp_path: Path) -> None:
    """A full disk after the POST: the `StoreError` and a log record at ERROR have the task id.

    Its key returns the task without a second POST, and once there is room it is saved.
    """
    path = tmp_path / "run.db"
    seen, log = full_disk(path, "submitted")
    assert seen["error"] == "StoreError"
    assert seen["task_id"] == "task-1"
    assert seen["key"] == "order-1"
    assert "ERROR" in log
    assert "task-1" in log
    assert seen["while_full"] == "task-1"
    assert seen["saved"] == "task-1"
    assert seen["again"] == "task-1"
    assert seen["posts_after"] == 1
    kept = kept_in(path, "order-1")
    assert kept is not None
    assert (kept.state, kept.task_id) == (EntryState.SUBMITTED, "task-1")


@pytest.mark.posix("a limit on the size of files")
def test_a_task_id_that_was_never_saved_is_unknown_after_a_restart(tmp_path: Path) -> None:
    """If there is never room, the key is unknown after a restart and nothing is sent."""
    path = tmp_path / "run.db"
    seen, log = full_disk(path, "submitted forever")
    assert seen["task_id"] == "task-1"
    assert "was never saved" in log
    kept = kept_in(path, "order-1")
    assert kept is not None
    assert kept.state is EntryState.UNKNOWN
