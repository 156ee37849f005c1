"""google-genai: `models.generate_videos`, then the loop over `operations.get` from its documentation (10 or
20 s there). It uses aiohttp if that is installed, as it is here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from google import genai

from . import PROMPT, Run


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    # Only this mode supports generate_videos with a plain key in all versions.
    api = genai.Client(vertexai=True, api_key="key", http_options={"base_url": base}).aio
    source = genai.types.GenerateVideosSource(prompt=PROMPT)

    async def run(submitted: Callable[[], object]) -> str:
        operation = await api.models.generate_videos(model="veo-2.0-generate-001", source=source)
        submitted()
        while not operation.done:
            await asyncio.sleep(interval)
            operation = await api.operations.get(operation)
        ended: Any = operation.response
        return str(ended.generated_videos[0].video.uri)

    try:
        yield run
    finally:
        await api.aclose()
