"""Many keyed generates, and nothing else: a batch is its requests under keys that a later run finds
again.

Taken lazily, at most `max_in_flight` at a time, completions as they come, errors as values. With a
store that outlives the process the same call after a crash goes on where it stopped: what has
ended is replayed without a submit, what was paid is waited for, and only the rest is sent.
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
)
from .models import Completion, ImageRequest, ImageResult
from .polling.outcome import result_of
from .stores.store import Entry, EntryState, Store, fingerprint
from .submission.pending import unknown_error
from .submission.resending import Resubmit

Requests = Iterable[ImageRequest | str] | AsyncIterable[ImageRequest | str] | Mapping[str, ImageRequest | str]

# What one item meets and every other would meet too: new submits stop instead of failing one by one.
STOPPING = (AuthenticationError, InsufficientCreditsError, KeyLimitError)
UNKNOWN_RUN = 5  # unknown outcomes in a row, in this run, after which something is wrong at large
_KNOWN_AT_ONCE = 200  # keys asked for at once when a list is searched for what has ended


@attrs.frozen
class Item:
    """One request of the batch under its key, or why it is none."""

    index: int
    key: str
    request: ImageRequest | None
    error: KieError | None = None


class Generate(Protocol):
    """The client's generate; `gate` is called when a place is free and may raise."""

    def __call__(
        self, request: ImageRequest, key: str, gate: Callable[[], None]
    ) -> Coroutine[Any, Any, ImageResult]: ...


class Batch:
    """One run over one set of requests."""

    def __init__(
        self,
        store: Store,
        generate: Generate,
        call_off: Callable[[str, str], bool],
        recalled: Callable[[str], Awaitable[Entry | None]],
        *,
        max_in_flight: int,
        name: str = "",
        resubmit: Resubmit,
    ) -> None:
        self._store = store
        self._generate = generate
        self._call_off = call_off
        self._recalled = recalled
        self._max_in_flight = max_in_flight
        self._name = name
        self._resubmit = resubmit
        self._running: dict[asyncio.Task[Completion], Item] = {}
        self._unknown_run = 0
        self._stop: KieError | None = None
        self._broken: BaseException | None = None

    async def run(self, requests: Requests) -> AsyncGenerator[Completion]:
        """Completions as they come; what a list or a mapping holds that has ended comes first."""
        replayed: set[int] = set()
        if isinstance(requests, (list, tuple, Mapping)):
            async for completion in self._ended_among(requests):
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
                for completion in self._taken(done):
                    yield completion
                if self._stop is not None and pull is not None:  # the source may take for ever
                    await _cancelled([pull])
                    pull, more = None, False
        finally:
            await _cancelled([*self._running, *([pull] if pull else [])])
            await items.aclose()
        if self._stop is not None:
            raise self._stop
        if self._broken is not None:
            raise self._broken

    def _pulled(self, pull: asyncio.Task[Item | None]) -> Item | None:
        """The next item; a source that breaks ends the batch once what is in flight has come."""
        self._broken = None if pull.cancelled() else pull.exception()
        return None if self._broken is not None else pull.result()

    # -- one item --------------------------------------------------------------------------------

    async def _one(self, item: Item) -> Completion:
        """Never raises a `KieError`: an item that fails harms no other."""
        request = item.request
        if request is None:
            return _completion(item, error=item.error)
        try:
            entry = await self._known(item.key)
            if entry is not None and self._stands(entry):
                return _replayed(item, entry)
            result = await self._generate(request, item.key, self._gate)
        except KieError as error:
            return _completion(item, error=error)
        return _completion(item, result=result, replayed=result.source == "store")

    async def _known(self, key: str) -> Entry | None:
        """What the store knows under the key; a callback may have named the task of a lost answer. What is
        to be paid anew asks that itself."""
        entry = await self._store.find(key=key)
        if entry is not None and entry.state is EntryState.UNKNOWN and not self._resubmit.after_unknown:
            return await self._recalled(entry.ref) or entry
        return entry

    def _stands(self, entry: Entry) -> bool:
        """Whether the entry is an outcome by itself: nothing to send, nothing to wait for."""
        final = entry.state.ended or entry.state is EntryState.UNKNOWN
        return final and not self._resubmit.allows(entry.state)

    def _gate(self) -> None:
        if self._stop is not None:
            raise _Stopped("the batch has stopped")

    def _has_room(self) -> bool:
        return self._stop is None and len(self._running) < self._max_in_flight

    def _taken(self, done: set[asyncio.Task[Any]]) -> Iterable[Completion]:
        """The completions among what is done; those that stopping called off are none."""
        for task in [task for task in self._running if task in done]:
            item = self._running.pop(task)
            completion = task.result()
            if isinstance(completion.error, _Stopped) or item.key in self._called_off:
                continue
            self._judge(completion)
            yield completion

    # -- stopping --------------------------------------------------------------------------------

    _called_off: frozenset[str] = frozenset()

    def _judge(self, completion: Completion) -> None:
        """Whether this outcome says that the others need not be tried."""
        error = completion.error
        if completion.replayed or self._stop is not None:
            return
        if isinstance(error, SubmissionUnknownError):
            self._unknown_run += 1
        elif completion.task_id is not None:
            self._unknown_run = 0
        if error is not None and _stops(error):
            self._halt(copy.copy(error), f"the batch stopped at {error}")
        elif self._unknown_run >= UNKNOWN_RUN:
            sentence = f"the batch stopped: {UNKNOWN_RUN} submits in a row ended unknown, perhaps paid"
            self._halt(SubmissionUnknownError(sentence), sentence)

    def _halt(self, error: KieError, reason: str) -> None:
        error.add_note("No new submits were made after this; run the same batch again to go on.")
        self._stop = error
        keys = [item.key for item in self._running.values()]
        self._called_off = frozenset(key for key in keys if self._call_off(key, reason))

    # -- what has ended already --------------------------------------------------------------------

    async def _ended_among(self, requests: Requests) -> AsyncIterator[Completion]:
        items = _items(requests, self._name)
        try:
            while chunk := [item async for item in _first(items, _KNOWN_AT_ONCE)]:
                entries = await asyncio.gather(*(self._store.find(key=item.key) for item in chunk))
                for item, entry in zip(chunk, entries, strict=True):
                    if entry is None or not entry.state.ended:
                        continue  # an unknown one may have had its callback since, which takes a look
                    if item.request is not None and self._stands(entry):
                        yield _replayed(item, entry)
        finally:
            await items.aclose()


async def resumed(
    store: Store, end_of: Callable[[Entry], Coroutine[Any, Any, ImageResult]]
) -> AsyncGenerator[Completion]:
    """What every unfinished entry of the store comes to."""

    async def one(item: Item, entry: Entry) -> Completion:
        try:
            result = await end_of(entry)
            return _completion(item, result=result, replayed=result.source == "store")
        except KieError as error:
            return _completion(item, error=error, replayed=isinstance(error, SubmissionUnknownError))

    entries = [entry async for entry in store.unfinished()]
    tasks = [
        asyncio.create_task(one(Item(index, entry.key, entry.request), entry), name="kie4o resume")
        for index, entry in enumerate(entries)
    ]
    try:
        for completion in asyncio.as_completed(tasks):
            yield await completion
    finally:
        await _cancelled(tasks)


def _stops(error: KieError) -> bool:
    """Also a store that cannot be written, and a client that was closed."""
    unwritable = isinstance(error, StoreError) and not isinstance(error, KeyConflictError)
    return isinstance(error, STOPPING) or unwritable or type(error) is KieError


class _Stopped(KieError):
    """Raised at the gate of a batch that has stopped; never leaves it."""


async def _cancelled(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _first(items: AsyncIterator[Item], count: int) -> AsyncIterator[Item]:
    for _ in range(count):
        item = await anext(items, None)
        if item is None:
            return
        yield item


# -- outcomes as values ------------------------------------------------------------------------


def _replayed(item: Item, entry: Entry) -> Completion:
    """What the store says of an item that has ended."""
    try:
        if item.request is None or entry.fingerprint != fingerprint(item.request):
            raise KeyConflictError(f"key {item.key!r} was used before with another request", key=item.key)
        if entry.details is None:
            raise unknown_error(entry, "an earlier run")
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
        raise InvalidRequestError("a batch takes an iterable of requests: put a single prompt into a list")
    else:
        for request in requests:
            yield None, request


def _key(name: str, custom_id: str | None, request: ImageRequest, occurrences: _Occurrences) -> str:
    """The custom id, or a hash of the request and of how often it came before in this batch."""
    if custom_id is not None:
        if not isinstance(custom_id, str):
            raise InvalidRequestError(f"custom id {custom_id!r} is not possible: use a text")
        return key_of(f"{name}/{custom_id}" if name else custom_id) or ""
    print_ = fingerprint(request)
    text = f"{name}\0{print_}\0{occurrences.count(print_)}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class _Occurrences:
    """Counts equal requests of a batch of any length in flat memory: SQLite's own temporary file."""

    def __init__(self) -> None:
        import sqlite3  # here, since most programs run no batch

        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.execute("CREATE TABLE seen (print TEXT PRIMARY KEY, count INT) WITHOUT ROWID")
        self._connection.execute("BEGIN")

    def count(self, print_: str) -> int:
        """How often it was counted before."""
        sql = "INSERT INTO seen VALUES (?, 0) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count"
        [count] = self._connection.execute(sql, (print_,)).fetchone()
        return int(count)

    def close(self) -> None:
        self._connection.close()
