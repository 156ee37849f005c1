"""The SQLite file of a store: created, locked, checked when it is opened, and its rows.

What SQLite does not notice is checked here: an empty file that should not be empty, a damaged log, rows
whose checksum does not match. A damaged store is an error, never a silent start from an empty one.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import clock
from ..errors import StoreError, StoreLockedError, reason_of
from .packing import checksum, packed, unpacked
from .sqlite_log import is_damaged
from .store import Entry, EntryState, hash_of_ref

APPLICATION_ID = 0x6B696534  # "kie4" in the file's header
SCHEMA = 1
_SLOT_RETENTION = 3600.0  # seconds for which past submits are kept for the account's limit
_TABLES = """
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
CREATE TABLE slot (ref_hash BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE callback (
    ref_hash BLOB, task_id TEXT, checksum BLOB NOT NULL, PRIMARY KEY (ref_hash, task_id)
) WITHOUT ROWID;
"""
SAVE = """
INSERT INTO entry (key, ref_hash, task_id, state, submitted_at, body, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET ref_hash = excluded.ref_hash, task_id = excluded.task_id,
    state = excluded.state,
    submitted_at = excluded.submitted_at, body = excluded.body, checksum = excluded.checksum
"""


def open_file(path: Path) -> sqlite3.Connection:
    """A locked, checked connection. Raises `StoreError`."""
    connection = None
    try:
        if not path.exists():
            _create(path)
        elif path.stat().st_size == 0:
            raise _damaged(path, "it is empty, which a store never is")
        log_is_damaged = is_damaged(path.with_name(path.name + "-wal"))
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=True)
        _lock(connection)
        if log_is_damaged:
            raise _damaged(path, "its log cannot be read")
        _check(connection, path)
        return connection
    except Exception as error:  # the caller waits for an answer, whatever is wrong with the file
        failure = error if isinstance(error, StoreError) else failure_of(path, error)
    if connection is not None:
        connection.close()
    raise failure


def failure_of(path: Path, error: Exception) -> StoreError:
    """The error of a failed operation on the file."""
    reason = reason_of(error)
    if "locked" in reason:
        return StoreLockedError(
            f"another client or process has the store {path} open; close it first, or use another file"
        )
    return StoreError(
        f"the store {path} cannot be used: {reason}. Check the path, its permissions and the free space; "
        "nothing is submitted without the store"
    )


def row_of(entry: Entry) -> tuple[Any, ...]:
    """The columns of an entry, in the order of `SAVE`."""
    body = packed(entry)
    return (
        entry.key,
        hash_of_ref(entry.ref),
        entry.task_id,
        entry.state.value,
        entry.submitted_at,
        body,
        checksum(body),
    )


def _damaged(path: Path, reason: str) -> StoreError:
    return StoreError(
        f"the store {path} is damaged ({reason}); restore it, with its -wal file, from a backup"
    )


def _create(path: Path) -> None:
    """Created under a temporary name, so that the file is either missing or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".kie4o-", suffix=".db", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.executescript(
                f"PRAGMA synchronous = FULL; PRAGMA application_id = {APPLICATION_ID}; "
                f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;"
            )
        finally:
            connection.close()
        with suppress(FileExistsError):  # another process was first, and its file is as good
            os.link(draft, path)
        _sync_directory(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _lock(connection: sqlite3.Connection) -> None:
    """The exclusive lock is set before WAL mode, which then needs no shared memory file."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the file is a complete store of a known version, and make abandoned INTENTs UNKNOWN."""
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(f"{path} is not a kie4o store; use another file")
    if version > SCHEMA:
        raise StoreError(f"the store {path} was written by a newer kie4o (schema {version}); upgrade kie4o")
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise _damaged(path, problems[0])
    intents = []
    columns = "key, ref_hash, task_id, state, submitted_at, body, checksum"
    for row in connection.execute(f"SELECT {columns} FROM entry"):  # noqa: S608  # the columns above
        entry = unpacked(row[-2], row[-1])
        if row_of(entry)[:-2] != row[:-2]:
            raise _damaged(path, f"entry {entry.key!r} does not match its row")
        if entry.state is EntryState.INTENT:
            intents.append(entry.become(EntryState.UNKNOWN, submitted_at=clock.unix_time()))
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM slot WHERE at < ?", (clock.unix_time() - _SLOT_RETENTION,))
    for entry in intents:
        connection.execute(SAVE, row_of(entry))
        connection.execute(
            "INSERT OR REPLACE INTO slot VALUES (?, ?)", (hash_of_ref(entry.ref), entry.submitted_at)
        )
    connection.execute("COMMIT")
