"""The account's limit for all processes on one database.

Every slot is a row: waiting, open (granted, and the request not answered yet) or answered. It counts until a
window has passed after the answer, as in `RateLimiter`, by the clock of the server. sql/window.sql grants
slots, first come first served, under a lock of the account.

One task, the pump, asks for all who wait here. It tells the server everything that this client has, so that a
question which was lost, or whose answer was, is simply asked again, and nothing is left behind by a waiter
that was cancelled. Then it sleeps until the next slot may be free. All clients know when that is, so no
notifications are needed.

A grant is good for `GOOD` seconds by the clock of this machine, counted from before it was asked for: a
process that stood still, or whose machine was suspended, must not send into a window that others have filled
by then. `slot.good_until` says so to the body of the request, and such a slot is released as not counted,
which gives it back.
"""

from __future__ import annotations

import asyncio
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import count
from typing import TYPE_CHECKING, Any

import attrs

from ... import clock
from ...errors import StoreError
from ...events import StoreWarned
from ...events.reporter import LOG, Reporter
from ...models import RateLimit
from ..pauses import REFUSED, PauseLog
from .database import OUTAGE, Database, close, failure_of, in_schema, may_pass, working
from .process import Process

if TYPE_CHECKING:
    from psycopg import AsyncConnection

GOOD = 5.0  # seconds from before the question until the request must be sent; as many until it has arrived
_ANSWER = 10.0  # seconds for the answer to a question
_FIRST_DELAY = 0.05  # seconds before a question is asked again, but for the first time; doubled each time
_LONGEST_DELAY = 1.0
_STEP = 1.0  # seconds by which the clock of the server may differ from ours, since the last question
_DRIFT = 0.001  # and for each second since then

_TAKE = """
SELECT outcome, server_time, granted, chances, again, pause, cause FROM kie4o.take(
    %s, %s, %s, %s::uuid[], %s::boolean[], %s::uuid[], %s::uuid[], %s, %s, %s, %s, %s, %s, %s
)
"""
_USED = """
SELECT count(*) FROM kie4o.slot
WHERE account = %s AND CASE
    WHEN answered_at IS NULL THEN taken_at IS NOT NULL
    ELSE answered_at > kie4o.clock() - make_interval(secs => %s)
END
"""
_REFUSED, _CLOCK, _REPLICA = "refused", "clock", "replica"  # why all are held, in the table
_HOLDS = {
    _REFUSED: REFUSED,
    _CLOCK: "the clock of the database was set",
    _REPLICA: "a replica has taken over as the database",
}


async def slots_used(database: Database, account: bytes, per: float) -> int:
    """How many slots all processes have in use; also those of one that is gone, until another one asks."""
    [(count,)] = await database.rows(_USED, account, per)
    return int(count)


class SharedSlot:
    """A slot that was granted to a waiter of this process."""

    def __init__(self, limiter: SharedLimiter, token: uuid.UUID, good_until: float) -> None:
        self.good_until: float = good_until
        self.token: uuid.UUID = token
        self._limiter = limiter

    def release(self, *, counted: bool) -> None:
        """`counted` unless the request was provably not sent."""
        self._limiter.release(self.token, counted=counted)


@attrs.define(eq=False)
class _Waiter:
    granted: asyncio.Future[SharedSlot]
    front: bool
    since: float  # loop time


@attrs.frozen
class _Pause:
    """What the server has to be told: nobody gets a slot until then."""

    until: float  # loop time
    cause: str


@attrs.frozen
class Offset:
    """How many seconds the clock of the server is ahead of ours: between two bounds, as of a time of ours."""

    low: float
    high: float
    at: float

    @classmethod
    def seen(cls, server_time: float, asked: float, answered: float) -> Offset:
        """The server read its clock at some time between the question and the answer."""
        return cls(server_time - answered, server_time - asked, answered)

    def slack(self, now: float) -> float:
        """By how much it may have moved since, though no one set a clock."""
        return _STEP + _DRIFT * (now - self.at)

    def expected(self, now: float) -> tuple[float, float]:
        """Between which times the clock of the server is now, unless one was set."""
        slack = self.slack(now)
        return now + self.low - slack, now + self.high + slack

    def moved(self, new: Offset) -> float:
        """By how many seconds one of the clocks was set since; 0.0 if none was."""
        slack = self.slack(new.at)
        if new.low > self.high + slack:
            return new.low - self.high
        return new.high - self.low if new.high < self.low - slack else 0.0


class SharedLimiter:
    """A `Limiter` that counts with all processes on the database.

    `announce` is called `lead()` seconds before slots may be free for which requests wait here, with their
    number, as `RateLimiter` does.
    """

    def __init__(
        self,
        database: Database,
        process: Process,
        account: bytes,
        limit: RateLimit,
        *,
        announce: Callable[[int], None] | None = None,
        lead: Callable[[], float] = float,
        reporter: Reporter = LOG,
    ) -> None:
        self.limit: RateLimit = limit
        self._database = database
        self._process = process
        self._account = account
        self._announce = announce
        self._lead = lead
        self._numbers = count(1)  # of the questions
        self._waiting: dict[uuid.UUID, _Waiter] = {}
        self._held: set[uuid.UUID] = set()  # open, and not released yet
        self._answered: set[uuid.UUID] = set()  # which the server has to be told
        self._changes = 0  # of all this
        self._told = 0  # how many of these the server knows
        self._pause: _Pause | None = None
        self._held_until = float("-inf")  # loop time before which this process grants nothing
        self._offset: Offset | None = None
        self._away_since: float | None = None  # loop time
        self._hopeless = False  # the last question failed, and not because the database is away
        self._delay = 0.0
        self._connection: AsyncConnection[Any] | None = None
        self._pump: asyncio.Task[None] | None = None
        self._news = asyncio.Event()  # there is something to ask or to say
        self._reporter = reporter
        self._log = PauseLog(limit, reporter)
        self._chances: Sequence[float] = ()  # loop times
        self._announced_by = float("-inf")
        self._announcement: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot here."""
        return len(self._waiting)

    @property
    def open(self) -> int:
        """How many slots this process has that are not answered yet."""
        return len(self._held)

    def used(self, now: float) -> int | None:
        """Only the database knows: see `slots_used`."""

    def next_slot(self, now: float) -> float | None:
        """Seconds until a slot is free for one who waits here, or until a pause ends."""
        chances = self._chances
        if chances and self._waiting:
            return max(0.0, chances[0] - now)
        return self._held_until - now if self._held_until > now else None

    def __repr__(self) -> str:
        limit = f"{self.limit.limit} slots per {self.limit.per:g} s"
        return f"<SharedLimiter: {self.open} of {limit} open here, {self.waiting} waiting>"

    def remember(self, ages: Iterable[float]) -> None:
        """There is nothing to do: the slots of an earlier run are still rows of the database."""

    async def acquire(self, *, front: bool = False) -> SharedSlot:
        """Wait for a slot. With `front`, a request that was refused goes before those that wait.

        Raises `StoreError` if the database is away for too long. Nothing was sent then.
        """
        loop = asyncio.get_running_loop()
        granted: asyncio.Future[SharedSlot] = loop.create_future()
        token = uuid.uuid4()
        self._waiting[token] = _Waiter(granted, front, loop.time())
        self._wake()
        try:
            return await granted
        except asyncio.CancelledError:
            if not granted.cancelled() and granted.exception() is None:
                granted.result().release(counted=False)  # granted in the same turn as the cancellation
            raise
        finally:
            if self._waiting.pop(token, None) is not None:
                self._change()

    def release(self, token: uuid.UUID, *, counted: bool) -> None:
        """It is written until the database has it: nothing else frees a slot while this process lives."""
        self._held.discard(token)
        if counted:
            self._answered.add(token)
        self._change()

    def hold_all(self) -> float:
        """Grant nothing to anybody for a whole window: Kie refused a request for too many calls.

        Returns for how many seconds.
        """
        return self._hold(self.limit.per, _REFUSED)

    async def drain(self) -> None:
        """Wait until the database has been told of every slot."""
        for waiter in self._waiting.values():
            waiter.granted.cancel()
        if self._pump is not None and not self._hopeless:
            await asyncio.wait([self._pump])

    async def aclose(self) -> None:
        """Close the connection. Slots that the database was not told of age out with the lease."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        if self._announcement is not None:
            self._announcement.cancel()
        await self._disconnect()

    # -- the pump ------------------------------------------------------------------------------------

    def _change(self) -> None:
        """The server has to be told. What it is not told of, it deletes."""
        self._changes += 1
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(
                self._ask_always(),
                name="kie4o slots",
                context=Context(),  # not with the limits of a caller
            )

    def _hold(self, seconds: float, cause: str) -> float:
        now = asyncio.get_running_loop().time()
        if now + seconds > self._held_until:
            self._held_until = now + seconds
            self._pause = _Pause(self._held_until, cause)
            self._change()
        return self._held_until - now

    async def _ask_always(self) -> None:
        while self._waiting or self._told != self._changes:
            self._news.clear()
            delay = await self._ask()
            if self._waiting:
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._news.wait()

    async def _ask(self) -> float:
        """One question. Returns for how many seconds there is nothing to ask, unless there is news."""
        address = self._database.address
        try:
            return await self._ask_once()
        except StoreError as error:  # it could not be connected to
            passes, failure = True, error
        except TimeoutError:
            passes, failure = True, failure_of(address, TimeoutError(f"no answer within {_ANSWER:g} s"))
        except Exception as error:  # whatever it is, nobody may wait for ever
            passes, failure = may_pass(error), failure_of(address, error)
        await self._disconnect()
        self._hopeless = not passes
        self._fail(failure)
        await asyncio.sleep(self._delay)
        self._delay = min(max(2 * self._delay, _FIRST_DELAY), _LONGEST_DELAY)
        return 0.0

    async def _ask_once(self) -> float:
        connection, told = await self._connected(), self._changes
        loop, me, asked = asyncio.get_running_loop(), self._process.id, clock.real_uptime()
        good_until = clock.uptime() + GOOD
        tokens, answered, pause = list(self._waiting), list(self._answered), self._pause
        earliest, latest = (None, None) if self._offset is None else self._offset.expected(asked)
        parameters = (
            self._account,
            me,
            next(self._numbers),
            tokens,
            [waiter.front for waiter in self._waiting.values()],
            list(self._held),
            answered,
            self.limit.limit,
            self.limit.per,
            GOOD,
            earliest,
            latest,
            None if pause is None else max(0.0, pause.until - loop.time()),
            None if pause is None else pause.cause,
        )
        answer = await self._execute(connection, parameters)
        outcome, server_time, granted, chances, again, held, cause = answer
        self._hopeless, self._away_since, self._delay = False, None, 0.0
        self._check_clock(server_time, asked)
        if outcome != "answered":
            if outcome == "lost":
                await self._process.lost(me)
            return 0.0
        self._told = told
        self._answered.difference_update(answered)
        if self._pause is pause:
            self._pause = None
        self._grant(granted, good_until)
        self._expect(chances)
        if chances and self._waiting:  # by the clock of the server, which shows the same end in each answer
            hold = self._hold_of(chances[0], held, cause)
            self._log.pause(server_time, server_time + chances[0], hold)
        return float(again)

    async def _execute(self, connection: AsyncConnection[Any], parameters: Sequence[object]) -> Any:
        # psycopg's types want it to be a literal.
        query: Any = in_schema(_TAKE, self._database.address.schema)
        with working():
            async with asyncio.timeout(_ANSWER):
                cursor = await connection.execute(query, parameters)
                [row] = await cursor.fetchall()
        return row

    async def _connected(self) -> AsyncConnection[Any]:
        """A connection of its own: a question does not wait for those of the store."""
        if self._connection is None:
            self._connection = await self._database.connect()
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await close(connection)

    # -- what an answer means ------------------------------------------------------------------------

    def _check_clock(self, server_time: float, asked: float) -> None:
        """If the clock of the server was set, the slots in the tables have a wrong age: pause for as long as
        any of them may count, with the requests of processes that are gone."""
        offset = Offset.seen(server_time, asked, clock.real_uptime())
        moved = 0.0 if self._offset is None else self._offset.moved(offset)
        self._offset = offset
        if moved:
            self._reporter(StoreWarned(what="clock set", detail=f"{moved:.1f}"))
            self._hold(self.limit.per + 2 * GOOD, _CLOCK)

    def _grant(self, granted: Sequence[uuid.UUID], good_until: float) -> None:
        """Pass the slots on. What cannot be used is not: its waiter goes on asking, and gets it again."""
        held = asyncio.get_running_loop().time() < self._held_until
        if held or clock.uptime() >= good_until:
            granted = ()
            self._news.set()
        for token in granted:
            waiter = self._waiting.get(token)
            if waiter is not None and not waiter.granted.done():  # it was not cancelled meanwhile
                del self._waiting[token]
                self._held.add(token)
                waiter.granted.set_result(SharedSlot(self, token, good_until))

    def _expect(self, chances: Sequence[float]) -> None:
        """Announce in how many seconds the first waiters may get a slot."""
        now = asyncio.get_running_loop().time()
        self._chances = [now + chance for chance in chances]
        self._announce_later()

    @staticmethod
    def _hold_of(chance: float, pause: float | None, cause: str | None) -> str | None:
        """Why it takes so long, unless the limit is used up."""
        held = pause is not None and chance <= pause + 0.001
        return _HOLDS.get(cause or "", REFUSED) if held else None

    def _fail(self, failure: StoreError) -> None:
        """Tell those who have waited for the database for too long."""
        now = asyncio.get_running_loop().time()
        if self._away_since is None:
            self._away_since = now
        for waiter in self._waiting.values():
            away = now - max(waiter.since, self._away_since)
            if (self._hopeless or away >= OUTAGE) and not waiter.granted.done():
                waiter.granted.set_exception(StoreError(str(failure)))

    # -- announcements -------------------------------------------------------------------------------

    def _announce_later(self) -> None:
        """Announce the next slots that were not announced, once they are due in `lead` seconds."""
        if self._announcement is not None:
            self._announcement.cancel()
        new = bisect_right(self._chances, self._announced_by)
        if self._announce is not None and new < len(self._chances):
            due, loop = self._chances[new], asyncio.get_running_loop()
            self._announcement = loop.call_at(due - self._lead(), self._announce_now, self._announce, due)

    def _announce_now(self, announce: Callable[[int], None], due: float) -> None:
        by = max(due, asyncio.get_running_loop().time() + self._lead())
        number = min(bisect_right(self._chances, by), len(self._waiting))
        self._announced_by = by
        if number:
            announce(number)
            self._announce_later()
