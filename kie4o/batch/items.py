"""The items of a batch: the requests of the caller, taken one by one, each under its key."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any, cast

import attrs

from ..arguments import check_is_no_request, key_of, request_of
from ..errors import InvalidRequestError, KieError, StoreError, invalid, reason_of
from ..image_request import ImageRequest
from ..plain import plain
from ..stores.store import fingerprint
from ..waiting import close_iterator

if TYPE_CHECKING:
    import sqlite3

Request = ImageRequest | str | Enum
Pair = tuple[str, Request]  # your id, and its request
Requests = Iterable[Request | Pair] | AsyncIterable[Request | Pair] | Mapping[str, Request]

_END = object()
_OPEN: set[sqlite3.Connection] = set()  # one that is collected before the batch is closed would warn


@attrs.frozen
class Item:
    """One request of the batch under its key, or the error of an input that is not a valid request."""

    index: int
    key: str
    request: ImageRequest | None
    error: KieError | None = None


class Items:
    """The requests one by one, each under its key."""

    def __init__(self, requests: Requests, name: str) -> None:
        self._requests = requests
        self._name = name
        self._occurrences = _Occurrences()
        self._pairs: Iterator[Any] | None = None
        self._arriving: AsyncIterator[Any] | None = None
        self._numbers = itertools.count()

    async def next(self) -> Item | None:
        """The next item; None at the end."""
        pair = await self._next_pair()
        if pair is _END:
            return None
        custom_id, given = plain(pair[0]), pair[1]
        index = next(self._numbers)
        try:
            request = request_of(given, {})
            return Item(index, _key(self._name, custom_id, request, self._occurrences), request)
        except InvalidRequestError as error:
            return Item(index, str(custom_id or f"item {index}")[:80], None, error)

    async def aclose(self) -> None:
        self._occurrences.close()
        if self._arriving is not None:
            await close_iterator(self._arriving)

    async def _next_pair(self) -> Any:
        """The custom id, or None, and what was given as a request."""
        if self._pairs is None and self._arriving is None:
            self._open()
        if self._pairs is not None:
            return next(self._pairs, _END)
        given = await anext(cast("AsyncIterator[Any]", self._arriving), _END)
        return given if given is _END else _pair(given)

    def _open(self) -> None:
        requests: Any = self._requests
        if isinstance(requests, Mapping):
            check_is_no_request(requests)
            self._pairs = iter(requests.items())
        elif isinstance(requests, AsyncIterable):
            self._arriving = aiter(requests)
        elif isinstance(requests, (str, bytes)) or not isinstance(requests, Iterable):
            raise InvalidRequestError(
                "expected an iterable or a mapping of requests; put a single prompt into a list"
            )
        else:
            self._pairs = map(_pair, requests)


def _pair(given: Any) -> Any:
    """The id, or None, and what was given as a request."""
    return given if isinstance(given, tuple) and len(given) == 2 else (None, given)


def _key(name: str, custom_id: str | None, request: ImageRequest, occurrences: _Occurrences) -> str:
    """The custom id, or a hash of the request and of how often it occurred before in this batch."""
    if custom_id is not None:
        if not isinstance(custom_id, str):
            raise invalid("id", custom_id, "a string as the id of a request")
        escaped = name.replace("%", "%25").replace("/", "%2F")  # "a/b" and "c" are not "a" and "b/c"
        return key_of(f"{escaped}/{custom_id}" if name else custom_id) or ""
    digest = fingerprint(request)
    text = f"{name}\0{digest}\0{occurrences.count(digest)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Occurrences:
    """Counts equal requests of a batch of any length in constant memory, in a temporary SQLite file."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None

    def count(self, digest: str) -> int:
        """How often it was counted before this call."""
        import sqlite3  # most programs run no batch

        try:
            if self._connection is None:
                self._connection = sqlite3.connect("", isolation_level=None)
                _OPEN.add(self._connection)
                sql = "CREATE TABLE seen (digest TEXT PRIMARY KEY, count INT) WITHOUT ROWID"
                self._connection.execute(sql)
                self._connection.execute("BEGIN")
            sql = "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"
            [count] = self._connection.execute(sql, (digest,)).fetchone()
            return int(count)
        except sqlite3.Error as error:
            reason = reason_of(error)
        raise StoreError(
            f"the temporary file that counts equal requests cannot be written ({reason}): free some space, "
            "name another directory in TMPDIR, or pass a mapping with ids of your own"
        )

    def close(self) -> None:
        if self._connection is not None:
            _OPEN.discard(self._connection)
            self._connection.close()
