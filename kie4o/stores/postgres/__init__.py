"""The store in PostgreSQL, which several processes and machines share.

`address` is its URL, `database` sends statements until they are answered, `schema` creates the tables and
functions, whose SQL is in `sql/`, `process` is the lease of this process, `entries` is what is asked about
entries, and `window` is the limit that all processes share. `PostgresStore` puts them together: which keys
this process holds, and in which order its writes of a key reach the database.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar
from weakref import WeakSet, WeakValueDictionary

import attrs

from ...errors import StoreError, StoreLockedError
from ...events import StoreWarned
from ...events.reporter import LOG, Reporter
from ...models import RateLimit
from ...pricing import Spent
from ...settings import Secret
from ...waiting import wait_uncancelled
from ..shared import Limiter, Shared
from ..spending import spent_of
from ..store import Entry, EntryState, KeyInUseError, duplicate_task
from .address import Address, account_id, address_of
from .database import Database
from .entries import Claimed, Entries, Hold, hash_of_key
from .news import News, about_key
from .process import Process
from .schema import migrate
from .watches import Watches
from .window import SharedLimiter, slots_used

_FIRST_DELAY = 0.02  # seconds before a key that another process holds is claimed again
_FACTOR = 1.5
_LONGEST_DELAY = 1.0
_CLOSING = 3.0  # seconds that closing waits for the database
_LAG = 60.0  # seconds by which a replica may be behind, at most, to lack nothing when it takes over
_ASYNCHRONOUS = (
    "SELECT EXISTS (SELECT FROM pg_stat_replication) AND current_setting('synchronous_standby_names') = ''"
)
_T = TypeVar("_T")


class PostgresStore:
    """A `Store` in the database at `url`, for the account of an API key, which is not stored.

    One object is for one client. Any number of processes may have a store open on the same database.
    """

    address: Address | None = None

    def __init__(self, url: str, api_key: Secret) -> None:
        self.address = address_of(url)
        self._database = Database(self.address)
        self._process = Process(self._database)
        account = account_id(self.address, api_key)
        self._entries = Entries(self._database, account)
        self._process.on_promotion(self._write_again)
        self._process.on_renewal(self._release_again)
        self._news = News(self._database)
        self._held: dict[str, Hold] = {}  # by key; perhaps, if the reply to a claim was lost
        self._unreleased: set[str] = set()  # of these, keys whose release has no answer yet
        self._written: dict[str, _Written] = {}  # of the last moments by key, the oldest first
        self._begun: dict[str, _Begun] = {}  # of the last moments by key, the oldest first
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by the caller's key
        self._is_open = False
        self._machines = _Machines(self._database, self._process, account, self._entries, self._news)
        self.shared: Shared | None = self._machines

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.address)!r})"

    @property
    def reporter(self) -> Reporter:
        """Who is told of what happens to the store."""
        return self._database.reporter

    @reporter.setter
    def reporter(self, reporter: Reporter) -> None:
        self._database.reporter = reporter

    async def open(self) -> None:
        if self._is_open:
            raise StoreLockedError("this store is already open; give each client its own store")
        self._is_open = True
        try:
            await self._database.open()
            await migrate(self._database)
            await self._process.enter()
            await self._entries.bury()
            await self._warn_of_replicas()
            self._news.start()
        except BaseException:
            await wait_uncancelled([asyncio.ensure_future(self.aclose())])
            raise

    # -- a submit ------------------------------------------------------------------------------------

    async def claim(
        self, entry: Entry, *, takes: Collection[EntryState] = (EntryState.PLANNED,), wait: bool = True
    ) -> Entry | None:
        delay = _FIRST_DELAY
        while True:
            with self._news.expected(about_key(hash_of_key(entry.key))) as free:
                claimed = await self._in_order(entry, lambda: self._claim(entry, tuple(takes)))
                if claimed.outcome != "busy":
                    polled_elsewhere = not wait and await self._is_polled_elsewhere(claimed)
                    return None if polled_elsewhere else claimed.entry
                if not wait:
                    return None
                if await self._entries.want(self._process.id, entry.key):
                    await asyncio.wait([free], timeout=_LONGEST_DELAY if self._news.works else delay)
            delay = min(delay * _FACTOR, _LONGEST_DELAY)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self._in_order(entry, lambda: self._begin(entry, superseded))

    async def save(self, entry: Entry) -> None:
        await self._in_order(entry, lambda: self._save(entry))

    async def release(self, key: str) -> None:
        if key in self._held:
            await self._in_order(key, lambda: self._release(key))

    async def forget(self, key: str) -> None:
        await self._in_order(key, lambda: self._forget(key))

    # -- what is stored --------------------------------------------------------------------------------

    async def find(
        self, *, key: str | None = None, task_id: str | None = None, ref: str | None = None
    ) -> Entry | None:
        return await self._entries.find(key=key, task_id=task_id, ref=ref)

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        return await self._entries.find_many(keys)

    async def keep_callback(self, ref: str, task_id: str) -> None:
        await self._entries.keep_callback(ref, task_id)

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        return await self._entries.callbacks_of(ref)

    async def unfinished(self) -> AsyncIterator[Entry]:
        last = 0
        while page := await self._entries.unfinished(last):
            for _, entry in page:
                yield entry
            last = page[-1][0]

    async def spent(self) -> Spent:
        return spent_of(await self._entries.spent())

    async def prune(self, before: float) -> int:
        removed, last = 0, 0
        while page := await self._entries.prune(last, before):
            removed, last = removed + page.removed, page.last
        return removed

    async def recent(self, per: float) -> list[float]:
        return []  # the limiter of `shared` knows them

    async def aclose(self) -> None:
        """Wait for writes that go on, and give up the lease, unless the database is away."""
        try:
            async with asyncio.timeout(_CLOSING):
                if self._is_open:
                    await self._machines.drain()
                    await self._database.drain()
                    await self._process.leave()
        except (StoreError, TimeoutError) as error:
            reason = str(error) or "the database does not answer"
            self.reporter(StoreWarned(what="lease kept", detail=reason))
        finally:
            await self._close()

    async def _is_polled_elsewhere(self, claimed: Claimed) -> bool:
        waited_for = claimed.outcome == "stored" and claimed.entry.state is EntryState.SUBMITTED
        return waited_for and bool(await self._machines.held([claimed.entry.key]))

    # -- one after the other for each key ------------------------------------------------------------------

    async def _claim(self, entry: Entry, takes: tuple[EntryState, ...]) -> Claimed:
        """Try once to hold the key; again if the lease of this process had been lost."""
        before = self._held.get(entry.key)
        self._unreleased.discard(entry.key)
        while True:
            me = self._process.id
            self._held[entry.key] = Hold(me, takes, b"")  # its release must be asked for, should this fail
            claimed = await self._entries.claim(me, entry, takes)
            if claimed.outcome == "lost":
                await self._process.lost(me)
                continue
            if claimed.outcome == "held":
                self._held[entry.key] = Hold(me, takes, claimed.mark)
            elif before is None:
                del self._held[entry.key]
            else:
                self._held[entry.key] = before
            return claimed

    async def _begin(self, entry: Entry, superseded: Entry | None) -> None:
        while True:
            me = self._process.id
            hold = await self._still_held(entry, me) if entry.keyed else None
            self._note_begin(entry)
            outcome = await self._entries.begin([me], hold, entry, superseded)
            if outcome != "lost":
                break
            await self._process.lost(me)
        if outcome != "saved":
            raise _taken(entry)
        self._remember(entry, superseded)

    async def _still_held(self, entry: Entry, me: int) -> Hold:
        """The hold of the key. If the lease was lost since the claim, it is claimed again, as it was; if that
        fails, `begin_submit` says so."""
        hold = self._held.get(entry.key)
        if hold is None:
            raise _taken(entry)
        if hold.process != me:
            hold = self._held[entry.key] = attrs.evolve(hold, process=me)  # perhaps, if the reply is lost
            claimed = await self._entries.claim(me, entry, hold.takes)
            if claimed.mark != hold.mark:  # what it supersedes is gone, and may have been paid for since
                raise _taken(entry)
        return hold

    async def _save(self, entry: Entry) -> None:
        """If another submit has the key by now, this one is saved as the earlier one that it is, unless there
        is nothing to save about it."""
        if not await self._saved(entry) and entry.state is not EntryState.PLANNED:
            await self._saved(entry.superseded())

    async def _saved(self, entry: Entry) -> bool:
        """Save the entry, unless another submit has its key."""
        keeps = entry.key in self._held
        outcome, held, owner = await self._entries.save(
            self._process.id, entry, keeps=keeps, intent_at=self._undone_by(entry)
        )
        if owner is not None:
            raise duplicate_task(owner.task_id or "", owner)
        if outcome != "saved":
            return False
        if not held:
            self._held.pop(entry.key, None)
        self._remember(entry)
        return True

    async def _release(self, key: str) -> None:
        hold = self._held.get(key)
        if hold is not None:
            self._unreleased.add(key)
            await self._entries.release(hold.process, key)
            self._held.pop(key, None)
        self._unreleased.discard(key)

    async def _release_again(self) -> None:
        """Let go of what could not be released while the database was away: while this process lives, nothing
        else frees it for the others."""
        for key in list(self._unreleased):
            await self._in_order(key, functools.partial(self._still_release, key))

    async def _still_release(self, key: str) -> None:
        if key in self._unreleased:  # it was not claimed again meanwhile
            await self._release(key)

    async def _forget(self, key: str) -> None:
        self._held.pop(key, None)
        self._written.pop(key, None)
        await self._entries.forget(key)

    def _note_begin(self, entry: Entry) -> None:
        """Keep when it was begun, for what may have to undo it."""
        now = asyncio.get_running_loop().time()
        self._begun.pop(entry.key, None)
        if entry.submitted_at is not None:
            self._begun[entry.key] = _Begun(now, entry.ref, entry.submitted_at)
        while self._begun and next(iter(self._begun.values())).at < now - _LAG:
            del self._begun[next(iter(self._begun))]

    def _undone_by(self, entry: Entry) -> float | None:
        """When the intent was begun that is undone by saving this entry, if it is an undoing."""
        begun = self._begun.get(entry.key)
        if begun is None or (entry.state is not EntryState.PLANNED and entry.ref == begun.ref):
            return None
        return begun.submitted_at

    def _remember(self, entry: Entry, superseded: Entry | None = None) -> None:
        """Keep what was written for as long as a replica that takes over may lack it."""
        now = asyncio.get_running_loop().time()
        self._written.pop(entry.key, None)
        self._written[entry.key] = _Written(now, entry, superseded)
        while (oldest := next(iter(self._written.values()))).at < now - _LAG:
            del self._written[oldest.entry.key]

    async def _write_again(self) -> None:
        """A replica has taken over, which may lack what this process has written last."""
        for written in list(self._written.values()):
            await self._in_order(written.entry, functools.partial(self._restore, written))

    async def _restore(self, written: _Written) -> None:
        entry = written.entry
        if self._written.get(entry.key) is not written:
            return  # something newer was written since
        hold = self._held.get(entry.key)
        if entry.state is not EntryState.INTENT:
            await self._entries.save(self._process.id, entry, keeps=hold is not None)
            return
        mine = [self._process.id] if hold is None else [self._process.id, hold.process]
        if await self._entries.begin(mine, hold, entry, written.superseded) == "taken":
            await self._entries.begin(mine, None, entry, written.superseded)  # if the claim is lost as well

    async def _in_order(self, entry: Entry | str, work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What the work returns, after all earlier work on the same key; it goes on if the caller is
        cancelled. A write that was given up must not follow one that undoes it."""
        name = entry if isinstance(entry, str) else entry.callers_key or entry.key
        lock = self._locks.setdefault(name, asyncio.Lock())

        async def run() -> _T:
            async with lock:
                return await work()

        return await self._database.run(run)

    async def _warn_of_replicas(self) -> None:
        [(exposed,)] = await self._database.rows(_ASYNCHRONOUS)
        if exposed:
            self.reporter(StoreWarned(what="replicas"))

    async def _close(self) -> None:
        self._held.clear()
        self._unreleased.clear()
        self._written.clear()
        self._begun.clear()
        await self._machines.aclose()
        await self._news.aclose()
        await self._process.stop()
        await self._database.aclose()
        self._is_open = False


@attrs.frozen
class _Written:
    """An entry that was written, and with an intent what it supersedes."""

    at: float  # loop time
    entry: Entry
    superseded: Entry | None


@attrs.frozen
class _Begun:
    """An intent of this process."""

    at: float  # loop time
    ref: str
    submitted_at: float


class _Machines:
    """What the processes on the database do together."""

    def __init__(
        self, database: Database, process: Process, account: bytes, entries: Entries, news: News
    ) -> None:
        self._database = database
        self._process = process
        self._account = account
        self._entries = entries
        watches = Watches(database, process, account)
        self.lead = watches.lead
        self.leave = watches.leave
        self.turn = watches.turn
        self.news = news.read
        self._news = news
        self._limiters: WeakSet[SharedLimiter] = WeakSet()  # one for each runtime of the client

    def limiter(
        self,
        limit: RateLimit,
        *,
        announce: Callable[[int], None] | None = None,
        lead: Callable[[], float] = float,
        reporter: Reporter = LOG,
    ) -> Limiter:
        limiter = SharedLimiter(
            self._database,
            self._process,
            self._account,
            limit,
            announce=announce,
            lead=lead,
            reporter=reporter,
        )
        self._limiters.add(limiter)
        return limiter

    @property
    def heard(self) -> bool:
        return self._news.works

    async def slots_used(self, per: float) -> int:
        return await slots_used(self._database, self._account, per)

    async def held(self, keys: Collection[str]) -> Collection[str]:
        return await self._entries.held(self._process.id, keys)

    async def drain(self) -> None:
        for limiter in list(self._limiters):
            await limiter.drain()

    async def aclose(self) -> None:
        for limiter in list(self._limiters):
            await limiter.aclose()


def _taken(entry: Entry) -> KeyInUseError:
    """The error of a submit that this process must not begin."""
    return KeyInUseError(
        f"{entry.name} was not sent: its key is not in the hands of this process any more",
        key=entry.callers_key,
    )
