"""The client as a user meets it, against the emulator."""

from __future__ import annotations

import asyncio
import gc
import json
import pickle
import random
import re
import time
from decimal import Decimal
from pathlib import Path

import aiohttp
import pytest
from canary import CANARY_KEY
from clients import QUICK, until
from clocks import run_scaled
from faults import FaultServer, answer, in_a_thread, raw, stall, unused_port

import kie4o
from kie4o import AsyncKieClient, ImageRequest, PollPolicy, RateLimit, TaskState
from kie4o.emulator import Emulator


def client_of(kie: Emulator | FaultServer, **more) -> AsyncKieClient:
    return AsyncKieClient(
        **{"api_key": CANARY_KEY, "base_url": kie.url, "poll": QUICK, "timeout": 5.0} | more
    )


# -- the account limit -----------------------------------------------------------------------------


def short_tail(rng: random.Random) -> float:
    return rng.uniform(0, 1.5) if rng.random() < 0.05 else 0.08


def anything(rng: random.Random) -> float:
    return rng.uniform(0, 1.5)


@pytest.mark.parametrize(("latency", "least", "speed"), [(short_tail, 0.97, 3), (anything, 0.88, 5)])
@pytest.mark.paced
@pytest.mark.sweep
def test_two_hundred_tasks_through_a_strict_window(latency, least, speed) -> None:
    """200 generates get no 429, at nearly the ideal rate of 2 per second.

    No task is looked at more than 3 times in any second.
    """
    rng = random.Random(7)

    async def run() -> None:
        kie = Emulator(
            duration=lambda: rng.uniform(5, 20), latency=lambda: latency(rng), credits=1e6, pictures=False
        )
        async with kie, client_of(kie, poll=PollPolicy(), max_in_flight=200, timeout=60.0) as client:
            results = await asyncio.gather(*(client.generate(f"prompt {number}") for number in range(200)))
        assert len({result.task_id for result in results}) == 200
        assert (kie.answers()[429], len(kie.submits), kie.paid) == (0, 200, 200)
        assert kie.windows() <= 20
        assert kie.windows("look") <= 3
        assert kie.answers("look")[429] == 0
        created = sorted(task.created for task in kie.tasks.values())
        share = (200 - 20) / 2.0 / (created[-1] - created[0])
        print(f"share of the ideal rate: {share:.4f}")
        assert share >= least

    run_scaled(run(), speed)


async def test_max_in_flight_bounds_unfinished_generates() -> None:
    """At most `max_in_flight` tasks are unfinished; a bare submit does not wait for one to finish."""
    async with Emulator(duration=0.3, limit=1000) as kie:
        async with client_of(kie, max_in_flight=3, rate_limit=RateLimit(1000, per=10)) as client:
            running = [asyncio.create_task(client.generate(f"{number}")) for number in range(9)]
            most = 0
            while not all(task.done() for task in running):
                ended = sum(task.done() for task in running)
                most = max(most, len(kie.tasks) - ended)
                await asyncio.sleep(0.005)
            assert most == 3
            tasks = await asyncio.gather(*(client.submit(f"s{number}") for number in range(9)))
            assert len(tasks) == 9


# -- values and handles ----------------------------------------------------------------------------


async def test_generate_gives_images_and_updates() -> None:
    """One await from prompt to URLs; `on_update` sees each look, and all variants are there."""
    async with Emulator(duration=0.5, progress="linear") as kie, client_of(kie) as client:
        seen = []
        result = await client.generate("x", n_variants=2, on_update=seen.append)
        assert len(result) == 2
        assert list(result) == list(result.urls)
        assert not result.partial
        assert [details.state for details in seen][-1] is TaskState.SUCCEEDED
        assert result.details.params["prompt"] == "x"


async def test_partial_results_are_delivered_and_say_so() -> None:
    """Fewer images than requested are still returned, and `partial` is true."""
    async with Emulator(duration=0.0, outcome="partial") as kie, client_of(kie) as client:
        result = await client.generate("x", n_variants=4)
        assert (len(result), result.partial) == (3, True)


async def test_a_task_is_a_handle() -> None:
    """Awaiting a task twice, or waiting for its id later, gives equal results."""
    async with Emulator(duration=0.0) as kie, client_of(kie) as client:
        task = await client.submit(ImageRequest("x"))
        assert task.request == ImageRequest("x")
        first, second = await task, await task
        assert first == second == await client.task(task.id) == await client.wait(task.id)
        assert (await task.details()).state is TaskState.SUCCEEDED
        assert [details.state async for details in task.updates()] == [TaskState.SUCCEEDED]
        assert pickle.loads(pickle.dumps(first)) == first


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        ("failed", kie4o.TaskFailedError),
        ("policy", kie4o.ContentPolicyError),
        ("input", kie4o.InputImageError),
        ("create_failed", kie4o.TaskFailedError),
        ("no_images", kie4o.NoImagesError),
    ],
)
async def test_outcomes_are_typed(outcome, kind) -> None:
    """Each way a task can end without images has its own error, with the paid task id."""
    async with Emulator(duration=0.0, outcome=outcome) as kie, client_of(kie) as client:
        with pytest.raises(kind) as caught:
            await client.generate("x")
        assert caught.value.task_id in kie.tasks


async def test_the_prompt_may_be_a_keyword_like_all_other_fields() -> None:
    """`generate(prompt=...)` is the same as passing it first."""
    async with Emulator(duration=0.0) as kie, client_of(kie) as client:
        result = await client.generate(prompt="a lake", size="3:2")
        assert kie.tasks[result.task_id].request == {"prompt": "a lake", "size": "3:2"}


async def test_any_exception_of_generate_names_the_paid_task() -> None:
    """An exception of `on_update`, or a cancel, gets the task id as a note."""
    async with Emulator(duration=60.0) as kie, client_of(kie) as client:

        def broken(details: object) -> None:
            raise RuntimeError("boom")

        with pytest.raises(RuntimeError) as caught:
            await client.generate("x", on_update=broken)
        [task_id] = kie.tasks
        assert task_id in caught.value.__notes__[0]
        running = asyncio.create_task(client.generate("y"))
        await until(lambda: client._runtime.poller.waiting)
        running.cancel()
        with pytest.raises(asyncio.CancelledError) as cancelled:
            await running
        assert list(kie.tasks)[-1] in cancelled.value.__notes__[0]


async def test_any_exception_of_a_wait_names_the_paid_task() -> None:
    """The same for a wait by the id, and for a handle that is awaited; once, however deep it came from."""
    async with Emulator(duration=60.0) as kie, client_of(kie) as client:
        task = await client.submit("x")
        for wait in (lambda: client.wait(task.id), task.wait, lambda: task):
            running = asyncio.ensure_future(wait())
            await until(lambda: client._runtime.poller.waiting)
            running.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await running
            assert [task.id in note for note in cancelled.value.__notes__] == [True]
        await client.aclose()
        with pytest.raises(kie4o.KieError) as closed:
            await client.wait(task.id)
        assert closed.value.task_id == task.id


async def test_the_timeout_applies_to_looks() -> None:
    """`timeout` ends a look that is not answered."""
    async with FaultServer(stall) as server, client_of(server, timeout=0.2) as client:
        async with asyncio.timeout(5):
            with pytest.raises(kie4o.APITimeoutError):
                await client.details("a" * 32)


async def test_an_answer_that_arrives_while_the_loop_is_blocked_is_no_timeout() -> None:
    """A look whose answer was there before the deadline succeeds.

    The loop is blocked meanwhile, and gets to the answer and the deadline at once.
    """
    record = {"taskId": "a" * 32, "status": "SUCCESS", "successFlag": 1, "errorCode": None}
    record |= {"response": {"resultUrls": ["https://x.example/a.png"]}, "errorMessage": None}
    body = json.dumps({"code": 200, "msg": "", "data": record}).encode()
    with in_a_thread(body) as (url, looked):
        async with AsyncKieClient(CANARY_KEY, base_url=url) as client:
            running = asyncio.create_task(client.wait("a" * 32, timeout=0.5))
            while not looked.is_set():
                await asyncio.sleep(0.001)
            time.sleep(0.7)
            assert (await running).urls == ("https://x.example/a.png",)


async def test_a_timeout_keeps_the_task() -> None:
    """The wait ends and the task goes on: its id is on the error, and a later wait returns the images."""
    async with Emulator(duration=0.8) as kie, client_of(kie) as client:
        with pytest.raises(kie4o.TaskTimeoutError) as caught:
            await client.generate("x", timeout=0.1)
        result = await client.wait(caught.value.task_id)
        assert result.urls
        assert len(kie.submits) == 1


async def test_credits_and_links() -> None:
    """The balance is a Decimal with its fraction; a signed link is text."""
    async with Emulator(duration=0.0, credits=60.62) as kie, client_of(kie) as client:
        assert await client.credits() == Decimal("60.62")
        result = await client.generate("x")
        link = await client.download_url(result.task_id, result.urls[0])
        assert link.startswith(kie.url)
        with pytest.raises(kie4o.UnprocessableEntityError):
            await client.download_url("0" * 32, result.urls[0])


async def test_upload_generate_download(tmp_path) -> None:
    """A file is uploaded and used; images are saved under the task id, and no host but Kie gets the key."""
    picture = tmp_path / "in.png"
    async with Emulator(duration=0.0) as kie, client_of(kie) as client:
        [first] = await client.download(await client.generate("x"), tmp_path, name="in")
        assert first == picture
        stored = await client.upload(picture)
        result = await client.generate("more", files_url=[stored.url], n_variants=2)
        paths = await client.download(result.task_id, tmp_path / "out")
        assert [path.name for path in paths] == [f"{result.task_id}_{index}.png" for index in (0, 1)]
        assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
        assert list(kie.leaked_keys) == []


async def test_downloading_a_task_without_images_is_refused() -> None:
    """Unfinished, unknown, without images or no id at all: each has its error, before any file is written."""
    async with Emulator(duration=60.0) as kie, client_of(kie) as client:
        task = await client.submit("x")
        with pytest.raises(kie4o.DownloadError, match="wait for it first"):
            await client.download(task.id, "nowhere")
        with pytest.raises(kie4o.DownloadError, match="check the id and the account"):
            await client.download("0" * 32, "nowhere")
        kie.plan("y", outcome="no_images", duration=0.0)
        with pytest.raises(kie4o.DownloadError, match="none yet"):
            await client.download((await client.submit("y")).id, "nowhere")
        with pytest.raises(kie4o.InvalidRequestError, match="task_id"):
            await client.download("no such id!", "nowhere")


# -- errors of free calls --------------------------------------------------------------------------


async def test_free_calls_are_retried() -> None:
    """A temporary failure is retried, a lasting one is typed, and a refusal is not retried."""
    good = answer(b'{"code":200,"msg":"success","data":5916.25}')
    async with (
        FaultServer(raw(b""), answer(b"<html>", "502 Bad"), good) as server,
        client_of(server) as client,
    ):
        assert await client.credits() == Decimal("5916.25")
        assert server.connections == 3
    async with FaultServer(answer(b"<html>", "502 Bad")) as server, client_of(server) as client:
        with pytest.raises(kie4o.InternalServerError):
            await client.credits()
    refusal = answer(b'{"code":401,"msg":"You do not have access permissions"}')
    async with FaultServer(refusal) as server, client_of(server) as client:
        with pytest.raises(kie4o.AuthenticationError, match="KIE_API_KEY"):
            await client.credits()
        assert server.connections == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"code":200}',
        b'{"code":200,"data":[]}',
        b'{"code":200,"data":NaN}',
        b"x" * (1 << 20 | 1),
    ],
)
async def test_unreadable_answers_are_our_errors(body) -> None:
    """Empty, HTML, mistyped, NaN or huge answers of a free call raise a `KieError`."""
    async with FaultServer(answer(body)) as server, client_of(server) as client:
        for call in (client.credits(), client.details("t")):
            try:
                outcome = await call
            except kie4o.KieError:
                continue
            assert outcome.state is TaskState.MISSING  # for `{"code":200}`, which has no record


async def test_a_look_is_sent_once() -> None:
    """aiohttp repeats a broken GET on its own; a look does not, since only three a second are allowed."""
    async with FaultServer(raw(b"")) as server, client_of(server) as client:
        with pytest.raises(kie4o.APIConnectionError):
            await client.details("t")
        assert server.connections == 1


async def test_control_aiohttp_repeats_a_get() -> None:
    """Control: a plain session sends it twice."""
    async with FaultServer(raw(b"")) as server, aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientError):
            await session.get(server.url)
        assert server.connections == 2


async def test_another_tasks_record_is_refused() -> None:
    """An answer about another task is an error."""
    body = b'{"code":200,"data":{"taskId":"other","status":"SUCCESS","response":["https://x.example/a"]}}'
    async with FaultServer(answer(body)) as server, client_of(server) as client:
        with pytest.raises(kie4o.UnexpectedResponseError, match="another task"):
            await client.details("mine")


# -- arguments, sessions, closing ------------------------------------------------------------------


async def test_wrong_arguments_are_refused_before_any_network_use() -> None:
    """Invalid requests, keys, ids and unknown fields raise `InvalidRequestError` without a connection."""
    async with FaultServer(answer()) as server, client_of(server) as client:
        for call in (
            lambda: client.submit(""),
            lambda: client.submit("x", size="16:9"),
            lambda: client.submit("x", sise="1:1"),
            lambda: client.submit("x", key=" "),
            lambda: client.submit(None),
            lambda: client.wait("not an id"),
            lambda: client.details(""),
            lambda: client.generate("x", timeout="5"),
            lambda: client.generate("x", timeout=-1),
            lambda: client.generate("x", timeout=float("nan")),
            lambda: client.generate("x", on_update="nope"),
            lambda: client.wait("t", timeout=0),
            lambda: client.download(12, "nowhere"),
            lambda: client.submit("x", on_unknown="maybe"),
            lambda: client.submit("x", retry_failed="no"),
            lambda: client.submit("x", key=5),
            lambda: client.submit("x", prompt="y"),
            lambda: client.submit(prompt=""),
            lambda: client.submit(ImageRequest("x"), unknown=1),
            lambda: client.download_url("abc", "\ud800"),
            lambda: client.download_url("abc", b"x"),
        ):
            with pytest.raises(kie4o.InvalidRequestError):
                await call()
        assert server.connections == 0


async def test_a_refusal_says_what_to_do() -> None:
    """Where the expected value alone does not."""
    async with FaultServer(answer()) as server, client_of(server) as client:
        for call, words in (
            (lambda: client.submit("x", quality="high"), "goes into extra={...}"),
            (lambda: client.submit("x", file_urls=["https://a.example/b.png"]), "did you mean files_url="),
            (lambda: client.submit("x", key=5), "a string of 1 to 512"),
            (lambda: client.upload_from_url("boat.png"), "for a local file use upload"),
            (lambda: client.upload_from_url(Path("boat.png")), "for a local file use upload"),
        ):
            with pytest.raises(kie4o.InvalidRequestError, match=re.escape(words)):
                await call()
        with pytest.raises(kie4o.InvalidRequestError) as caught:
            await client.upload_from_url("https://a b")
        assert "local file" not in str(caught.value)
        assert server.connections == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"timeout": 0},
        {"timeout": "5"},
        {"wait_timeout": -1},
        {"max_in_flight": 0},
        {"max_in_flight": 2.5},
        {"callback_url": "ftp://x"},
        {"base_url": "http://kie.example"},
        {"session": "x"},
        {"proxy": "foo"},
        {"proxy": 5},
        {"trust_callbacks": "false"},
        {"trust_env": "no"},
        {"rate_limit": 20},
        {"poll": 5},
        {"store": 5},
        {"store": ":memory:"},
        {"webhook_key": 5},
        {"base_url": "https://" + "ü" * 70 + ".example"},
    ],
)
def test_invalid_settings_are_named(bad) -> None:
    """The constructor refuses what cannot work, and names the argument."""
    with pytest.raises(kie4o.ConfigurationError, match=next(iter(bad))):
        AsyncKieClient(CANARY_KEY, **bad)


async def test_a_lent_session_is_used_and_stays_open() -> None:
    """The caller's session serves free calls, its connector the POST, and it is not closed."""
    async with Emulator(duration=0.0) as kie, aiohttp.ClientSession() as session:
        async with client_of(kie, session=session) as client:
            assert (await client.generate("x")).urls
            with pytest.raises(kie4o.APIConnectionError, match="was not sent"):
                other = client_of(kie, session=session, base_url=f"http://127.0.0.1:{unused_port()}")
                async with other:
                    await other.submit("x")
        assert not session.closed
        assert kie.user_agents == {f"kie4o/{kie4o.__version__}"}
    assert session.closed


def test_a_client_belongs_to_one_loop() -> None:
    """In a second `asyncio.run` its error says what to do, instead of «Event loop is closed»."""

    async def use(sentence: str) -> None:
        with pytest.raises(kie4o.KieError, match=sentence):
            await client.credits()

    client = AsyncKieClient(CANARY_KEY, base_url=f"http://127.0.0.1:{unused_port()}", timeout=1)
    with asyncio.Runner() as runner:
        runner.run(use("cannot connect"))
        with asyncio.Runner() as other:
            other.run(use("one event loop"))
        runner.run(client.aclose())
        runner.run(use("closed"))


async def test_an_unclosed_client_warns_with_the_remedy() -> None:
    """A client that was not closed gives a ResourceWarning that names `async with`."""
    client = AsyncKieClient(CANARY_KEY)
    await client._runtime.ready()
    with pytest.warns(ResourceWarning, match="async with"):
        del client
        gc.collect()


async def test_closing_ends_waits_with_the_task_id() -> None:
    """Waiters get an error with the id of the task that is still running."""
    async with Emulator(duration=60.0) as kie:
        client = client_of(kie)
        waiting = asyncio.create_task(client.generate("x"))
        await until(lambda: kie.tasks)
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(kie4o.KieError) as caught:
            await waiting
        assert caught.value.task_id in kie.tasks
        await client.aclose()  # closing twice is harmless


def test_the_repr_shows_no_key() -> None:
    """Neither repr nor vars of the client show the key, and it does not pickle."""
    client = AsyncKieClient("sk-0123456789abcdef-canary")
    assert "canary" not in repr(client)
    assert "canary" not in repr(vars(client))
    with pytest.raises(TypeError):
        pickle.dumps(client)


async def test_a_task_that_has_just_ended_can_be_looked_at() -> None:
    """During the last update of a task it can be looked at and waited for."""
    async with Emulator(duration=0.0) as kie:
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK) as client, asyncio.timeout(5):
            task = await client.submit("x")
            async for details in task.updates():
                assert (await client.details(task.id)).urls == details.urls
                assert (await client.wait(task.id)).urls == details.urls
            seen = []

            async def on_update(details: kie4o.TaskDetails) -> None:
                seen.append(await client.details(details.task_id))

            await task.wait(on_update=on_update)
            assert seen
