"""What sql/window.sql does, in Python and in memory: a server for the pumps of `SharedLimiter` in virtual
time.

`kie4o.take` is followed statement by statement, so that a million slots take minutes. What it is compared
with is PostgreSQL itself, in tests/stores/test_postgres_window.py. Time is that of the loop, and `offset`
sets the clock. Questions and answers take `latency`, and some are lost.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from kie4o.errors import StoreError
from kie4o.models import RateLimit
from kie4o.stores.postgres.address import Address, address_of
from kie4o.stores.postgres.window import SharedLimiter

LEASE = 30.0
_NEVER = float("-inf")


@attrs.define
class _Slot:
    process: int
    front: bool
    ticket: int
    taken: float | None = None
    answered: float | None = None

    @property
    def waits(self) -> bool:
        return self.taken is None and self.answered is None


@attrs.define
class _Lease:
    expires: float
    asks_by: float = _NEVER
    asked: int = 0


class WindowServer:
    """Args:
    lose: whether the next question, or its answer, is lost.
    """

    def __init__(
        self, latency: Callable[[], float] = float, lose: Callable[[], bool] = lambda: False
    ) -> None:
        self.latency = latency
        self.lose = lose
        self.offset = 0.0  # of its clock
        self.slots: dict[uuid.UUID, _Slot] = {}
        self.leases: dict[int, _Lease] = {}
        self.questions = 0
        self._paused_until = _NEVER
        self._cause = ""
        self._longest = 0.0
        self._tickets = itertools.count()

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.offset

    def alive(self, which: int) -> bool:
        lease = self.leases.get(which)
        return lease is not None and lease.expires > self.now()

    def take(
        self,
        me: int,
        question: int,
        waiting: Sequence[uuid.UUID],
        in_front: Sequence[bool],
        held: Sequence[uuid.UUID],
        answered: Sequence[uuid.UUID],
        most: int,
        per: float,
        good: float,
        earliest: float | None,
        latest: float | None,
        new_pause: float | None,
        new_cause: str | None,
    ) -> tuple[Any, ...]:
        """`kie4o.take`."""
        self.questions += 1
        t, sending = self.now(), 2 * good
        refused = (t, None, None, None, None, None)
        if not self.alive(me):
            return "lost", *refused
        lease = self.leases[me]
        if question <= lease.asked:
            return "late", *refused
        if (earliest is not None and t < earliest) or (latest is not None and t > latest):
            return "doubtful", *refused
        pause = self._pause(t, per, sending, new_pause, new_cause)
        self._agree(me, t, waiting, in_front, held, answered)
        gone = {slot.process for slot in self.slots.values() if slot.answered is None and slot.process != me}
        gone = {process for process in gone if not self.alive(process)}
        in_use, stamps = self._count(t, per, sending, gone)
        free = most - in_use - len(stamps)
        granted, chances = self._grant(me, t, free, stamps, per, paused=pause is not None)
        chances = chances[:most]
        near = [chance for chance in chances if chance <= chances[0] + 0.005 * per]
        again = min(1.0, per / 5, max(near, default=1.0))
        lease.asked, lease.asks_by = question, t + again
        return "answered", t, granted, chances, again, pause, self._cause if pause is not None else None

    def _pause(
        self, t: float, per: float, sending: float, new_pause: float | None, new_cause: str | None
    ) -> float | None:
        self._longest = max(self._longest, per)
        self._paused_until = min(self._paused_until, t + self._longest + sending)
        if new_pause is not None and t + new_pause > self._paused_until:
            self._paused_until, self._cause = t + new_pause, new_cause or ""
        return self._paused_until - t if self._paused_until > t else None

    def _agree(
        self,
        me: int,
        t: float,
        waiting: Sequence[uuid.UUID],
        in_front: Sequence[bool],
        held: Sequence[uuid.UUID],
        answered: Sequence[uuid.UUID],
    ) -> None:
        """What the client says about its slots."""
        for token in answered:
            slot = self.slots.setdefault(token, _Slot(me, False, next(self._tickets), None, t))
            slot.answered = t if slot.answered is None else slot.answered
        named = {*waiting, *held}
        for token, slot in list(self.slots.items()):
            if slot.process == me and slot.answered is None and token not in named:
                del self.slots[token]
        for token in held:
            if (slot := self.slots.get(token)) is not None and slot.answered is None:
                slot.process = me
        for token, front in zip(waiting, in_front, strict=True):
            if (slot := self.slots.get(token)) is None:
                self.slots[token] = _Slot(me, front, next(self._tickets))
            elif slot.answered is None:
                slot.process, slot.taken = me, None

    def _count(self, t: float, per: float, sending: float, gone: set[int]) -> tuple[int, list[float]]:
        in_use, stamps = 0, []
        for token, slot in list(self.slots.items()):
            if max(slot.taken or _NEVER, slot.answered or _NEVER) > t + 1.0:  # the clock was set back
                slot.taken = None if slot.taken is None else min(slot.taken, t)
                slot.answered = None if slot.answered is None else min(slot.answered, t)
            stamp = slot.answered
            if stamp is None and slot.process in gone:
                stamp = _NEVER if slot.taken is None else slot.taken + sending
            if stamp is not None and stamp <= t - self._longest:
                del self.slots[token]
            elif stamp is not None and stamp > t - per:
                stamps.append(stamp)
            elif stamp is None and slot.taken is not None:
                in_use += 1
        return in_use, sorted(stamps)

    def _grant(
        self, me: int, t: float, free: int, stamps: list[float], per: float, *, paused: bool
    ) -> tuple[list[uuid.UUID], list[float]]:
        """First come, first served, among those who are there to take a slot."""

        def is_there(process: int) -> bool:
            lease = self.leases.get(process)
            return process == me or (lease is not None and t - 0.5 <= lease.asks_by <= t + 2)

        queue = [(not slot.front, slot.ticket, token) for token, slot in self.slots.items() if slot.waits]
        there = {process: is_there(process) for process in {slot.process for slot in self.slots.values()}}
        rank, granted, chances = 0, [], []
        for _, _, token in sorted(queue):
            slot = self.slots[token]
            if not there[slot.process]:
                continue
            rank += 1
            if slot.process != me:
                continue
            if rank <= free and not paused:
                slot.taken = t
                granted.append(token)
            elif rank <= free:
                chances.append(self._paused_until - t)
            elif rank - free <= len(stamps):
                chances.append(max(stamps[rank - free - 1] + per, self._paused_until) - t)
        return granted, chances


class _Cursor:
    def __init__(self, row: tuple[Any, ...]) -> None:
        self._row = row

    async def fetchall(self) -> list[tuple[Any, ...]]:
        return [self._row]


class _Connection:
    """As much of psycopg's as `SharedLimiter` uses."""

    closed = False

    def __init__(self, server: WindowServer, process: ServerProcess) -> None:
        self._server = server
        self._process = process
        self._in_use = False  # for ever, after a question that failed or was given up

    async def execute(self, query: object, parameters: tuple[Any, ...]) -> _Cursor:
        server, (_, *question) = self._server, parameters
        assert not self.closed
        assert not self._in_use
        self._in_use = True
        await asyncio.sleep(server.latency())
        if server.lose() or self._process.is_cut():
            raise StoreError("the question was lost")
        row = server.take(*question)
        await asyncio.sleep(server.latency())
        if server.lose() or self._process.is_cut():
            raise StoreError("the answer was lost")
        self._in_use = False
        return _Cursor(row)

    async def close(self) -> None:
        self.closed = True


class ServerProcess:
    """A process on the server, as its database and as its lease, which is renewed until it is killed."""

    _ids = itertools.count(1)

    def __init__(self, server: WindowServer) -> None:
        self.address: Address = address_of("postgresql://kie4o@127.0.0.1/memory")
        self.id = 0
        self.cut_until = _NEVER  # loop time until which it does not reach the server
        self._server = server
        self._renewing: asyncio.Task[None] | None = None

    def start(self, limit: RateLimit, **more: Any) -> SharedLimiter:
        self._begin()
        self._renewing = asyncio.create_task(self._renew_always())
        database: Any = self
        process: Any = self
        return SharedLimiter(database, process, b"account", limit, **more)

    async def connect(self) -> _Connection:
        return _Connection(self._server, self)

    def is_cut(self) -> bool:
        return asyncio.get_running_loop().time() < self.cut_until

    async def lost(self, which: int) -> None:
        if self.id == which:
            del self._server.leases[which]
            self._begin()

    def kill(self) -> None:
        """Its lease runs out from here on."""
        if self._renewing is not None:
            self._renewing.cancel()

    def _begin(self) -> None:
        self.id = next(self._ids)
        self._server.leases[self.id] = _Lease(self._server.now() + LEASE)

    async def _renew_always(self) -> None:
        while True:
            await asyncio.sleep(10.0)
            if self.is_cut():
                continue
            if self._server.alive(self.id):
                self._server.leases[self.id].expires = self._server.now() + LEASE
            else:
                await self.lost(self.id)
