"""One run over one set of requests: what is taken when, and what stops it.

Requests are taken lazily, at most `max_in_flight` at a time. Completions are handed out as they finish, and
errors are values. With a store that survives the process, the same batch after a crash continues where it
stopped: finished items are replayed without a submit, paid ones are waited for, and only the rest is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

import attrs

from ..arguments import stop_of
from ..errors import (
    AuthenticationError,
    InsufficientCreditsError,
    KeyConflictError,
    KeyLimitError,
    KieError,
    StoreError,
    SubmissionUnknownError,
)
from ..image_request import ImageRequest
from ..models import Completion, ImageResult
from ..stores.store import Entry, EntryState, Store
from ..submission.pending import Observer, Submitted
from ..submission.resending import NO_RESUBMIT, Resubmit
from ..wire.words import cause_of
from .budget import Budget, Reservation, Stopped
from .completions import completion_of, replayed_completion
from .items import Item, Items, KeptItem, Requests
from .tasks import Tasks

logger: logging.Logger = logging.getLogger("kie4o")

# Errors that every other item would meet too: new submits stop instead of failing one by one.
STOPPING = (AuthenticationError, InsufficientCreditsError, KeyLimitError)
MAX_UNKNOWN = 5  # unknown outcomes in a row after which new submits stop
_KEYS_AT_ONCE = 100  # looked up at once when a list is searched for finished items, in some milliseconds


class Generate(Protocol):
    """The client's generate."""

    def __call__(
        self, request: ImageRequest, key: str, resubmit: Resubmit, *, observer: Observer
    ) -> Coroutine[Any, Any, ImageResult]: ...


class Batch:
    """One run over one set of requests: an async iterator of completions that must be closed.

    The finished items of a list or a mapping come first. `named_task` returns the entry of a ref if a
    callback has named its task.
    """

    def __init__(
        self,
        requests: Requests,
        store: Store,
        generate: Generate,
        call_off: Callable[[str, str], bool],
        named_task: Callable[[str], Awaitable[Entry | None]],
        *,
        max_in_flight: int,
        name: str = "",
        resubmit: Resubmit,
        budget: Budget,
        stop: asyncio.Event | None = None,
    ) -> None:
        self._store = store
        self._generate = generate
        self._call_off = call_off
        self._named_task = named_task
        self._max_in_flight = max_in_flight
        self._resubmit = resubmit
        self._budget = budget
        self._items = Items(requests, name)
        self._searching = isinstance(requests, (list, tuple, Mapping))  # it has finished items, perhaps
        self._finished: deque[Completion] = deque()  # found there
        self._kept: deque[KeptItem | Item] = deque()  # the others found there
        self._tasks = Tasks()
        self._in_flight = 0  # items that are not handed out
        self._submitting: set[str] = set()  # keys whose submit has no outcome yet
        self._submitted: set[str] = set()  # keys in flight whose submit has one, which the store did not have
        self._pull: asyncio.Task[Item | None] | None = None
        self._exhausted = False
        self._unknown = 0  # outcomes in a row
        self._stop: Exception | None = None
        self._called_off: frozenset[str] = frozenset()  # keys
        self._source_error: BaseException | None = None
        self._stop_event = stop_of(stop)
        self._stopper: asyncio.Task[Any] | None = None  # waits for it

    def __aiter__(self) -> Batch:
        return self

    async def __anext__(self) -> Completion:
        self._heed(self._stop_event)
        while self._searching and not self._finished:
            await self._search()
        if self._finished:
            return self._finished.popleft()
        while True:
            await self._ask_source()
            if self._pull is None and not self._in_flight:
                break
            task = await self._tasks.next()
            if task is None:
                break
            if task is self._stopper:
                continue  # it has halted the batch, so that nothing more is asked for
            if task is self._pull:
                self._pulled(task)
            elif (completion := self._completed(task.result())) is not None:
                return completion
        error = self._stop or self._budget.error() or self._source_error
        raise StopAsyncIteration if error is None or isinstance(error, Stopped) else error

    async def aclose(self) -> None:
        """Cancel what is in flight, as any caller of `generate` may be cancelled, and close the source."""
        try:
            await self._tasks.cancel()
        finally:
            await self._items.aclose()

    # -- the source ------------------------------------------------------------------------------

    async def _search(self) -> None:
        """Search some more items of a list or a mapping for finished ones. The others run after the last."""
        chunk = list(itertools.islice(iter(self._items.next, None), _KEYS_AT_ONCE))
        entries = await self._store.find_many([item.key for item in chunk])
        await asyncio.sleep(0)  # a store in memory gives no turn to others, and a list may be long
        for item, entry in zip(chunk, entries, strict=True):
            if item.request is None:
                self._kept.append(item)
            elif entry is not None and entry.state.ended and self._is_outcome(entry):
                self._finished.append(replayed_completion(item, entry))
            else:  # a callback may have arrived for an unknown one; confirming it takes a poll
                self._kept.append(KeptItem(item.index, item.key, item.given, new=entry is None))
        self._searching = len(chunk) == _KEYS_AT_ONCE

    async def _ask_source(self) -> None:
        """Take as many items as there is room for."""
        if self._stopping and self._pull is not None:  # the source may never yield another
            await self._tasks.cancel(self._pull)
            self._pull = None
        while self._has_room:
            if self._items.arrive:
                self._pull = self._tasks.start(self._items.arrived(), "kie4o batch source")
                return
            self._take()
            if self._tasks.ready or not self._has_room:
                return
            await asyncio.sleep(0)  # each has a turn to begin, in which it may stop the batch

    @property
    def _has_room(self) -> bool:
        """Whether the next item may be taken."""
        asking = self._pull is not None or self._exhausted or self._stopping or self._budget.waiting
        return self._in_flight < self._max_in_flight and not asking

    def _take(self) -> None:
        """Start the next item. If the source raises, the batch ends after the completions in flight."""
        try:
            item = self._kept.popleft() if self._kept else self._items.next()
        except Exception as error:
            self._source_error, item = error, None
        if item is None:
            self._exhausted = True
        elif isinstance(item, KeptItem):
            self._start(item.item(), new=item.new)
        else:
            self._start(item)

    def _pulled(self, pull: asyncio.Task[Item | None]) -> None:
        """The same for an item of an async source."""
        self._pull = None
        error = None if pull.cancelled() else pull.exception()
        item = pull.result() if error is None else None
        self._source_error, self._exhausted = error, item is None
        if item is not None and not self._stopping:
            self._start(item)

    def _start(self, item: Item, *, new: bool = False) -> None:
        self._tasks.start(self._one(item, new), "kie4o batch item")
        self._in_flight += 1

    # -- one item --------------------------------------------------------------------------------

    async def _one(self, item: Item, new: bool) -> Completion | None:
        """Raises nothing: a failed item does not affect the others, unless it stops the batch.

        A foreign exception is not the outcome of its item. It stops the batch as one of the source does.
        """
        try:
            completion = await self._outcome(item, new)
        except Exception as error:  # of the caller's `on_update`
            self._halt(error)
            return None
        finally:
            self._submitting.discard(item.key)
            self._submitted.discard(item.key)
        if completion.error is not None and _stops(completion.error):
            self._halt(copy.copy(completion.error))
        return completion

    async def _outcome(self, item: Item, new: bool) -> Completion:
        """A `new` key is not looked up, unless its price has to be reserved: the submit finds out if it is
        known by now, because another item or caller has submitted it."""
        request = item.request
        if request is None:
            return completion_of(item, error=item.error)
        new = new and not self._budget.limited
        try:
            entry = None if new else await self._known(item.key)
            if entry is not None and self._is_outcome(entry):
                return replayed_completion(item, entry)
            paid = entry is not None and entry.state is EntryState.SUBMITTED
            resubmit = NO_RESUBMIT if paid else self._resubmit  # its task may fail before it is waited for
            with self._budget.nothing() if paid else await self._budget.reserve(request) as reservation:
                observer = _Observer(self, item.key, reservation)
                result = await self._generate(request, item.key, resubmit, observer=observer)
        except KieError as error:
            return completion_of(item, error=error, replayed=new and await self._had_ended(item.key))
        return completion_of(item, result=result, replayed=result.source == "store")

    async def _known(self, key: str) -> Entry | None:
        """What is stored under the key, with the task that a callback may have named meanwhile. A resubmit
        checks that itself."""
        entry = await self._store.find(key=key)
        if entry is not None and entry.state is EntryState.UNKNOWN and not self._resubmit.after_unknown:
            return await self._named_task(entry.ref) or entry
        return entry

    async def _had_ended(self, key: str) -> bool:
        """Whether the error of a new key is that of an outcome that its submit found in the store."""
        if key in self._submitted:
            return False
        with contextlib.suppress(StoreError):
            entry = await self._store.find(key=key)
            return entry is not None and self._is_outcome(entry)
        return False

    def _is_outcome(self, entry: Entry) -> bool:
        """Whether the entry is the outcome: there is nothing to send and nothing to wait for."""
        final = entry.state.ended or entry.state is EntryState.UNKNOWN
        return final and not self._resubmit.allows(entry.state)

    def _completed(self, completion: Completion | None) -> Completion | None:
        """The completion to hand out, unless a stop called the item off."""
        self._in_flight -= 1
        if completion is None:
            return None
        dropped = isinstance(completion.error, Stopped) or completion.key in self._called_off
        return None if dropped else completion

    @property
    def _stopping(self) -> bool:
        """Whether nothing more is taken from the source. Reaching the limit calls nothing off that fits."""
        return self._stop is not None or self._budget.reached

    # -- stopping: at once, also while the consumer is busy ----------------------------------------

    def _heed(self, stop: asyncio.Event | None) -> None:
        """Halt when the caller sets the event, also while nothing ends that could be handed out."""
        if stop is not None and stop.is_set():
            self._halt(Stopped("the caller stopped it"))
        elif stop is not None and self._stopper is None:
            self._stopper = self._tasks.start(stop.wait(), "kie4o batch stop")
            self._stopper.add_done_callback(
                lambda task: None if task.cancelled() else self._halt(Stopped("the caller stopped it"))
            )

    def on_admitted(self, key: str) -> None:
        """An item got its permit, and is submitted unless the batch has stopped."""
        if self._stop is not None:
            raise Stopped("the batch has stopped")
        self._submitting.add(key)

    def on_submitted(self, key: str, reservation: Reservation, submitted: Submitted) -> None:
        """Count what it costs, and unknown outcomes in a row, without waiting for the callbacks that may
        resolve them."""
        self._submitting.discard(key)
        if not submitted.entry.state.ended:
            self._submitted.add(key)
        earlier = submitted.entry.task_id is not None and submitted.since is None
        reservation.settle(charged=not earlier)
        if submitted.entry.task_id is None:
            self._unknown += 1
        elif not earlier:
            self._unknown = 0
        if self._unknown >= MAX_UNKNOWN:
            entry = submitted.entry
            message = (
                f"the batch stopped: {MAX_UNKNOWN} submits in a row have an unknown outcome, the latest is "
                f"{entry.label}. Check kie.ai/logs, then call client.settle(...) for each of them"
            )
            self._halt(SubmissionUnknownError(message, ref=entry.ref, key=entry.callers_key))

    def _halt(self, error: Exception) -> None:
        """Submit nothing more. The error is raised after the completions of what is in flight."""
        if self._stop is not None:
            return
        error.add_note("No further requests were submitted; run the same batch again to continue.")
        self._stop = error
        logger.info("a batch submits nothing more: %s", cause_of(error))
        reason = "the batch stopped"
        self._called_off = frozenset(key for key in self._submitting if self._call_off(key, reason))


@attrs.frozen(eq=False, weakref_slot=False)
class _Observer(Observer):
    """Tells the batch about one item."""

    batch: Batch
    key: str
    reservation: Reservation

    def admitted(self) -> None:
        self.batch.on_admitted(self.key)

    def submitted(self, submitted: Submitted) -> None:
        self.batch.on_submitted(self.key, self.reservation, submitted)


def _stops(error: KieError) -> bool:
    """Whether new submits stop: also if the store cannot be written or the client was closed.

    A status check that was refused is about one task, whose id is on the error.
    """
    refused = isinstance(error, STOPPING) and error.task_id is None
    unwritable = isinstance(error, StoreError) and not isinstance(error, KeyConflictError)
    return refused or unwritable or type(error) is KieError
