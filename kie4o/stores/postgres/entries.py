"""Entries as rows: what each call of the store asks the database, and what its answer means.

A key is in the hands of at most one live process, its holder: `claim` decides which, and only the holder may
begin a submit. The functions are in sql/entries.sql.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import attrs

from ...wire.decoding import TASK_ID
from ..packing import checksum, packed, unpacked
from ..spending import Count
from ..store import CALLBACKS_PER_REF, Entry, EntryState, hash_of_ref
from .database import Database, Row

PAGE = 500  # entries fetched at once
_CLAIM, _BEGIN, _SAVE = (
    f"SELECT * FROM kie4o.{function}({', '.join(['%s'] * count)})"  # noqa: S608  # three functions
    for function, count in (("claim", 3 + 9), ("begin_submit", 5 + 9 + 9), ("save", 4 + 9))
)
_NO_ROW = (None,) * 9  # in place of `_row`
_FIND = {
    column: "SELECT body, checksum, kie4o.state_of(state, holder), submitted_at FROM kie4o.entry "  # noqa: S608  # three columns
    f"WHERE account = %s AND {column} = %s LIMIT 1"
    for column in ("key", "mark", "task_id")
}
_UNFINISHED = """
SELECT number, body, checksum, kie4o.state_of(state, holder), submitted_at FROM kie4o.entry
WHERE account = %s AND number > %s AND state IN ('submitted', 'unknown', 'intent')
    AND kie4o.state_of(state, holder) <> 'intent'
ORDER BY number LIMIT %s
"""
_FIND_MANY = """
SELECT key, body, checksum, kie4o.state_of(state, holder), submitted_at FROM kie4o.entry
WHERE account = %s AND key = ANY (%s)
"""
# As `Entry.charged` says.
_SPENT = """
SELECT state, price, count(*) FROM kie4o.entry
WHERE account = %s AND state <> 'planned' AND (state <> 'failed' OR task_id IS NOT NULL)
GROUP BY state, price
UNION ALL SELECT state, nullif(price, ''), tasks FROM kie4o.pruned WHERE account = %s
"""
_ENDED = """
SELECT number, body, checksum FROM kie4o.entry
WHERE account = %s AND number > %s AND state IN ('succeeded', 'failed') AND submitted_at < %s
ORDER BY number LIMIT %s
"""


@attrs.frozen
class Hold:
    """A key in the hands of this process."""

    process: int
    takes: tuple[EntryState, ...]
    mark: bytes  # of what was stored when it was claimed


@attrs.frozen
class Claimed:
    """The answer to a claim."""

    outcome: Literal["held", "stored", "busy", "lost"]
    entry: Entry
    mark: bytes


class Pruned(NamedTuple):
    """The number of the last entry of a page, and how many were removed."""

    last: int
    removed: int


class Entries:
    """The entries of one account."""

    def __init__(self, database: Database, account: bytes) -> None:
        self._database = database
        self._account = account

    async def claim(self, me: int, entry: Entry, takes: Collection[EntryState]) -> Claimed:
        states = [state.value for state in takes]
        [(outcome, mark, *row)] = await self._database.rows(_CLAIM, me, states, self._account, *_row(entry))
        return Claimed(outcome, _entry(row), mark)

    async def begin(self, mine: list[int], hold: Hold | None, entry: Entry, superseded: Entry | None) -> str:
        """`mine` are the ids that this process has had, the present one first. Without a `hold` the entry is
        new."""
        takes = () if hold is None else hold.takes
        [(outcome,)] = await self._database.rows(
            _BEGIN,
            mine,
            [state.value for state in takes],
            None if hold is None else hold.mark,
            hold is None,
            self._account,
            *_row(entry),
            *(_NO_ROW if superseded is None else _row(superseded)),
            durably=True,
        )
        return str(outcome)

    async def save(
        self, me: int, entry: Entry, *, keeps: bool, intent_at: float | None = None
    ) -> tuple[str, bool, Entry | None]:
        """The outcome, whether the key is still held, and the owner of a task that another entry has.

        `intent_at` is when the intent was begun that this undoes; a later one is not undone.
        """
        row = _row(entry)
        [(outcome, held, *owner)] = await self._database.rows(
            _SAVE, me, keeps, intent_at, self._account, *row
        )
        return outcome, held, unpacked(*owner) if outcome == "duplicate" else None

    async def release(self, me: int, key: str) -> None:
        await self._database.rows("SELECT kie4o.release(%s, %s, %s)", me, self._account, hash_of_key(key))

    async def want(self, me: int, key: str) -> bool:
        """Have the holder of a key tell when it lets go of it. Whether another live process holds it."""
        [(held,)] = await self._database.rows(
            "SELECT kie4o.want(%s, %s, %s)", me, self._account, hash_of_key(key)
        )
        return bool(held)

    async def forget(self, key: str) -> None:
        await self._database.rows("SELECT kie4o.forget(%s, %s)", self._account, hash_of_key(key))

    async def bury(self) -> None:
        """Make the intents of processes that are gone unknown."""
        await self._database.rows("SELECT kie4o.bury(%s)", self._account)

    async def find(self, *, key: str | None, task_id: str | None, ref: str | None) -> Entry | None:
        column: str
        value: object
        if ref is not None:
            column, value = "mark", hash_of_ref(ref)
        elif task_id is not None:
            column, value = "task_id", task_id
            if not TASK_ID.fullmatch(task_id):
                return None  # the database may not even have its characters
        elif key is not None:
            column, value = "key", hash_of_key(key)
        else:
            return None
        rows = await self._database.rows(_FIND[column], self._account, value)
        return _entry(rows[0]) if rows else None

    async def find_many(self, keys: Sequence[str]) -> list[Entry | None]:
        hashes = [hash_of_key(key) for key in keys]
        rows = await self._database.rows(_FIND_MANY, self._account, hashes)
        found = {key: _entry(row) for key, *row in rows}
        return [found.get(key) for key in hashes]

    async def held(self, me: int, keys: Collection[str]) -> set[str]:
        """Those of these keys that another live process submits, or whose tasks it polls."""
        by_hash = {hash_of_key(key): key for key in keys}
        rows = await self._database.rows(
            "SELECT * FROM kie4o.held(%s, %s, %s::bytea[])", me, self._account, list(by_hash)
        )
        return {by_hash[key] for (key,) in rows}

    async def unfinished(self, after: int) -> list[tuple[int, Entry]]:
        """A page of those that are charged, or may be, and not finished."""
        rows = await self._database.rows(_UNFINISHED, self._account, after, PAGE)
        return [(number, _entry(row)) for number, *row in rows]

    async def spent(self) -> list[Count]:
        rows = await self._database.rows(_SPENT, self._account, self._account)
        return [
            (EntryState(state), None if price is None else Decimal(price), count)
            for state, price, count in rows
        ]

    async def prune(self, after: int, before: float) -> Pruned | None:
        """Remove what ended before this Unix time from the next page of what has ended, if there is one."""
        rows = await self._database.rows(_ENDED, self._account, after, before, PAGE)
        if not rows:
            return None
        entries = [unpacked(body, check) for _, body, check in rows]
        old = [entry for entry in entries if entry.ended_at is not None and entry.ended_at < before]
        marks = [hash_of_ref(entry.ref) for entry in old]
        [(removed,)] = await self._database.rows("SELECT kie4o.prune(%s, %s)", self._account, marks)
        return Pruned(rows[-1][0], removed)

    async def keep_callback(self, ref: str, task_id: str) -> None:
        mark = hash_of_ref(ref)
        row = (self._account, mark, task_id, checksum(mark + task_id.encode()), CALLBACKS_PER_REF)
        await self._database.rows("SELECT kie4o.keep_callback(%s, %s, %s, %s, %s)", *row)

    async def callbacks_of(self, ref: str) -> tuple[str, ...]:
        mark = hash_of_ref(ref)
        sql = "SELECT task_id, checksum FROM kie4o.inbox WHERE account = %s AND mark = %s"
        rows = await self._database.rows(sql, self._account, mark)
        return tuple(task_id for task_id, check in rows if checksum(mark + task_id.encode()) == check)


def hash_of_key(key: str) -> bytes:
    """A key as the tables have it. Text of PostgreSQL has no NUL, and depends on the database's encoding."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _row(entry: Entry) -> tuple[Any, ...]:
    body = packed(entry)
    return (
        hash_of_key(entry.key),
        hash_of_ref(entry.ref),
        bytes.fromhex(entry.fingerprint),
        entry.state.value,
        entry.task_id,
        entry.submitted_at,
        None if entry.price is None else str(entry.price),
        body,
        checksum(body),
    )


def _entry(row: Row | list[Any]) -> Entry:
    """The entry of a row, whose state and time win over those in the body."""
    body, check, state, submitted_at = row
    entry = unpacked(body, check)
    if entry.state.value == state:
        return entry
    return attrs.evolve(entry, state=EntryState(state), submitted_at=submitted_at)
