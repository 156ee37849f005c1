"""The control of the method: the bare loop with two requests per look, one of them useless.

Its ratio must be far above 1, or the ratios mean nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp

from . import PROMPT, SIZE, Run


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    generate, record = f"{base}/api/v1/gpt4o-image/generate", f"{base}/api/v1/gpt4o-image/record-info"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as session:

        async def run(submitted: Callable[[], object]) -> str:
            async with session.post(generate, json={"prompt": PROMPT, "size": SIZE}) as response:
                response.raise_for_status()
                answer = await response.json()
            task_id = answer["data"]["taskId"]
            submitted()
            while True:
                await asyncio.sleep(interval)
                for asked in ("none", task_id):  # the server answers 404 to the first
                    async with session.get(record, params={"taskId": asked}) as response:
                        answer = await response.json()
                if answer["data"]["successFlag"] == 1:
                    url: str = answer["data"]["response"]["resultUrls"][0]
                    return url

        yield run
