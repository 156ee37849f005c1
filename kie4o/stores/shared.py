"""What a store may offer to processes that share it: a rate limit that counts for all of them.

`RateLimiter` in `submission` is the limiter of a process on its own; a store that several processes share
brings another. Both implement this protocol.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from typing import Protocol

from ..details import TaskDetails
from ..events.reporter import Reporter
from ..models import RateLimit


class Slot(Protocol):
    """The permission to submit one new task. Every slot is released exactly once."""

    good_until: float  # `clock.uptime`, which also counts while suspended; the request is not sent later

    def release(self, *, counted: bool) -> None:
        """`counted` unless the request was provably not sent."""


class Limiter(Protocol):
    """Grants slots so that no window of `limit.per` seconds holds more than `limit.limit` new tasks."""

    limit: RateLimit

    @property
    def waiting(self) -> int:
        """How many requests of this process wait for a slot."""
        ...

    def used(self, now: float) -> int | None:
        """How many slots are in use at this loop time; None if only the store knows. Any thread may ask."""
        ...

    def next_slot(self, now: float) -> float | None:
        """Seconds until a slot is free, as far as that is known. Any thread may ask."""
        ...

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

    @property
    def heard(self) -> bool:
        """Whether `news` arrive by notifications, and not by asking every second."""
        ...

    async def slots_used(self, per: float) -> int:
        """How many slots all of them have in use, in a window of `per` seconds."""
        ...

    def limiter(
        self,
        limit: RateLimit,
        *,
        announce: Callable[[int], None],
        lead: Callable[[], float],
        reporter: Reporter,
    ) -> Limiter:
        """The limiter that all of them share. It announces slots as `RateLimiter` does."""
        ...

    def news(self) -> AsyncGenerator[str | None]:
        """`news.about_ref` and `news.about_task` of what others write; None when some may have been missed.

        It may say too much, and it may say nothing at all.
        """
        ...

    async def held(self, keys: Collection[str]) -> Collection[str]:
        """Those of these keys that another live process has in hand: it submits them or polls their tasks."""
        ...

    async def lead(self, task_ids: Collection[str]) -> Mapping[str, TaskDetails | None]:
        """Those of these tasks that this process has to poll, and the details of those that have ended.

        What is missing is polled by another process. It tells when the task ends; it may also die, so ask
        again from time to time.
        """
        ...

    async def leave(self, ends: Mapping[str, TaskDetails | None]) -> None:
        """Nobody waits for these tasks in this process any more. The final details of one, if they are known,
        are for the others that wait for it."""
        ...

    async def turn(self, task_id: str, gap: float) -> float | TaskDetails:
        """0 if this process may poll the task once, though it does not lead it; otherwise the seconds until
        it may ask again, or how the task has ended. Two turns are `gap` seconds apart."""
        ...
