"""What is checked in a SQLite file when it is opened: that everything in it is what was written.

It is read three times from its beginning to its end: its pages (`quick_check`), its indexes, and its rows.
SQLite's own `integrity_check` would look for every row in every index, in random order. For a million entries
that takes 11 us each, where all three passes take 8 to 13.

A row is compared with the text of its entry, and the text with its checksum, but no entry is built. A text
that has the right checksum and is no entry, which no accident produces, is found when it is read, with the
same error.
"""

from __future__ import annotations

import operator
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from ..errors import StoreError
from ..events import Event, StoreChecked
from .packing import fields_in, unpacked
from .sqlite_pruning import checksum_of_count
from .store import Entry, EntryState, TracedEntry, hash_of_ref

PROGRESS = 100_000  # entries: after each so many, a line says how far the check of a larger store is
_PAGE = 1000  # rows fetched at once
_ROWS = "SELECT id, key, ref_hash, task_id, state, submitted_at, price, body, checksum FROM entry"
_NAMES = attrs.fields_dict(TracedEntry).keys()
_REQUIRED = {"key", "request", "ref"}
_INTENT, _OPEN_STATES = EntryState.INTENT.value, (EntryState.SUBMITTED.value, EntryState.UNKNOWN.value)

Row = tuple[Any, ...]


@attrs.frozen
class _Sorted:
    """What SQLite finds by searching: rows in ascending order, with values of these types.

    If it is `unique`, the first value of each row differs from all others.
    """

    name: str
    query: str
    types: tuple[type, ...]
    unique: bool = False


_KEYS = _Sorted(
    "the index of keys", "SELECT key, id FROM entry INDEXED BY sqlite_autoindex_entry_1", (str, int), True
)
_REFS = _Sorted("the index of refs", "SELECT ref_hash, id FROM entry INDEXED BY entry_of_ref", (bytes, int))
_TASKS = _Sorted(
    "the index of tasks",
    "SELECT task_id, id FROM entry INDEXED BY entry_of_task WHERE task_id IS NOT NULL",
    (str, int),
)
_UNFINISHED = _Sorted(
    "the index of unfinished entries",
    "SELECT id FROM entry INDEXED BY entry_unfinished WHERE state IN ('submitted', 'unknown')",
    (int,),
)
_INDEXES = (_KEYS, _REFS, _TASKS, _UNFINISHED)
_TABLES = (  # that are their own index
    _Sorted("the table of slots", "SELECT ref_hash FROM slot", (bytes,)),
    _Sorted("the table of callbacks", "SELECT ref_hash, task_id FROM callback", (bytes, str)),
    _Sorted("the table of what was removed", "SELECT state, price FROM pruned", (str, str)),
)


def check_pages(connection: sqlite3.Connection, path: Path) -> None:
    """Check that the pages of the file fit together. Raises `StoreError`."""
    problems = [row[0] for row in connection.execute("PRAGMA quick_check(1)")]
    if problems != ["ok"]:
        raise damaged(path, problems[0])


def check_rows(connection: sqlite3.Connection, path: Path, report: Callable[[Event], None]) -> list[Entry]:
    """Check each entry and whatever leads to it; return those that are INTENT. Raises `StoreError`."""
    for table in _TABLES:
        _contents(connection, path, table)
    _check_counts(connection, path)
    indexed = {index.name: _contents(connection, path, index) for index in _INDEXES}
    held: dict[str, int] = defaultdict(int)
    intents: list[Entry] = []
    [total] = connection.execute("SELECT count(*) FROM entry").fetchone()
    for number, page in enumerate(_pages(connection, _ROWS)):
        done = number * _PAGE
        if total > PROGRESS and done % PROGRESS == 0:
            report(StoreChecked(path=str(path), done=done, total=total))
        for row in page:
            if row[1:7] != _columns_in(row[7], row[8]):
                raise damaged(path, f"entry {row[1]!r} is not what was written")
            if row[4] == _INTENT:
                intents.append(unpacked(row[7], row[8]))
        for index, pairs in _indexed_by(page):
            held[index.name] += _sum_of(pairs)
    for name, contents in indexed.items():
        if contents != held[name]:
            raise damaged(path, f"{name} does not match the entries")
    return intents


def _check_counts(connection: sqlite3.Connection, path: Path) -> None:
    """Check what is counted of the entries that were removed."""
    for state, price, tasks, check in connection.execute("SELECT state, price, tasks, checksum FROM pruned"):
        if check != checksum_of_count(state, price, tasks):
            raise damaged(path, "the table of what was removed has a row that does not match its checksum")


def damaged(path: Path, reason: str) -> StoreError:
    """The error of a damaged file."""
    return StoreError(
        f"the store {path} is damaged ({reason}); restore it, with its -wal file, from a backup"
    )


def _columns_in(body: object, check: object) -> Row | None:
    """The columns of the row that an entry is stored in, by its text; None if that is no entry's."""
    try:
        fields = fields_in(body, check)
    except StoreError:
        return None
    if not _REQUIRED <= fields.keys() <= _NAMES or type(fields["ref"]) is not str:
        return None
    return (
        fields["key"],
        hash_of_ref(fields["ref"]),
        fields.get("task_id"),
        fields.get("state", EntryState.PLANNED.value),
        fields.get("submitted_at"),
        fields.get("price"),
    )


def _indexed_by(page: list[Row]) -> Iterable[tuple[_Sorted, list[Row]]]:
    """What these rows are in each index."""
    ids, keys, refs, tasks, states, *_ = zip(*page, strict=True)
    yield _KEYS, list(zip(keys, ids, strict=True))
    yield _REFS, list(zip(refs, ids, strict=True))
    yield _TASKS, [pair for pair in zip(tasks, ids, strict=True) if pair[0] is not None]
    yield _UNFINISHED, [(each,) for each, state in zip(ids, states, strict=True) if state in _OPEN_STATES]


def _contents(connection: sqlite3.Connection, path: Path, source: _Sorted) -> int:
    """Check the order of the rows, and return what they add up to."""
    contents = 0
    last: list[Any] = []
    for page in _pages(connection, source.query):
        for values, kind in zip(zip(*page, strict=True), source.types, strict=True):
            if {*map(type, values)} != {kind}:
                raise damaged(path, f"{source.name} has a value of a wrong type")
        keys = last + ([row[0] for row in page] if source.unique else page)
        if not all(map(operator.lt, keys, keys[1:])):
            raise damaged(path, f"{source.name} is not in order")
        contents, last = contents + _sum_of(page), keys[-1:]
    return contents


def _sum_of(rows: list[Row]) -> int:
    """A number that tells rows apart in any order: the sum of their hashes and, above these, their count."""
    return sum(map(hash, rows)) + (len(rows) << 128)


def _pages(connection: sqlite3.Connection, query: str) -> Iterator[list[Row]]:
    cursor = connection.execute(query)
    while page := cursor.fetchmany(_PAGE):
        yield page
