"""The only writer of entries: what is saved about a submit and when, and what happens if that fails.

Before the POST a failed write stops everything: without an INTENT nothing is sent. After it a failed write
must not lose what is known: a task id, or that nothing was charged. It stays in memory, is logged, and is
saved again until the store accepts it. A task id is carried by the error too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from contextvars import Context
from weakref import WeakValueDictionary

import attrs

from ..details import TaskDetails, TaskState
from ..errors import StoreError
from ..events import Misattributed, Named, NeverSaved, NotReleased, NotSaved, OutcomeNotSaved, Saved
from ..events.reporter import LOG, Reporter
from .guard import time_limit
from .store import DuplicateTaskError, Entry, EntryState, KeyInUseError, Store, duplicate_task

_FIRST_DELAY = 1.0  # seconds before a failed write is repeated; doubled each time
_LONGEST_DELAY = 30.0
_UNLOCKED = nullcontext()


class Ledger:
    """The entries of one client, written as its requests proceed."""

    def __init__(self, store: Store, reporter: Reporter = LOG) -> None:
        self._store = store
        self._reporter = reporter
        self._unsaved: dict[str, Entry] = {}  # by key
        self._writer: asyncio.Task[None] | None = None
        self._closed = False
        # By caller's key, or ref: moving the submits of a key to their refs and back, and naming the task of
        # one, must not mix with other writes of them.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._settling: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by the same
        self._moves = object()  # another one after each move, before its lock is free

    # -- a submit --------------------------------------------------------------------------------

    async def claim(self, entry: Entry, takes: tuple[EntryState, ...], *, wait: bool = True) -> Entry:
        """Store the entry if its key is new; return what is stored under the key.

        Raises `KeyInUseError` instead of waiting for another process if `wait` is False.
        """
        settling = self._settling.get(entry.key)
        if settling is not None:
            async with _held(settling):
                pass
        unsaved = self._unsaved.get(entry.key)
        if unsaved is not None:
            with suppress(StoreError):
                unsaved = await self._with_its_task(unsaved)
            return unsaved
        stored = await self._store.claim(entry, takes=takes, wait=wait)
        if stored is None:
            raise KeyInUseError(f"key {entry.key!r} is in use by another process", key=entry.key)
        return stored

    async def begin(self, entry: Entry, previous: Entry | None = None) -> None:
        """Save the INTENT, and the `previous` submit of the key under its ref.

        Raises `StoreError`; then the request must not be sent. A write that was given up may still happen, so
        the INTENT is undone as soon as the store works.
        """
        moves = previous is not None
        async with self._lock(entry):
            if previous is not None:
                previous = await self._as_it_is_now(previous)
            self._unsaved.pop(entry.key, None)  # no older entry may replace the INTENT
            try:
                await self._store.begin(entry, None if previous is None else previous.superseded())
            except StoreError:
                self._save_later(_planned(entry) if previous is None else previous)
                raise
            finally:
                if moves:
                    self._moves = object()
            if Saved in self._reporter.wanted:
                self._report_saved(entry)

    async def submitted(self, entry: Entry) -> None:
        """Save the task id that arrived.

        Raises `DuplicateTaskError` if another submit has it, and a `StoreError` that carries it if it cannot
        be saved.
        """
        owner = self._unsaved_where(task_id=entry.task_id)
        if owner is not None and owner.ref != entry.ref:
            raise duplicate_task(owner.task_id, owner)
        error = await self._keep(entry)
        if error is None:
            return
        if isinstance(error, DuplicateTaskError):
            raise error
        self._report_unsaved(entry, error)
        message = f"task {entry.task_id} is paid but could not be saved: {error}"
        raise StoreError(message, task_id=entry.task_id, key=entry.callers_key)

    async def unknown(self, entry: Entry) -> None:
        """Save that the outcome is unknown, so that a callback may name the task."""
        error = await self._keep(entry)
        if error is not None:
            self._report_unsaved(entry, error)

    async def unpaid(self, entry: Entry, previous: Entry | None = None) -> Entry:
        """Undo the INTENT of a request that was not charged; return the entry as planned.

        The `previous` submit of the key is stored under it again, unless it was removed meanwhile. Without a
        key there is nothing to keep.
        """
        planned = _planned(entry)
        try:
            async with self._lock(entry):
                restored = None if previous is None else await self._as_it_is_now(previous)
                error = await self._keep(restored or planned)
        except StoreError as failure:  # the lock was not to be had
            self._save_later(previous or planned)
            error = failure
        finally:
            self._moves = object()
        if error is not None:
            self._report_unsaved(planned, error)
        return planned

    async def release(self, entry: Entry) -> None:
        """Let go of the key of a submit that is over. A failure is logged only: a process's hold expires."""
        if self._store.shared is None and entry.state is not EntryState.PLANNED:
            return  # there is nothing to let go of
        try:
            await self._store.release(entry.key)
        except StoreError as error:
            released = NotReleased(ref_hash=entry.ref_hash, key=entry.callers_key, cause=str(error))
            self._reporter(released)

    # -- a task ----------------------------------------------------------------------------------

    async def find(self, name: str) -> Entry | None:
        """The entry of a key or a ref as it is now."""
        unsaved = self._unsaved.get(name) or self._unsaved_where(ref=name)
        return unsaved or await self._store.find(key=name) or await self._store.find(ref=name)

    async def name_task(self, entry: Entry, task_id: str) -> Entry:
        """Save the task id that a callback named for a submit whose outcome was unknown."""
        async with self._naming(entry):
            stored = await self._latest(entry.ref)
            if stored is None or not stored.unnamed:
                return stored or entry
            named = await self._named(stored, task_id)
        event = Named(ref_hash=named.ref_hash, key=named.callers_key, task_id=task_id)
        self._reporter(event, named.name)
        return named

    async def settle(self, entry: Entry, task_id: str | None, is_live: Callable[[str], bool]) -> Entry:
        """Save what a person found out about an unknown outcome: its task, or that it was not charged (None).

        Returns the entry as it is then, which is unchanged if something else has named its task. Raises
        `DuplicateTaskError` if another entry has the task, and `StoreError` if the key is being submitted, by
        this process (`is_live`) or by another.
        """
        settling = self._settling.setdefault(entry.callers_key or entry.ref, asyncio.Lock())
        async with _held(settling), self._naming(entry):
            stored = await self._latest(entry.ref)
            if stored is None or not stored.unnamed:
                return stored or entry
            # An earlier submit returns to its key if the one that is under way is refused.
            if is_live(stored.callers_key or stored.key) or not await self._hold(stored):
                raise being_submitted(stored)
            try:
                return await (self._unpaid(stored) if task_id is None else self._named(stored, task_id))
            finally:
                await self.release(stored)

    async def _hold(self, entry: Entry) -> bool:
        """Whether no other process has the key, or has changed the entry."""
        if self._store.shared is None:
            return True
        try:
            held = await self._store.claim(entry, takes=(EntryState.UNKNOWN, EntryState.FAILED), wait=False)
        except asyncio.CancelledError:
            await self.release(entry)  # it may be held
            raise
        if held is None or held == entry or entry.key in self._unsaved:
            return held is not None
        await self.release(entry)
        return False

    async def _named(self, entry: Entry, task_id: str) -> Entry:
        owner = self._unsaved_where(task_id=task_id)
        if owner is not None and owner.ref != entry.ref:
            raise duplicate_task(task_id, owner)
        named = entry.become(EntryState.SUBMITTED, task_id=task_id)
        await self._write(named)
        self._unsaved.pop(named.key, None)  # an older entry must not replace it
        return named

    async def _unpaid(self, entry: Entry) -> Entry:
        """Move the entry away from its key, to which the submit before it returns: both or neither."""
        unpaid = attrs.evolve(entry.superseded() if entry.keyed else entry, state=EntryState.FAILED)
        try:
            if self._unsaved.get(entry.key) is entry:
                await self._store.save(entry)  # the INTENT of a later submit may still be under the key
            previous = await self._submit_before(entry)
            if previous is None:
                await self._store.save(unpaid)
            else:
                await self._store.begin(previous, unpaid)
                self._unsaved.pop(previous.ref, None)
            self._unsaved.pop(entry.key, None)
        finally:
            self._moves = object()
        self._report_saved(unpaid)
        return unpaid

    async def _submit_before(self, entry: Entry) -> Entry | None:
        """The submit that the key had before this one, under the key, unless it was not charged either."""
        for ref in reversed(entry.earlier if entry.keyed else ()):
            earlier = await self._latest(ref)
            if earlier is not None and (earlier.task_id is not None or earlier.state is EntryState.UNKNOWN):
                return _under(entry.key, earlier)
        return None

    async def finish(self, details: TaskDetails) -> None:
        """Save the final status of a task. A failure is logged: at worst the next process polls again."""
        state = EntryState.FAILED if details.state is TaskState.FAILED else EntryState.SUCCEEDED
        moves, error = self._moves, None
        try:
            entry = self._unsaved_where(task_id=details.task_id)
            entry = entry or await self._store.find(task_id=details.task_id)
            if entry is None:
                return
            async with self._lock(entry):
                if moves is not self._moves:
                    entry = await self._latest(entry.ref)
                if entry is None or entry.state.ended:
                    return
                error = await self._keep(entry.become(state, details=details))
        except StoreError as failure:
            error = failure
        if error is not None:
            self._reporter(OutcomeNotSaved(task_id=details.task_id, state=state.value, cause=str(error)))

    async def prune(self, before: float) -> int:
        """Remove what ended before this Unix time; return how many. What is not saved yet stays."""
        return await self._store.prune(before)

    # -- failed writes ---------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Try once more to save what could not be saved."""
        self._closed = True
        if self._writer is not None and self._writer.get_loop() is asyncio.get_running_loop():
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        try:
            await self._save_unsaved()
        finally:
            for entry in self._unsaved.values():
                never = NeverSaved(
                    ref_hash=entry.ref_hash,
                    key=entry.callers_key,
                    state=entry.state.value,
                    task_id=entry.task_id,
                )
                self._reporter(never, entry.label)

    async def _keep(self, entry: Entry) -> StoreError | None:
        """Save the entry, now or later. Returns why it is not saved yet."""
        self._unsaved[entry.key] = entry  # also if this call is cancelled
        try:
            await self._write(entry)
        except DuplicateTaskError as error:
            self._saved(entry)
            return error
        except StoreError as error:
            self._start_writer()
            return error
        except asyncio.CancelledError:
            self._start_writer()
            raise
        self._saved(entry)
        return None

    def _save_later(self, entry: Entry) -> None:
        self._unsaved[entry.key] = entry
        self._start_writer()

    def _start_writer(self) -> None:
        """Save again what is not saved yet, which may be newer than what has just failed."""
        if self._writer is None and not self._closed:
            # Not in the context of the verb that fails: its timeout is not that of the writer.
            self._writer = asyncio.create_task(
                self._save_until_done(), name="kie4o store writer", context=Context()
            )

    async def _write(self, entry: Entry) -> None:
        if entry.state is EntryState.PLANNED and not entry.keyed:
            await self._store.forget(entry.key)
        else:
            await self._store.save(entry)
        if Saved in self._reporter.wanted:
            self._report_saved(entry)

    def _report_saved(self, entry: Entry) -> None:
        saved = Saved(
            ref_hash=entry.ref_hash,
            key=entry.callers_key,
            state=entry.state.value,
            task_id=entry.task_id,
            credits=entry.price,
        )
        self._reporter(saved, entry.name if self._reporter.logs(Saved) else "")

    def _report_unsaved(self, entry: Entry, error: StoreError) -> None:
        unsaved = NotSaved(
            ref_hash=entry.ref_hash,
            key=entry.callers_key,
            state=entry.state.value,
            task_id=entry.task_id,
            cause=str(error),
        )
        self._reporter(unsaved)

    async def _as_it_is_now(self, previous: Entry) -> Entry | None:
        """The previous submit of a key, under its key: a callback may have named its task since.

        None if it was removed since, which is counted in what was spent: saved again it would count twice.
        """
        unsaved = self._unsaved_where(ref=previous.ref)
        current = await self._latest(previous.ref)
        if unsaved is not None:
            self._saved(unsaved)  # it must not be saved again under the key that it leaves
        if current is None and previous.state.ended:
            return None
        return _under(previous.key, current or previous)

    async def _latest(self, ref: str) -> Entry | None:
        """The entry with this ref as it is now, wherever it has moved."""
        unsaved = self._unsaved_where(ref=ref)
        return await self._store.find(ref=ref) if unsaved is None else await self._with_its_task(unsaved)

    async def _with_its_task(self, unsaved: Entry) -> Entry:
        """An entry that is to be saved; if a callback has named its task since, as it is stored then."""
        stored = await self._store.find(ref=unsaved.ref) if unsaved.unnamed else None
        if stored is None or stored.task_id is None:
            return unsaved
        return attrs.evolve(
            stored, key=unsaved.key, keyed=unsaved.keyed, superseded_key=unsaved.superseded_key
        )

    def _lock(self, entry: Entry) -> AbstractAsyncContextManager[None]:
        """Locks the caller's key. An entry without one never moves; only naming its task needs a lock."""
        return _UNLOCKED if entry.callers_key is None else self._naming(entry)

    def _naming(self, entry: Entry) -> AbstractAsyncContextManager[None]:
        """Locks the caller's key, or else the ref: of two names for the task of an entry one must win."""
        name = entry.callers_key or entry.ref
        lock = self._locks.get(name)
        if lock is not None:
            return _held(lock)
        self._locks[name] = lock = asyncio.Lock()
        return lock  # no one has it: as nearly always, when a timeout would take 6 us twice in each task

    async def _save_until_done(self) -> None:
        delay = _FIRST_DELAY
        while self._unsaved:
            await asyncio.sleep(delay)
            await self._save_unsaved()
            delay = min(2 * delay, _LONGEST_DELAY)
        self._writer = None

    async def _save_unsaved(self) -> None:
        """Save what is not saved yet, all at once: a store that stalls does so once."""
        await asyncio.gather(*(self._save_again(entry) for entry in list(self._unsaved.values())))

    async def _save_again(self, entry: Entry) -> None:
        try:
            async with self._naming(entry):
                if self._unsaved.get(entry.key) is not entry:
                    return  # saved meanwhile, perhaps followed by something newer
                try:
                    await self._write(await self._with_its_task(entry))
                except DuplicateTaskError as error:
                    unknown = Misattributed(ref_hash=entry.ref_hash, key=entry.callers_key, cause=str(error))
                    self._reporter(unknown)
                    await self._write(attrs.evolve(entry, state=EntryState.UNKNOWN, task_id=None))
        except StoreError:
            return
        self._saved(entry)

    def _saved(self, entry: Entry) -> None:
        if self._unsaved.get(entry.key) is entry:
            del self._unsaved[entry.key]

    def _unsaved_where(self, *, ref: str | None = None, task_id: str | None = None) -> Entry | None:
        for entry in self._unsaved.values():
            if entry.ref == ref or (task_id is not None and entry.task_id == task_id):
                return entry
        return None


def _planned(entry: Entry) -> Entry:
    """The entry of a request that was not charged."""
    return attrs.evolve(entry, state=EntryState.PLANNED, sent_at=None, submitted_at=None, earlier=())


def _under(key: str, entry: Entry) -> Entry:
    """An earlier submit of a key under that key again."""
    return attrs.evolve(entry, key=key, keyed=True, superseded_key=None)


def being_submitted(entry: Entry) -> StoreError:
    """The error of an entry that may change at any moment."""
    return StoreError(
        f"nothing was changed: {entry.label} is being submitted now, by this process or another; "
        "try again later",
        key=entry.callers_key,
    )


@asynccontextmanager
async def _held(lock: asyncio.Lock) -> AsyncGenerator[None]:
    """Waits for a lock as long as for a store, which may stall while another write holds it."""
    limit = asyncio.timeout(time_limit())
    with suppress(TimeoutError):
        async with limit:
            await lock.acquire()
    if limit.expired():
        raise StoreError("the store did not respond to an earlier write of the same key")
    try:
        yield
    finally:
        lock.release()
