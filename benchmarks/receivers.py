"""Receiving callbacks: the routes of `kie4o.webhooks`, against a handler that only reads the body.

`pair` is for `pairs`. Both serve aiohttp.web in one application; a process of its own, this module, posts to
them. Each callback is signed, new to the client and about a task that has ended, so that what is measured
ends with the search of the store.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from aiohttp import web

from kie4o import AsyncKieClient, sign_callback
from kie4o.stores.memory import MemoryStore
from kie4o.webhooks import routes

from .clients import PROMPT
from .clients.kie4o import unpaced
from .pairs import Slice, sliced
from .processes import ROOT, cores, environment, set_server

KEY = "a webhook key"
_CALLBACKS, _SLICES = 200, 12  # of one slice; slices of each side, at most
_CONNECTIONS = 4
_SIGNED = 3200  # seconds ago, the first; each callback has another time, and so another signature


async def _trivial(request: web.Request) -> web.Response:
    await request.read()
    return web.Response()


def body_of(task_id: str) -> str:
    info = {"result_urls": [f"https://files.example.com/s/{task_id}_0_1774788517_4321.png"]}
    return json.dumps({"code": 200, "msg": "success", "data": {"taskId": task_id, "info": info}})


def posts(path: str, task_id: str, since: int) -> Iterator[str]:
    """Whole requests that Kie could send about this task."""
    body = body_of(task_id)
    for number in range(_CALLBACKS):
        fields = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(len(body))}
        fields |= sign_callback(task_id, key=KEY, timestamp=since + number)
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        yield f"POST {path} HTTP/1.1\r\n{head}\r\n{body}"


@asynccontextmanager
async def pair(base: str) -> AsyncIterator[tuple[Slice, Slice]]:
    set_server(base, looks=1)
    store = MemoryStore()
    settings: dict[str, Any] = {"callback_url": "http://127.0.0.1:9/kie/{ref}", "webhook_key": KEY}
    async with AsyncKieClient("key", base_url=base, store=store, poll=unpaced(0.0), **settings) as client:
        task_id = (await client.submit(PROMPT)).id
        entry = await store.find(task_id=task_id)
        assert entry is not None
        signed = sign_callback(task_id, key=KEY, timestamp=time.time())
        await client.deliver(client.parse_callback(body_of(task_id), signed, ref=entry.ref))  # it has ended
        application = web.Application()
        application.add_routes([*routes(client, "/kie/{ref}"), web.post("/plain/{ref}", _trivial)])
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            since = int(time.time()) - _SIGNED
            batches = {
                "kie": [
                    list(posts(f"/kie/{entry.ref}", task_id, since + number * _CALLBACKS))
                    for number in range(_SLICES)
                ],
                "plain": [list(posts(f"/plain/{entry.ref}", task_id, since))] * _SLICES,
            }
            with _sender(runner.addresses[0][1], batches) as send:
                both = [sliced(partial(send, path), _CALLBACKS) for path in ("kie", "plain")]
                for once in both:  # opens connections and imports late modules
                    await once()
                yield both[0], both[1]
        finally:
            await runner.cleanup()


@contextmanager
def _sender(port: int, batches: dict[str, list[list[str]]]) -> Iterator[Callable[[str], Awaitable[None]]]:
    """A process that posts the next batch of a path whenever it is told to."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.receivers"],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        orders, answers = process.stdin, process.stdout

        async def send(path: str) -> None:
            print(path, file=orders, flush=True)
            statuses = json.loads(await asyncio.to_thread(answers.readline))
            assert statuses == [200], statuses

        print(json.dumps([port, batches]), file=orders, flush=True)
        yield send
        orders.close()  # which ends the process


async def _post(port: int, pending: Iterator[str], statuses: set[int]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in pending:
        writer.write(request.encode())
        head = await reader.readuntil(b"\r\n\r\n")
        statuses.add(int(head.split()[1]))
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()


async def _post_all(port: int, batch: list[str]) -> list[int]:
    statuses: set[int] = set()
    pending = iter(batch)
    await asyncio.gather(*(_post(port, pending, statuses) for _ in range(_CONNECTIONS)))
    return sorted(statuses)


def main() -> None:
    """The sender: the first line of its input has the batches, each other one the path of the next."""
    _, core = cores()
    if core is not None:
        os.sched_setaffinity(0, {core})
    port, batches = json.loads(sys.stdin.readline())
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_post_all(port, batches[line.strip()].pop(0)))), flush=True)


if __name__ == "__main__":
    main()
