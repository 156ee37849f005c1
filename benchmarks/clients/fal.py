"""fal-client: `AsyncClient.subscribe` (0.1 s by default), which fetches the result with another call after
the last look."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import fal_client.client as fal

from . import PROMPT, SIZE, Run


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    # FAL_QUEUE_RUN_HOST sets only the host; this string fixes the scheme to https.
    fal.QUEUE_URL_FORMAT = f"{base}/"
    api = fal.AsyncClient(key="key")

    async def run(submitted: Callable[[], object]) -> str:
        def known(request_id: str) -> None:
            submitted()

        answer = await api.subscribe(
            "fal-ai/flux",
            {"prompt": PROMPT, "image_size": SIZE},
            on_enqueue=known,
            interval=interval,
        )
        return str(answer["images"][0]["url"])

    try:
        yield run
    finally:
        await (await api._client).aclose()  # it has no public method to close it
