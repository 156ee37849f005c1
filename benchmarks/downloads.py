"""Saving images: `client.download`, against a loop written by hand that streams into files. For `pairs`.

kie4o also checks that each file is a whole image, and each file appears complete or not at all.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import attrs

from kie4o import AsyncKieClient

from .clients import PROMPT
from .clients.kie4o import unpaced
from .pairs import Slice, sliced
from .processes import set_server
from .server import PICTURE

_TASKS, _IMAGES = 4, 4  # tasks at once, and images of one


@asynccontextmanager
async def pair(base: str) -> AsyncIterator[tuple[Slice, Slice]]:
    set_server(base, looks=1)
    urls = [f"{base}{PICTURE.decode()}-{number}.png" for number in range(_IMAGES)]
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as name:
        async with (
            AsyncKieClient("key", base_url=base, poll=unpaced(0.0)) as client,
            aiohttp.ClientSession() as session,
        ):
            result = attrs.evolve(await client.generate(PROMPT), urls=tuple(urls))

            async def ours() -> None:
                folders = [Path(name) / str(next(numbers)) for _ in range(_TASKS)]
                await asyncio.gather(*(client.download(result, folder) for folder in folders))

            async def one(url: str, file: Path) -> None:
                async with session.get(url) as response:
                    response.raise_for_status()
                    with file.open("wb") as target:
                        async for piece in response.content.iter_chunked(64 * 1024):
                            target.write(piece)

            async def theirs() -> None:
                folder = Path(name) / str(next(numbers))
                folder.mkdir()
                files = [(url, folder / f"{n}.png") for n, url in enumerate(urls * _TASKS)]
                await asyncio.gather(*(one(*each) for each in files))

            await ours()  # opens connections and imports late modules
            await theirs()
            yield sliced(ours, _TASKS * _IMAGES), sliced(theirs, _TASKS * _IMAGES)
