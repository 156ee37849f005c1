"""The receivers of docs/webhooks.md with the real frameworks: a callback of the emulator wakes a waiter."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from faults import unused_port
from pages import section
from paths import IMPORT_ROOT
from portable import environment

from kie4o.emulator import Emulator

PAGE = "docs/webhooks.md"
KEY = "a webhook key"
UVICORN = "uvicorn.run(app, host='127.0.0.1', port=PORT, log_level='warning')"
# The heading above each recipe, and how to serve the app that it defines.
SERVERS = {
    "aiohttp.web": "web.run_app(app, host='127.0.0.1', port=PORT, print=None)",
    "FastAPI": UVICORN,
    "Starlette": UVICORN,
    "Django": UVICORN,
    "Flask": "app.run(host='127.0.0.1', port=PORT, threaded=True)",
}


def recipe(title: str) -> str:
    """The one Python block under the heading of a framework."""
    part = section(title)
    assert part.page == PAGE
    assert [block.language for block in part.blocks] == ["python"]
    return part.blocks[0].code


async def until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(400):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert process.poll() is None, "the server ended"
            await asyncio.sleep(0.025)
        else:
            writer.close()
            return
    pytest.fail("the server did not start")


@pytest.mark.parametrize("name", SERVERS)
async def test_a_callback_wakes_a_waiter_in_the_same_process(name: str, tmp_path: Path) -> None:
    """The safety net polls after a minute: an answer within seconds is due to the callback."""
    port = unused_port()
    source = recipe(name).replace("https://me.example", f"http://127.0.0.1:{port}")
    server = tmp_path / "server.py"
    server.write_text(f"{source}\nimport uvicorn\n\n{SERVERS[name].replace('PORT', str(port))}\n", "utf-8")
    async with Emulator(duration=0.5, webhook_key=KEY) as kie:
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
            async with asyncio.timeout(20), aiohttp.ClientSession() as session:
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
        assert len(task.looks) == 1  # the one that confirms it
        assert [sent.status for sent in kie.callbacks] == [200]
