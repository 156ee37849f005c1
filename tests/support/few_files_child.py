"""A process that may have few open files: `few_files_child.py URL LIMIT FREE ITEMS FOLDER`.

It generates, downloads and uploads many images at once. For its first second all but `FREE` files are open
already, as in a program that needs them for something else. It prints how the items ended, by kind.
"""

import asyncio
import collections
import json
import os
import sys
from pathlib import Path

from kie4o import AsyncKieClient, PollPolicy, RateLimit

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(100)


def hold_all_but(free: int) -> list[int]:
    """Open files until there are only `free` more."""
    held = []
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass
    for file in held[len(held) - free :]:
        os.close(file)
    return held[: len(held) - free]


async def main(url: str, limit: int, free: int, count: int, folder: Path) -> None:
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    client = AsyncKieClient(
        "k" * 20,
        base_url=url,
        max_in_flight=count,
        rate_limit=RateLimit(10_000, per=1.0),
        poll=PollPolicy(first=0.5, maximum=0.5),
    )
    await client.__aenter__()
    held = hold_all_but(free)

    async def item(number: int) -> None:
        result = await client.generate(f"{number}")
        await client.download(result, folder)
        if number % 3 == 0:
            await client.upload(PICTURE)

    items = [asyncio.create_task(item(number)) for number in range(count)]
    await asyncio.sleep(1.0)
    for file in held:
        os.close(file)
    outcomes = await asyncio.gather(*items, return_exceptions=True)
    await client.aclose()
    print(json.dumps(collections.Counter(type(outcome).__name__ for outcome in outcomes)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5])))
