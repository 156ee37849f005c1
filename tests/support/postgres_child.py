"""A process that submits keys through a client on a shared store, whenever it is told to.

Arguments: the URL of the store, that of the emulator, how many keys, and "control" for a store whose claims
hold nothing. For each line of standard input, a name, it submits that many keys at once and then writes what
they came to as a line of JSON: task ids, or the names of errors.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from kie4o import AsyncKieClient, KieError, RateLimit
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore, process
from kie4o.stores.shared import Limiter
from kie4o.stores.store import Entry
from kie4o.submission.rate_limit import RateLimiter

KEY = "key-of-the-processes"


class Alone:
    """A limit for each process by itself, so that nothing but the store keeps them from paying twice."""

    def __init__(self, machines: Any) -> None:
        self._machines = machines

    def __getattr__(self, name: str) -> Any:
        return getattr(self._machines, name)

    def limiter(self, limit: RateLimit, **_: object) -> Limiter:
        return RateLimiter(limit)


class ControlStore(PostgresStore):
    """It keeps entries, and leaves it to each process to find out that a key is new."""

    async def claim(self, entry: Entry, **_: Any) -> Entry:
        return await self.find(key=entry.key) or entry

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self.save(entry)


async def main(url: str, base_url: str, keys: int, control: bool) -> None:
    store = (ControlStore if control else PostgresStore)(url, Secret(KEY))
    store.shared = Alone(store.shared)
    many = RateLimit(100_000, per=1.0)
    async with AsyncKieClient(
        KEY, base_url=base_url, store=store, rate_limit=many, max_in_flight=2 * keys
    ) as client:

        async def submit(key: str) -> str:
            try:
                return (await client.submit(f"prompt {key}", key=key)).id
            except KieError as error:
                return type(error).__name__

        await client.spent()  # opens it
        print("open", flush=True)
        loop = asyncio.get_running_loop()
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            outcomes = await asyncio.gather(*(submit(f"{line} {number}") for number in range(keys)))
            print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    process.RENEWAL = 0.5  # the lease of some tests is short
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "control" in sys.argv))
