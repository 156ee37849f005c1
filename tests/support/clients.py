"""Shared by tests of the client: settings for a short wait, and helpers that wait or look into a store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from canary import CANARY_KEY
from portable import PATIENCE

from kie4o import AsyncKieClient, PollPolicy
from kie4o.emulator import Emulator, Fault
from kie4o.stores.store import EntryState, Store

QUICK = PollPolicy(first=0.34, factor=1.3, maximum=4.0, jitter=False)
LOST = Fault("submit", code=500, charged=True)  # the task is paid, and the answer does not say so

MakeStore = Callable[[], Store]


def client_of(url: str, store: Store | None = None, **more: Any) -> AsyncKieClient:
    settings: dict[str, Any] = {"api_key": CANARY_KEY, "base_url": url, "timeout": 200, "poll": QUICK}
    return AsyncKieClient(store=store, **settings | more)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop turn until the condition holds; fail the test if it never does."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < PATIENCE
        await asyncio.sleep(0.001)


async def passed(kie: Emulator, seconds: float) -> None:
    """Let emulated seconds pass, on loops without virtual time too, and what is then due happen."""
    kie.advance(seconds)
    await asyncio.sleep(0.3)


async def state_of(store: Store, key: str) -> EntryState | None:
    entry = await store.find(key=key)
    return None if entry is None else entry.state
