"""Many keyed generates: a batch is its requests, under keys that a later run finds in the store.

Requests are taken lazily, at most `max_in_flight` at a time. Completions are yielded as they finish, and
errors are values. With a store that survives the process, the same call after a crash continues where it
stopped: finished items are replayed without a submit, paid ones are waited for, and only the rest is sent.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import itertools
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Mapping,
)
from typing import Any, Protocol, cast

import attrs

from .arguments import key_of, request_of
from .errors import (
    AuthenticationError,
    InsufficientCreditsError,
    InvalidRequestError,
    KeyConflictError,
    KeyLimitError,
    KieError,
    StoreError,
    SubmissionUnknownError,
    invalid,
    key_conflict,
)
from .models import Completion, ImageRequest, ImageResult
from .polling.outcome import result_of
from .stores.store import Entry, EntryState, Store, fingerprint
from .submission.pending import unknown_error
from .submission.resending import Resubmit

Requests = Iterable[ImageRequest | str] | AsyncIterable[ImageRequest | str] | Mapping[str, ImageRequest | str]

# Errors that every other item would meet too: new submits stop instead of failing one by one.
STOPPING = (AuthenticationError, InsufficientCreditsError, KeyLimitError)
MAX_UNKNOWN = 5  # unknown outcomes in a row after which new submits stop
_KEYS_AT_ONCE = 200  # keys looked up at once when a list is searched for finished items


@attrs.frozen
class Item:
    """One request of the batch under its key, or the error of an input that is not a valid request."""

    index: int
    key: str
    request: ImageRequest | None
    error: KieError | None = None


class Generate(Protocol):
    """The client's generate; `gate` is called once there is a permit, and may raise."""

    def __call__(
        self, request: ImageRequest, key: str, gate: Callable[[], None]
    ) -> Coroutine[Any, Any, ImageResult]: ...


class Batch:
    """One run over one set of requests.

    `named_task` returns the entry of a ref if a callback has named its task.
    """

    def __init__(
        self,
        store: Store,
        generate: Generate,
        call_off: Callable[[str, str], bool],
        named_task: Callable[[str], Awaitable[Entry | None]],
        *,
        max_in_flight: int,
        name: str = "",
        resubmit: Resubmit,
    ) -> None:
        self._store = store
        self._generate = generate
        self._call_off = call_off
        self._named_task = named_task
        self._max_in_flight = max_in_flight
        self._name = name
        self._resubmit = resubmit
        self._running: dict[asyncio.Task[Completion], Item] = {}
        self._unknown = 0  # outcomes in a row
        self._stop: KieError | None = None
        self._called_off: frozenset[str] = frozenset()  # keys
        self._source_error: BaseException | None = None

    async def run(self, requests: Requests) -> AsyncGenerator[Completion]:
        """Completions as they finish. The finished items of a list or a mapping come first."""
        replayed: set[int] = set()
        if isinstance(requests, (list, tuple, Mapping)):
            async for completion in self._finished_among(requests):
                replayed.add(completion.index)
                yield completion
        items = _items(requests, self._name)
        pull: asyncio.Task[Item | None] | None = None
        more = True
        try:
            while True:
                if more and pull is None and self._has_room():
                    pull = asyncio.create_task(anext(items, None), name="kie4o batch source")
                waiting: set[asyncio.Task[Any]] = {*self._running, *([pull] if pull else [])}
                if not waiting:
                    break
                done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if pull is not None and pull in done:
                    item, pull = self._pulled(pull), None
                    more = item is not None
                    if item is not None and item.index not in replayed:
                        self._running[asyncio.create_task(self._one(item), name="kie4o batch item")] = item
                for completion in self._completions(done):
                    yield completion
                if self._stop is not None and pull is not None:  # the source may never yield another
                    await _cancel([pull])
                    pull, more = None, False
        finally:
            await _cancel([*self._running, *([pull] if pull else [])])
            await items.aclose()
        if self._stop is not None:
            raise self._stop
        if self._source_error is not None:
            raise self._source_error

    def _pulled(self, pull: asyncio.Task[Item | None]) -> Item | None:
        """The next item. If the source raises, the batch ends once everything in flight has completed."""
        self._source_error = None if pull.cancelled() else pull.exception()
        return None if self._source_error is not None else pull.result()

    # -- one item --------------------------------------------------------------------------------

    async def _one(self, item: Item) -> Completion:
        """Never raises a `KieError`: a failed item does not affect the others."""
        request = item.request
        if request is None:
            return _completion(item, error=item.error)
        try:
            entry = await self._known(item.key)
            if entry is not None and self._is_outcome(entry):
                return _replayed(item, entry)
            result = await self._generate(request, item.key, self._gate)
        except KieError as error:
            return _completion(item, error=error)
        return _completion(item, result=result, replayed=result.source == "store")

    async def _known(self, key: str) -> Entry | None:
        """What is stored under the key, with the task that a callback may have named meanwhile. A resubmit
        checks that itself."""
        entry = await self._store.find(key=key)
        if entry is not None and entry.state is EntryState.UNKNOWN and not self._resubmit.after_unknown:
            return await self._named_task(entry.ref) or entry
        return entry

    def _is_outcome(self, entry: Entry) -> bool:
        """Whether the entry is the outcome: there is nothing to send and nothing to wait for."""
        final = entry.state.ended or entry.state is EntryState.UNKNOWN
        return final and not self._resubmit.allows(entry.state)

    def _gate(self) -> None:
        if self._stop is not None:
            raise _Stopped("the batch has stopped")

    def _has_room(self) -> bool:
        return self._stop is None and len(self._running) < self._max_in_flight

    def _completions(self, done: set[asyncio.Task[Any]]) -> Iterable[Completion]:
        """The completions of the tasks that are done, without items that were called off by a stop."""
        for task in [task for task in self._running if task in done]:
            item = self._running.pop(task)
            completion = task.result()
            if isinstance(completion.error, _Stopped) or item.key in self._called_off:
                continue
            self._stop_after(completion)
            yield completion

    # -- stopping --------------------------------------------------------------------------------

    def _stop_after(self, completion: Completion) -> None:
        """Stop the batch if this outcome says that the other items would fail too."""
        error = completion.error
        if completion.replayed or self._stop is not None:
            return
        if isinstance(error, SubmissionUnknownError):
            self._unknown += 1
        elif completion.task_id is not None:
            self._unknown = 0
        if error is not None and _stops(error):
            self._halt(copy.copy(error), f"the batch stopped: {error}")
        elif self._unknown >= MAX_UNKNOWN:
            message = f"the batch stopped: {MAX_UNKNOWN} submits in a row have an unknown outcome"
            self._halt(SubmissionUnknownError(f"{message}; check kie.ai/logs"), message)

    def _halt(self, error: KieError, reason: str) -> None:
        error.add_note("No further requests were submitted; run the same batch again to continue.")
        self._stop = error
        keys = [item.key for item in self._running.values()]
        self._called_off = frozenset(key for key in keys if self._call_off(key, reason))

    # -- finished items ----------------------------------------------------------------------------

    async def _finished_among(self, requests: Requests) -> AsyncIterator[Completion]:
        items = _items(requests, self._name)
        try:
            while chunk := [item async for item in _first(items, _KEYS_AT_ONCE)]:
                entries = await asyncio.gather(*(self._store.find(key=item.key) for item in chunk))
                for item, entry in zip(chunk, entries, strict=True):
                    if entry is None or not entry.state.ended:
                        continue  # a callback may have arrived for an unknown one; confirming it takes a poll
                    if item.request is not None and self._is_outcome(entry):
                        yield _replayed(item, entry)
        finally:
            await items.aclose()


async def resumed(
    store: Store, end_of: Callable[[Entry], Coroutine[Any, Any, ImageResult]]
) -> AsyncGenerator[Completion]:
    """The outcome of every unfinished entry of the store."""

    async def one(item: Item, entry: Entry) -> Completion:
        try:
            result = await end_of(entry)
            return _completion(item, result=result, replayed=result.source == "store")
        except KieError as error:
            return _completion(item, error=error, replayed=isinstance(error, SubmissionUnknownError))

    entries = [entry async for entry in store.unfinished()]
    tasks = [
        asyncio.create_task(
            one(Item(index, entry.callers_key or entry.key, entry.request), entry), name="kie4o resume"
        )
        for index, entry in enumerate(entries)
    ]
    try:
        for completion in asyncio.as_completed(tasks):
            yield await completion
    finally:
        await _cancel(tasks)


def _stops(error: KieError) -> bool:
    """Whether new submits stop: also if the store cannot be written or the client was closed."""
    unwritable = isinstance(error, StoreError) and not isinstance(error, KeyConflictError)
    return isinstance(error, STOPPING) or unwritable or type(error) is KieError


class _Stopped(KieError):
    """Raised at the gate of a batch that has stopped; callers never see it."""


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _first(items: AsyncIterator[Item], count: int) -> AsyncIterator[Item]:
    for _ in range(count):
        item = await anext(items, None)
        if item is None:
            return
        yield item


# -- completions -------------------------------------------------------------------------------


def _replayed(item: Item, entry: Entry) -> Completion:
    """The completion of an item whose outcome is stored."""
    try:
        if item.request is None or entry.fingerprint != fingerprint(item.request):
            raise key_conflict(item.key)
        if entry.details is None:
            raise unknown_error(entry, "from an earlier run")
        result = result_of(entry.details, "store", entry.request.n_variants)
        return _completion(item, result=result, replayed=True)
    except KieError as error:
        return _completion(item, error=error, replayed=True)


def _completion(
    item: Item, *, result: ImageResult | None = None, error: KieError | None = None, replayed: bool = False
) -> Completion:
    if error is not None and error.key is None:
        error.key = item.key
    return Completion(
        item.key,
        index=item.index,
        request=item.request,
        task_id=result.task_id if result is not None else getattr(error, "task_id", None),
        result=result,
        error=error,
        replayed=replayed,
    )


# -- items and their keys ----------------------------------------------------------------------


async def _items(requests: Requests, name: str) -> AsyncGenerator[Item]:
    """The requests one by one, each under its key."""
    occurrences = _Occurrences()
    numbers = itertools.count()
    try:
        async for custom_id, given in _pairs(requests):
            index = next(numbers)
            try:
                request = request_of(given, {})
                key = _key(name, custom_id, request, occurrences)
            except InvalidRequestError as error:
                yield Item(index, str(custom_id or f"item {index}")[:80], None, error)
            else:
                yield Item(index, key, request)
    finally:
        occurrences.close()


async def _pairs(requests: Requests) -> AsyncIterator[tuple[str | None, Any]]:
    if isinstance(requests, Mapping):
        for named in cast("Mapping[str, Any]", requests).items():
            yield named
    elif isinstance(requests, AsyncIterable):
        async for request in requests:
            yield None, request
    elif isinstance(requests, (str, bytes)) or not isinstance(requests, Iterable):
        raise InvalidRequestError(
            "expected an iterable or a mapping of requests; put a single prompt into a list"
        )
    else:
        for request in requests:
            yield None, request


def _key(name: str, custom_id: str | None, request: ImageRequest, occurrences: _Occurrences) -> str:
    """The custom id, or a hash of the request and of how often it occurred before in this batch."""
    if custom_id is not None:
        if not isinstance(custom_id, str):
            raise invalid("id", custom_id, "a string as the id of a request")
        return key_of(f"{name}/{custom_id}" if name else custom_id) or ""
    digest = fingerprint(request)
    text = f"{name}\0{digest}\0{occurrences.count(digest)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Occurrences:
    """Counts equal requests of a batch of any length in constant memory, in a temporary SQLite file."""

    def __init__(self) -> None:
        import sqlite3  # most programs run no batch

        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("CREATE TABLE seen (digest TEXT PRIMARY KEY, count INT) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def count(self, digest: str) -> int:
        """How often it was counted before this call."""
        sql = "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"
        [count] = self._connection.execute(sql, (digest,)).fetchone()
        return int(count)

    def close(self) -> None:
        self._connection.close()
