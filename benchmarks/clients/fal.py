"""fal-client: `AsyncClient.subscribe` (0.1 s if nobody says otherwise), which fetches the result after
the last look with a call of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import fal_client.client as fal

from . import PROMPT, SIZE, Run


@asynccontextmanager
async def client(base: str, interval: float) -> AsyncIterator[Run]:
    # FAL_QUEUE_RUN_HOST would set the host alone; the scheme is fixed to https in this string.
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
        await (await api._client).aclose()  # it offers no way to close it
