"""One of the `max_in_flight` places, held by several, free when all have let go."""

from __future__ import annotations

import asyncio


class Permit:
    """One of the `max_in_flight` places, once the semaphore has given it; free again when all who
    hold it have let go."""

    __slots__ = ("_holders", "_semaphore")

    def __init__(self, semaphore: asyncio.Semaphore) -> None:
        self._semaphore = semaphore
        self._holders = 0

    def hold(self) -> Permit:
        self._holders += 1
        return self

    def release(self) -> None:
        self._holders -= 1
        if self._holders == 0:
            self._semaphore.release()

    def __enter__(self) -> Permit:
        return self.hold()

    def __exit__(self, *_: object) -> None:
        self.release()
