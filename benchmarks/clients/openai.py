"""openai: `videos.create` and `videos.poll`, its only way to submit and wait (1 s by default, and the first
look is immediate). On httpx, its default, and on its aiohttp extra."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai

from . import PROMPT, Run

warnings.simplefilter("ignore", DeprecationWarning)  # all of `videos` is deprecated


@asynccontextmanager
async def client(base: str, interval: float, **extra: Any) -> AsyncIterator[Run]:
    async with openai.AsyncOpenAI(api_key="key", base_url=f"{base}/v1", **extra) as api:

        async def run(submitted: Callable[[], object]) -> str:
            video = await api.videos.create(prompt=PROMPT)
            submitted()
            video = await api.videos.poll(video.id, poll_interval_ms=interval * 1000)  # type: ignore[arg-type]  # a float works
            return video.id  # a URL would need another call

        yield run


@asynccontextmanager
async def client_on_aiohttp(base: str, interval: float) -> AsyncIterator[Run]:
    async with client(base, interval, http_client=openai.DefaultAioHttpClient()) as run:
        yield run
