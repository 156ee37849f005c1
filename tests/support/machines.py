"""The recipes of docs/machines.md, made to run here: on a database of the tests, and beside each other."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import postgres
from pages import section
from paths import IMPORT_ROOT
from portable import PATIENCE, environment

from kie4o.stores.postgres.schema import migrate

PAGE = "docs/machines.md"
STORE = "postgresql://kie4o@db.example/images"
KEY = "key-of-the-machines"
LEASE = 3  # seconds, in place of 30
# A process renews its lease as often as the shorter one needs.
RENEWS_OFTEN = "\nimport kie4o.stores.postgres.process as _process\n_process.RENEWAL = 0.5\n"


def recipe(title: str) -> str:
    """The one Python block under a heading of the page."""
    part = section(title)
    assert part.page == PAGE
    [block] = [block for block in part.blocks if block.language == "python"]
    assert STORE in block.code
    return block.code


def adapted(code: str, url: str) -> str:
    """A recipe with the URL of a database; dask serves its dashboard at any port that is free."""
    code = code.replace(f"{STORE}?", f"{url}{'&' if '?' in url else '?'}").replace(STORE, url)
    return code.replace("LocalCluster(", "LocalCluster(dashboard_address=':0', ")


def require(*engines: str) -> None:
    """The engines, or the end of the test: they are in the dependency group `test`."""
    for engine in engines:
        if importlib.util.find_spec(engine) is None:
            postgres.unavailable(f"{engine} is missing: it is in the dependency group `test`")


async def url_with_short_leases() -> str:
    """A schema of its own, in which what a dead process held is free after `LEASE` seconds."""
    url = postgres.shared_url()
    async with postgres.opened(url) as database:
        await migrate(database)
        await database.rows(
            "CREATE OR REPLACE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql IMMUTABLE "
            f"AS $$ SELECT interval '{LEASE} s' $$"
        )
    return url


def variables(folder: Path, base_url: str, **more: str) -> dict[str, str]:
    """The environment of a program that follows a recipe."""
    return environment(
        PATH="/usr/bin:/bin",
        HOME=str(folder),
        KIE_API_KEY=KEY,
        KIE_BASE_URL=base_url,
        PYTHONPATH=str(IMPORT_ROOT),
        **more,
    )


@contextlib.asynccontextmanager
async def program(folder: Path, env: dict[str, str], *words: str, **how: Any) -> AsyncIterator[Any]:
    """A Python program, which is ended with the block."""
    process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=folder, env=env, **how)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), PATIENCE)
        except TimeoutError:
            process.kill()
            raise


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        await asyncio.sleep(0.02)
