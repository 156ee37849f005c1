"""runware-sdk over REST: `Runware(transport="rest").run`. It is closest to the bare loop, as it uses aiohttp
directly and returns dicts. Its intervals are 1 s, 0.5 s, then growing to 10 s.

It has no setting for the interval and does not report that a task was submitted. Both can be had from its
own sleep function, which is therefore replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import runware.client
from runware import Runware

from . import PROMPT, Run

_untold: ContextVar[Callable[[], object] | None] = ContextVar("untold", default=None)


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    async def pause(seconds: float, cancel_event: asyncio.Event | None) -> None:
        if tell := _untold.get():
            _untold.set(None)
            tell()
        await asyncio.sleep(interval)

    runware.client._interruptible_sleep = pause
    api = Runware(api_key="key", transport="rest", http_base_url=f"{base}/runware/v1")

    async def run(submitted: Callable[[], object]) -> str:
        _untold.set(submitted)
        images = await api.run(
            {
                "taskType": "imageInference",
                "model": "runware:101@1",
                "positivePrompt": PROMPT,
                "width": 1024,
                "height": 1024,
            }
        )
        return str(images[0]["imageURL"])

    try:
        yield run
    finally:
        await api.close()
