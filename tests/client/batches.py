"""Shared by tests of batches: ten letters to draw, and what must be true after a batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from canary import CANARY_KEY
from clients import QUICK, until

from kie4o import AsyncKieClient, Completion, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.store import Store

SPEED = 50  # loop seconds per second
AMPLE = 10_000  # a limit that is never reached
LETTERS = list("abcdefghij")
FEW = LETTERS[:5]


def kie_of(**more: Any) -> Emulator:
    return Emulator(**{"duration": 0.0, "limit": AMPLE, "credits": 1e6} | more)


def client_of(kie: Emulator, store: Store | None = None, **more: Any) -> AsyncKieClient:
    settings: dict[str, Any] = {"poll": QUICK, "timeout": 500, "rate_limit": RateLimit(AMPLE, per=10.0)}
    return AsyncKieClient(CANARY_KEY, base_url=kie.url, store=store, **settings | more)


async def all_of(completions: AsyncIterator[Completion]) -> list[Completion]:
    return [completion async for completion in completions]


def batch_tasks() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return [name for name in names if name.startswith(("kie4o batch", "kie4o submit", "kie4o resume"))]


async def at_rest(client: AsyncKieClient) -> None:
    """Wait until nothing of a batch is left: no task, waiter, slot or permit."""
    await until(lambda: not batch_tasks())
    await until(lambda: client._runtime.poller.waiting == client._runtime.submissions.live == 0)
    assert (client._runtime.limiter.open, client._runtime.limiter.waiting) == (0, 0)
    assert client._runtime.lifecycle.permits.in_use == 0


async def paid_is_known(kie: Emulator, store: Store) -> None:
    """Law 2: every task that Kie has is in the store."""
    for task_id in kie.tasks:
        assert await store.find(task_id=task_id) is not None


def paid_once(kie: Emulator, prompts: list[str]) -> None:
    """Law 1: each of these prompts, which all differ, has one task."""
    assert sorted(task.request["prompt"] for task in kie.tasks.values()) == sorted(prompts)
