"""What a store offers to processes that share it, as if there were only this one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping
from typing import Any

from kie4o import RateLimit
from kie4o.details import TaskDetails
from kie4o.stores.shared import Limiter
from kie4o.submission.rate_limit import RateLimiter


class Alone:
    """A `Shared` whose clients know nothing of each other."""

    heard = True

    async def slots_used(self, per: float) -> int:
        return 0

    def limiter(self, limit: RateLimit, **_: Any) -> Limiter:
        return RateLimiter(limit)

    async def news(self) -> AsyncGenerator[str | None]:
        await asyncio.Event().wait()
        yield None

    async def held(self, keys: Collection[str]) -> Collection[str]:
        return ()

    async def lead(self, task_ids: Collection[str]) -> Mapping[str, TaskDetails | None]:
        return dict.fromkeys(task_ids)

    async def leave(self, ends: Mapping[str, TaskDetails | None]) -> None:
        pass

    async def turn(self, task_id: str, gap: float) -> float | TaskDetails:
        return 0.0
