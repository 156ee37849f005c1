"""The SQLite file of a store: locked and checked when it is opened, and its rows.

What SQLite does not notice is checked here: an empty file that should not be empty, a damaged log, rows
whose checksum does not match, and a file that was deleted, renamed or replaced while it is open. A damaged
store is an error, never a silent start from an empty one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from .. import clock
from ..errors import StoreError, StoreLockedError, reason_of
from ..events import Event
from ..events.reporter import LOG
from .durability import make_durable
from .file_lock import FileLock, Identity, identity_of
from .packing import checksum, packed
from .sqlite_check import check_pages, check_rows, damaged
from .sqlite_creation import APPLICATION_ID, SCHEMA, create, remove_leftovers, upgrade
from .sqlite_log import is_damaged
from .store import Entry, EntryState, hash_of_ref

_SLOT_RETENTION = 86_400.0  # seconds for which past submits are kept, or longer if the limit's window is
CLAIM = """
INSERT INTO entry (key, ref_hash, task_id, state, submitted_at, price, body, checksum)
VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING
"""
SAVE = CLAIM.replace(
    "NOTHING",
    """UPDATE SET ref_hash = excluded.ref_hash, task_id = excluded.task_id,
    state = excluded.state, submitted_at = excluded.submitted_at, price = excluded.price,
    body = excluded.body, checksum = excluded.checksum
""",
)
_SLOT = """
INSERT INTO slot (ref_hash, at, uptime) VALUES (?, ?, ?)
ON CONFLICT (ref_hash) DO UPDATE SET at = excluded.at, uptime = excluded.uptime WHERE at <> excluded.at
"""
# An uptime that is lower than the stored one shows that the machine was restarted, and the file may have come
# from a machine that runs for longer than the other did. The wall clock is believed only then.
_AGES = """
SELECT ref_hash, CASE WHEN uptime <= :uptime THEN min(:now - at, :uptime - uptime) ELSE :now - at END
FROM slot
"""


class StoreConnection(sqlite3.Connection):
    """The connection of a store, which holds the lock of its file."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock
        self._in_use = {path: lock.identity}
        super().__init__(path, timeout=0, isolation_level=None)

    def watch(self, file: Path) -> None:
        """From now on `check_in_place` checks this file as well."""
        self._in_use[file] = identity_of(file.stat(), file)

    def check_in_place(self) -> None:
        """Raises `StoreError` if the path of the file or of its log names another file, or none."""
        for file, identity in self._in_use.items():
            if _identity_at(file) != identity:
                raise StoreError(
                    f"the file {file} of the store was deleted, renamed or replaced while it was open; "
                    "nothing is submitted until it is back in its place"
                )

    def close(self) -> None:
        with suppress(sqlite3.Error):  # what was committed stays committed
            super().close()
        self._lock.release()


def _identity_at(file: Path) -> Identity | None:
    try:
        return identity_of(file.stat(), file)
    except OSError:
        return None


def open_file(path: Path, report: Callable[[Event], None] = LOG) -> StoreConnection:
    """A locked, checked connection. Raises `StoreError`."""
    with ExitStack() as undo:
        try:
            path = path.resolve()  # SQLite puts the log beside the file, not beside a link to it
            _check_kind(path)
            log = log_of(path)
            log_exists = log.exists()
            if not path.exists():
                if log_exists:
                    raise StoreError(
                        f"the store {path} is missing, but its log {log.name} is still there; put the file "
                        "back, or move the log away to start with an empty store"
                    )
                create(path)
            lock = FileLock(path, report)
            undo.callback(lock.release)
            if path.stat().st_size == 0:
                raise damaged(path, "it is empty, which a store never is")
            _check_single_name(path)
            log_is_damaged = is_damaged(log)
            connection = StoreConnection(path, lock)
            undo.callback(connection.close)
            _lock(connection)
            if log_is_damaged:
                raise damaged(path, "its log cannot be read")
            _check(connection, path, report)
            connection.watch(log)
            connection.check_in_place()
            undo.pop_all()
            return connection
        except Exception as error:  # the caller waits for an answer, whatever is wrong with the file
            failure = error if isinstance(error, StoreError) else failure_of(path, error)
    raise failure


def log_of(path: Path) -> Path:
    """The write-ahead log that SQLite keeps beside a file."""
    return path.with_name(path.name + "-wal")


def failure_of(path: Path, error: Exception) -> StoreError:
    """The error of a failed operation on the file."""
    reason = reason_of(error)
    if "locked" in reason:  # by SQLite, or by FileLock
        return StoreLockedError(
            f"another client or process has the store {path} open; close it first, or give each worker a "
            "store file of its own"
        )
    return StoreError(
        f"the store {path} cannot be used: {reason}. Check the path, its permissions and the free space; "
        "nothing is submitted without the store"
    )


def row_of(entry: Entry) -> tuple[Any, ...]:
    """The columns of an entry, in the order of `CLAIM` and `SAVE`.

    For bytes `sqlite3` looks for an adapter, 0.7 us each; a bytearray it takes as it is.
    """
    body = packed(entry)
    return (
        entry.key,
        bytearray(hash_of_ref(entry.ref)),
        entry.task_id,
        entry.state.value,
        entry.submitted_at,
        None if entry.price is None else str(entry.price),
        bytearray(body),
        bytearray(checksum(body)),
    )


def _check_kind(path: Path) -> None:
    """What no file can be created at or opened as. Each system refuses it with another error."""
    reason = ""
    existing = next((each for each in (path, *path.parents) if each.exists()), path)
    if existing != path and not existing.is_dir():
        reason = f"{existing} is a file, not a folder"
    elif path.is_dir():
        reason = f"it is a folder; use a file in it, such as {path / 'run.db'}"
    elif path.exists() and not path.is_file():
        reason = "it is not a regular file; use another path"
    if reason:
        raise StoreError(f"the store {path} cannot be used: {reason}")


def _check_single_name(path: Path) -> None:
    """SQLite looks for the log beside the name that it opens, and does not find that of another name."""
    remove_leftovers(path)
    if path.stat().st_nlink > 1:
        raise StoreError(
            f"the store {path} has another name (a hard link), under which it may have been used; remove the "
            "name that was not used last"
        )


def _lock(connection: sqlite3.Connection) -> None:
    """The exclusive lock is set before WAL mode, which then needs no shared memory file."""
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    make_durable(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("COMMIT")


def _check(connection: sqlite3.Connection, path: Path, report: Callable[[Event], None]) -> None:
    """Check that the file is a complete store of a known version, bring an older one up to this version, and
    make abandoned INTENTs UNKNOWN."""
    [application_id] = connection.execute("PRAGMA application_id").fetchone()
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise StoreError(f"{path} is not a kie4o store; use another file")
    if version > SCHEMA:
        raise StoreError(f"the store {path} was written by a newer kie4o (schema {version}); upgrade kie4o")
    check_pages(connection, path)
    connection.execute("BEGIN IMMEDIATE")  # what is refused stays as it is
    upgrade(connection, version)
    for intent in check_rows(connection, path, report):
        entry = intent.become(EntryState.UNKNOWN, submitted_at=clock.unix_time())
        row = row_of(entry)
        connection.execute(SAVE, row)
        count_slot(connection, entry, row[1], clock.uptime())
    connection.execute("COMMIT")


def count_slot(connection: sqlite3.Connection, entry: Entry, ref_hash: bytearray, uptime: float) -> None:
    """Count the submit of an entry against the account's limit from now, its `uptime`.

    It does not count if it was not paid for. Saving what is already counted changes nothing: the entry of a
    task that ends later keeps its slot.
    """
    if entry.state is EntryState.PLANNED:
        connection.execute("DELETE FROM slot WHERE ref_hash = ?", (ref_hash,))
    elif entry.submitted_at is not None and not entry.state.ended:
        connection.execute(_SLOT, (ref_hash, entry.submitted_at, uptime))


def ages_of_slots(connection: sqlite3.Connection, per: float) -> list[float]:
    """The ages in seconds of the submits of the last `per` seconds. Deletes what no limit needs any more."""
    clocks = {"now": clock.unix_time(), "uptime": clock.uptime()}
    connection.execute(
        "UPDATE slot SET at = :now, uptime = :uptime WHERE at > :now", clocks
    )  # set back since
    ages = connection.execute(_AGES, clocks).fetchall()
    kept = max(per, _SLOT_RETENTION)
    old = [(ref_hash,) for ref_hash, age in ages if age > kept]
    connection.executemany("DELETE FROM slot WHERE ref_hash = ?", old)
    return [age for _, age in ages if age < per]
