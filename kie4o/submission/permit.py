"""How many tasks may be in flight: a semaphore whose permits have several holders.

`generate` holds a permit from the submit to the result, and so does the submit itself until its response has
arrived: a caller that is cancelled in between must not make room for another task.
"""

from __future__ import annotations

import asyncio

from ..events import Waited
from ..events.reporter import LOG, Reporter


class Permit:
    """One of the `max_in_flight` permits. It is free again when its last holder has released it."""

    __slots__ = ("_holders", "_permits")

    def __init__(self, permits: Permits) -> None:
        self._permits = permits
        self._holders = 0

    def hold(self) -> Permit:
        self._holders += 1
        return self

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._permits.release()

    def __enter__(self) -> Permit:
        return self.hold()

    def __exit__(self, *_: object) -> None:
        self.release()


class Permits:
    """The permits of one client: `with await permits.acquire() as permit:`."""

    def __init__(self, limit: int, reporter: Reporter = LOG) -> None:
        self.limit: int = limit
        self.in_use: int = 0
        self.waiting: int = 0
        self._semaphore = asyncio.Semaphore(limit)
        self._reporter = reporter

    async def acquire(self) -> Permit:
        """Wait for a permit, in order. The caller must `hold` it before anything else."""
        if self._semaphore.locked():
            began = asyncio.get_running_loop().time()
            self.waiting += 1
            try:
                await self._semaphore.acquire()
            finally:
                self.waiting -= 1
            self._reporter(Waited(what="place", seconds=asyncio.get_running_loop().time() - began))
        else:
            await self._semaphore.acquire()  # at once
        self.in_use += 1
        return Permit(self)

    def release(self) -> None:
        self.in_use -= 1
        self._semaphore.release()
