"""The receivers of docs/webhooks.md with the real frameworks: a callback of the emulator wakes a waiter."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from faults import unused_port
from pages import section
from paths import IMPORT_ROOT
from portable import PATIENCE, environment
from starlette.testclient import TestClient

from kie4o import sign_callback
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

PAGE = "docs/webhooks.md"
KEY = "a webhook key"
UVICORN = "uvicorn.run(app, host='127.0.0.1', port=PORT, log_level='warning')"
# The heading above each recipe, and how to serve the app that it defines.
SERVERS = {
    "aiohttp.web": "web.run_app(create_app(), host='127.0.0.1', port=PORT, print=None)",
    "FastAPI": UVICORN,
    "Starlette": UVICORN,
    "Django": UVICORN,
    "Flask": "app.run(host='127.0.0.1', port=PORT, threaded=True)",
    "WSGI": (
        "from socketserver import ThreadingMixIn\n"
        "from wsgiref.simple_server import WSGIServer, make_server\n"
        "class Server(ThreadingMixIn, WSGIServer): pass\n"
        "make_server('127.0.0.1', PORT, app, Server).serve_forever()"
    ),
    "http.server": (
        "from http.server import ThreadingHTTPServer\n"
        "ThreadingHTTPServer(('127.0.0.1', PORT), Handler).serve_forever()"
    ),
}


def recipe(title: str) -> str:
    """The one Python block under the heading of a framework."""
    part = section(title)
    assert part.page == PAGE
    assert [block.language for block in part.blocks] == ["python"]
    return part.blocks[0].code


async def until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.poll() is None, "the server ended"
                await asyncio.sleep(0.025)
            else:
                writer.close()
                return


@pytest.mark.parametrize("name", SERVERS)
async def test_a_callback_wakes_a_waiter_in_the_same_process(name: str, tmp_path: Path) -> None:
    """The safety net polls after a minute: an answer within seconds is due to the callback."""
    port = unused_port()
    source = recipe(name).replace("https://me.example", f"http://127.0.0.1:{port}")
    server = tmp_path / "server.py"
    server.write_text(f"{source}\nimport uvicorn\n\n{SERVERS[name].replace('PORT', str(port))}\n", "utf-8")
    async with Emulator(clock="real", duration=0.5, webhook_key=KEY) as kie:
        variables = environment(
            PATH="/usr/bin:/bin",
            KIE_API_KEY="any",
            KIE_BASE_URL=kie.url,
            KIE_WEBHOOK_KEY=KEY,
            PYTHONPATH=str(IMPORT_ROOT),
        )
        process = subprocess.Popen([sys.executable, server], env=variables, cwd=tmp_path)
        try:
            await until_it_listens(port, process)
            async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/draw?prompt=x") as response:
                    urls = await response.json()
                assert response.status == 200
                async with session.post(f"http://127.0.0.1:{port}/kie/forged", json={}) as response:
                    assert response.status in (400, 401)
                while not kie.callbacks:  # the waiter may be woken before its callback is answered
                    await asyncio.sleep(0.01)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)
        [task] = kie.tasks.values()
        assert urls == [url for url in urls if task.id in url]
        assert len(urls) == 1
        assert len(kie.looks(task.id)) == 1  # the one that confirms it
        assert [sent.status for sent in kie.callbacks] == [200]


# -- the same application again ----------------------------------------------------------------------

Draw = Callable[[], Awaitable[Any]]
Post = Callable[[str, bytes, dict[str, str]], Awaitable[int]]


@asynccontextmanager
async def started_by_test_client(recipe: dict[str, Any]) -> AsyncIterator[tuple[Draw, Post]]:
    """The application under the test client of FastAPI and Starlette, which runs its lifespan."""
    client, loop = TestClient(recipe["app"]), asyncio.get_running_loop()
    with ThreadPoolExecutor(3) as threads:
        await loop.run_in_executor(threads, client.__enter__)
        try:
            yield (
                lambda: loop.run_in_executor(threads, lambda: client.get("/draw?prompt=x").json()),
                lambda path, body, headers: loop.run_in_executor(
                    threads, lambda: client.post(path, content=body, headers=headers).status_code
                ),
            )
        finally:
            await loop.run_in_executor(threads, client.__exit__)


@asynccontextmanager
async def started_by_aiohttp(recipe: dict[str, Any]) -> AsyncIterator[tuple[Draw, Post]]:
    """A new application, as aiohttp cannot start one twice."""
    runner = web.AppRunner(recipe["create_app"](), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _, port = runner.addresses[0]

    async def draw() -> Any:
        async with session.get("/draw?prompt=x") as response:
            return await response.json()

    async def post(path: str, body: bytes, headers: dict[str, str]) -> int:
        async with session.post(path, data=body, headers=headers) as response:
            return response.status

    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        try:
            yield draw, post
        finally:
            await runner.cleanup()


TWICE = {
    "aiohttp.web": started_by_aiohttp,
    "FastAPI": started_by_test_client,
    "Starlette": started_by_test_client,
}


@pytest.mark.parametrize("name", TWICE)
async def test_an_application_starts_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its module is imported without a key. Each time it starts it has an open client of its own, and a
    callback wakes the waiter in it."""
    for variable in ("KIE_API_KEY", "KIE_AI_API_KEY", "KIE_WEBHOOK_KEY", "KIE_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(recipe(name), name, "exec"), namespace)
    async with Emulator(clock="real", duration=0.0, webhook_key=KEY) as kie, asyncio.timeout(PATIENCE):
        monkeypatch.setenv("KIE_API_KEY", "any")
        monkeypatch.setenv("KIE_WEBHOOK_KEY", KEY)
        monkeypatch.setenv("KIE_BASE_URL", kie.url)
        for count in (1, 2):
            kie.plan("x", callback="never")
            async with TWICE[name](namespace) as (draw, post):
                drawing = asyncio.ensure_future(draw())
                while len(kie.tasks) < count:
                    await asyncio.sleep(0.01)
                task = list(kie.tasks.values())[-1]
                body = json.dumps({"code": 200, "msg": "success", "data": {"taskId": task.id}}).encode()
                headers = sign_callback(task.id, key=KEY, timestamp=time.time())
                headers["Content-Type"] = "application/json"
                path = urlsplit(task.request["callBackUrl"]).path
                assert await post(path, body, headers) == 200
                assert await post(path, body, headers | {"X-Webhook-Signature": "forged"}) == 401
                assert len(await drawing) == 1
                assert len(kie.looks(task.id)) <= 2  # the first may be earlier than the answer to the submit
