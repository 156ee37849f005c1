"""A process that takes slots of the shared window and uses them: `python window_child.py RUN`, with the
fields of `Run` as JSON. It writes a line for all that happens, and ends when its standard input does."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys

import attrs
from canary import CANARY_KEY
from clocks import new_loop

from kie4o import clock
from kie4o.errors import StoreError
from kie4o.models import RateLimit
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore, process, window
from kie4o.stores.shared import Limiter


@attrs.frozen
class Run:
    """So many waiters at once, each of which sends to a counting server whenever it has a slot."""

    url: str
    port: int
    waiters: int
    limit: int = 20
    per: float = 1.0
    good: float = window.GOOD
    renewal: float = process.RENEWAL
    checks: bool = True  # whether a slot is still good when it is used
    waits: bool = False  # for a line of standard input, between the slots and the requests


async def send(port: int, sender: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"%d\n" % sender)
        await reader.readline()
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def use_slots(
    run: Run, limiter: Limiter, may_send: asyncio.Event, sender: int, took: list[float]
) -> None:
    loop, first = asyncio.get_running_loop(), True
    while True:
        try:
            slot = await limiter.acquire()
        except StoreError as error:
            print("failed", error, flush=True)
            continue
        sent = False
        try:
            if first:
                print("granted", flush=True)
            first = False
            await may_send.wait()
            if run.checks and clock.uptime() > slot.good_until:
                print("too old", flush=True)
                continue
            sent, began = True, loop.time()
            await send(run.port, sender)
            took.append(loop.time() - began)
        finally:
            slot.release(counted=sent)


async def main(run: Run) -> None:
    window.GOOD, process.RENEWAL = run.good, run.renewal
    store = PostgresStore(run.url, Secret(CANARY_KEY))
    await store.open()
    assert store.shared is not None
    limiter, may_send = store.shared.limiter(RateLimit(run.limit, per=run.per)), asyncio.Event()
    me, took = store._process.id, list[float]()
    print("process", me, flush=True)
    tasks = [asyncio.create_task(use_slots(run, limiter, may_send, me, took)) for _ in range(run.waiters)]
    if run.waits:
        await asyncio.to_thread(sys.stdin.readline)
    may_send.set()
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await store.aclose()
    print("took", sum(took) / max(1, len(took)), flush=True)  # on average, until the answer


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main(Run(**json.loads(sys.argv[1]))))
