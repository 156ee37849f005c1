"""The recipe for Celery: a process of the worker is killed in the middle of a task, which is delivered again.

The broker is a folder, so that no server is needed."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from machines import (
    KEY,
    RENEWS_OFTEN,
    adapted,
    program,
    recipe,
    require,
    until,
    url_with_short_leases,
    variables,
)

from kie4o import AsyncKieClient
from kie4o.emulator import Emulator

pytestmark = [pytest.mark.once, pytest.mark.paced, pytest.mark.posix("Celery's processes")]

# Celery would wait 10 s for what a dead process may still have said.
BROKER = """
app.conf.broker_url = "filesystem://"
app.conf.broker_transport_options = {
    "data_folder_in": "queue", "data_folder_out": "queue", "control_folder": "control"
}
app.conf.worker_lost_wait = 0.5
"""
WORKER = [
    "-W",
    "ignore",
    "-m",
    "celery",
    "-A",
    "images",
    "worker",
    "--concurrency",
    "1",
    "--loglevel",
    "warning",
]


@contextlib.asynccontextmanager
async def worker(folder: Path, env: dict[str, str], code: str) -> AsyncIterator[Any]:
    (folder / "images.py").write_text(code, "utf-8")
    (folder / "queue").mkdir()
    async with program(folder, env, *WORKER) as process:
        yield process


async def order(folder: Path, env: dict[str, str], *words: str) -> None:
    """What a web back end does with an order."""
    say = f"from images import draw; draw.delay(*{words!r})"
    async with program(folder, env, "-W", "ignore", "-c", say) as process:
        assert await process.wait() == 0


async def payments(kie: Emulator, folder: Path, url: str, code: str) -> int:
    """For one order, when its process is killed while it waits for the images."""
    import psutil

    env = variables(folder, kie.url)
    async with worker(folder, env, code) as process:
        await order(folder, env, "order-1", "A calm lake")
        await until(lambda: any(kie.looks(task_id) for task_id in kie.tasks))
        [child] = psutil.Process(process.pid).children()
        child.kill()
        drawn = folder / "drawn"
        await until(lambda: drawn.exists() and drawn.read_text("utf-8").startswith("http"))
    return kie.paid


def written(url: str) -> str:
    """The recipe, with a note of what came of the order."""
    code = adapted(recipe("Celery"), url)
    end = "return list(run(kie.generate(prompt, key=order)).urls)"
    assert end in code
    noted = end.replace("return", "urls =") + "\n    open('drawn', 'w').write(urls[0])\n    return urls"
    return code.replace(end, noted) + BROKER + RENEWS_OFTEN


async def test_an_order_that_is_delivered_again_is_paid_once(tmp_path: Path) -> None:
    """And any process finds its result in the store."""
    require("celery", "psutil")
    url = await url_with_short_leases()
    async with Emulator(clock="real", duration=3.0) as kie:
        assert await payments(kie, tmp_path, url, written(url)) == 1
        async with AsyncKieClient(KEY, base_url=kie.url, store=url) as client:
            entry = await client.find("order-1")
        assert entry is not None
        assert [entry.task_id] == [*kie.tasks]
        assert entry.details is not None
        assert entry.details.urls


async def test_an_order_without_a_key_is_paid_twice(tmp_path: Path) -> None:
    """The control."""
    require("celery", "psutil")
    url = await url_with_short_leases()
    code = written(url).replace("prompt, key=order)", "prompt)")
    async with Emulator(clock="real", duration=3.0) as kie:
        assert await payments(kie, tmp_path, url, code) == 2
