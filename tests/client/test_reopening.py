"""A client that is closed and opened again, in the same event loop or in another one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from canary import CANARY_KEY
from clients import QUICK, client_of, until
from clocks import run_scaled
from fastapi import FastAPI
from fastapi.testclient import TestClient

from kie4o import AsyncKieClient, KieError, RateLimit, StoreLockedError
from kie4o.emulator import Emulator
from kie4o.webhooks import asgi_app


@pytest.fixture
def served_kie() -> Iterator[Emulator]:
    """An emulator with a loop of its own in a thread, for clients whose loops come and go."""
    loop, kie = asyncio.new_event_loop(), Emulator(clock="real", duration=0.1)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(kie.__aenter__(), loop).result(10)
        yield kie
        asyncio.run_coroutine_threadsafe(kie.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "run.db"


def test_each_loop_can_open_the_client_again(served_kie: Emulator, store: Any) -> None:
    """Three runs, each with a loop of its own: settings are kept, and a key is paid once for all of them."""
    client = AsyncKieClient(CANARY_KEY, base_url=served_kie.url, poll=QUICK, store=store)

    async def run(number: int) -> tuple[str, str]:
        async with client:
            same = await client.generate("the same", key="k")
            other = await client.generate(f"number {number}")
            return same.task_id, other.task_id

    pairs = [asyncio.run(run(number)) for number in range(3)]
    assert len({same for same, _ in pairs}) == 1
    assert len({other for _, other in pairs}) == 3
    assert len(served_kie.submits) == 4


def test_what_was_submitted_before_a_close_counts_after_it() -> None:
    """60 submits over six openings in one window of the account: none is refused."""

    async def run() -> None:
        async with Emulator(duration=1.0, limit=20, per=10.0) as kie:
            client = AsyncKieClient(
                CANARY_KEY, base_url=kie.url, poll=QUICK, rate_limit=RateLimit(20, per=10.0)
            )
            for opening in range(6):
                async with client:
                    await asyncio.gather(*(client.submit(f"{opening} {number}") for number in range(10)))
            assert (len(kie.submits), kie.answers()[429], kie.windows()) == (60, 0, 20)

    run_scaled(run(), speed=10)


async def test_a_handle_outlives_a_close(store: Any) -> None:
    """A handle of the first opening is awaited in the second, as soon as the client is open again."""
    async with Emulator(duration=0.2) as kie:
        client = client_of(kie.url, store=store)
        async with client:
            task = await client.submit("x")
        with pytest.raises(KieError, match="`async with client` opens it again"):
            await task
        async with client:
            assert (await task).task_id == task.id
            assert (await client.task(task.id)).task_id == task.id


async def test_a_wait_that_began_by_another_clock_polls_at_the_usual_pace() -> None:
    """Two loops need not count from the same moment: a submit in the future was in another loop."""
    async with Emulator(duration=0.2) as kie, client_of(kie.url) as client:
        task = await client.submit("x")
        task._since = asyncio.get_running_loop().time() + 1e6
        async with asyncio.timeout(5):
            assert (await task).task_id == task.id


async def test_opening_again_waits_for_the_closing(store: Any) -> None:
    """Two tasks enter a client that is still being closed; both get it, and it was opened once more."""
    async with Emulator(duration=60.0, latency=0.3) as kie:
        client = client_of(kie.url, store=store)
        submit = asyncio.create_task(client.submit("x"))
        await until(lambda: len(kie.submits))
        closing = asyncio.create_task(client.aclose())
        await until(lambda: client._runtime.closed)

        async def use() -> bool:
            async with client:
                assert closing.done()
                return bool(await client.credits())

        entering = [asyncio.create_task(client.__aenter__()) for _ in range(2)]
        assert await asyncio.gather(*entering) == [client, client]
        assert (await submit).id in kie.tasks  # closing waited for its response
        assert await use()
        assert len(kie.submits) == 1


async def test_a_closed_client_is_opened_only_by_entering_it() -> None:
    async with Emulator() as kie:
        client = client_of(kie.url)
        async with client:
            pass
        for call in (client.credits, lambda: client.submit("x"), lambda: client.wait("a" * 32)):
            with pytest.raises(KieError, match="the client is closed; `async with client` opens it again"):
                await call()
        assert len(kie.submits) == 0


def test_a_lifespan_can_run_twice(served_kie: Emulator) -> None:
    """FastAPI's test client runs the lifespan of an application in a new loop each time it is entered."""
    client = AsyncKieClient(
        CANARY_KEY, base_url=served_kie.url, poll=QUICK, callback_url="http://127.0.0.1:9/{ref}"
    )

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(lifespan=lifespan)
    app.mount("/kie", asgi_app(client, "/{ref}", allow_unsigned=True))

    @app.get("/draw")
    async def draw(prompt: str) -> str:
        return (await client.submit(prompt)).id

    for number in range(2):
        with TestClient(app) as web:
            task_id = web.get("/draw", params={"prompt": f"{number}"}).json()
            ref = served_kie.tasks[task_id].request["callBackUrl"].rpartition("/")[2]
            body = json.dumps({"code": 200, "msg": "success", "data": {"taskId": task_id, "info": {}}})
            headers = {"content-type": "application/json"}
            assert web.post(f"/kie/{ref}", content=body, headers=headers).status_code == 200
            assert web.post("/kie/forged", content=body, headers=headers).status_code == 404
    assert len(served_kie.tasks) == 2


async def test_a_cancel_ends_the_wait_for_a_closing() -> None:
    """What is closing goes on; only the caller that wants to enter gives up."""
    async with Emulator(duration=60.0, latency=2.0) as kie:
        client = client_of(kie.url)
        submit = asyncio.create_task(client.submit("x"))
        await until(lambda: len(kie.submits))
        closing = asyncio.create_task(client.aclose())
        await until(lambda: client._runtime.closed)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.__aenter__(), 0.1)
        assert not closing.done()
        await closing
        assert (await submit).id in kie.tasks


async def test_entering_after_one_that_left_at_once() -> None:
    """Several tasks enter while the client is being closed, and the first leaves before the others go on."""
    async with Emulator(latency=0.2) as kie:
        client = client_of(kie.url)
        submit = asyncio.create_task(client.submit("x"))
        await until(lambda: len(kie.submits))
        closing = asyncio.create_task(client.aclose())
        await until(lambda: client._runtime.closed)

        async def enter_and_leave() -> None:
            async with client:
                pass

        await asyncio.gather(closing, submit, *(enter_and_leave() for _ in range(5)))


def test_a_client_that_could_not_be_opened_can_be_entered_in_the_next_loop(
    served_kie: Emulator, tmp_path: Path
) -> None:
    """It holds nothing of the first loop."""
    path = tmp_path / "run.db"
    first = AsyncKieClient(CANARY_KEY, base_url=served_kie.url, poll=QUICK, store=path)
    client = AsyncKieClient(CANARY_KEY, base_url=served_kie.url, poll=QUICK, store=path, store_wait=0)

    async def fail() -> None:
        async with first:
            with pytest.raises(StoreLockedError):
                await client.__aenter__()

    async def succeed() -> None:
        async with client:
            await client.generate("x")

    asyncio.run(fail())
    asyncio.run(succeed())
