"""How a client closes: one part after the other, in a limited time, and what it says then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from .events import ClosedLate, Unfinished
from .events.reporter import Reporter
from .stores.guard import Guard
from .stores.store import Store
from .waiting import finished_within

CLOSING = 30.0  # seconds that closing a client takes at most
SHORTEST_STEP = 1.0  # seconds that each part, and each call of the store in it, has at least
_STORE_CALLS = 4  # one after the other, that a store may stall: record, release, save, close


async def close_parts(reporter: Reporter, store: Store, *steps: Callable[[], Awaitable[None]]) -> None:
    """Close one part after the other, each even if another fails or is cut short.

    What takes too long is cancelled and left behind.
    """
    until = asyncio.get_running_loop().time() + CLOSING

    async def within(step: Callable[[], Awaitable[None]]) -> None:
        left = max(SHORTEST_STEP, until - asyncio.get_running_loop().time())
        if isinstance(store, Guard):
            store.limit = max(SHORTEST_STEP, left / _STORE_CALLS)
        if not await finished_within(left, step()):
            reporter(ClosedLate(part=step.__qualname__))

    async with contextlib.AsyncExitStack() as stack:  # calls the last first
        for step in reversed(steps):
            stack.push_async_callback(within, step)


async def report_unfinished(reporter: Reporter, store: Store) -> None:
    """Of a store that ends with its client: say which tasks it is forgetting."""
    async for entry in store.unfinished():
        unfinished = Unfinished(ref_hash=entry.ref_hash, key=entry.callers_key, task_id=entry.task_id)
        reporter(unfinished, entry.label)
