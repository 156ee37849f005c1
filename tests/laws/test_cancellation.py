"""Law 6: cancel submit, generate and wait at every suspension; nothing leaks, and no paid id is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc

import aiohttp
import pytest
from canary import CANARY_KEY
from cancelling import cancelled_after, cancelled_at
from clients import QUICK, until
from clocks import run_scaled
from faults import open_sockets

from kie4o import AsyncKieClient, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore

SPEED = 20  # loop seconds per second
VERBS = ["submit", "submit, keyed", "generate", "wait", "details"]


async def one_cancel(verb: str, cancel, *, busy: bool) -> str:
    """One client, one call, one cancel; check every promise, and return how the call ended."""
    before = open_sockets()
    async with Emulator(duration=0.0, latency=0.002, credits=600) as kie:
        store = MemoryStore()
        client = AsyncKieClient(
            CANARY_KEY,
            base_url=kie.url,
            poll=QUICK,
            store=store,
            max_in_flight=1,
            rate_limit=RateLimit(1, per=0.2),
        )
        if busy:  # take the slot, so that the call first waits in the limiter
            await client.submit("other")
        paid_before = set(kie.tasks)
        task_id = (await client.submit("x")).id if verb in ("wait", "details") else ""
        call = {
            "submit": lambda: client.submit("x"),
            "submit, keyed": lambda: client.submit("x", key="k"),
            "generate": lambda: client.generate("x"),
            "wait": lambda: client.wait(task_id),
            "details": lambda: client.details(task_id),
        }[verb]
        ended, value = await cancel(call())
        assert ended != "raised", value

        await until(lambda: client._submissions.live == 0)
        await until(lambda: client._poller.waiting == 0)
        assert client._limiter.open == 0
        assert client._limiter.waiting == 0
        assert client._lifecycle.permits.in_use == 0
        known = {entry.task_id async for entry in store.unfinished()}
        new = set(kie.tasks) - paid_before
        if ended == "cancelled":
            assert new <= known
        assert kie.posts == len(kie.tasks)
        assert all(task.submits == 1 for task in kie.tasks.values())

        assert (await client.generate("y")).urls  # the only permit and the only slot are free again
        await client.aclose()
        await asyncio.sleep(0)
        others = [task for task in asyncio.all_tasks() if "kie4o" in task.get_name()]
        assert others == []
    gc.collect()
    await until(lambda: open_sockets() <= before)
    return ended


@pytest.mark.parametrize("mode", ["pending", "done"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.sweep
def test_cancel_at_every_suspension(verb: str, mode) -> None:
    """At each suspension of the caller, pending or just done, the cancel is not swallowed.

    Only a call that was complete returns, and nothing is left behind.
    """

    async def sweep(*, busy: bool) -> int:
        cancelled = 0
        for at in range(200):
            ended = await one_cancel(verb, lambda call, at=at: cancelled_at(call, at, mode), busy=busy)
            cancelled += ended == "cancelled"
            if ended == "over":
                return cancelled
        pytest.fail("the sweep did not end")

    assert run_scaled(sweep(busy=False), SPEED) >= 1
    assert run_scaled(sweep(busy=True), SPEED) >= 1


@pytest.mark.parametrize("verb", ["submit", "submit, keyed", "generate", "wait"])
@pytest.mark.sweep
def test_cancel_after_every_tick(verb: str) -> None:
    """After each turn of the loop, until after the answer of the submit.

    This reaches the inside of the submit's own task: connecting, sending and reading.
    """

    async def sweep() -> list[str]:
        ends = []
        for ticks in range(120):
            cancel = lambda call, ticks=ticks: cancelled_after(call, ticks)  # noqa: E731  # binds `ticks`
            ends.append(await one_cancel(verb, cancel, busy=False))
            if ends[-1] == "over":
                break
        return ends

    assert run_scaled(sweep(), SPEED).count("cancelled") >= 5


async def naive_submit(session: aiohttp.ClientSession, url: str, kept: list[str]) -> None:
    """What people write first: the caller's own coroutine posts, then remembers the id."""
    async with session.post(
        f"{url}/api/v1/gpt4o-image/generate",
        json={"prompt": "x", "size": "1:1"},
        headers={"Authorization": f"Bearer {CANARY_KEY}"},
    ) as response:
        kept.append((await response.json())["data"]["taskId"])


async def test_control_a_naive_client_loses_paid_ids() -> None:
    """Control: the same sweep over a naive submit finds ids that were paid and are not known."""
    lost = 0
    async with Emulator(duration=0.0, latency=0.002, credits=6000, limit=10_000) as kie:
        async with aiohttp.ClientSession() as session:
            kept: list[str] = []
            for ticks in range(60):
                await cancelled_after(naive_submit(session, kie.url, kept), ticks)
                await asyncio.sleep(0.01)
            lost = len(set(kie.tasks) - set(kept))
    assert lost > 0


async def test_a_cancelled_generate_keeps_its_permit_until_it_is_answered() -> None:
    """`max_in_flight` counts a POST whose caller is gone: the next one starts when it is answered."""
    async with Emulator(duration=0.0, latency=0.1) as kie:
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK, max_in_flight=1) as client:
            first = asyncio.create_task(client.generate("a"))
            await until(lambda: kie.posts == 1)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            assert client._lifecycle.permits.in_use == client._lifecycle.permits.limit
            await client.submit("b")
            times = sorted(task.created for task in kie.tasks.values())
            assert times[1] - times[0] >= 0.1


async def test_one_of_two_callers_of_a_key_leaves() -> None:
    """A submit that two callers share by its key goes on when one of them is cancelled."""
    async with Emulator(duration=0.0) as kie:
        limit = RateLimit(1, per=0.2)
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK, rate_limit=limit) as client:
            await client.submit("takes the slot")
            first = asyncio.create_task(client.submit("x", key="k"))
            second = asyncio.create_task(client.submit("x", key="k"))
            await asyncio.sleep(0.01)
            first.cancel()
            assert (await second).id in kie.tasks
            assert first.cancelled()
            assert kie.posts == 2


async def test_asyncio_timeout_around_generate_is_clean() -> None:
    """`asyncio.timeout` around a call ends it with `TimeoutError` and leaves nothing behind."""
    async with Emulator(duration=60.0) as kie:
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.generate("x")
            assert client._poller.waiting == 0
