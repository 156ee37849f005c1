"""The service of docs/operating.md under uvicorn: SIGTERM with tasks in flight loses none of them."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from faults import unused_port
from machines import PATIENCE, require, variables
from pages import section

from kie4o.closing import CLOSING
from kie4o.emulator import Emulator
from kie4o.stores.sqlite import SQLiteStore

pytestmark = [pytest.mark.once, pytest.mark.posix("signals")]

ANSWERED, SENT = 30, 20  # submits at the signal
GRACE = 1  # seconds for requests, in place of those of the page
# Kie admits 20 tasks in 10 s, which would take half a minute here. Nothing else of the recipe differs.
QUICK = """
from kie4o import AsyncKieClient, RateLimit
AsyncKieClient.__init__.__kwdefaults__["rate_limit"] = RateLimit(1000, per=10.0)
from server import app as app
"""


def command() -> list[str]:
    """The words after `uvicorn` in the page."""
    [block] = section("Shutdown").blocks
    program, *words = block.code.split()
    assert (program, words[0]) == ("uvicorn", "server:app")
    return words


def seconds_of(words: str) -> int:
    found = re.search(r"--timeout-graceful-shutdown[= ](\d+)", words)
    assert found
    return int(found[1])


class Server:
    """The service, and what is asked of it."""

    def __init__(self, process: asyncio.subprocess.Process, session: aiohttp.ClientSession) -> None:
        self.process = process
        self._session = session

    async def draw(self, order: int) -> None:
        async with self._session.get(f"/draw/{order}", params={"prompt": f"order {order}"}) as response:
            await response.read()

    async def health(self) -> dict[str, Any]:
        async with self._session.get("/health") as response:
            assert response.status == 200
            answer: dict[str, Any] = await response.json()
            return answer

    async def until(self, **values: object) -> None:
        async with asyncio.timeout(PATIENCE):
            while True:
                health = await self.health()
                if {name: health[name] for name in values} == values:
                    return
                await asyncio.sleep(0.05)

    async def end(self, number: int) -> float:
        """Send a signal; the seconds until the process has ended."""
        began = time.monotonic()
        self.process.send_signal(number)
        await asyncio.wait_for(self.process.wait(), PATIENCE)
        return time.monotonic() - began


@asynccontextmanager
async def served(folder: Path, kie: Emulator) -> AsyncIterator[Server]:
    recipe = next(block for block in section("Health").blocks if block.language == "python")
    (folder / "server.py").write_text(recipe.code, "utf-8")
    (folder / "quick.py").write_text(QUICK, "utf-8")
    port = unused_port()
    words = " ".join(command()).replace("server:app", "quick:app")
    words = words.replace(str(seconds_of(words)), str(GRACE))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", *words.split(), f"--port={port}", "--log-level=critical"),
        cwd=folder,
        env=variables(folder, kie.url),
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            server = Server(process, session)
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        await server.health()
                        break
                    except aiohttp.ClientConnectionError:
                        assert process.returncode is None, "the server ended"
                        await asyncio.sleep(0.05)
            yield server
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def stopped(folder: Path, kie: Emulator, number: int) -> float:
    """The service with 50 tasks in flight, of which 20 are not answered yet, and then a signal."""
    async with served(folder, kie) as server:
        drawing = [asyncio.create_task(server.draw(order)) for order in range(ANSWERED)]
        await server.until(tasks=ANSWERED, submits=0)
        kie.latency = 3.0
        drawing += [asyncio.create_task(server.draw(ANSWERED + order)) for order in range(SENT)]
        async with asyncio.timeout(PATIENCE):
            while len(kie.tasks) < ANSWERED + SENT:
                await asyncio.sleep(0.01)
        health = await server.health()
        assert (health["in_flight"], health["submits"], health["tasks"]) == (50, SENT, ANSWERED)
        seconds = await server.end(number)
        await asyncio.gather(*drawing, return_exceptions=True)
    kie.latency = 0.0
    return seconds


async def saved(file: Path) -> set[str]:
    """The ids of the tasks that the store has."""
    store = SQLiteStore(file)
    await store.open()
    try:
        return {entry.task_id async for entry in store.unfinished() if entry.task_id is not None}
    finally:
        await store.aclose()


async def test_sigterm_loses_no_task(tmp_path: Path) -> None:
    """It ends within its bound, each submit that Kie has seen has its id in the store, and the next process
    waits for all of them. Nothing is paid twice."""
    require("fastapi", "uvicorn")
    async with Emulator(clock="real", duration=300.0, limit=1000) as kie:
        seconds = await stopped(tmp_path, kie, signal.SIGTERM)
        assert seconds < GRACE + CLOSING
        assert len(kie.tasks) == ANSWERED + SENT
        assert await saved(tmp_path / "run.db") == set(kie.tasks)
        for task_id in kie.tasks:
            kie.end(task_id)
        async with served(tmp_path, kie) as server:
            await server.until(unfinished=0)
            await server.draw(0)  # the images of an order that was interrupted
            await server.end(signal.SIGTERM)
        assert kie.paid == ANSWERED + SENT


async def test_sigkill_does(tmp_path: Path) -> None:
    """The control: what was not answered then has no id."""
    require("fastapi", "uvicorn")
    async with Emulator(clock="real", duration=300.0, limit=1000) as kie:
        await stopped(tmp_path, kie, signal.SIGKILL)
        assert len(await saved(tmp_path / "run.db")) == ANSWERED


def test_the_grace_period_of_kubernetes_has_room_for_all_of_it() -> None:
    """Its `preStop`, the requests and the end of the client, in the numbers of the page."""
    [block] = section("Kubernetes").blocks
    [period] = re.findall(r"terminationGracePeriodSeconds: (\d+)", block.code)
    [before] = re.findall(r'sleep, "(\d+)"', block.code)
    graceful = seconds_of(block.code)
    assert graceful == seconds_of(" ".join(command()))
    assert int(before) + graceful + CLOSING + 5 <= int(period)
    rows = section("Shutdown").tables[0].rows
    assert [row[0] for row in rows] == ["0", "15", "15 to 45", "45"]
    assert (graceful, graceful + CLOSING) == (15, 45)
