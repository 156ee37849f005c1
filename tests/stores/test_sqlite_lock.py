"""Who owns a store file: one process, however the file is copied, linked, renamed or deleted meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from entries import submitted, unfinished_keys
from platforms import handles
from test_sqlite import in_child, opened, refused

from kie4o import StoreError, StoreLockedError
from kie4o.stores import file_lock, sqlite_file
from kie4o.stores.file_lock import FileLock
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import log_of, open_file

OPEN = """
import asyncio, sys
from kie4o.errors import StoreError
from kie4o.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    try:
        await store.open()
    except StoreError as error:
        print(type(error).__name__)
    else:
        print("opened")
        await store.aclose()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


async def in_another_process(path: Path) -> str:
    """What another process sees that opens it: "opened", or the name of the error."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", OPEN, str(path), stdout=pipe)
    output, _ = await process.communicate()
    return output.decode().strip()


# -- the lock --------------------------------------------------------------------------------------


def read(path: Path) -> None:
    path.read_bytes()


def copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.db"))


def open_again(path: Path) -> None:
    with contextlib.suppress(StoreError):
        asyncio.run(SQLiteStore(path).open())


def fork_and_read(path: Path) -> None:
    in_child(lambda: read(path))


FORKING = pytest.param(fork_and_read, marks=pytest.mark.posix("fork"))


@pytest.mark.parametrize("touch", [read, copy, open_again, FORKING])
async def test_the_lock_outlives_other_descriptors(path: Path, touch: Callable[[Path], None]) -> None:
    """Though the file is opened and closed in this process, another one stays out until the store is closed.

    SQLite's own lock is dropped by that, which is the reason for the lock of ours.
    """
    async with opened(path) as store:
        await store.save(submitted("a"))
        await asyncio.to_thread(touch, path)
        assert await in_another_process(path) == "StoreLockedError"
        await store.save(submitted("b"))
    assert await in_another_process(path) == "opened"
    async with opened(path) as store:
        assert await unfinished_keys(store) == ["a", "b"]


@pytest.mark.posix("locks that belong to a process")
async def test_control_sqlites_lock_does_not(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: without our lock another process gets in after a copy."""
    monkeypatch.setattr(file_lock, "_lock", lambda descriptor: None)
    async with opened(path):
        assert await in_another_process(path) == "StoreLockedError"
        copy(path)
        assert await in_another_process(path) == "opened"


@pytest.mark.posix("symbolic links")
async def test_sqlites_lock_is_not_dropped_by_us(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusing a second store in this process, and a file that is locked, closes no descriptor of it."""
    monkeypatch.setattr(file_lock, "_lock", lambda descriptor: None)
    async with opened(path):
        for link in (path, path.with_name("link.db"), path.with_name("hard.db")):
            if link.name == "link.db":
                link.symlink_to(path)
            elif link.name == "hard.db":
                link.hardlink_to(path)
            with pytest.raises(StoreLockedError):
                await SQLiteStore(link).open()
        path.with_name("hard.db").unlink()  # a file with two names is refused for that alone
        assert await in_another_process(path) == "StoreLockedError"


@pytest.mark.parametrize("fault", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
async def test_a_file_system_without_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: int
) -> None:
    """The store opens under SQLite's lock alone, and the log says so once."""

    def lock(descriptor: int) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(file_lock, "_lock", lock)
    for _ in range(2):
        async with opened(path):
            assert await in_another_process(path) == "StoreLockedError"
    [warning] = [record for record in caplog.records if record.name == "kie4o"]
    assert (warning.levelno, str(path) in warning.getMessage()) == (logging.WARNING, True)


@pytest.mark.posix("locks of open files")
@pytest.mark.parametrize("lacks", ["the command", "the system"])
async def test_a_system_without_such_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lacks: str
) -> None:
    """As on most systems but Linux and macOS. There is nothing to unlock either."""
    import fcntl

    if lacks == "the command":
        monkeypatch.delattr(fcntl, "F_OFD_SETLK", raising=False)
    else:
        monkeypatch.setattr(file_lock, "_FLOCKS", {})
    async with opened(path) as store:
        await store.save(submitted("a"))
    async with opened(path) as store:
        assert await unfinished_keys(store) == ["a"]
    [warning] = [record.getMessage() for record in caplog.records if record.name == "kie4o"]
    assert "this system has no locks of open files" in warning


async def test_another_error_of_the_lock_is_raised(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that fails for any other reason opens nothing, and leaves no descriptor."""

    def lock(descriptor: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    before = list(handles())
    monkeypatch.setattr(file_lock, "_lock", lock)
    assert "cannot be used: input/output error" in str(await refused(path))
    assert list(handles()) == before
    monkeypatch.undo()
    async with opened(path):
        pass


def unnumbered(found: os.stat_result) -> os.stat_result:
    return os.stat_result((found.st_mode, 0, *found[2:]))


async def test_a_drive_that_does_not_number_its_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some network drives of Windows: each store is another file, and none is opened twice."""
    stat, fstat = Path.stat, os.fstat
    monkeypatch.setattr(Path, "stat", lambda self, **how: unnumbered(stat(self, **how)))
    monkeypatch.setattr(os, "fstat", lambda descriptor: unnumbered(fstat(descriptor)))
    async with opened(path) as first, opened(path.with_name("other.db")) as second:
        await first.save(submitted("a"))
        await second.save(submitted("b"))
        await refused(path)
        await first.save(submitted("c"))


async def test_the_locked_byte_is_none_of_the_data(path: Path) -> None:
    """On Windows no one else can read it, SQLite included; it is in the page without data ("File Format")."""
    async with opened(path) as store:
        [size] = await store._worker.run(lambda connection: connection.execute("PRAGMA page_size").fetchone())
    assert 0x40000200 <= file_lock._BYTE < 0x40000000 + size


def test_a_lock_is_released_once(path: Path) -> None:
    """A second `release` does not close a descriptor that means another file by then."""
    path.write_bytes(b"x")
    lock = FileLock(path)
    with pytest.raises(BlockingIOError):
        FileLock(path)
    lock.release()
    other = FileLock(path)
    lock.release()
    with pytest.raises(BlockingIOError):
        FileLock(path)
    other.release()
    FileLock(path).release()


def test_what_a_child_forgets_is_closed(path: Path) -> None:
    """Every lock of its parent: none of them is released there, and the child may lock the file itself."""
    before = list(handles())
    path.write_bytes(b"x")
    lock = FileLock(path)
    file_lock._forget_in_child()
    assert list(handles()) == before
    other = FileLock(path)
    lock.release()
    with pytest.raises(BlockingIOError):
        FileLock(path)
    other.release()


@pytest.mark.posix("fork")
def test_a_forked_child_does_not_keep_the_lock(path: Path) -> None:
    """A child that goes on after its parent has closed the store, or died, leaves the file free."""
    ready, done = os.pipe(), os.pipe()
    with asyncio.Runner() as runner:
        store = SQLiteStore(path)
        runner.run(store.open())
        child = forked(ready, done)
        os.read(ready[0], 1)
        runner.run(store.aclose())
        try:
            runner.run(store.open())
            runner.run(store.aclose())
        finally:
            os.write(done[1], b"x")
            os.waitpid(child, 0)
            for descriptor in (*ready, *done):
                os.close(descriptor)


def forked(ready: tuple[int, int], done: tuple[int, int]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside a thread is the point here
        child = os.fork()
    if child == 0:
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    return child


# -- a file that is not where it was ---------------------------------------------------------------


def renamed(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def renamed_with_its_log(path: Path) -> None:
    renamed(path)
    log_of(path).rename(log_of(path.with_name("moved.db")))


def deleted(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    renamed(path)
    shutil.copy(path.with_name("moved.db"), path)


def without_its_log(path: Path) -> None:
    log_of(path).rename(path.with_name("moved.db-wal"))


def with_another_log(path: Path) -> None:
    without_its_log(path)
    log_of(path).write_bytes(b"")


def folder_renamed(path: Path) -> None:
    path.parent.rename(path.parent.with_name("moved"))


def put_back(path: Path) -> None:
    moved = path.parent.with_name("moved")
    if moved.exists():
        moved.rename(path.parent)
    for ending in ("", "-wal"):
        file = path.with_name("moved.db" + ending)
        if file.exists():
            file.replace(path.with_name(path.name + ending))


MOVES = [renamed, renamed_with_its_log, deleted, replaced, without_its_log, with_another_log, folder_renamed]


@pytest.mark.posix("renaming or deleting an open file")
@pytest.mark.parametrize("move", MOVES)
async def test_a_file_that_is_not_in_its_place_is_refused(
    tmp_path: Path, move: Callable[[Path], None]
) -> None:
    """Every call is a `StoreError` from the first on, and once the file is back the store works.

    What it held is there, and what was refused is not.
    """
    path = tmp_path / "folder" / "run.db"
    async with opened(path) as store:
        await store.save(submitted("a"))
        move(path)
        for call in (
            lambda: store.save(submitted("b")),
            lambda: store.find(key="a"),
            lambda: store.backup(tmp_path / "copy.db"),
        ):
            with pytest.raises(StoreError, match=r"run\.db.* was deleted, renamed or replaced"):
                await call()
        if move is not deleted:
            put_back(path)
            assert await unfinished_keys(store) == ["a"]
            await store.save(submitted("c"))
    if move is not deleted:
        async with opened(path) as store:
            assert await unfinished_keys(store) == ["a", "c"]


@pytest.mark.posix("renaming or deleting an open file")
@pytest.mark.parametrize("move", [renamed, deleted])
async def test_a_file_that_moves_during_a_commit_is_refused(path: Path, move: Callable[[Path], None]) -> None:
    """A write is good only if the file is in its place when it is over."""
    async with opened(path) as store:
        with pytest.raises(StoreError, match="deleted, renamed or replaced"):
            await store._worker.run(lambda connection: move(path))


@pytest.mark.posix("renaming or deleting an open file")
@pytest.mark.parametrize("move", [renamed, replaced, deleted])
async def test_a_file_that_moves_while_it_is_opened_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, move: Callable[[Path], None]
) -> None:
    """What was checked may be another file than that which the path names."""
    monkeypatch.setattr(sqlite_file, "_check", lambda connection, path, report: move(path))
    with pytest.raises(StoreError, match="deleted, renamed or replaced"):
        await SQLiteStore(path).open()


@pytest.mark.posix("renaming or deleting an open file")
@pytest.mark.parametrize("move", MOVES)
async def test_closing_leaves_the_files_of_the_next_store_alone(
    tmp_path: Path, move: Callable[[Path], None]
) -> None:
    """A store that is closed after its file was moved away does not touch what is in its place by then."""
    path = tmp_path / "folder" / "run.db"
    async with opened(path) as store:
        await store.save(submitted("a"))
        move(path)
        path.parent.mkdir(exist_ok=True)
        after = SQLiteStore(path)
        try:
            await after.open()
        except StoreError:
            return  # the log of the first store is there, or the file itself
        await after.save(submitted("b"))
        log = log_of(path).stat().st_ino
        await store.aclose()
        assert log_of(path).stat().st_ino == log
        await after.save(submitted("c"))
        await after.aclose()
    async with opened(path) as store:
        assert await unfinished_keys(store) == (["a"] if move is replaced else []) + ["b", "c"]


@pytest.mark.posix("renaming or deleting an open file")
async def test_a_log_without_its_file_is_refused(path: Path) -> None:
    """A new file would take over the log of the old one. Once the log is moved away too, it starts empty."""
    async with opened(path) as store:
        await store.save(submitted("a"))
        path.unlink()
    log = log_of(path)
    content = log.read_bytes()
    assert content
    assert "its log run.db-wal is still there" in str(await refused(path))
    assert log.read_bytes() == content
    assert not path.exists()
    log.unlink()
    async with opened(path) as store:
        assert await unfinished_keys(store) == []


# -- links -----------------------------------------------------------------------------------------


def links(folder: Path, path: Path) -> Iterator[Path]:
    """Ways to name a file: a link to it, a link to that, and a path through a link to its folder."""
    (folder / "link.db").symlink_to(path)
    (folder / "second.db").symlink_to("link.db")
    (folder / "to folder").symlink_to(path.parent)
    yield folder / "link.db"
    yield folder / "second.db"
    yield folder / "to folder" / path.name


@pytest.mark.posix("symbolic links")
async def test_a_file_is_the_same_by_any_name(tmp_path: Path) -> None:
    """Created through a dangling link, opened through others, locked under all, and never beside a link."""
    path = tmp_path / "data" / "real.db"
    path.parent.mkdir()
    for number, link in enumerate(links(tmp_path, path)):
        async with opened(link) as store:
            assert await unfinished_keys(store) == [f"{n}" for n in range(number)]
            await store.save(submitted(f"{number}"))
            assert sorted(file.name for file in path.parent.iterdir()) == ["real.db", "real.db-wal"]
            assert await in_another_process(path) == "StoreLockedError"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["data", "link.db", "second.db", "to folder"]


async def test_a_file_with_two_names_is_refused(tmp_path: Path) -> None:
    """What a process that was killed has submitted is in the log beside the name that it opened."""
    path, killed = tmp_path / "run.db", tmp_path / "killed" / "run.db"
    killed.parent.mkdir()
    async with opened(path) as store:
        await store.save(submitted("a"))
        for file in (path, log_of(path)):
            shutil.copy(file, killed.parent)
    other = killed.with_name("other.db")
    other.hardlink_to(killed)
    for name in (other, killed):
        assert "has another name (a hard link)" in str(await refused(name))
    assert not log_of(other).exists()
    other.unlink()
    async with opened(killed) as store:
        assert await unfinished_keys(store) == ["a"]


@pytest.mark.posix("fork")
async def test_a_name_that_a_killed_process_has_left_is_removed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed while it created the file. The draft of another file is left alone."""
    link = os.link

    def link_and_die(*names: Path) -> None:
        link(*names)
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(os, "link", link_and_die)
    assert in_child(lambda: open_file(path)) == -signal.SIGKILL
    monkeypatch.undo()
    [draft] = path.parent.glob(".kie4o-*.db")
    assert draft.samefile(path)
    shutil.copy(draft, another := path.with_name(".kie4o-another.db"))
    async with opened(path) as store:
        await store.save(submitted("a"))
        assert not draft.exists()
        assert another.exists()
    async with opened(path) as store:
        assert await unfinished_keys(store) == ["a"]


@pytest.mark.posix("symbolic links")
async def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    """A `StoreError`, as for any path that cannot be a file."""
    (tmp_path / "a.db").symlink_to("b.db")
    (tmp_path / "b.db").symlink_to("a.db")
    assert "cannot be used" in str(await refused(tmp_path / "a.db"))


async def test_a_relative_path_is_that_of_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the directory while the store is open moves nothing."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    async with opened(Path("run.db")) as store:
        await store.save(submitted("a"))
        monkeypatch.chdir(tmp_path / "elsewhere")
        await store.save(submitted("b"))
    async with opened(tmp_path / "run.db") as store:
        assert await unfinished_keys(store) == ["a", "b"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
