"""`store_wait=`: a new process waits for the store file of the one that it replaces."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from canary import CANARY_KEY
from clients import client_of, until
from clocks import run_scaled
from test_sqlite import opened

from kie4o import AsyncKieClient, ConfigurationError, KieError, StoreError, StoreLockedError
from kie4o.emulator import Emulator
from kie4o.stores import guard
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore

HOLD = """
import asyncio, sys
from kie4o.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    print("open", flush=True)
    sys.stdin.readline()
    await store.aclose()

asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.db"


@contextlib.asynccontextmanager
async def another_process(path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """It has the store open until it is written to."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLD, str(path), stdin=pipe, stdout=pipe
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert (await process.stdout.readline()).strip() == b"open"
        yield process
    finally:
        process.stdin.close()
        assert await process.wait() == 0


def waiting_client(path: Path, **more: Any) -> AsyncKieClient:
    return AsyncKieClient(CANARY_KEY, base_url="http://127.0.0.1:9", store=path, **more)


async def test_a_new_process_waits_for_the_old_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By default, and says so at INFO; meanwhile the loop goes on."""
    caplog.set_level(logging.INFO, "kie4o")
    async with another_process(path) as old:
        client = waiting_client(path)
        opening = asyncio.create_task(client.__aenter__())
        await until(lambda: "Waiting up to 10 s" in caplog.text)
        turns = 0
        while turns < 50:
            start = time.monotonic()
            await asyncio.sleep(0.005)
            assert time.monotonic() - start < 1
            turns += 1
        assert not opening.done()
        assert old.stdin is not None
        old.stdin.write(b"\n")
        await asyncio.wait_for(opening, 10)
        await client.aclose()
    [line] = [record for record in caplog.records if "Waiting" in record.message]
    assert (line.levelname, str(path) in line.message) == ("INFO", True)


def test_after_the_wait_the_error_says_what_to_do(path: Path) -> None:
    """How long it waited, and that each worker needs a file of its own."""

    async def main() -> float:
        start = asyncio.get_running_loop().time()
        async with opened(path):
            with pytest.raises(StoreLockedError) as caught:
                await waiting_client(path).__aenter__()
        sentence = str(caught.value)
        assert str(path) in sentence
        assert (
            "give each worker a store file of its own. Waited 10 s; store_wait= sets for how long" in sentence
        )
        assert caught.value.__context__ is None
        return asyncio.get_running_loop().time() - start

    assert 10 <= run_scaled(main(), 20.0) < 30


async def test_without_a_wait_it_fails_at_once(path: Path) -> None:
    async with opened(path):
        client = waiting_client(path, store_wait=0)
        start = time.monotonic()
        with pytest.raises(StoreLockedError) as caught:
            await client.credits()
        assert time.monotonic() - start < 2
        assert "Waited" not in str(caught.value)
        await client.aclose()


async def test_only_a_locked_store_is_waited_for(path: Path) -> None:
    """What is damaged stays damaged."""
    path.write_bytes(b"")
    start = time.monotonic()
    with pytest.raises(StoreError, match="damaged"):
        await waiting_client(path).__aenter__()
    assert time.monotonic() - start < 2


async def test_a_wait_that_is_cancelled_leaves_nothing(path: Path) -> None:
    async with opened(path):
        client = waiting_client(path)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.credits(), 0.02)
        await client.aclose()
    async with opened(path):
        pass


async def test_closing_ends_a_wait(path: Path) -> None:
    """At once; what waited fails as any call of a closed client."""
    async with opened(path):
        client = waiting_client(path)
        calls = [asyncio.create_task(client.credits()) for _ in range(3)]
        await asyncio.sleep(0.05)
        start = time.monotonic()
        await client.aclose()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - start < 3
        assert [isinstance(end, KieError) and "closed" in str(end) for end in ends] == [True] * 3


async def test_in_one_process_the_next_client_waits_for_the_one_that_closes(path: Path) -> None:
    async with Emulator(duration=0.0) as kie:
        first = AsyncKieClient(CANARY_KEY, base_url=kie.url, store=path)
        await first.submit("x", key="a")
        async with contextlib.AsyncExitStack() as stack:
            second = AsyncKieClient(CANARY_KEY, base_url=kie.url, store=path)
            opening = asyncio.create_task(stack.enter_async_context(second))
            await asyncio.sleep(0.05)
            assert not opening.done()
            await first.aclose()
            await asyncio.wait_for(opening, 10)
            await second.submit("x", key="a")
        assert len(kie.submits) == 1


@pytest.mark.parametrize("kind", ["memory", "other", "sqlite"])
async def test_a_store_of_the_callers_is_not_waited_for(path: Path, kind: str) -> None:
    class Other(MemoryStore):
        """A store of the caller's."""

    store = {"memory": MemoryStore(), "other": Other(), "sqlite": SQLiteStore(path)}[kind]
    await store.open()
    start = time.monotonic()
    with pytest.raises(StoreLockedError) as caught:
        await client_of("http://127.0.0.1:9", store).__aenter__()
    assert time.monotonic() - start < 2
    assert "Waited" not in str(caught.value)
    await store.aclose()


async def test_the_limit_of_an_opening_does_not_include_the_wait(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may be waited for as long as the caller likes."""
    monkeypatch.setattr(guard, "OPENING", 0.2)
    async with opened(path) as old:
        client = waiting_client(path)
        opening = asyncio.create_task(client.__aenter__())
        await asyncio.sleep(0.5)
        assert not opening.done()
        await old.aclose()
        await asyncio.wait_for(opening, 10)
        await client.aclose()


@pytest.mark.parametrize("wait", [-1, None, "10", True, float("inf"), float("nan")])
def test_a_wait_that_is_no_number_of_seconds_is_refused(wait: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"invalid store_wait=.*a positive number of seconds, or 0"):
        AsyncKieClient(CANARY_KEY, store_wait=wait)


async def test_callers_wait_together(path: Path) -> None:
    """Those that come while another one waits do not begin to wait when it gives up."""
    async with opened(path):
        client, start = waiting_client(path, store_wait=0.5), time.monotonic()
        ends = await asyncio.gather(*(client.credits() for _ in range(8)), return_exceptions=True)
        assert [type(end) for end in ends] == [StoreLockedError] * 8
        assert time.monotonic() - start < 2.5
        await client.aclose()
