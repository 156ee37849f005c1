"""The lease of this process: what it holds is its own for as long as the lease is renewed.

One row per process is renewed, not one per entry. A lease that was lost, because this process stood still or
was cut off for longer than the lease, means a new process id: what it held may be in other hands. Leases do
not run out while the database is away (`alive` in sql/process.sql).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from contextvars import Context

from ...errors import StoreError
from ...events import StoreWarned
from .database import Database

RENEWAL = 10.0  # seconds; a lease runs out after 30, as sql/process.sql says


class Process:
    """This process, as the others see it.

    Attributes:
        id: Random, so that no other process ever has it; another one after each lease that was lost. 0 while
            there is no lease.
        timeline: That of the server, which changes when a replica takes over.
    """

    def __init__(self, database: Database) -> None:
        self.id: int = 0
        self.timeline: str = ""
        self._database = database
        self._renewing: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self._on_promotion: list[Callable[[], Awaitable[None]]] = []
        self._on_renewal: list[Callable[[], Awaitable[None]]] = []

    async def enter(self) -> None:
        """Begin the lease, and renew it from now on."""
        self.id = secrets.randbits(63)  # before it is asked for: a caller who is cancelled has it ended
        await self._begin(self.id)
        [(self.timeline,)] = await self._database.rows("SELECT kie4o.timeline()")
        self._renewing = asyncio.create_task(
            self._renew_always(),
            name="kie4o lease",
            context=Context(),  # not with the limits of a caller
        )

    async def leave(self) -> None:
        """End the lease, if there is one: what it holds is free. After an error it runs out."""
        await self.stop()
        if self.id:
            await self._database.rows("SELECT kie4o.leave(%s)", self.id)
            self.id = 0

    async def stop(self) -> None:
        """Do not renew the lease any more."""
        tasks = [task for task in (self._renewing, self._following) if task is not None]
        self._renewing = self._following = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def on_promotion(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have something called after a replica has taken over, which may lack what was written last."""
        self._on_promotion.append(call)

    def on_renewal(self, call: Callable[[], Awaitable[None]]) -> None:
        """Have something called after the lease was renewed, unless it is still under way since an earlier
        renewal."""
        self._on_renewal.append(call)

    async def lost(self, which: int) -> None:
        """Something was refused because the lease of this id had been lost: begin another, once."""
        async with self._lock:
            if self.id == which:
                await self._begin(secrets.randbits(63))
                await self._database.rows("SELECT kie4o.leave(%s)", which)  # a restart would wake it
                self._database.reporter(StoreWarned(what="lease lost"))

    async def renew(self) -> None:
        """Extend the lease, or begin another if it was lost, and start what follows a renewal.

        That writes to keys, and a write may wait for a replica for longer than the lease lasts. So it is not
        waited for.
        """
        me = self.id
        [(kept, timeline)] = await self._database.rows("SELECT * FROM kie4o.renew(%s)", me)
        if not kept:
            await self.lost(me)
        if self._following is None or self._following.done():
            following = self._follow(timeline)
            self._following = asyncio.create_task(following, name="kie4o lease", context=Context())

    async def _follow(self, timeline: str) -> None:
        with contextlib.suppress(StoreError):  # the next renewal tries again
            if timeline != self.timeline:
                self._database.reporter(StoreWarned(what="promoted"))
                for call in self._on_promotion:
                    await call()
                self.timeline = timeline
            for call in self._on_renewal:
                await call()

    async def _begin(self, me: int) -> None:
        await self._database.rows("SELECT kie4o.enter(%s)", me)
        self.id = me

    async def _renew_always(self) -> None:
        while True:
            await asyncio.sleep(RENEWAL)
            with contextlib.suppress(StoreError):  # the database is away, and so it is for the others
                await self.renew()
