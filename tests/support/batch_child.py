"""A process that runs one batch: `batch_child.py STORE BASE_URL PROMPTS IN_FLIGHT [control] [slow]`.

It says "open", and begins at a line of standard input. Each completion is a line of JSON, and so is the end,
which is null. With "control" it waits for the items of other processes where it meets them. With "slow" five
requests are submitted in a second.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from kie4o import AsyncKieClient, PollPolicy, RateLimit
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore, process
from kie4o.stores.store import Entry

KEY = "key-of-the-batches"


class WaitingStore(PostgresStore):
    """A control: an item that is in other hands keeps its place."""

    async def claim(self, entry: Entry, *, wait: bool = True, **more: Any) -> Entry | None:
        return await super().claim(entry, **more)


def client_of(store: PostgresStore, base_url: str, in_flight: int, limit: int = 100_000) -> AsyncKieClient:
    return AsyncKieClient(
        KEY,
        base_url=base_url,
        store=store,
        max_in_flight=in_flight,
        rate_limit=RateLimit(limit, per=1.0),
        poll=PollPolicy(first=0.4, factor=1.0, maximum=0.4),
    )


async def main(url: str, base_url: str, prompts: int, in_flight: int, control: bool) -> None:
    store = (WaitingStore if control else PostgresStore)(url, Secret(KEY))
    async with client_of(store, base_url, in_flight, 5 if "slow" in sys.argv else 100_000) as client:
        await client.spent()  # opens it
        print("open", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        async for completion in client.generate_many([f"prompt {number}" for number in range(prompts)]):
            error = type(completion.error).__name__ if completion.error is not None else None
            facts = completion.index, completion.task_id, completion.replayed, completion.submitted, error
            print(json.dumps(facts), flush=True)
        print("null", flush=True)


if __name__ == "__main__":
    process.RENEWAL = 0.5  # the lease of some tests is short
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "control" in sys.argv))
