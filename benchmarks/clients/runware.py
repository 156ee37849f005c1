"""runware-sdk over REST: `Runware(transport="rest").run`, the closest in kind, since it stands on
aiohttp alone and gives dicts. Its pauses are 1 s, 0.5 s, then growing to 10 s.

Neither the pause nor the moment when the task is known can be had from outside: both are where it
calls its own sleep, so that this function is replaced.
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
