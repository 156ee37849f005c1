"""What reviews found, each as a case that failed before it was mended."""

from __future__ import annotations

import asyncio

import pytest
from clocks import run_scaled, run_virtual
from faults import GOOD_BODY, TASK_ID, Connection, FaultServer, answer, http, raw

import kie4o
from kie4o import AsyncKieClient, PollPolicy, RateLimit, TaskDetails, TaskPoller, TaskState
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import EntryState

RUNNING = TaskDetails("t", state=TaskState.RUNNING)
DONE = TaskDetails("t", state=TaskState.SUCCEEDED, urls=("https://x.example/a.png",))
QUICK = PollPolicy(first=0.34, maximum=0.34, jitter=False)


async def test_a_look_at_a_task_that_has_just_ended_is_served() -> None:
    """Inside the last update of a task it can be looked at, waited for and downloaded."""
    async with Emulator(duration=0.0) as kie:
        async with AsyncKieClient("sk-test", base_url=kie.url, poll=QUICK) as client, asyncio.timeout(5):
            task = await client.submit("x")
            async for details in task.updates():
                assert (await client.details(task.id)).urls == details.urls
                assert (await client.wait(task.id)).urls == details.urls
            seen = []

            async def on_update(details: TaskDetails) -> None:
                seen.append(await client.details(details.task_id))

            await task.wait(on_update=on_update)
            assert seen


def test_a_refused_submit_that_nobody_wants_any_more_is_not_sent_again() -> None:
    """The caller leaves while the POST is under way; it is refused; that is the end of it."""

    async def run(*, close: bool) -> int:
        later = answer(b'{"code":429,"msg":"later"}')

        async def slow(connection: Connection) -> None:
            await connection.request()
            await asyncio.sleep(5)
            await connection.send(http(b'{"code":429,"msg":"later"}'))

        async with FaultServer(slow, later) as server:
            client = AsyncKieClient("sk-test", base_url=server.url, timeout=100)
            submit = asyncio.create_task(client.submit("x"))
            while not server.posts:
                await asyncio.sleep(0.1)
            if not close:
                submit.cancel()
                await asyncio.sleep(60)
            await client.aclose()
            outcome = (await asyncio.gather(submit, return_exceptions=True))[0]
            assert isinstance(outcome, kie4o.RateLimitError if close else asyncio.CancelledError)
            return server.posts

    assert run_scaled(run(close=False), 50) == 1
    assert run_scaled(run(close=True), 50) == 1


async def test_an_id_that_arrived_before_the_loop_was_torn_down_is_kept(monkeypatch) -> None:
    """The answer is there but for its last bytes when the client stops waiting for it: the id is
    recorded, and whoever waited gets the task."""
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.2)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(GOOD_BODY), GOOD_BODY)

    async def almost(connection: Connection) -> None:
        await connection.request()
        await connection.send(head)
        await asyncio.sleep(60)

    store = MemoryStore()
    async with FaultServer(almost) as server:
        client = AsyncKieClient("sk-test", base_url=server.url, timeout=60, store=store)
        submit = asyncio.create_task(client.submit("x"))
        while not server.posts:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await client.aclose()
        assert (await submit).id == TASK_ID
        assert [(entry.state, entry.task_id) async for entry in store.unfinished()] == [
            (EntryState.SUBMITTED, TASK_ID)
        ]


async def test_closing_on_an_answer_that_never_comes_is_unknown_not_cancelled(monkeypatch) -> None:
    """Whoever waits for a submit that closing cut short gets the unknown outcome with its ref."""
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.1)

    async def never(connection: Connection) -> None:
        await connection.request()
        await asyncio.sleep(60)

    async with FaultServer(never) as server:
        client = AsyncKieClient("sk-test", base_url=server.url, timeout=60)
        submit = asyncio.create_task(client.submit("x"))
        while not server.posts:
            await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
            await submit
        assert caught.value.ref


def test_after_a_429_nobody_slips_through_before_the_pause() -> None:
    """A submit that waits for the very slot of the refused one waits for the whole window too."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        async def note(connection: Connection) -> None:
            await connection.request()
            times.append(loop.time())
            body = b'{"code":429,"msg":"later"}' if len(times) == 1 else GOOD_BODY
            await connection.send(http(body))

        async with FaultServer(note) as server:
            limit = RateLimit(1, per=10.0)
            async with AsyncKieClient(
                "sk-test", base_url=server.url, timeout=100, rate_limit=limit
            ) as client:
                await asyncio.gather(client.submit("a"), client.submit("b"))
        assert times[1] - times[0] >= 10.0

    run_scaled(run(), 20)


async def test_one_store_object_serves_one_client_at_a_time() -> None:
    """Two clients that do not know of each other would pay twice for a key."""
    store = MemoryStore()
    async with Emulator() as kie, AsyncKieClient("sk-test", base_url=kie.url, store=store) as first:
        await first.submit("x", key="k")
        with pytest.raises(kie4o.StoreLockedError):
            await AsyncKieClient("sk-test", base_url=kie.url, store=store).submit("x", key="k")
    async with AsyncKieClient("sk-test", base_url=kie.url, store=store) as second:
        assert [entry.key async for entry in second.unfinished()] == ["k"]


async def test_free_calls_stop_with_the_client() -> None:
    """A read that pauses before its next try does not open a new session on a closed client."""
    async with FaultServer(raw(b"")) as server:
        client = AsyncKieClient("sk-test", base_url=server.url)
        call = asyncio.create_task(client.credits())
        while not server.connections:
            await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(kie4o.KieError, match="closed"):
            await call


def test_a_look_that_was_cancelled_by_itself_is_repeated() -> None:
    """A user's own look may end in CancelledError; whoever waits is not forgotten."""

    async def run():
        looks = 0

        async def look(task_id: str) -> TaskDetails:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise asyncio.CancelledError
            return DONE

        return await TaskPoller(look).wait("t", timeout=60)

    assert run_virtual(run()).urls == DONE.urls


def test_looks_may_fail_for_ever() -> None:
    """A thousand failures in a row do not end the waiting by an overflow."""

    async def run() -> int:
        looks = 0

        async def look(task_id: str) -> TaskDetails:
            nonlocal looks
            looks += 1
            if looks > 1500:
                return DONE
            raise kie4o.APIConnectionError("no")

        await TaskPoller(look).wait("t", timeout=None)
        return looks

    assert run_virtual(run()) == 1501


def test_abandoned_waits_leave_no_entries() -> None:
    """Waits that come and go while another one stays do not pile up in the schedule."""

    async def run() -> int:
        async def look(task_id: str) -> TaskDetails:
            return RUNNING

        poller = TaskPoller(look)
        stays = asyncio.create_task(poller.wait("t", timeout=None))
        for _ in range(2000):
            wait = asyncio.create_task(poller.wait("t", timeout=900))
            await asyncio.sleep(0)
            wait.cancel()
            await asyncio.gather(wait, return_exceptions=True)
        size = poller._schedule._entries
        stays.cancel()
        await asyncio.gather(stays, return_exceptions=True)
        await poller.aclose()
        return size

    assert run_virtual(run()) < 100


async def test_a_batch_delivers_what_is_in_flight_when_its_source_breaks() -> None:
    """The source raises: what was paid completes and is yielded, then the source's error is raised."""

    def source():
        yield "a"
        yield "b"
        raise OSError("the file is gone")

    async with (
        Emulator(duration=0.2) as kie,
        AsyncKieClient("sk-test", base_url=kie.url, poll=QUICK) as client,
    ):
        done = []
        with pytest.raises(OSError, match="gone"):
            async for completion in client.generate_many(source()):
                done.append(completion.ok)
        assert done == [True, True]


@pytest.mark.parametrize(
    "bad",
    [
        {"rate_limit": 20},
        {"poll": 5},
        {"store": 5},
        {"store": ":memory:"},
        {"webhook_key": 5},
        {"base_url": "https://" + "ü" * 70 + ".example"},
    ],
)
def test_settings_of_the_wrong_kind_are_refused_when_the_client_is_made(bad) -> None:
    """Not by an AttributeError at the first call."""
    with pytest.raises(kie4o.ConfigurationError, match=next(iter(bad))):
        AsyncKieClient("sk-test", **bad)


async def test_wrong_arguments_are_ours() -> None:
    """Two prompts, URLs that are none, keys that are none: our errors, before any network use."""
    async with AsyncKieClient("sk-test", base_url="http://127.0.0.1:1") as client:
        for call in (
            lambda: client.submit("a", prompt="b"),
            lambda: client.submit(kie4o.ImageRequest("a"), unknown=1),
            lambda: client.download_url("abc", "\ud800"),
            lambda: client.download_url("abc", b"x"),
        ):
            with pytest.raises(kie4o.InvalidRequestError):
                await call()
    for more in ({"key": 5}, {"tolerance": "x"}):
        with pytest.raises(kie4o.ConfigurationError):
            kie4o.parse_callback(b"{}", **more)
    for policy in ({"first": "2"}, {"factor": 1e200, "maximum": 1e300}):
        with pytest.raises(kie4o.ConfigurationError):
            PollPolicy(**policy)
