"""A program that knows nothing of tests: it creates its own client, from environment variables."""

from __future__ import annotations

import asyncio

from kie4o import AsyncKieClient, ContentPolicyError


async def picture(prompt: str) -> str:
    """The URL of a picture, or an apology."""
    async with AsyncKieClient() as client:
        try:
            result = await client.generate(prompt, size="3:2")
        except ContentPolicyError:
            return "we cannot draw that"
        return result[0]


def credits_left() -> int:
    """For a page that is not asynchronous."""

    async def ask() -> int:
        async with AsyncKieClient() as client:
            return int(await client.credits())

    return asyncio.run(ask())
