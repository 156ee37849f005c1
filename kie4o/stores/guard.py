"""What keeps a store from harming its client: it cannot stall a call for ever, or raise something foreign.

A blocked disk, a lost network drive or a store of the caller's may never return. Each call is given up after
`LIMIT` seconds, or after the timeout of the verb that makes it if that is shorter (`limited`), as a
`StoreError`. A write that was given up may still happen: no store undoes one that was cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from ..errors import StoreError, reason_of
from ..pricing import Spent
from ..waiting import close_iterator
from .memory import MemoryStore
from .shared import Shared
from .store import Entry, EntryState, Store, SupportsBackup, no_backup

LIMIT = 30.0  # seconds for one call
SHORTEST = 1.0  # seconds that a call has at least, however short the timeout of the verb is
OPENING = 600.0  # seconds; a file is checked from end to end, 70,000 entries a second
_T = TypeVar("_T")
_UNCHANGED = contextlib.nullcontext()
_limit: ContextVar[float] = ContextVar("limit", default=float("inf"))


def limited(seconds: float | None) -> contextlib.AbstractContextManager[None]:
    """Inside, also in tasks that are started inside, a call of a store takes at most so long."""
    return _UNCHANGED if seconds is None or seconds >= LIMIT else _limited_to(max(seconds, SHORTEST))


def time_limit() -> float:
    """Seconds for one call of a store, as `limited` has it here."""
    return min(LIMIT, _limit.get())


@contextlib.contextmanager
def _limited_to(seconds: float) -> Iterator[None]:
    token = _limit.set(seconds)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a coroutine that is collected ends in another context
            _limit.reset(token)


def guarded(store: Store) -> Store:
    """The store behind a guard; a store in memory needs none."""
    return store if type(store) is MemoryStore else Guard(store)


class Guard:
    """A `Store` that passes every call on, for a limited time.

    Attributes:
        inner: The store that it guards.
        limit: Seconds for one call; shorter while the client closes.
    """

    def __init__(self, inner: Store) -> None:
        self.inner: Store = inner
        self.limit: float = LIMIT
        self.shared: Shared | None = inner.shared
        self._calls = _Calls()

    async def open(self) -> None:
        await self._within(OPENING, self.inner.open)

    async def claim(
        self, entry: Entry, *, takes: Collection[EntryState] = (EntryState.PLANNED,), wait: bool = True
    ) -> Entry | None:
        if not wait or self.shared is None:
            return await self._call(self.inner.claim, entry, takes=takes, wait=wait)
        # It waits for another process for as long as that one has the key; the store limits its own calls.
        return await self._within(math.inf, self.inner.claim, entry, takes=takes)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self._call(self.inner.begin, entry, superseded)

    async def save(self, entry: Entry) -> None:
        await self._call(self.inner.save, entry)

    async def release(self, key: str) -> None:
        await self._call(self.inner.release, key)

    async def forget(self, key: str) -> None:
        await self._call(self.inner.forget, key)

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        return await self._call(self.inner.find, key=key, task_id=task_id, ref=ref)

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        return await self._call(self.inner.find_many, keys)

    async def keep_callback(self, ref: str, task_id: str) -> None:
        await self._call(self.inner.keep_callback, ref, task_id)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        return await self._call(self.inner.callbacks_of, ref)

    async def unfinished(self) -> AsyncIterator[Entry]:
        entries = self.inner.unfinished()
        try:
            while (entry := await self._call(anext, entries, None)) is not None:
                yield entry
        finally:
            await close_iterator(entries)

    async def spent(self) -> Spent:
        return await self._call(self.inner.spent)

    async def prune(self, before: float) -> int:
        return await self._within(OPENING, self.inner.prune, before)

    async def recent(self, per: float) -> list[float]:
        return await self._call(self.inner.recent, per)

    async def backup(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(self.inner, SupportsBackup):
            raise no_backup()
        await self._within(OPENING, self.inner.backup, path)

    async def aclose(self) -> None:
        await self._call(self.inner.aclose)

    def _call(self, method: Callable[..., Awaitable[_T]], *words: Any, **more: Any) -> Awaitable[_T]:
        return self._within(min(self.limit, _limit.get()), method, *words, **more)

    async def _within(
        self, seconds: float, method: Callable[..., Awaitable[_T]], *words: Any, **more: Any
    ) -> _T:
        failure: StoreError
        call = _Call(self._calls, seconds)
        try:
            with call:
                return await method(*words, **more)
        except StoreError:
            raise
        except (Exception, asyncio.CancelledError) as error:  # a store of the caller's may raise anything
            if isinstance(error, asyncio.CancelledError) and call.caller_is_cancelled:
                raise
            if call.expired:
                failure = StoreError(f"the store did not respond within {seconds:g} s")
            else:
                failure = StoreError(f"the store failed: {reason_of(error)}")
                failure.add_note(f"{type(self.inner).__name__} raised a {type(error).__name__}")
        raise failure


class _Call:
    """One call in the current task, which is cancelled at its deadline.

    It does what `asyncio.timeout` does, with one timer for all that are under way: a timer for each takes
    a quarter of what a SQLite store adds to the work of the loop.
    """

    __slots__ = ("_calls", "_cancelling", "_task", "deadline", "expired")

    def __init__(self, calls: _Calls, seconds: float) -> None:
        self._calls = calls
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self.deadline: float = asyncio.get_running_loop().time() + seconds
        self.expired: bool = False

    def __enter__(self) -> None:
        self._calls.add(self)

    def __exit__(self, *_: object) -> None:
        self._calls.remove(self)
        if self.expired:
            self._task.uncancel()

    def expire(self) -> None:
        self.expired = True
        self._task.cancel()

    @property
    def caller_is_cancelled(self) -> bool:
        """Whether something else has cancelled the task."""
        return self._task.cancelling() > (self._cancelling if self.expired else 0)


class _Calls:
    """The calls that are under way, and the timer for the earliest deadline of them."""

    def __init__(self) -> None:
        self._calls: set[_Call] = set()  # that have not expired
        self._timer: asyncio.TimerHandle | None = None

    def add(self, call: _Call) -> None:
        self._calls.add(call)
        if self._timer is None or call.deadline < self._timer.when():
            self._set_timer(call.deadline)

    def remove(self, call: _Call) -> None:
        self._calls.discard(call)
        if not self._calls:
            self._set_timer(None)

    def _set_timer(self, when: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if when is not None and when < math.inf:
            self._timer = asyncio.get_running_loop().call_at(when, self._expire, when)

    def _expire(self, when: float) -> None:
        for call in [call for call in self._calls if call.deadline <= when]:
            self._calls.remove(call)
            call.expire()
        self._set_timer(min((call.deadline for call in self._calls), default=None))
