"""`backup`: a copy of a store file while it is in use."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import sys
from pathlib import Path

import pytest
from canary import CANARY_KEY
from entries import ended, entry_of, submitted, unfinished_keys
from portable import file_size_limit
from test_sqlite import opened

from kie4o import AsyncKieClient, StoreError
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.sqlite_file import StoreConnection, log_of
from kie4o.stores.store import EntryState, SupportsBackup


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "backups"
    folder.mkdir()
    return folder / "copy.db"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


async def test_a_backup_opens_elsewhere(path: Path, target: Path) -> None:
    """It has everything that was saved before, has mode 0600, and is a store like any other.

    The original goes on, and neither knows of what the other saves later.
    """
    async with opened(path) as store:
        for n in range(100):
            await store.save(submitted(f"{n:02}"))
        await store.save(ended(submitted("00")))
        await store.keep_callback("ref of 01", "named")
        await store.backup(target)
        await store.save(submitted("later"))
        if sys.platform != "win32":
            assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert names(target.parent) == ["copy.db"]
        async with opened(target) as copy:
            assert await unfinished_keys(copy) == [f"{n:02}" for n in range(1, 100)]
            assert await copy.find(key="00") == ended(submitted("00"))
            assert list(await copy.callbacks_of("ref of 01")) == ["named"]
            assert len(await copy.recent(60)) == 100
            await copy.save(submitted("in the copy"))
        assert "in the copy" not in await unfinished_keys(store)
    async with opened(path) as store:
        assert (await unfinished_keys(store))[-1] == "later"


async def test_a_backup_among_writes(path: Path, target: Path) -> None:
    """It runs between groups of calls: all that was called before is in it, and nothing that came later."""
    async with opened(path) as store:
        await asyncio.gather(
            *(store.save(submitted(f"before {n}")) for n in range(50)),
            store.backup(target),
            *(store.save(submitted(f"later {n}")) for n in range(50)),
        )
        assert len(await unfinished_keys(store)) == 100
    async with opened(target) as copy:
        assert await unfinished_keys(copy) == [f"before {n}" for n in range(50)]


async def test_an_intent_of_a_backup_is_unknown(path: Path, target: Path) -> None:
    """As after a crash: the request may have been sent."""
    async with opened(path) as store:
        await store.save(entry_of("a", state=EntryState.INTENT, submitted_at=1.0))
        await store.backup(target)
    async with opened(target) as copy:
        entry = await copy.find(key="a")
        assert entry is not None
        assert entry.state is EntryState.UNKNOWN


async def test_a_backup_replaces_an_older_one(path: Path, target: Path) -> None:
    """Whether its path is a `Path` or a string."""
    async with opened(path) as store:
        for number, name in enumerate([target, target, os.fspath(target)]):
            await store.save(submitted(f"{number}"))
            await store.backup(name)
            async with opened(target) as copy:
                assert len(await unfinished_keys(copy)) == number + 1
    assert names(target.parent) == ["copy.db"]


@pytest.mark.posix("symbolic links")
async def test_a_backup_through_a_link(path: Path, target: Path) -> None:
    """It replaces the file that the link leads to, and the link stays one."""
    link = target.with_name("link.db")
    link.symlink_to(target)
    async with opened(path) as store:
        for number in range(2):
            await store.save(submitted(f"{number}"))
            await store.backup(link)
            async with opened(target) as copy:
                assert len(await unfinished_keys(copy)) == number + 1
    assert link.is_symlink()
    assert names(target.parent) == ["copy.db", "link.db"]


async def test_the_store_is_no_backup_of_itself(path: Path) -> None:
    """By whatever name: its path, a hard link, or the names that SQLite gives to its other files."""
    hard_link = path.with_name("hard.db")
    async with opened(path) as store:
        await store.save(submitted("a"))
        hard_link.hardlink_to(path)
        before = names(path.parent)
        for name in (path, hard_link, log_of(path), path.with_name("run.db-journal")):
            with pytest.raises(StoreError, match="that is the store itself"):
                await store.backup(name)
        assert names(path.parent) == before
        await store.save(submitted("b"))
    hard_link.unlink()  # a store with two names is not opened
    async with opened(path) as store:
        assert await unfinished_keys(store) == ["a", "b"]


@pytest.mark.posix("symbolic links")
async def test_a_link_to_the_store_is_no_backup_of_it(path: Path) -> None:
    """The store is not overwritten through it."""
    link = path.with_name("link.db")
    async with opened(path) as store:
        link.symlink_to(path)
        with pytest.raises(StoreError, match="that is the store itself"):
            await store.backup(link)


async def test_a_backup_beside_the_log_of_another_store_is_refused(path: Path, target: Path) -> None:
    """SQLite would apply that log to the new file."""
    log_of(target).write_bytes(b"x")
    async with opened(path) as store:
        with pytest.raises(StoreError, match=r"copy\.db-wal"):
            await store.backup(target)
    assert names(target.parent) == ["copy.db-wal"]


async def test_a_backup_that_fails_leaves_nothing(path: Path, target: Path) -> None:
    """Without a directory or onto one: `StoreError` with the reason, and an older copy stays."""
    (target.parent / "folder").mkdir()
    target.write_bytes(b"older")
    async with opened(path) as store:
        await store.save(submitted("a"))
        for wrong, reason in (
            (target / "x.db", ""),
            (target.parent / "none" / "x.db", ""),
            (target.parent / "folder", "that is a folder; use a file in it"),
            ("null\0.db", ""),
        ):
            with pytest.raises(StoreError, match=rf"run\.db could not be backed up to .*: .*{reason}"):
                await store.backup(wrong)
        assert names(target.parent) == ["copy.db", "folder"]
        assert target.read_bytes() == b"older"


async def test_a_backup_is_one_file_while_it_is_written(
    path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves no journal beside it."""
    seen: list[list[str]] = []

    def look(*_: int) -> None:
        seen.append(names(target.parent))

    def backup(source: StoreConnection, copy: sqlite3.Connection) -> None:
        sqlite3.Connection.backup(source, copy, pages=1, progress=look)

    monkeypatch.setattr(StoreConnection, "backup", backup)
    async with opened(path) as store:
        await store.save(submitted("a"))
        await store.backup(target)
    assert {len(files) for files in seen} == {1}
    assert names(target.parent) == ["copy.db"]


@pytest.mark.posix("a limit on the size of files")
async def test_a_backup_onto_a_full_disk_leaves_nothing(path: Path, target: Path) -> None:
    """`StoreError`, an older copy stays, and with room again the backup is made."""
    target.write_bytes(b"older")
    async with opened(path) as store:
        for n in range(30):
            await store.save(entry_of(f"{n}", "x" * 3000))
        with file_size_limit(20_000), pytest.raises(StoreError, match="could not be backed up"):
            await store.backup(target)
        assert names(target.parent) == ["copy.db"]
        assert target.read_bytes() == b"older"
        await store.backup(target)
    async with opened(target) as copy:
        assert await copy.find(key="29") is not None


async def test_a_client_backs_up_its_store(path: Path, target: Path) -> None:
    """The client of the copy knows what was paid for, and pays nothing again."""
    async with Emulator() as kie:
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, store=path) as client:
            task = await client.submit("x", key="a")
            await client.backup(target)
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, store=target) as client:
            assert (await client.submit("x", key="a")).id == task.id
        assert len(kie.submits) == 1


class Other(MemoryStore):
    """A store of the caller's."""


async def test_memory_has_no_file_to_back_up(target: Path) -> None:
    """The error says what to do."""
    assert isinstance(SQLiteStore("run.db"), SupportsBackup)
    assert not isinstance(MemoryStore(), SupportsBackup)
    for store in (None, Other()):
        async with AsyncKieClient(CANARY_KEY, base_url="http://127.0.0.1:9", store=store) as client:
            with pytest.raises(StoreError, match="no file to back up; pass store="):
                await client.backup(target)
    assert names(target.parent) == []
