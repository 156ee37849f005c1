"""`AsyncKieClient(speed=)`: what is divided by it, what is not, and where it is refused."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from clocks import run_virtual

from kie4o import (
    APITimeoutError,
    AsyncKieClient,
    ConfigurationError,
    PollPolicy,
    RateLimit,
    TaskDetails,
    TaskError,
    TaskState,
    TaskTimeoutError,
    sign_callback,
)
from kie4o.arguments import poll_of
from kie4o.clock import unix_time
from kie4o.emulator import Emulator
from kie4o.webhooks import routes

SPEED = 10.0  # of the clients here, whose waits are measured in virtual time
PLAIN = PollPolicy(jitter=False)

Prepare = Callable[[Emulator], object]


async def took(speed: float, prepare: Prepare, duration: float, **settings: Any) -> float:
    """The seconds of the emulator that a task takes for a client at this speed."""
    loop = asyncio.get_running_loop()
    async with (
        Emulator(duration=duration / speed, per=10 / speed, looks_per_second=100) as kie,
        AsyncKieClient("any-key", base_url=kie.url, speed=speed, **{"poll": PLAIN} | settings) as client,
    ):
        prepare(kie)
        start = loop.time()
        try:
            await client.generate("a lake")
        except TaskError as error:
            assert not isinstance(error, TaskTimeoutError)
        return speed * (loop.time() - start)


CASES: dict[str, tuple[Prepare, float, dict[str, Any]]] = {
    "the first look": (lambda kie: None, 2, {}),
    "looks that fail": (lambda kie: kie.fault("look", code=500, times=4), 2 + 0.34 * (2 + 4 + 8 + 16), {}),
    "looks without images": (lambda kie: kie.next(outcome="no_images"), 2 + 3 + 4.5 + 5 + 5, {}),
    "looks that are refused": (lambda kie: kie.fault("look", code=401, times=3), 12, {}),
    "looks at a slow task": (lambda kie: None, 60, {"duration": 60.0}),
    "looks that are learned": (lambda kie: None, 30, {"duration": 30.0, "poll": PollPolicy.adaptive()}),
    "a task that is unknown": (lambda kie: kie.next(outcome="missing"), 90, {}),
    "a resend after maintenance": (lambda kie: kie.next(answer=455), 62, {}),
    "a resend in the next window": (lambda kie: kie.next(answer=429), 12, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_waits_are_divided(case: str) -> None:
    """At ten times the speed each takes a tenth, as exactly as one look of the poller allows."""
    prepare, least, settings = CASES[case]
    settings = {"duration": 0.0} | settings
    slow, fast = (run_virtual(took(speed, prepare, **settings)) for speed in (1.0, SPEED))
    assert slow >= least
    assert fast == pytest.approx(slow, rel=0.2 if "learned" in case else 0.001)


def test_control_without_a_speed_they_are_not() -> None:
    """The control: of a client that does not know the speed of the emulator, one look takes 2 s."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with Emulator() as kie, AsyncKieClient("k", base_url=kie.url, poll=PLAIN) as client:
            start = loop.time()
            kie.next(duration=0.0)
            await client.generate("a lake")
            return loop.time() - start

    assert run_virtual(main()) == pytest.approx(2, abs=0.01)


def test_the_window_of_the_limit_is_divided() -> None:
    """Kie never sees more than its limit, and the limit is used up."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        limit = RateLimit(5, per=10)
        async with (
            Emulator(duration=0.0, limit=5, per=10 / SPEED) as kie,
            AsyncKieClient("k", base_url=kie.url, speed=SPEED, rate_limit=limit) as client,
        ):
            start = loop.time()
            async for done in client.generate_many([f"p{number}" for number in range(20)]):
                assert done.ok
            assert 30 <= SPEED * (loop.time() - start) < 50
            assert kie.answers()[429] == 0
            assert kie.windows() == 5

    run_virtual(main())


def test_the_net_below_callbacks_is_divided() -> None:
    """Without its callback a task is looked at after a minute of the emulator."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        url = "http://127.0.0.1:9/kie/{ref}"
        async with (
            Emulator(duration=5 / SPEED, callback="never") as kie,
            AsyncKieClient("k", base_url=kie.url, speed=SPEED, callback_url=url) as client,
        ):
            start = loop.time()
            await client.generate("a lake")
            assert [len(task.looks) for task in kie.tasks.values()] == [1]
            return SPEED * (loop.time() - start)

    assert run_virtual(main()) == pytest.approx(60, rel=0.11)


def test_confirming_a_callback_is_repeated_sooner() -> None:
    """A callback is kept although looks fail, and its task is looked at again after a second, and two."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with (
            Emulator(duration=0.0, webhook_key="w", callback="never") as kie,
            AsyncKieClient("k", base_url=kie.url, speed=SPEED, webhook_key="w") as client,
        ):
            app = web.Application()
            app.add_routes(routes(client, "/kie/{ref}"))
            async with TestServer(app) as server:
                url = f"http://127.0.0.1:{server.port}/kie/{{ref}}"
                task = await client.submit("a lake", key="one", callback_url=url)
                kie.fault("look", code=500, times=2)
                start = loop.time()
                assert (await kie.call_back(task.id)).status == 200
                while [entry async for entry in client.unfinished()]:
                    await asyncio.sleep(0.01)
                return SPEED * (loop.time() - start)

    assert 3 <= run_virtual(main()) < 4


def test_a_callback_is_not_confirmed_by_an_earlier_look() -> None:
    """A look that is under way when the callback arrives began too early, in the time of either."""

    async def main() -> None:
        async with (
            Emulator(duration=0.3, look_latency=1.0, looks_per_second=100) as kie,
            AsyncKieClient("k", base_url=kie.url, speed=SPEED, webhook_key="w") as client,
        ):
            task = await client.submit("a lake")
            early = asyncio.create_task(task.details())
            await asyncio.sleep(0.5)
            body = json.dumps({"code": 200, "msg": "success", "data": {"taskId": task.id}})
            headers = sign_callback(task.id, key="w", timestamp=int(unix_time()))
            details = await client.deliver(client.parse_callback(body, headers))
            assert (await early).state is TaskState.RUNNING
            assert details.state is TaskState.SUCCEEDED

    run_virtual(main())


def test_timeouts_are_not_divided() -> None:
    """That of an exchange, and those of a wait: seconds are what a caller says."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with (
            Emulator(outcome="stuck") as kie,
            AsyncKieClient("k", base_url=kie.url, speed=SPEED, timeout=3.0) as client,
        ):
            task = await client.submit("a lake")
            updates: list[TaskDetails] = []
            for more in ({}, {"on_update": updates.append}):
                start = loop.time()
                with pytest.raises(TaskTimeoutError):
                    await client.wait(task.id, timeout=20, **more)
                assert loop.time() - start == pytest.approx(20, abs=0.1)

            async def slow(details: TaskDetails) -> None:
                await asyncio.sleep(3600)

            start = loop.time()
            with pytest.raises(TaskTimeoutError):
                await client.wait(task.id, timeout=20, on_update=slow)
            assert loop.time() - start == pytest.approx(20, abs=0.1)
            kie.look_latency = 5.0
            start = loop.time()
            with pytest.raises(APITimeoutError):
                await client.details(task.id)
            assert loop.time() - start == pytest.approx(3, abs=0.1)

    run_virtual(main())


@pytest.mark.parametrize("url", [None, "https://api.kie.ai", "https://kie.example"])
def test_it_is_refused_beside_kie(url: str | None) -> None:
    """Faster than Kie's limits is for an emulator only; 1 is always possible."""
    AsyncKieClient("any-key", base_url=url, speed=1)
    with pytest.raises(
        ConfigurationError, match=r"invalid speed=100: expected 1\.0, since https://.* is not"
    ):
        AsyncKieClient("any-key", base_url=url, speed=100)


@pytest.mark.parametrize("speed", [0, -1, float("inf"), float("nan"), True, "10", None])
def test_it_is_a_positive_number(speed: Any) -> None:
    """Anything else is named, also on loopback."""
    with pytest.raises(ConfigurationError, match=r"invalid speed=.*: expected a positive number"):
        AsyncKieClient("any-key", base_url="http://127.0.0.1:1", speed=speed)


CROWD = 250


async def crowd_took(poll: PollPolicy | None) -> float:
    """The seconds until tasks that are submitted together and are done after one have all been found done."""
    loop = asyncio.get_running_loop()
    many = RateLimit(10 * CROWD, per=1.0)
    async with (
        Emulator(duration=1.0, limit=10 * CROWD, credits=1e9) as kie,
        AsyncKieClient("k", base_url=kie.url, poll=poll, rate_limit=many, max_in_flight=CROWD) as client,
    ):
        start = loop.time()
        async for done in client.generate_many(f"picture {number}" for number in range(CROWD)):
            done.unwrap()
        return loop.time() - start


@pytest.mark.once
@pytest.mark.parametrize(
    "poll",
    [None, PollPolicy(jitter=False), PollPolicy(looks_per_second=None)],
    ids=["none", "default", "lifted"],
)
def test_on_loopback_there_is_no_limit_of_all_polls(poll: PollPolicy | None) -> None:
    """The tasks of an emulator are found when they are due, however many there are."""
    assert run_virtual(crowd_took(poll)) < 3


@pytest.mark.once
@pytest.mark.parametrize("limit", [90, 100.0])
def test_a_limit_of_all_polls_that_is_given_holds_on_loopback(limit: float) -> None:
    """Control: 250 polls at 90 per second take 2.5 s longer. Also one that is as high as the default."""
    assert run_virtual(crowd_took(PollPolicy(looks_per_second=limit))) > 3.5


def test_a_copy_of_a_policy_has_a_limit_of_its_own_only_if_that_was_given() -> None:
    """A copy, a pickle and a policy with another setting."""
    for policy, lifted in ((PollPolicy(), True), (PollPolicy(looks_per_second=100.0), False)):
        same = (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy)), attrs.evolve(policy, first=3.0))
        for each in same:
            assert each.looks_per_second == 100.0
            assert (poll_of(each, loopback=True).looks_per_second is None) == lifted
            assert poll_of(each, loopback=False) is each
