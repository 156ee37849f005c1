"""What a store may offer to processes that share it: a rate limit that counts for all of them.

`RateLimiter` in `submission` is the limiter of a process on its own; a store that several processes share
brings another. Both implement this protocol.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..models import RateLimit


class Slot(Protocol):
    """The permission to submit one new task. Every slot is released exactly once."""

    good_until: float  # loop time after which the request must not be sent any more

    def release(self, *, counted: bool) -> None:
        """`counted` unless the request was provably not sent."""


class Limiter(Protocol):
    """Grants slots so that no window of `limit.per` seconds holds more than `limit.limit` new tasks."""

    limit: RateLimit

    async def acquire(self, *, front: bool = False) -> Slot:
        """Wait for a slot. With `front`, a request that was refused goes before those that wait."""
        ...

    def hold_all(self) -> float:
        """Grant nothing for a whole window: Kie refused a request that was counted as free.

        Returns for how many seconds.
        """
        ...

    def remember(self, ages: Iterable[float]) -> None:
        """Count submits of an earlier run, given how many seconds ago each was answered."""


class Shared(Protocol):
    """What the processes on one store do together."""

    def limiter(self, limit: RateLimit) -> Limiter:
        """The limiter that all of them share."""
        ...
