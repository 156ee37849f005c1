"""A copy of a store file while it is in use.

SQLite copies the pages itself, since the bytes of an open file and of its log do not fit together. The copy
is written under a temporary name, so that the file at the end is either the old one or complete.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from ..errors import StoreError, reason_of
from .durability import make_durable, sync_directory
from .sqlite_file import StoreConnection, log_of


def copy_to(connection: StoreConnection, target: Path) -> None:
    """Copy the store to the file `target`. Raises `StoreError`."""
    try:
        _replace(target.resolve(), connection)
        return
    except Exception as error:  # also what `resolve` raises for impossible names
        reason = reason_of(error)
    raise StoreError(f"the store {connection.path} could not be backed up to {target}: {reason}")


def _replace(target: Path, source: StoreConnection) -> None:
    of_store = {
        source.path.with_name(source.path.name + ending) for ending in ("", "-wal", "-journal", "-shm")
    }
    if target in of_store or (target.exists() and target.samefile(source.path)):
        raise OSError("that is the store itself")
    if target.is_dir():
        raise OSError("that is a folder; use a file in it")
    if log_of(target).exists():
        raise OSError(f"{log_of(target).name} is there, the log of another store, and would be applied to it")
    handle, name = tempfile.mkstemp(prefix=".kie4o-", suffix=".db", dir=target.parent)
    os.close(handle)  # Windows renames no open file
    draft = Path(name)
    try:
        with closing(sqlite3.connect(draft, isolation_level=None)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")  # no second file; a copy that fails is deleted
            make_durable(copy)
            source.backup(copy)
        draft.replace(target)
        sync_directory(target.parent)
    finally:
        draft.unlink(missing_ok=True)
