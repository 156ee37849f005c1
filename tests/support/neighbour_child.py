"""A process that waits through a client on a shared store: `neighbour_child.py STORE BASE_URL [control]`.

It receives callbacks at a port that it writes first. Each line of standard input is a JSON list, and each has
a line of JSON as its answer: the verb, what came of it, and when by the monotonic clock. With "control" the
process knows nothing of the others. The callback URL of "generate" may lead to another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from alone import Alone

from kie4o import AsyncKieClient, KieError, PollPolicy, RateLimit
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore, process
from kie4o.webhooks import routes

WEBHOOK_KEY = "a webhook key"
KEY = "key-of-the-neighbours"


async def main(url: str, base_url: str, control: bool) -> None:
    store = PostgresStore(url, Secret(KEY))
    if control:
        store.shared = Alone()
    client = AsyncKieClient(
        KEY,
        base_url=base_url,
        store=store,
        rate_limit=RateLimit(1000, per=1.0),
        poll=PollPolicy(),
        max_in_flight=1000,
        webhook_key=WEBHOOK_KEY,
    )
    async with client, receiving(client) as port:
        await client.spent()  # opens it
        while not control and "listen=" not in url and not store._news.works:
            await asyncio.sleep(0.01)
        print(port, flush=True)
        running: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
            task = asyncio.create_task(answer(client, *json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)
        for task in running:
            task.cancel()


@asynccontextmanager
async def receiving(client: AsyncKieClient) -> AsyncIterator[int]:
    application = web.Application()
    application.add_routes(routes(client, "/{ref}"))
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def answer(client: AsyncKieClient, verb: str, *words: Any) -> None:
    try:
        done = await perform(client, verb, *words)
    except KieError as error:
        done = repr(error)
    print(json.dumps([verb, done, time.monotonic()]), flush=True)


async def perform(client: AsyncKieClient, verb: str, *words: Any) -> Any:
    if verb == "wait":
        results = await asyncio.gather(*(client.wait(task_id) for task_id in words[0]))
        return [[result.task_id, result.source] for result in results]
    if verb == "updates":  # those of a wait, those of an iterator, and how the wait ended
        task_id, timeout = words
        heard: list[str] = []

        async def wait() -> str:
            try:
                await client.wait(
                    task_id, timeout=timeout, on_update=lambda details: heard.append(details.state.value)
                )
            except KieError as error:
                return type(error).__name__
            return "succeeded"

        waiting = asyncio.create_task(wait())
        seen = []
        with contextlib.suppress(KieError):
            seen = [details.state.value async for details in client.task(task_id).updates(timeout=timeout)]
        return [heard, seen, await waiting]
    if verb == "details":
        found = await asyncio.gather(*(client.details(words[0]) for _ in range(words[1])))
        return [details.state.value for details in found]
    if verb == "submit":
        return (await client.submit(f"prompt {words[0]}", key=words[0])).id
    if verb == "generate":
        result = await client.generate(words[0], key=words[0], callback_url=words[1])
        return [result.task_id, result.source]
    raise AssertionError(verb)


if __name__ == "__main__":
    process.RENEWAL = 0.5  # so that a lost connection is noticed soon
    asyncio.run(main(sys.argv[1], sys.argv[2], "control" in sys.argv))
