"""Tasks that end at a status check, which need no clock, and seeds that make ids repeatable."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from clients import QUICK

from kie4o import AsyncKieClient, ContentPolicyError, TaskFailedError
from kie4o.emulator import Emulator
from kie4o.emulator.account import Account
from kie4o.webhooks import routes

BODY = {"prompt": "a lake", "size": "1:1"}


def flags(account: Account, number: int, *, now: float = 5.0) -> list[Any]:
    """What so many status checks of a new task show, all at the same time."""
    account.looks_per_second = 100
    _, task = account.create_task(dict(BODY), now)
    assert task is not None
    return [account.look(task.id, now, url="").data["successFlag"] for _ in range(number)]


@pytest.mark.parametrize("looks", [1, 2, 5])
def test_a_task_ends_at_its_look(looks: int) -> None:
    """The look that is named shows the end, without any time between them."""
    assert flags(Account(looks=looks), 6) == [0] * (looks - 1) + [1] * (7 - looks)


def test_control_without_looks_it_ends_by_the_clock() -> None:
    """The control: at the same time the duration has not passed, however often one looks."""
    assert flags(Account(), 6) == [0] * 6


def test_the_end_is_not_after_its_look() -> None:
    """At every pair of times the look that ends the task finds it ended, in spite of rounding."""
    for number in range(1, 2000):
        account = Account(looks=1)
        created, now = number * 0.1, number * 0.1 + 1e5 / 3 / number
        _, task = account.create_task(dict(BODY), created)
        assert task is not None
        assert account.look(task.id, now, url="").data["completeTime"]
        assert task.end is not None
        assert task.end <= now


def test_only_answered_looks_count() -> None:
    """A look that is refused or comes before the task is known is none."""
    account = Account(looks=2, record_delay=10)
    _, task = account.create_task(dict(BODY), 0.0)
    assert task is not None
    codes = [account.look(task.id, now, url="").code for now in (2.0, 11.0, 11.1, 11.2, 11.3)]
    assert codes == [422, 200, 200, 200, 429]
    assert task.end == pytest.approx(11.1)


def test_progress_follows_the_looks() -> None:
    """Linear progress grows with each look; the one that ends it shows 1."""
    account = Account(looks=4, progress="linear")
    _, task = account.create_task(dict(BODY), 0.0)
    assert task is not None
    assert [account.look(task.id, now, url="").data["progress"] for now in (1.0, 2.0, 3.0, 4.0)] == [
        "0.25",
        "0.33",
        "0.50",
        "1.00",
    ]


def test_looks_beside_a_duration_are_refused() -> None:
    """One of the two ends a task. A duration of a plan goes before the looks of all tasks."""
    kie = Emulator()
    with pytest.raises(ValueError, match="either duration= or looks=2"):
        kie.plan("a lake", duration=3, looks=2)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="looks"):
            Emulator(looks=wrong)
        with pytest.raises(ValueError, match="looks"):
            kie.next(looks=wrong)
    account = Emulator(looks=1)
    account.plan("a lake", duration=20)
    assert flags(account, 2) == [0, 0]


@contextlib.asynccontextmanager
async def receiver(client: AsyncKieClient) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes(routes(client, "/kie/{ref}"))
    async with TestServer(app) as server:
        yield f"http://127.0.0.1:{server.port}/kie/{{ref}}"


async def test_an_ordinary_client_needs_no_clock() -> None:
    """In real time a task of minutes takes as long as its status checks; outcomes are as ever."""
    start = time.monotonic()
    async with Emulator(clock="real", duration=300, looks=3) as kie:
        kie.plan("a forbidden lake", looks=1, outcome="policy")
        kie.next(looks=2, outcome="failed")
        async with AsyncKieClient("any-key", base_url=kie.url, poll=QUICK) as client:
            with pytest.raises(TaskFailedError):
                await client.generate("a lake")
            await client.generate("a boat")
            with pytest.raises(ContentPolicyError):
                await client.generate("a forbidden lake")
    assert [len(task.looks) for task in kie.tasks.values()] == [2, 3, 1]
    assert time.monotonic() - start < 30


async def test_the_callback_comes_at_that_look() -> None:
    """Not before, and once; what it says is final."""
    async with (
        Emulator(looks=2, webhook_key="w") as kie,
        AsyncKieClient("any-key", base_url=kie.url, webhook_key="w") as client,
        receiver(client) as url,
    ):
        task = await client.submit("a bell", callback_url=url)
        with pytest.raises(ValueError, match="ends after 2 more status checks"):
            await kie.call_back(task.id)
        for expected in (0, 0, 1):
            assert len(kie.callbacks) == expected
            details = await task.details()
            while details.urls and not kie.callbacks:
                await client.credits()  # the callback is under way
        result = await task
    assert [call.status for call in kie.callbacks] == [200]
    assert kie.callbacks[0].message["data"]["info"]["result_urls"] == list(result.urls)


def ids(seed: int | None) -> list[str]:
    account = Account(seed=seed)
    for _ in range(5):
        account.create_task(dict(BODY), 0.0)
    return list(account.tasks)


def test_a_seed_makes_ids_repeatable() -> None:
    """The same ids in every run; others with another seed, and none repeat."""
    assert ids(7) == ids(7) != ids(8)
    assert len({*ids(7)}) == 5
    assert all(len(each) == 32 and int(each, 16) for each in ids(7))


def test_control_without_a_seed_ids_differ() -> None:
    """The control."""
    assert ids(None) != ids(None)


@pytest.mark.parametrize(
    ("planned", "outcome", "state"), [("failed", None, 3), ("stuck", None, 1), ("success", "policy", 2)]
)
async def test_end_does_not_wait_for_looks(planned: str, outcome: str | None, state: int) -> None:
    """A task that counts looks can be ended at once: as it would have ended, or with another outcome."""
    async with Emulator(looks=5) as kie, AsyncKieClient("k", base_url=kie.url) as client:
        kie.next(outcome=planned)
        task = await client.submit("a lake")
        kie.end(task.id, outcome)
        assert (await task.details()).raw["successFlag"] == state
        with pytest.raises(ValueError, match="has ended already"):
            kie.end(task.id)
