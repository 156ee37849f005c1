"""The README's receivers in the real frameworks: a callback of the emulator wakes a waiter."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from faults import unused_port
from paths import IMPORT_ROOT, README

from kie4o.emulator import Emulator

KEY = "a webhook key"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
SERVERS = {
    "aiohttp": ("from aiohttp import web", "web.run_app(app, host='127.0.0.1', port=PORT, print=None)"),
    "fastapi": ("from fastapi import", "uvicorn.run(app, host='127.0.0.1', port=PORT, log_level='warning')"),
    "starlette": (
        "from starlette.app",
        "uvicorn.run(app, host='127.0.0.1', port=PORT, log_level='warning')",
    ),
    "django": ("from django.conf", "uvicorn.run(app, host='127.0.0.1', port=PORT, log_level='warning')"),
    "flask": ("from flask", "app.run(host='127.0.0.1', port=PORT, threaded=True)"),
}


def recipe(mark: str) -> str:
    """The one block with this text in it."""
    [block] = [block for block in BLOCKS if mark in block]
    return block


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
    """The image arrives within seconds.

    Without the callback the first look would follow after a minute.
    """
    mark, serve = SERVERS[name]
    port = unused_port()
    source = recipe(mark).replace("https://me.example", f"http://127.0.0.1:{port}")
    server = tmp_path / "server.py"
    server.write_text(
        f"import warnings\n{source}\nif True:\n    import uvicorn\n    {serve.replace('PORT', str(port))}\n"
    )
    async with Emulator(duration=0.5, webhook_key=KEY) as kie:
        environment = {
            "PATH": "/usr/bin:/bin",
            "KIE_API_KEY": "any",
            "KIE_BASE_URL": kie.url,
            "KIE_WEBHOOK_KEY": KEY,
            "PYTHONPATH": str(IMPORT_ROOT),
        }
        process = subprocess.Popen([sys.executable, server], env=environment, cwd=tmp_path)
        try:
            await until_it_listens(port, process)
            async with asyncio.timeout(20), aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/draw?prompt=x") as response:
                    urls = await response.json()
                assert response.status == 200
                async with session.post(f"http://127.0.0.1:{port}/kie/forged", json={}) as response:
                    assert response.status in (400, 401)
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait)
        [task] = kie.tasks.values()
        assert urls == [url for url in urls if task.id in url]
        assert len(urls) == 1
        assert len(task.looks) == 1  # the one that confirms it
        assert [sent.status for sent in kie.callbacks] == [200]
