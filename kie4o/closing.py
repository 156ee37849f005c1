"""How a client closes: one part after the other, in a limited time, and what it says then."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from .stores.guard import Guard
from .stores.store import Store
from .waiting import finished_within

logger: logging.Logger = logging.getLogger("kie4o")

CLOSING = 30.0  # seconds that closing a client takes at most
SHORTEST_STEP = 1.0  # seconds that each part, and each call of the store in it, has at least
_STORE_CALLS = 4  # one after the other, that a store may stall: record, release, save, close


async def close_parts(store: Store, *steps: Callable[[], Awaitable[None]]) -> None:
    """Close one part after the other, each even if another fails or is cut short.

    What takes too long is cancelled and left behind.
    """
    until = asyncio.get_running_loop().time() + CLOSING

    async def within(step: Callable[[], Awaitable[None]]) -> None:
        left = max(SHORTEST_STEP, until - asyncio.get_running_loop().time())
        if isinstance(store, Guard):
            store.limit = max(SHORTEST_STEP, left / _STORE_CALLS)
        if not await finished_within(left, step()):
            logger.error("the client was closed, but %s did not end in time", step.__qualname__)

    async with contextlib.AsyncExitStack() as stack:  # calls the last first
        for step in reversed(steps):
            stack.push_async_callback(within, step)


async def log_unfinished(store: Store) -> None:
    """Of a store that ends with its client: say which tasks it is forgetting."""
    async for entry in store.unfinished():
        if entry.task_id is None:
            logger.warning("%s may be paid; check kie.ai/logs", entry.label)
        else:
            advice = f"`await client.wait({entry.task_id!r})` resumes it, with any client"
            logger.warning("%s is paid and not finished: %s", entry.label, advice)
