"""The items of a batch: the requests of the caller, taken one by one, each under its key."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, cast

import attrs

from ..arguments import check_is_no_request, key_of, request_of
from ..errors import InvalidRequestError, KieError, invalid
from ..image_request import ImageRequest
from ..plain import plain
from ..stores.store import fingerprint
from ..waiting import close_iterator

Request = ImageRequest | str | Enum
Pair = tuple[str, Request]  # your id, and its request
Requests = Iterable[Request | Pair] | AsyncIterable[Request | Pair] | Mapping[str, Request]

_END = object()


@attrs.frozen
class Item:
    """One request of the batch under its key, or the error of an input that is not a valid request.

    `given` is what the caller gave as the request.
    """

    index: int
    key: str
    request: ImageRequest | None
    error: KieError | None = None
    given: Any = None


@attrs.frozen(weakref_slot=False)
class KeptItem:
    """An item that runs later. Its request is made again then: 100,000 take 22 MB, and 42 MB as items.

    `new` says that the store did not know its key.
    """

    index: int
    key: str
    given: Request
    new: bool

    def item(self) -> Item:
        return Item(self.index, self.key, request_of(self.given, {}))


class Items:
    """The requests one by one, each under its key.

    Attributes:
        arrive: Whether they come from an async iterable, which `arrived` waits for. If not, `next` has them.
    """

    def __init__(self, requests: Requests, name: str) -> None:
        self.arrive: bool = isinstance(requests, AsyncIterable) and not isinstance(requests, Mapping)
        self._requests = requests
        self._name = name
        self._occurrences = _Occurrences()
        self._pairs: Iterator[Any] | None = None
        self._arriving: AsyncIterator[Any] | None = None
        self._numbers = itertools.count()

    def next(self) -> Item | None:
        """The next item; None at the end."""
        if self._pairs is None:
            self._pairs = self._iterator()
        pair: Any = next(self._pairs, _END)
        return None if pair is _END else self._item(*pair)

    async def arrived(self) -> Item | None:
        """The same of an async iterable."""
        if self._arriving is None:
            self._arriving = aiter(cast("AsyncIterable[Any]", self._requests))
        given = await anext(self._arriving, _END)
        return None if given is _END else self._item(*_pair(given))

    async def aclose(self) -> None:
        if self._arriving is not None:
            await close_iterator(self._arriving)

    def _item(self, custom_id: Any, given: Any) -> Item:
        custom_id, index = plain(custom_id), next(self._numbers)
        try:
            request = request_of(given, {})
            return Item(index, self._key(custom_id, request), request, None, given)
        except InvalidRequestError as error:
            return Item(index, str(custom_id or f"item {index}")[:80], None, error)

    def _key(self, custom_id: Any, request: ImageRequest) -> str:
        """The custom id, or a hash of the request and of how often it occurred before in this batch."""
        name = self._name
        if custom_id is not None:
            if not isinstance(custom_id, str):
                raise invalid("id", custom_id, "a string as the id of a request")
            escaped = name.replace("%", "%25").replace("/", "%2F")  # "a/b" and "c" are not "a" and "b/c"
            return key_of(f"{escaped}/{custom_id}" if name else custom_id) or ""
        digest = fingerprint(request)
        text = f"{name}\0{digest}\0{self._occurrences.count(digest)}"
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def _iterator(self) -> Iterator[Any]:
        requests: Any = self._requests
        if isinstance(requests, Mapping):
            check_is_no_request(requests)
            return iter(requests.items())
        if isinstance(requests, (str, bytes)) or not isinstance(requests, Iterable):
            raise InvalidRequestError(
                "expected an iterable or a mapping of requests; put a single prompt into a list"
            )
        return map(_pair, requests)


def _pair(given: Any) -> Any:
    """The id, or None, and what was given as a request."""
    return given if isinstance(given, tuple) and len(given) == 2 else (None, given)


class _Occurrences:
    """Counts equal requests of a batch by the SHA-256 of each.

    A million different ones take 22 MB, and each about 1 us; a dict would take 150 MB. The first digits of
    a digest name a bucket, in which the next 128 bits are searched for.
    """

    def __init__(self) -> None:
        self._seen: defaultdict[str, bytearray] = defaultdict(bytearray)
        self._repeated: dict[str, int] = {}

    def count(self, digest: str) -> int:
        """How often it was counted before this call."""
        bucket, bits = self._seen[digest[:3]], bytes.fromhex(digest[3:35])
        if bits not in bucket:
            bucket += bits
            return 0
        self._repeated[digest] = count = self._repeated.get(digest, 0) + 1
        return count
