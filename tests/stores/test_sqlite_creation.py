"""How a store file comes into being where a drive has no hard links, a directory cannot be synced, or the
process is killed or stopped in the middle; and how one of an older schema is brought up to date.

A platform is simulated at the call that behaves differently there, with the error that it documents.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import signal
import sqlite3
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from entries import ended, entry_of, submitted, unfinished_keys
from platforms import like_windows
from test_sqlite import opened, refused

from kie4o import StoreError, StoreLockedError
from kie4o.stores import durability, sqlite_creation
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_creation import SCHEMA
from kie4o.stores.sqlite_file import SAVE, open_file, row_of
from kie4o.stores.store import EntryState


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder / "run.db"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def raising(error: OSError) -> Callable[..., Any]:
    def call(*arguments: Any, **more: Any) -> Any:
        raise error

    return call


# -- directories that cannot be synced -------------------------------------------------------------


async def creates_and_backs_up(path: Path) -> None:
    async with opened(path) as store:
        await store.save(submitted("a"))
        await store.backup(path.with_name("copy.db"))
    for file in (path, path.with_name("copy.db")):
        async with opened(file) as store:
            assert await unfinished_keys(store) == ["a"]
    assert names(path.parent) == ["copy.db", "run.db"]


async def test_windows_opens_no_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is created at the first start, and backed up."""
    like_windows(monkeypatch)
    await creates_and_backs_up(path)


def failing_sync_of_directories(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(error, os.strerror(error))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(durability, "_sync", fsync if sys.platform == "win32" else durability._sync)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF])
async def test_a_file_system_that_syncs_no_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """CIFS and FUSE answer so (fsync(2)); the store is created."""
    failing_sync_of_directories(monkeypatch, error)
    await creates_and_backs_up(path)


@pytest.mark.posix("fsync of a directory")
@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
async def test_a_directory_that_is_not_on_the_disk_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Control: a real failure opens nothing, and backs up nothing."""
    async with opened(path.with_name("other.db")) as other:
        failing_sync_of_directories(monkeypatch, error)
        with pytest.raises(StoreError, match=os.strerror(error)):
            await SQLiteStore(path).open()
        with pytest.raises(StoreError, match=os.strerror(error)):
            await other.backup(path.with_name("copy.db"))


# -- past the cache of the drive -------------------------------------------------------------------


@pytest.mark.parametrize("which", ["draft", "store", "backup"])
async def test_every_connection_that_writes_syncs_fully(
    path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On macOS a commit survives a power cut only with `fullfsync`."""
    seen: dict[str, list[tuple[int, ...]]] = {}
    real = durability.make_durable

    def make_durable(connection: sqlite3.Connection) -> None:
        real(connection)
        [[_, _, file]] = connection.execute("PRAGMA database_list").fetchall()
        pragmas = ("synchronous", "fullfsync", "checkpoint_fullfsync")
        values = tuple(connection.execute(f"PRAGMA {pragma}").fetchone()[0] for pragma in pragmas)
        seen.setdefault(which_of(Path(file)), []).append(values)

    def which_of(file: Path) -> str:
        if not file.name.startswith(".kie4o-"):
            return "store"
        return "backup" if path.exists() else "draft"

    for module in ("sqlite_creation", "sqlite_file", "sqlite_backup"):
        monkeypatch.setattr(f"kie4o.stores.{module}.make_durable", make_durable)
    async with opened(path) as store:
        await store.save(submitted("a"))
        await store.backup(path.with_name("copy.db"))
    assert seen[which] == [(2, 1, 1)]


@pytest.mark.posix("fsync of a directory")
@pytest.mark.parametrize("supported", [True, False])
def test_a_directory_is_synced_fully(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    """By `F_FULLFSYNC` (macOS's fcntl(2)); by `fsync` where a drive of another system does not have that."""
    import fcntl

    calls: list[str] = []

    def call(handle: int, command: int) -> int:
        assert stat.S_ISDIR(os.fstat(handle).st_mode)
        calls.append(f"fcntl {command}")
        if not supported:
            raise OSError(errno.ENOTSUP, "Operation not supported")
        return 0

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", call)
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync"))
    durability.sync_directory(tmp_path)
    assert calls == ["fcntl 51"] + ["fsync"] * (not supported)


# -- drives without hard links ---------------------------------------------------------------------

# link(2): EPERM on FAT and exFAT; FUSE ENOSYS; network drives ENOTSUP, EXDEV; Termux EACCES. Windows reports
# ERROR_INVALID_FUNCTION (FAT) and ERROR_NOT_SUPPORTED (SMB) as EINVAL.
REFUSALS = [
    *(errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS),
    *(errno.EMLINK, errno.EXDEV, errno.EACCES, errno.EINVAL),
]


def without_links(monkeypatch: pytest.MonkeyPatch, error: int = errno.EPERM) -> None:
    monkeypatch.setattr(os, "link", raising(OSError(error, os.strerror(error))))


@pytest.mark.parametrize("error", REFUSALS, ids=lambda error: errno.errorcode[error])
async def test_a_drive_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    """The store is created, by whatever error the drive refuses links, and nothing is left beside it."""
    without_links(monkeypatch, error)
    await creates_and_backs_up(path)


async def test_on_such_a_drive_too_a_store_that_another_process_creates_first_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is created between the two ways to name the file, and has an entry already."""
    async with opened(path.with_name("first.db")) as first:
        await first.save(submitted("a"))

    def link(*_: object) -> None:
        path.with_name("first.db").rename(path)
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    async with opened(path) as store:
        assert await unfinished_keys(store) == ["a"]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_who_comes_second_leaves_nothing_beside_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even its lock file, though the first may have the store open and not open it again."""
    without_links(monkeypatch)
    for _ in range(2):
        sqlite_creation.create(path)
        assert names(path.parent) == ["run.db"]


def test_where_there_are_links_who_comes_second_needs_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is there is as good."""
    sqlite_creation.create(path)
    monkeypatch.setattr(sqlite_creation, "_name_without_links", raising(OSError(errno.EIO, "no lock")))
    sqlite_creation.create(path)
    assert names(path.parent) == ["run.db"]


async def test_without_links_no_file_gets_its_name_while_another_process_names_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renaming would replace what that one has just created. It does not wait for it either."""
    without_links(monkeypatch)
    lock_file = sqlite_creation._lock_file_of(path)
    waits = []
    with contextlib.closing(sqlite3.connect(lock_file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(StoreLockedError):
                await SQLiteStore(path).open()
            waits.append(time.monotonic() - began)
        assert not path.exists()
    assert min(waits) < 0.5  # the shortest: this machine may have other work


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EROFS])
async def test_a_drive_that_fails_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """Control: what fails for another reason fails again without links, and leaves nothing."""
    without_links(monkeypatch, error)
    monkeypatch.setattr(os, "rename", raising(OSError(error, os.strerror(error))))
    assert os.strerror(error) in str(await refused(path))
    assert [name for name in names(path.parent) if name.endswith(".db")] == []


async def test_an_empty_file_stays_damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No step of creating leaves one, so it was a store once, and starting anew would pay again."""
    without_links(monkeypatch)
    path.write_bytes(b"")
    assert "damaged" in str(await refused(path))
    assert path.read_bytes() == b""


# -- killed or stopped at every line ---------------------------------------------------------------


def forks(test: Callable[..., Any]) -> Any:
    """It runs a process for each line of a module."""
    return pytest.mark.once(pytest.mark.posix("fork")(test))


PARTS = {sqlite_creation.__file__, __file__}


class Child:
    """A process that opens the store, and gets `signal_` at the `at`-th line of its creation."""

    def __init__(self, path: Path, at: int, signal_: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # forking beside a thread
            self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                signal.alarm(20)
                sys.settrace(self._signalling(at, signal_))
                open_file(path).close()
                code = 0
            except StoreError:
                code = 2
            finally:
                os._exit(code)

    def _signalling(self, at: int, signal_: int) -> Callable[..., Any]:
        lines = itertools.count(1)

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if frame.f_code.co_filename not in PARTS:
                return None
            if event == "line" and next(lines) == at:
                os.kill(os.getpid(), signal_)
            return trace

        return trace

    def wait(self) -> int:
        """Its exit code; negative if it was killed or has stopped."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        return -os.WSTOPSIG(status) if os.WIFSTOPPED(status) else os.waitstatus_to_exitcode(status)


def lines_of(folder: Path, signal_: int) -> Iterator[tuple[Path, Child]]:
    """A new store for each line, with the child that got the signal there."""
    for at in itertools.count(1):
        path = folder / f"{at}" / "run.db"
        path.parent.mkdir()
        child = Child(path, at, signal_)
        code = child.wait()
        if code >= 0:
            assert code == 0
            assert at > 20
            return
        assert code == -signal_
        yield path, child


async def works(path: Path, *before: str) -> None:
    async with opened(path) as store:
        assert await unfinished_keys(store) == list(before)
        await store.save(submitted("a"))
    async with opened(path) as store:
        assert await unfinished_keys(store) == [*before, "a"]


@forks
@pytest.mark.parametrize("links", [True, False])
def test_a_process_killed_at_any_line_leaves_no_store_or_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """The next one opens it, and removes what was left of its name."""
    if not links:
        without_links(monkeypatch)
    for path, _ in lines_of(tmp_path, signal.SIGKILL):
        if path.exists():
            with sqlite3.connect(path) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                assert connection.execute("SELECT count(*) FROM entry").fetchall() == [(0,)]
            connection.close()
        asyncio.run(works(path))
        left = [name for name in names(path.parent) if name != "run.db"]
        assert all(name.startswith(".kie4o-") and ".db" in name for name in left)
        assert not sqlite_creation._lock_file_of(path).exists()


async def beside(path: Path, child: Child) -> str:
    """Use the store while the other process has stopped in the middle of its creation; then let it go on."""
    store = SQLiteStore(path)
    try:
        await store.open()
    except StoreLockedError:
        os.kill(child.pid, signal.SIGCONT)
        return "" if child.wait() == 0 else "both were locked out"
    await store.save(submitted("b"))
    os.kill(child.pid, signal.SIGCONT)
    code = child.wait()
    try:
        keys = await unfinished_keys(store)
        await store.aclose()
    except StoreError as error:
        await store.aclose()
        return f"replaced: {error}"
    return "" if (code, keys) == (2, ["b"]) else f"two have it: {code}, {keys}"


def faults_of_two(folder: Path) -> list[str]:
    faults = []
    for path, child in lines_of(folder, signal.SIGSTOP):
        if fault := asyncio.run(beside(path, child)):
            faults.append(f"line {path.parent.name}: {fault}")
        else:
            asyncio.run(works(path, *(["b"] if _has_b(path) else [])))
    return faults


def _has_b(path: Path) -> bool:
    with sqlite3.connect(path) as connection:
        [(count,)] = connection.execute("SELECT count(*) FROM entry")
    connection.close()
    return bool(count)


@forks
@pytest.mark.parametrize("links", [True, False])
def test_of_two_processes_that_create_a_store_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """One is stopped at each line while the other uses the store: neither replaces the other's file."""
    if not links:
        without_links(monkeypatch)
    assert faults_of_two(tmp_path) == []


@forks
def test_control_renaming_without_a_lock_replaces_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what the first process has saved would be lost with its file."""

    def naive(draft: Path, path: Path) -> None:
        if not path.exists():
            draft.rename(path)

    without_links(monkeypatch)
    monkeypatch.setattr(sqlite_creation, "_name_without_links", naive)
    assert any("replaced" in fault for fault in faults_of_two(tmp_path))


@forks
def test_control_building_in_place_leaves_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: a name that is claimed first is an empty file if the process is killed then."""

    def claim(draft: Path, path: Path) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        draft.replace(path)

    monkeypatch.setattr(sqlite_creation, "_name", claim)
    sizes = [path.stat().st_size for path, _ in lines_of(tmp_path, signal.SIGKILL) if path.exists()]
    assert 0 in sizes


# -- a file of an older schema -----------------------------------------------------------------------

SCHEMA_1 = """
PRAGMA application_id = 0x6B696534; PRAGMA user_version = 1;
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    ref_hash BLOB NOT NULL,
    task_id TEXT,
    state TEXT NOT NULL,
    submitted_at REAL,
    body BLOB NOT NULL,
    checksum BLOB NOT NULL
);
CREATE INDEX entry_of_ref ON entry (ref_hash);
CREATE INDEX entry_of_task ON entry (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX entry_unfinished ON entry (id) WHERE state IN ('submitted', 'unknown');
CREATE TABLE slot (
    ref_hash BLOB PRIMARY KEY, at REAL NOT NULL, uptime REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE callback (
    ref_hash BLOB, task_id TEXT, checksum BLOB NOT NULL, PRIMARY KEY (ref_hash, task_id)
) WITHOUT ROWID;
"""
OLD = [submitted("runs"), ended(submitted("works")), entry_of("is lost", state=EntryState.UNKNOWN)]


def write_schema_1(path: Path) -> None:
    """A store as the first kie4o left it, which knew no prices."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(SCHEMA_1)
        for entry in OLD:
            key, ref_hash, task_id, state, at, _, body, check = row_of(entry)
            row = (key, ref_hash, task_id, state, at, body, check)
            columns = "key, ref_hash, task_id, state, submitted_at, body, checksum"
            connection.execute(f"INSERT INTO entry ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", row)


def schema_of(path: Path) -> tuple[int, bool]:
    """The version, and whether there is a column for prices."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        [version] = connection.execute("PRAGMA user_version").fetchone()
        columns = [row[1] for row in connection.execute("PRAGMA table_info(entry)")]
    return version, "price" in columns


async def test_an_older_store_is_brought_up_to_date(path: Path) -> None:
    """Once: its entries are there without a price, and new ones have theirs, also after the next start."""
    write_schema_1(path)
    for number in range(3):
        store = SQLiteStore(path)
        await store.open()
        for entry in OLD:
            assert await store.find(key=entry.key) == entry
        spent = await store.spent()
        assert (spent.tasks, spent.credits, spent.unpriced) == (3 + number, 6 * number, 3)
        await store.save(submitted(f"new {number}", price=Decimal(6)))
        await store.aclose()
    assert schema_of(path) == (SCHEMA, True)


@pytest.mark.parametrize("at", [1, 2])
async def test_an_upgrade_that_is_cut_short_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Before each of its statements; the next start does it as a whole."""
    write_schema_1(path)
    with monkeypatch.context() as patch:
        patch.setitem(sqlite_creation._UPGRADES, at, "SELECT no_such_column")
        with pytest.raises(StoreError):
            await SQLiteStore(path).open()
    assert schema_of(path) == (1, False)
    store = SQLiteStore(path)
    await store.open()
    assert (await store.spent()).unpriced == 3
    await store.aclose()


async def test_a_store_of_schema_2_forgets_what_is_old_and_keeps_its_size(path: Path) -> None:
    """SQLite gives no space back to the file system in a file that was created without it; it is used for
    new entries."""
    write_schema_1(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("ALTER TABLE entry ADD COLUMN price TEXT; PRAGMA user_version = 2")
        for number in range(500):
            entry = ended(submitted(f"{number}", submitted_at=1e9, price=Decimal(6)))
            connection.execute(SAVE, row_of(entry))
    before = path.stat().st_size
    store = SQLiteStore(path)
    await store.open()
    assert await store.prune(1e9 + 1) == 500
    assert await store.find(key="runs") == OLD[0]
    spent = await store.spent()
    assert (spent.tasks, spent.credits, spent.unpriced) == (503, 3000, 3)
    await store.aclose()
    assert path.stat().st_size >= before
    assert schema_of(path) == (SCHEMA, True)


async def test_a_file_shrinks_when_entries_are_removed(path: Path) -> None:
    """While it is open, with its log."""
    store = SQLiteStore(path)
    await store.open()
    old = [ended(submitted(f"{number}", submitted_at=1e9)) for number in range(4000)]
    await asyncio.gather(*(store.save(entry) for entry in old))
    await store.save(submitted("new"))
    await store.aclose()
    before = path.stat().st_size
    await store.open()
    assert await store.prune(1e9 + 1) == 4000
    log = path.with_name(path.name + "-wal")
    assert path.stat().st_size + log.stat().st_size < before / 20
    await store.save(submitted("another"))
    await store.aclose()
    await store.open()
    assert sorted([entry.key async for entry in store.unfinished()]) == ["another", "new"]
    await store.aclose()


async def test_a_damaged_older_store_is_left_as_it_is(path: Path) -> None:
    """What cannot be read is refused, and nothing changes, so that the kie4o that wrote it can open it again
    once a person has mended it."""
    write_schema_1(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE entry SET checksum = x'00' WHERE key = 'works'")
    for _ in range(2):
        with pytest.raises(StoreError, match="damaged"):
            await SQLiteStore(path).open()
        assert schema_of(path) == (1, False)
