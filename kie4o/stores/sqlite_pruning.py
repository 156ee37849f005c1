"""Entries that ended long ago, removed from a SQLite file, and the space given back.

Both are done in pages, each of which is a call of its own, so that other calls do not wait for the whole.
What was removed is still counted in what was spent.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import NamedTuple

from .packing import checksum, unpacked
from .store import hash_of_ref

_PAGE = 500  # rows looked at in one call
_FREED = 256  # pages of the file given back in one call: a MiB
_INCREMENTAL = 2  # the mode of `PRAGMA auto_vacuum` that a new file has
_CANDIDATES = """
SELECT id, body, checksum FROM entry
WHERE id > ? AND id <= ? AND state IN ('succeeded', 'failed') AND submitted_at < ?
"""


class Pruned(NamedTuple):
    """The last row of a page, and how many of its entries were removed."""

    last: int
    removed: int


def prune_page(connection: sqlite3.Connection, *, after: int, before: float) -> Pruned | None:
    """Remove what ended before this Unix time from the next rows; None if there are no more."""
    rows = "SELECT max(id) FROM (SELECT id FROM entry WHERE id > ? ORDER BY id LIMIT ?)"
    [last] = connection.execute(rows, (after, _PAGE)).fetchone()
    if last is None:
        return None
    candidates = connection.execute(_CANDIDATES, (after, last, before)).fetchall()
    entries = {number: unpacked(body, check) for number, body, check in candidates}
    old = {
        number: entry
        for number, entry in entries.items()
        if entry.ended_at is not None and entry.ended_at < before
    }
    prices = Counter(
        (entry.state.value, "" if entry.price is None else str(entry.price))
        for entry in old.values()
        if entry.charged
    )
    for (state, price), tasks in prices.items():
        _count(connection, state, price, tasks)
    refs = [(hash_of_ref(entry.ref),) for entry in old.values()]
    connection.executemany("DELETE FROM callback WHERE ref_hash = ?", refs)
    connection.executemany("DELETE FROM entry WHERE id = ?", [(number,) for number in old])
    return Pruned(last, len(old))


def _count(connection: sqlite3.Connection, state: str, price: str, tasks: int) -> None:
    """Add so many tasks to those that were removed."""
    sql = "SELECT tasks FROM pruned WHERE state = ? AND price = ?"
    [before] = connection.execute(sql, (state, price)).fetchone() or [0]
    after = before + tasks
    row = (state, price, after, checksum_of_count(state, price, after))
    connection.execute("INSERT OR REPLACE INTO pruned VALUES (?, ?, ?, ?)", row)


def checksum_of_count(state: str, price: str, tasks: int) -> bytes:
    """That of a number is not that of a text of its digits."""
    return checksum(f"{state} {price} {tasks!r}".encode())


def give_back(connection: sqlite3.Connection) -> bool:
    """Give some of the space that is free back to the file system; return whether there is more.

    Outside of a transaction. A file from before there was pruning keeps its size, and uses the space for new
    entries.
    """
    [mode] = connection.execute("PRAGMA auto_vacuum").fetchone()
    connection.executescript(f"PRAGMA incremental_vacuum({_FREED})")  # `execute` would free a single page
    [free] = connection.execute("PRAGMA freelist_count").fetchone()
    return bool(mode == _INCREMENTAL and free)


def shrink(connection: sqlite3.Connection) -> None:
    """Write the log into the file, which has its new size then. Outside of a transaction."""
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
