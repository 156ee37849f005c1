"""The SQLite file: made, locked, checked, and its rows."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import StoreError, StoreLockedError
from .packing import checksum, packed, unpacked
from .sqlite_log import is_damaged
from .store import Entry, EntryState, mark_of

APPLICATION_ID = 0x6B696534  # "kie4" in the file's header
SCHEMA = 1
_SLOTS = 3600.0  # seconds for which past submits are remembered for the account limit
_TABLES = """
CREATE TABLE entry (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    mark BLOB NOT NULL,
    task_id TEXT,
    state TEXT NOT NULL,
    submitted_at REAL,
    body BLOB NOT NULL,
    checksum BLOB NOT NULL
);
CREATE INDEX entry_of_mark ON entry (mark);
CREATE INDEX entry_of_task ON entry (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX entry_unfinished ON entry (id) WHERE state IN ('submitted', 'unknown');
CREATE TABLE slot (mark BLOB PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE callback (
    mark BLOB, task_id TEXT, checksum BLOB NOT NULL, PRIMARY KEY (mark, task_id)
) WITHOUT ROWID;
"""
SAVE = """
INSERT INTO entry (key, mark, task_id, state, submitted_at, body, checksum) VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET mark = excluded.mark, task_id = excluded.task_id, state = excluded.state,
    submitted_at = excluded.submitted_at, body = excluded.body, checksum = excluded.checksum
"""


# -- the file ----------------------------------------------------------------------------------


def open_file(path: Path) -> sqlite3.Connection:
    """A locked, checked connection. Raises `StoreError`."""
    connection = None
    try:
        if not path.exists():
            _create(path)
        elif path.stat().st_size == 0:
            raise StoreError(f"the store {path} is empty, which it never is: it was damaged or is no store")
        damaged = is_damaged(path.with_name(path.name + "-wal"))
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=True)
        _lock(connection)
        if damaged:
            raise StoreError(f"the log of the store {path} is damaged: restore both files from a copy")
        _check(connection, path)
        return connection
    except Exception as error:  # whoever opens waits for an answer, whatever is wrong with the file
        failure = error if isinstance(error, StoreError) else failure_of(path, error)
    if connection is not None:
        connection.close()
    raise failure


def _create(path: Path) -> None:
    """Under another name first, so that the file is either not there or whole."""
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
        with suppress(FileExistsError):  # another process was first: its file is as good
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
    """The exclusive lock comes before WAL, which then needs no shared memory file."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path) -> None:
    """Ours, of a version that we know, whole; and what a dead process was about to do is unknown."""
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(f"{path} is not a store of kie4o: choose another file")
    if version > SCHEMA:
        raise StoreError(f"the store {path} was written by a newer kie4o (schema {version}): upgrade kie4o")
    problems = [row[0] for row in connection.execute("PRAGMA integrity_check(1)")]
    if problems != ["ok"]:
        raise StoreError(f"the store {path} is damaged ({problems[0]}): restore it from a copy")
    intents = []
    for row in connection.execute(
        "SELECT key, mark, task_id, state, submitted_at, body, checksum FROM entry"
    ):
        entry = unpacked(row[-2], row[-1])
        if row_of(entry)[:-2] != row[:-2]:
            raise StoreError(f"the store {path} is damaged (entry {entry.key!r}): restore it from a copy")
        if entry.state is EntryState.INTENT:
            intents.append(entry.become(EntryState.UNKNOWN, submitted_at=time.time()))
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("DELETE FROM slot WHERE at < ?", (time.time() - _SLOTS,))
    for entry in intents:
        connection.execute(SAVE, row_of(entry))
        connection.execute(
            "INSERT OR REPLACE INTO slot VALUES (?, ?)", (mark_of(entry.ref), entry.submitted_at)
        )
    connection.execute("COMMIT")


def failure_of(path: Path, error: Exception) -> StoreError:
    words = getattr(error, "strerror", None) or str(error)
    if "locked" in words:
        return StoreLockedError(
            f"another process has the store {path} open: wait for it, or use another file"
        )
    return StoreError(f"the store {path} cannot be used: {words}. Without it nothing is submitted")


# -- rows --------------------------------------------------------------------------------------


def row_of(entry: Entry) -> tuple[Any, ...]:
    body = packed(entry)
    return (
        entry.key,
        mark_of(entry.ref),
        entry.task_id,
        entry.state.value,
        entry.submitted_at,
        body,
        checksum(body),
    )
