"""replicate: `predictions.async_create`, then `Prediction.async_wait` (0.5 s by default)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from replicate.client import Client

from . import PROMPT, SIZE, Run

VERSION = "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"  # any; the server ignores it


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    api = Client(api_token="key", base_url=base)
    api.poll_interval = interval

    async def run(submitted: Callable[[], object]) -> str:
        prediction = await api.predictions.async_create(
            version=VERSION, input={"prompt": PROMPT, "aspect_ratio": SIZE}
        )
        submitted()
        await prediction.async_wait()
        assert prediction.output is not None
        return str(prediction.output[0])

    try:
        yield run
    finally:
        await api._async_client.aclose()  # it has no public method to close it
