"""Law 4: webhook or poll, the same answer, whenever callbacks arrive, how often, and whatever they say."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from aiohttp import web
from canary import CANARY_KEY
from clocks import run_scaled

import kie4o
from kie4o import AsyncKieClient, PollPolicy
from kie4o.emulator import Call, Emulator, Fault
from kie4o.webhooks import routes

KEY = "a webhook key"
WHEN = ["early", "together", "end", "never"]
COPIES = [1, 3]
CONTENT = ["true", "altered", "false failure", "replayed", "unknown task", "forged"]


class Receiving:
    """An emulator, and a client behind a real aiohttp receiver that the emulator calls."""

    def __init__(self, *, duration: float = 10.0, latency: float = 1.0, **client) -> None:
        self.kie = Emulator(duration=duration, latency=latency, webhook_key=KEY)
        self.arguments = {"webhook_key": KEY, "poll": PollPolicy(), "timeout": 600.0} | client

    async def __aenter__(self) -> Receiving:
        await self.kie.start()
        app = web.Application()
        self.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self.clients: list[AsyncKieClient] = []

        async def receive(request: web.Request) -> web.StreamResponse:
            [route] = routes(self.clients[-1], "/kie/{ref}")
            return await route.handler(request)

        app.router.add_post("/kie/{ref}", receive)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        self.arguments["callback_url"] = f"http://127.0.0.1:{port}/kie/{{ref}}"
        self.client = self.new_client()
        return self

    def new_client(self, **more) -> AsyncKieClient:
        """The client after a restart; callbacks go to the last one."""
        self.clients.append(AsyncKieClient(CANARY_KEY, base_url=self.kie.url, **(self.arguments | more)))
        return self.clients[-1]

    async def __aexit__(self, *_: object) -> None:
        for client in self.clients:
            await client.aclose()
        await self.runner.cleanup()
        await self.kie.aclose()


@pytest.mark.parametrize("trusting", [False])
@pytest.mark.parametrize("when", WHEN)
def test_the_grid(when: str, trusting: bool) -> None:
    """Arrival, copies and content: the result equals the one that polling alone gives.

    No URL is delivered that record-info did not return.
    """

    async def run() -> None:
        async with Receiving() as here:
            kie, cases = here.kie, list(itertools.product(COPIES, CONTENT))
            for copies, content in cases:
                kie.plan(f"{copies} {content}", callback=Call(when, copies=copies, content=content))
            results = await asyncio.gather(
                *(here.client.generate(f"{copies} {content}") for copies, content in cases)
            )
            async with AsyncKieClient(CANARY_KEY, base_url=kie.url) as alone:
                for (copies, content), result in zip(cases, results, strict=True):
                    polled = await alone.wait(result.task_id)
                    assert result == polled, (when, copies, content)
                    assert all(url.startswith(kie.url) for url in result)
            assert kie.windows("look") <= 3
            assert kie.paid == len(cases)

    run_scaled(run(), 20)


def test_a_true_callback_is_faster_than_polling() -> None:
    """With a callback a task of 10 s is known after 10 s and one look; without it after 60 s."""

    async def run() -> None:
        async with Receiving() as here:
            loop = asyncio.get_running_loop()
            start = loop.time()
            called = await here.client.generate("x")
            assert called.source == "callback"
            assert loop.time() - start < 20
            assert len(here.kie.looks(called.task_id)) == 1
            here.kie.plan("y", callback="never")
            polled = await here.client.generate("y")
            assert polled.source == "poll"
            assert 50 < loop.time() - start < 90

    run_scaled(run(), 20)


def test_silent_callbacks_are_no_longer_relied_on() -> None:
    """After one task without a callback, if none has arrived yet, the client polls at its usual pace."""

    async def run() -> None:
        async with Receiving() as here:
            loop = asyncio.get_running_loop()
            took = []
            for number in range(4):
                here.kie.next(callback="never")
                start = loop.time()
                await here.client.generate(f"{number}")
                took.append(loop.time() - start)
            assert took[0] > 50
            assert all(seconds < 25 for seconds in took[1:])

    run_scaled(run(), 40)


@pytest.mark.parametrize("answer", ["dropped", "html"])
def test_a_lost_submit_answer_is_found_again_by_its_ref(answer: str) -> None:
    """When the answer of a paid POST is lost, `generate` goes on once a callback names the task."""

    async def run() -> None:
        async with Receiving() as here:
            lost = (
                "dropped"
                if answer == "dropped"
                else Fault("submit", body="<html>", http_status=502, charged=True)
            )
            here.kie.plan("x", answer=lost)
            result = await here.client.generate("x", key="k")
            assert list(here.kie.tasks) == [result.task_id]
            assert len(here.kie.submits) == 1
            assert (await here.client.generate("x", key="k")) == result

    run_scaled(run(), 20)


@pytest.mark.parametrize("how", ["generate", "resume", "resubmit", "batch"])
def test_a_callback_that_was_kept_before_a_crash_is_used(tmp_path, how: str) -> None:
    """Killed between keeping a callback and confirming it: after the restart the task is found."""

    async def run() -> None:
        async with Receiving(store=tmp_path / "run.db") as here:
            here.kie.plan("x", answer="dropped", callback="never")
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await here.client.submit("x", key="k")
            [task_id] = here.kie.tasks
            await here.client._runtime.store.keep_callback(caught.value.ref, task_id)
            await here.client.aclose()
            later = here.new_client()
            if how == "generate":
                assert (await later.generate("x", key="k")).task_id == task_id
            elif how == "resubmit":  # no second payment is needed
                task = await later.submit("x", key="k", on_unknown="resubmit")
                assert task.id == task_id
                await task
            else:
                batch = how == "batch"
                completions = later.generate_many({"k": "x"}) if batch else later.resume()
                [completion] = [each async for each in completions]
                assert completion.unwrap().task_id == task_id
            assert [entry async for entry in later.unfinished()] == []
            assert len(here.kie.submits) == 1

    run_scaled(run(), 20)


def test_a_callback_during_a_resubmit_that_waits_is_used() -> None:
    """A resubmit that waits for a slot is not sent if a callback names the first task meanwhile."""

    async def run() -> None:
        async with Receiving(rate_limit=kie4o.RateLimit(1, per=60.0)) as here:
            here.kie.plan("x", answer="dropped", callback=Call("end", delay=5.0))
            with pytest.raises(kie4o.SubmissionUnknownError):
                await here.client.submit("x", key="k")
            again = await here.client.submit("x", key="k", on_unknown="resubmit")
            assert [again.id] == list(here.kie.tasks)
            assert (await here.client.generate("x", key="k")).task_id == again.id
            assert len(here.kie.submits) == 1

    run_scaled(run(), 20)


def test_a_failing_look_does_not_lose_what_a_callback_named() -> None:
    """If the look that confirms a callback fails temporarily, it is repeated and `generate` goes on."""

    async def run() -> None:
        async with Receiving() as here:
            here.kie.plan("x", answer="dropped")
            here.kie.fault("look", code=500, times=2)
            result = await here.client.generate("x")
            assert list(here.kie.tasks) == [result.task_id]

    run_scaled(run(), 20)


def test_many_failing_looks_do_not_lose_what_a_callback_named() -> None:
    """If every look fails when the callback arrives, `generate` tries again later."""

    async def run() -> None:
        async with Receiving() as here:
            here.kie.plan("x", answer="dropped")
            here.kie.fault("look", code=500, times=8)
            result = await here.client.generate("x", timeout=300.0)
            assert list(here.kie.tasks) == [result.task_id]

    run_scaled(run(), 20)


def test_a_callback_that_names_another_requests_task_settles_nothing() -> None:
    """The right ref with the task id of another request: each request keeps its own task."""

    async def run() -> None:
        async with Receiving() as here:
            mine = await here.client.submit("mine", key="mine")
            here.kie.plan("lost", answer="dropped", callback="never")
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await here.client.submit("lost", key="lost")
            body = b'{"code":200,"msg":"","data":{"taskId":"%s","info":null}}' % mine.id.encode()
            headers = kie4o.sign_callback(mine.id, key=KEY, timestamp=time.time())
            await here.client.deliver(here.client.parse_callback(body, headers, ref=caught.value.ref))
            with pytest.raises(kie4o.SubmissionUnknownError):
                await here.client.submit("lost", key="lost")
            assert (await here.client.generate("mine", key="mine")).task_id == mine.id

    run_scaled(run(), 20)


def test_without_a_callback_the_lost_answer_stays_unknown() -> None:
    """`generate` waits for the callback until its deadline; a bare `submit` raises at once."""

    async def run() -> None:
        async with Receiving() as here:
            loop = asyncio.get_running_loop()
            for _ in range(2):
                here.kie.next(answer="dropped", callback="never")
            start = loop.time()
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await here.client.generate("x", timeout=100.0)
            assert 95 < loop.time() - start < 110
            assert caught.value.ref
            start = loop.time()
            with pytest.raises(kie4o.SubmissionUnknownError):
                await here.client.submit("x")
            assert loop.time() - start < 20

    run_scaled(run(), 40)


def test_a_task_that_is_found_late_has_the_rest_of_the_time() -> None:
    """When a callback names the task after 60 of 100 seconds, the wait has the other 40."""

    async def run() -> None:
        async with Receiving(duration=1000.0) as here:
            loop = asyncio.get_running_loop()
            here.kie.plan("x", answer="dropped", callback="never")
            start = loop.time()
            running = asyncio.create_task(here.client.generate("x", timeout=100.0))
            await asyncio.sleep(60)
            [task] = here.kie.tasks.values()
            ref = task.request["callBackUrl"].rpartition("/")[2]
            body = b'{"code":200,"msg":"","data":{"taskId":"%s","info":null}}' % task.id.encode()
            headers = kie4o.sign_callback(task.id, key=KEY, timestamp=time.time())
            await here.client.deliver(here.client.parse_callback(body, headers, ref=ref))
            with pytest.raises(kie4o.TaskTimeoutError) as caught:
                await running
            assert caught.value.task_id == task.id
            assert 95 < loop.time() - start < 120

    run_scaled(run(), 40)


def test_a_callback_settles_an_unknown_after_a_restart(tmp_path) -> None:
    """After a restart a callback for an unknown submit gives its key the task."""

    async def run() -> None:
        async with Receiving(store=tmp_path / "run.db") as here:
            here.kie.plan("x", answer="dropped", callback=Call("end", delay=60.0))
            with pytest.raises(kie4o.SubmissionUnknownError):
                await here.client.submit("x", key="k")
            await here.client.aclose()
            second = here.new_client()
            with pytest.raises(kie4o.SubmissionUnknownError):
                await second.submit("x", key="k")
            while not any(sent.status == 200 for sent in here.kie.callbacks):
                await asyncio.sleep(1)
            result = await second.generate("x", key="k")
            assert result.task_id in here.kie.tasks
            assert len(here.kie.submits) == 1

    run_scaled(run(), 40)


def test_delivering_by_hand() -> None:
    """`deliver` confirms a callback and returns the details; an unknown ref is refused without a look."""

    async def run() -> None:
        async with Receiving() as here:
            here.kie.plan("x", callback="never")
            task = await here.client.submit("x")
            await asyncio.sleep(15)
            ref = here.kie.tasks[task.id].request["callBackUrl"].rpartition("/")[2]
            body = b'{"code":200,"msg":"","data":{"taskId":"%s","info":null}}' % task.id.encode()
            headers = kie4o.sign_callback(task.id, key=KEY, timestamp=time.time())
            details = await here.client.deliver(here.client.parse_callback(body, headers, ref=ref))
            assert details.state is kie4o.TaskState.SUCCEEDED
            looks = len(here.kie.looks(task.id))
            with pytest.raises(kie4o.CallbackError):
                await here.client.deliver(here.client.parse_callback(body, headers, ref="unknown"))
            await here.client.deliver(here.client.parse_callback(body, headers, ref=ref))
            assert len(here.kie.looks(task.id)) == looks
            assert (await task).source == "store"

    run_scaled(run(), 20)


def test_trusted_callbacks_need_no_look() -> None:
    """With `trust_callbacks=True` a callback with a known ref needs no look, and the results are equal."""

    async def run() -> None:
        async with Receiving(trust_callbacks=True) as here:
            result = await here.client.generate("x")
            assert here.kie.looks(result.task_id) == []
            async with AsyncKieClient(CANARY_KEY, base_url=here.kie.url) as alone:
                assert await alone.wait(result.task_id) == result

    run_scaled(run(), 20)
