"""The recipe for uvicorn with four workers behind one port: a callback at any of them ends the request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
import postgres
import pytest
from faults import unused_port
from machines import PATIENCE, adapted, program, recipe, require, variables

from kie4o import sign_callback
from kie4o.emulator import Emulator
from kie4o.emulator.tasks import Task

pytestmark = [pytest.mark.once, pytest.mark.paced, pytest.mark.posix("PostgreSQL's programs")]

WEBHOOK_KEY = "a webhook key"
UVICORN = ["-m", "uvicorn", "--workers=4", "--timeout-keep-alive=60", "--timeout-graceful-shutdown=1"]
PID = "\nimport os\n\n@app.get('/pid')\nasync def pid() -> int:\n    return os.getpid()\n"


class Workers:
    """Four workers behind one port, an emulator that calls back to it, and a connection to each of them."""

    def __init__(self, kie: Emulator, url: str, to: Mapping[int, aiohttp.ClientSession]) -> None:
        self.kie = kie
        self.url = url
        self.to = to

    async def draw(self, session: aiohttp.ClientSession, order: str) -> Task:
        """The task of an order, which this worker submits and waits for."""
        async with session.get(f"{self.url}/draw/{order}", params={"prompt": order}) as response:
            assert response.status == 200, await response.text()
            [url] = await response.json()
        [task] = [task for task in self.kie.tasks.values() if task.id in url]
        return task


@contextlib.asynccontextmanager
async def running(folder: Path, code: str) -> AsyncIterator[Workers]:
    port = unused_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "server.py").write_text(code.replace("https://me.example", url) + PID, "utf-8")
    async with Emulator(clock="real", duration=1.0, webhook_key=WEBHOOK_KEY, limit=1000) as kie:
        env = variables(folder, kie.url, KIE_WEBHOOK_KEY=WEBHOOK_KEY)
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(
                program(folder, env, *UVICORN, f"--port={port}", "--log-level=warning", "server:app")
            )
            to: dict[int, aiohttp.ClientSession] = {}
            async with asyncio.timeout(PATIENCE):
                while len(to) < 4:
                    connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
                    session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
                    with contextlib.suppress(aiohttp.ClientConnectionError):  # no worker listens yet
                        async with session.get(f"{url}/pid") as response:
                            to.setdefault(int(await response.text()), session)
                    await asyncio.sleep(0.02)
            yield Workers(kie, url, to)


async def status_and_delay(here: Workers, submitter: int, receiver: int, order: str) -> tuple[int, float]:
    """One worker draws, another one gets the callback: its answer, and the seconds until the request ends."""
    here.kie.plan(order, duration=0.3, callback="never")
    drawing = asyncio.create_task(here.draw(here.to[submitter], order))
    while not (found := [task for task in here.kie.tasks.values() if task.request["prompt"] == order]):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    assert not drawing.done()
    start = time.monotonic()
    status = await call_back(here.to[receiver], found[0])
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(drawing, 3)
    return status, time.monotonic() - start


async def call_back(session: aiohttp.ClientSession, task: Task) -> int:
    """Post what Kie posts, over the connection of this session."""
    data = {"taskId": task.id, "info": {"result_urls": ["https://files.example/1.png"]}}
    headers = sign_callback(task.id, key=WEBHOOK_KEY, timestamp=time.time())
    body = {"code": 200, "msg": "", "data": data}
    async with session.post(task.request["callBackUrl"], json=body, headers=headers) as response:
        return response.status


async def test_a_callback_at_another_worker_ends_the_request(tmp_path: Path) -> None:
    """Polls would come after a minute. An order that two workers get at once is paid once."""
    require("fastapi", "uvicorn")
    code = adapted(recipe("uvicorn with four workers"), postgres.shared_url())
    async with running(tmp_path, code) as here, asyncio.timeout(PATIENCE):
        orders = [(session, f"{number}") for session in here.to.values() for number in range(8)]
        drawn = await asyncio.gather(*(here.draw(*order) for order in orders))
        await asyncio.sleep(0.2)
        assert {(sent.attempt, sent.status) for sent in here.kie.callbacks} == {(1, 200)}
        assert here.kie.paid == len({task.id for task in drawn}) == 8
        for task in drawn:
            assert len(here.kie.looks(task.id)) <= 2
        # By hand, so that it is certain who gets it.
        delays = []
        for submitter, receiver in itertools.permutations(here.to, 2):
            status, delay = await status_and_delay(here, submitter, receiver, f"{submitter} {receiver}")
            assert status == 200
            delays.append(delay)
        print("callback to answer", sorted(delays))
        assert statistics.median(delays) < 0.5


async def test_without_the_store_it_goes_astray(tmp_path: Path) -> None:
    """The control."""
    require("fastapi", "uvicorn")
    code = recipe("uvicorn with four workers")
    assert ", store=STORE" in code
    async with running(tmp_path, code.replace(", store=STORE", "")) as here:
        one, other, *_ = here.to
        status, delay = await status_and_delay(here, one, other, "astray")
        assert status == 404
        assert delay > 2.5
