"""The recipe for dask.distributed: three workers, one of which is killed in the middle of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import postgres
import pytest
from machines import (
    PATIENCE,
    RENEWS_OFTEN,
    adapted,
    program,
    recipe,
    require,
    until,
    url_with_short_leases,
    variables,
)

from kie4o.emulator import Emulator

pytestmark = [pytest.mark.once, pytest.mark.paced, pytest.mark.posix("PostgreSQL's programs")]


def written(url: str, items: int, *, short: bool) -> str:
    """The recipe for that many prompts, at a rate that suits a test."""
    code = adapted(recipe("dask.distributed"), url)
    changes = {
        "range(8)": f"range({items})",
        "AsyncKieClient(store=STORE)": "AsyncKieClient(store=STORE, rate_limit=RateLimit(20, per=1.0))",
        "import AsyncKieClient": "import AsyncKieClient, RateLimit",
    }
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    return code + RENEWS_OFTEN if short else code


def workers_of(process: Any) -> list[Any]:
    """The processes that dask started for its workers."""
    import psutil  # dask needs it

    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


async def kill_between_submits(worker: Any, url: str) -> None:
    """Kill a process that is not sending anything, of which the outcome would be unknown."""
    sending = "SELECT EXISTS (SELECT FROM kie4o.entry WHERE state = 'intent')"
    async with postgres.opened(url) as database, asyncio.timeout(PATIENCE):
        while True:
            worker.suspend()
            for _ in range(10):
                await asyncio.sleep(0.05)
                [(sends,)] = await database.rows(sending)
                if not sends:
                    worker.kill()
                    return
            worker.resume()
            await asyncio.sleep(0.2)


async def kill_at_once(worker: Any) -> None:
    worker.kill()


async def run_and_kill(
    kie: Emulator, folder: Path, code: str, after: int, kill: Callable[[Any], Awaitable[None]]
) -> dict[str, str]:
    """What became of each key, when one worker is killed after so many submits."""
    (folder / "batch.py").write_text(code, "utf-8")
    env = variables(folder, kie.url)
    async with program(folder, env, "batch.py", stdout=asyncio.subprocess.PIPE) as process:
        reading = asyncio.create_task(process.stdout.read())
        await until(lambda: len(kie.submits) >= after)
        _, one, _ = workers_of(process)
        await kill(one)
        lines = (await reading).decode().splitlines()
        assert await process.wait() == 0
    return dict(line.split(" ", 1) for line in lines if line.startswith("town-"))


@pytest.mark.parametrize("items", [60, pytest.param(300, marks=pytest.mark.sweep)], ids=["few", "many"])
async def test_a_killed_worker_costs_no_payment(items: int, tmp_path: Path) -> None:
    """dask runs its tasks elsewhere, the finished ones too; each prompt is paid once, and has its image."""
    require("distributed")
    short = items < 100
    url = await url_with_short_leases() if short else postgres.shared_url()
    code = written(url, items, short=short)
    async with Emulator(clock="real", duration=1.5, per=1.0, credits=10_000) as kie:
        ended = await run_and_kill(
            kie, tmp_path, code, items // 4, lambda worker: kill_between_submits(worker, url)
        )
        assert sorted(ended) == sorted(f"town-{number}" for number in range(items))
        assert all("http" in outcome for outcome in ended.values()), ended
        assert len(kie.tasks) == kie.paid == items
        assert kie.windows() <= 20


async def test_without_keys_prompts_are_paid_again(tmp_path: Path) -> None:
    """The control: what a worker has paid dies with it. Each of them has paid once there are 60 in flight."""
    require("distributed")
    url = await url_with_short_leases()
    code = written(url, 100, short=True).replace("prompt, key=key)", "prompt)")
    async with Emulator(clock="real", duration=1.5, per=1.0, credits=10_000) as kie:
        await run_and_kill(kie, tmp_path, code, 60, kill_at_once)
        assert kie.paid > 100
