"""runwayml: `text_to_image.create`, then `wait_for_task_output` (6 s ± 1.5 s). On httpx, its default, and on
its aiohttp extra."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import runwayml
from runwayml.lib import polling

from . import PROMPT, Run


@asynccontextmanager
async def client(base: str, interval: float, **extra: Any) -> AsyncIterator[Run]:
    polling.POLL_TIME, polling.POLL_JITTER = interval, 0  # type: ignore[assignment]  # there is no setting
    async with runwayml.AsyncRunwayML(api_key="key", base_url=base, **extra) as api:

        async def run(submitted: Callable[[], object]) -> str:
            task = await api.text_to_image.create(model="gen4_image", prompt_text=PROMPT, ratio="1024:1024")
            submitted()
            ended: Any = await task.wait_for_task_output()
            return str(ended.output[0])

        yield run


@asynccontextmanager
async def client_on_aiohttp(base: str, interval: float) -> AsyncIterator[Run]:
    async with client(base, interval, http_client=runwayml.DefaultAioHttpClient()) as run:
        yield run
