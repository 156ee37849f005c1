"""The same hand-written loop with httpx and its defaults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx

from . import PROMPT, SIZE, Run


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    # 60 s, since the default of 5 s includes waiting for one of its 20 kept-alive connections.
    async with httpx.AsyncClient(
        base_url=base, headers={"Authorization": "Bearer key"}, timeout=60.0
    ) as session:

        async def run(submitted: Callable[[], object]) -> str:
            response = await session.post(
                "/api/v1/gpt4o-image/generate", json={"prompt": PROMPT, "size": SIZE}
            )
            response.raise_for_status()
            task_id = response.json()["data"]["taskId"]
            submitted()
            while True:
                await asyncio.sleep(interval)
                response = await session.get("/api/v1/gpt4o-image/record-info", params={"taskId": task_id})
                response.raise_for_status()
                answer = response.json()
                if answer["data"]["successFlag"] == 1:
                    url: str = answer["data"]["response"]["resultUrls"][0]
                    return url

        yield run
