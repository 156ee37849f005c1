"""The database of several processes is restarted again and again while they work through one list."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import Counter

import postgres
import pytest
from canary import CANARY_KEY
from postgres import PostgresServer, opened

from kie4o import AsyncKieClient, ImageTask, KieError, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.postgres import database as database_module
from kie4o.stores.postgres import process as process_module
from kie4o.stores.postgres.schema import migrate


async def work_through(
    url: str, kie: Emulator, prompts: dict[str, str], limit: RateLimit, **more: int
) -> dict[str, str]:
    """A batch, and the task of each item."""
    tasks: dict[str, str] = {}
    async with AsyncKieClient(CANARY_KEY, base_url=kie.url, store=url, rate_limit=limit, **more) as client:
        async for completion in client.generate_many(prompts):
            assert completion.error is None, completion.error
            tasks[completion.key] = completion.task_id
    return tasks


async def restart_until_done(
    server: PostgresServer, gaps: tuple[float, float], work: asyncio.Task[object]
) -> int:
    """Restart it, each time after a pause of so many seconds, and return how often."""
    modes = (signal.SIGINT, signal.SIGQUIT)  # a fast stop, and one that is a crash to the next start
    numbers, count = random.Random(1), 0
    while True:
        await asyncio.wait([work], timeout=numbers.uniform(*gaps))
        if work.done():
            return count
        await asyncio.to_thread(server.restart, numbers.choice(modes))
        count += 1


pytestmark = pytest.mark.paced  # servers are stopped and started
FULL = pytest.mark.sweep


@pytest.mark.parametrize(
    ("items", "limit", "gaps", "least"),
    [
        pytest.param(40, RateLimit(20, per=1.0), (0.3, 1.0), 2, id="short"),
        pytest.param(500, RateLimit(20, per=2.0), (5.0, 10.0), 5, id="a minute", marks=FULL),
    ],
)
@pytest.mark.once
async def test_a_database_that_is_restarted_costs_nothing_but_time(
    items: int, limit: RateLimit, gaps: tuple[float, float], least: int
) -> None:
    """Two processes do one list: both report every item, each was paid once, and no id is lost."""
    prompts = {f"item {number}": f"draw {number}" for number in range(items)}
    plenty: dict[str, int] = {"credits": 1_000_000, "limit": limit.limit}
    with postgres.own_server() as server:
        async with Emulator(clock="real", duration=0.3, per=limit.per, **plenty) as kie:
            began = time.monotonic()
            work = asyncio.gather(*(work_through(server.url, kie, prompts, limit) for _ in range(2)))
            restarts = await restart_until_done(server, gaps, asyncio.ensure_future(work))
            first, second = await work
            print(f"{restarts} restarts in {time.monotonic() - began:.1f} s")
            assert restarts >= least
            paid = Counter(submit.request["prompt"] for submit in kie.submits)
            assert paid == dict.fromkeys(prompts.values(), 1)
            assert first == second
            assert sorted(first) == sorted(prompts)
            assert kie.windows() <= limit.limit
            async with AsyncKieClient(CANARY_KEY, base_url=kie.url, store=server.url) as client:
                found = [await client.find(key) for key in prompts]
            assert [entry and entry.task_id for entry in found] == [first[key] for key in prompts]


@pytest.mark.once
async def test_control_an_outage_that_is_not_ridden_out_stops_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: so the tests see that the batch outlives the restarts because statements are repeated."""
    monkeypatch.setattr(database_module, "OUTAGE", 0.0)
    prompts = {f"item {number}": f"draw {number}" for number in range(60)}
    limit = RateLimit(20, per=1.0)
    with postgres.own_server() as server:
        async with Emulator(clock="real", duration=0.3, credits=1_000_000, limit=1_000_000) as kie:
            # With few in flight a key is claimed at every moment, also while the database is away.
            work = asyncio.ensure_future(work_through(server.url, kie, prompts, limit, max_in_flight=4))
            await restart_until_done(server, (0.3, 0.6), work)
            with pytest.raises((KieError, AssertionError)):
                await work


@pytest.mark.once
async def test_an_outage_that_is_longer_than_a_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answers arrive while the database is away. When it is back their process still holds the keys, and
    another gets the tasks that it saves then."""
    monkeypatch.setattr(process_module, "RENEWAL", 0.3)
    with postgres.own_server() as server:
        async with opened(server.url) as database:
            await migrate(database)
            await database.rows(
                "CREATE OR REPLACE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql IMMUTABLE "
                "AS $$ SELECT interval '1.5 s' $$"
            )
        async with (
            Emulator(clock="real", latency=1.0, limit=1000) as kie,
            AsyncKieClient(CANARY_KEY, base_url=kie.url, store=server.url) as sender,
            AsyncKieClient(CANARY_KEY, base_url=kie.url, store=server.url) as other,
        ):
            await other.spent()  # opens it

            def submits(client: AsyncKieClient) -> asyncio.Future[list[ImageTask]]:
                return asyncio.gather(*(client.submit(f"draw {n}", key=f"{n}") for n in range(10)))

            sent = submits(sender)
            async with asyncio.timeout(20):
                while len(kie.submits) < 10:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(server.stop)
            await asyncio.sleep(2.5)
            assert not sent.done()
            await asyncio.to_thread(server.start)
            theirs = await submits(other)
            assert [task.id for task in await sent] == [task.id for task in theirs]
            assert (len(kie.submits), kie.paid) == (10, 10)
