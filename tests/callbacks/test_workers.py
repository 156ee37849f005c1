"""The recipe of docs/webhooks.md for several workers, with real uvicorn and gunicorn: the worker that gets
a callback passes it on to the one that submitted the task."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from faults import unused_port
from pages import section
from paths import IMPORT_ROOT
from portable import PATIENCE, environment
from yarl import URL

from kie4o import sign_callback
from kie4o.emulator import Emulator
from kie4o.emulator.tasks import Task
from kie4o.polling.policy import SAFETY_NET

pytestmark = pytest.mark.once

KEY = "a webhook key"
SERVERS = {
    "uvicorn": [
        "uvicorn",
        "--workers=3",
        "--timeout-keep-alive=60",
        "--timeout-graceful-shutdown=1",
        "--port=PORT",
        "server:app",
    ],
    "gunicorn": [
        "gunicorn",
        "--workers=3",
        "--keep-alive=60",
        "--graceful-timeout=1",
        "--bind=127.0.0.1:PORT",
        "--worker-class=uvicorn.workers.UvicornWorker",
        "server:app",
    ],
}
HOWS = ["uvicorn", pytest.param("gunicorn", marks=pytest.mark.posix("gunicorn"))]


def unused_ports(count: int) -> int:
    """The first of so many consecutive ports on loopback without a listener."""
    while True:
        first = unused_port()
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            for port in range(first, first + count):
                probe = stack.enter_context(socket.socket())
                probe.bind(("127.0.0.1", port))
            return first


class Workers:
    """Three workers behind one port, and an emulator that calls back to it."""

    def __init__(self, title: str, how: str, folder: Path) -> None:
        self.title, self.how, self.folder = title, how, folder
        first = unused_ports(7)  # one for all, and six for single workers
        self.url, self.ports = f"http://127.0.0.1:{first}", range(first + 1, first + 7)
        self.kie = Emulator(clock="real", duration=0.2, webhook_key=KEY, limit=1000)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Workers]:
        source = section(self.title).blocks[0].code.replace("https://me.example", self.url)
        source = source.replace("8701", f"{self.ports[0]}").replace("RateLimit(20", "RateLimit(1000")
        (self.folder / "server.py").write_text(source, "utf-8")
        async with self.kie:
            variables = environment(
                PATH="/usr/bin:/bin",
                HOME=str(self.folder),  # gunicorn's control socket goes there
                KIE_API_KEY="any",
                KIE_BASE_URL=self.kie.url,
                KIE_WEBHOOK_KEY=KEY,
                PYTHONPATH=str(IMPORT_ROOT),
            )
            port = self.url.rpartition(":")[2]
            command = [sys.executable, "-m", *(word.replace("PORT", port) for word in SERVERS[self.how])]
            process = subprocess.Popen(command, env=variables, cwd=self.folder)
            try:
                yield self
            finally:
                process.terminate()
                await asyncio.to_thread(process.wait)

    async def draw(self, session: aiohttp.ClientSession, prompt: str) -> tuple[Task, float]:
        """The task that a worker submits for this prompt and waits for, and the seconds that takes."""
        start = time.monotonic()
        async with session.get(f"{self.url}/draw", params={"prompt": prompt}) as response:
            assert response.status == 200
            [url] = await response.json()
        [task] = [task for task in self.kie.tasks.values() if task.id in url]
        return task, time.monotonic() - start

    async def call_back(
        self, session: aiohttp.ClientSession, url: URL, task_id: str, *, key: str = KEY, padding: int = 0
    ) -> int:
        """Post what Kie posts, over the connection of this session."""
        data = {"taskId": task_id, "info": {"result_urls": ["https://files.example/1.png"]}}
        body = json.dumps({"code": 200, "msg": " " * padding, "data": data}).encode()
        headers = sign_callback(task_id, key=key, timestamp=time.time())
        headers["Content-Type"] = "application/json"
        async with session.post(url, data=body, headers=headers) as response:
            return response.status


def callback_url_of(task: Task) -> URL:
    return URL(task.request["callBackUrl"])


@asynccontextmanager
async def one_connection_to_each(here: Workers) -> AsyncIterator[dict[int, aiohttp.ClientSession]]:
    """By the port of each worker a session whose one connection leads to it, found by trying."""
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        found: dict[int, aiohttp.ClientSession] = {}
        while len(found) < 3:
            connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
            session = aiohttp.ClientSession(connector=connector)
            await stack.enter_async_context(session)
            with contextlib.suppress(aiohttp.ClientConnectorError):  # no worker listens yet
                task, _ = await here.draw(session, "x")
                found[int(callback_url_of(task).query["worker"])] = session
                continue
            await asyncio.sleep(0.1)
        yield found


@pytest.mark.parametrize("how", HOWS)
async def test_a_callback_reaches_its_worker(how: str, tmp_path: Path) -> None:
    """Whichever worker gets it, it is answered with 200, and wakes the one that waits, long before
    its first look without one. What is forged, too large or for another port is refused."""
    workers = Workers("Several workers", how, tmp_path)
    async with workers.running() as here, one_connection_to_each(here) as to:
        assert len(set(to) & set(here.ports)) == 3
        drawn = await asyncio.gather(*(here.draw(session, "x") for session in to.values() for _ in range(3)))
        for task, seconds in drawn:
            # A callback that overtakes the answer to its submit causes a look of its own.
            assert 1 <= len(here.kie.looks(task.id)) <= 2
            assert seconds < SAFETY_NET[0]
        await asyncio.sleep(0.1)
        assert {(sent.attempt, sent.status) for sent in here.kie.callbacks} == {(1, 200)}

        # By hand, so that it is certain who gets it.
        here.kie.plan("by hand", duration=0.0, callback="never")
        async with asyncio.timeout(PATIENCE / 2), aiohttp.ClientSession() as stranger:
            for worker, session in to.items():
                known = set(here.kie.tasks)
                drawing = asyncio.create_task(here.draw(session, "by hand"))
                while not (new := set(here.kie.tasks) - known):
                    await asyncio.sleep(0.01)
                [task] = [here.kie.tasks[task_id] for task_id in new]
                url = callback_url_of(task)
                assert int(url.query["worker"]) == worker
                assert await here.call_back(stranger, url, task.id, key="wrong") == 401
                assert await here.call_back(stranger, url, task.id, padding=100_000) in (413, 503)
                assert await here.call_back(stranger, url.update_query(worker=22), task.id) == 404
                free = next(iter(set(here.ports) - set(to)))
                assert await here.call_back(stranger, url.update_query(worker=free), task.id) == 503
                assert here.kie.looks(task.id) == []
                other = next(session for number, session in to.items() if number != worker)
                assert await here.call_back(other, url, task.id) == 200
                await drawing
                assert (
                    len(here.kie.looks(task.id)) <= 2
                )  # the first may be earlier than the answer to the submit
    assert {file.stem for file in tmp_path.glob("*.db")} == {f"run-{worker}" for worker in to}


async def test_without_the_recipe_callbacks_go_astray(tmp_path: Path) -> None:
    """The control: with the recipe for one process some callbacks are answered with 404."""

    async def draw() -> None:
        async with aiohttp.ClientSession() as session:
            with contextlib.suppress(aiohttp.ClientConnectorError):  # no worker listens yet
                await here.draw(session, "x")

    async with Workers("FastAPI", "uvicorn", tmp_path).running() as here, asyncio.timeout(PATIENCE):
        drawing: set[asyncio.Task[None]] = set()
        while not any(sent.status == 404 for sent in here.kie.callbacks):
            drawing = {task for task in drawing if not task.done()} | {asyncio.create_task(draw())}
            await asyncio.sleep(0.2)
        for task in drawing:
            task.cancel()
        await asyncio.gather(*drawing, return_exceptions=True)
