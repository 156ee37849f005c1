"""A new store file: its tables, how it gets its name, and how an older one gets the tables of today.

It is built under a temporary name, so that the file at the path is either missing or complete, wherever the
process is killed. An empty or half-written file there would look like a store that was damaged.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing, suppress
from pathlib import Path

from .durability import make_durable, sync_directory

APPLICATION_ID = 0x6B696534  # "kie4" in the file's header
SCHEMA = 3
# What was removed: how many entries of each state and price. The price is empty if it is not known.
_PRUNED = """
CREATE TABLE pruned (
    state TEXT, price TEXT, tasks INTEGER NOT NULL, checksum BLOB NOT NULL, PRIMARY KEY (state, price)
) WITHOUT ROWID
"""
_TABLES = f"""
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    ref_hash BLOB NOT NULL,
    task_id TEXT,
    state TEXT NOT NULL,
    submitted_at REAL,
    price TEXT,
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
{_PRUNED};
"""

# By the schema that they start from: 1 kept no prices, and nothing was removed from 2.
_UPGRADES = {1: "ALTER TABLE entry ADD COLUMN price TEXT", 2: _PRUNED}


def create(path: Path) -> None:
    """Create the file, unless another process is first; its file is as good."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".kie4o-", suffix=".db", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            make_durable(connection)
            connection.executescript(
                "PRAGMA auto_vacuum = INCREMENTAL; "  # so that the file shrinks when entries are removed
                f"PRAGMA application_id = {APPLICATION_ID}; "
                f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        with suppress(FileExistsError):
            _name(draft, path)
        sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def upgrade(connection: sqlite3.Connection, version: int) -> None:
    """Give a file of an older schema the tables of today, in a transaction. Entries of schema 1 have no
    price."""
    for older in range(version, SCHEMA):
        connection.execute(_UPGRADES[older])
        connection.execute(f"PRAGMA user_version = {older + 1}")


def _name(draft: Path, path: Path) -> None:
    """Give the draft its name. Raises `FileExistsError` if there is a file of that name."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # FAT, exFAT, many network and FUSE file systems: each refuses with an error of its own
        _name_without_links(draft, path)


def _name_without_links(draft: Path, path: Path) -> None:
    """The same by renaming, which would replace a file that another process has just created.

    The lock under which the path is looked at is SQLite's: a file system without it cannot hold a store. The
    lock file is deleted when the store exists, so a process that still waits for it, or creates another one,
    has nothing left to do.
    """
    lock_file = _lock_file_of(path)
    with closing(sqlite3.connect(lock_file, timeout=0, isolation_level=None)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        if not path.exists():
            draft.rename(path)
    remove_leftovers(path)


def _lock_file_of(path: Path) -> Path:
    return path.with_name(f".kie4o-{path.name}.lock")


def remove_leftovers(path: Path) -> None:
    """Remove what a process that was killed while it created the file has left beside it.

    The draft of another file is left alone.
    """
    with suppress(OSError):  # missing; or, on Windows, open in another process, which removes it
        _lock_file_of(path).unlink()
    for draft in path.parent.glob(".kie4o-*.db"):
        with suppress(FileNotFoundError):
            if draft.samefile(path):
                draft.unlink()
