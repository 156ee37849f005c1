"""What was answered with 200 is not lost: the confirmation begins after the callback and is repeated."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
from alone import Alone as SharedAlone
from clients import client_of, state_of, until
from clocks import run_scaled, run_virtual

import kie4o
from kie4o import AsyncKieClient, ImageRequest, PollPolicy, TaskDetails, TaskPoller, TaskState
from kie4o.callbacks.delivery import PENDING, Delivery
from kie4o.emulator import Emulator
from kie4o.emulator.tasks import Answer
from kie4o.models import Callback
from kie4o.stores.ledger import Ledger
from kie4o.stores.memory import MemoryStore
from kie4o.stores.news import about_ref
from kie4o.stores.store import Entry, EntryState

KEY = "a webhook key"
URL = "https://me.example/kie/{ref}"  # which the emulator does not call: the tests do
SPEED = 20


class Kie(Emulator):
    """Its records show the end of a task `lag` seconds late."""

    lag = 0.0

    def look(self, task_id: str, now: float, *, url: str) -> Answer:
        answer, task = super().look(task_id, now, url=url), self.tasks.get(task_id)
        if answer.code == 200 and task is not None and task.end is not None and now < task.end + self.lag:
            return Answer(200, data=task.record(min(now, task.end - 0.01), url=url))
        return answer

    def ref_of(self, task_id: str) -> str:
        return str(self.tasks[task_id].request["callBackUrl"]).rpartition("/")[2]


@asynccontextmanager
async def open_client(kie: Kie, **more: Any) -> AsyncIterator[AsyncKieClient]:
    async with client_of(kie.url, callback_url=URL, **more) as client:
        yield client


def body_of(task_id: str) -> bytes:
    info = {"result_urls": ["https://files.example/1.png"]}
    return json.dumps({"code": 200, "msg": "", "data": {"taskId": task_id, "info": info}}).encode()


async def received(client: AsyncKieClient, task_id: str, ref: str) -> int:
    """The status that a receiver answers to a callback."""
    receiver = client.receiver(allow_unsigned=True)
    return await receiver.receive([("content-type", "application/json")], body_of(task_id), ref)


async def delivered(client: AsyncKieClient, task_id: str, ref: str) -> int:
    """The same for a handler of the user's that passes the callback to `client.deliver`."""
    await client.deliver(client.parse_callback(body_of(task_id), ref=ref))
    return 200


async def all_confirmed(client: AsyncKieClient) -> None:
    """Waits in steps that a busy machine can follow: it may take half a minute of virtual time."""
    async with asyncio.timeout(600):
        while client._runtime.delivery.pending:
            await asyncio.sleep(0.1)


Passed = Callable[[AsyncKieClient, str, str], Awaitable[int]]
HOWS = pytest.mark.parametrize("passed", [received, delivered])


# -- nobody waits for the task -----------------------------------------------------------------------


@HOWS
def test_a_look_that_began_earlier_is_no_confirmation(passed: Passed) -> None:
    """A look is under way when the task ends and the callback arrives; its answer is from before."""

    async def run() -> None:
        async with Kie(duration=5.0, look_latency=3.0) as kie, open_client(kie) as client:
            task = await client.submit("x", key="k")
            await asyncio.sleep(4.0)
            page = asyncio.create_task(task.details())
            await asyncio.sleep(2.0)
            assert await passed(client, task.id, kie.ref_of(task.id)) == 200
            assert (await page).state is TaskState.RUNNING
            await all_confirmed(client)
            assert await state_of(client._runtime.store, "k") is EntryState.SUCCEEDED
            assert len(kie.looks(task.id)) == 2

    run_scaled(run(), 5)


def test_deliver_returns_what_a_look_after_the_callback_shows() -> None:
    """Not what one shows that was under way."""

    async def run() -> None:
        async with Kie(duration=5.0, look_latency=3.0) as kie, open_client(kie) as client:
            task = await client.submit("x", key="k")
            await asyncio.sleep(4.0)
            page = asyncio.create_task(task.details())
            await asyncio.sleep(2.0)
            callback = client.parse_callback(body_of(task.id), ref=kie.ref_of(task.id))
            assert (await client.deliver(callback)).state is TaskState.SUCCEEDED
            assert (await page).state is TaskState.RUNNING

    run_scaled(run(), 5)


def test_looks_that_fail_are_repeated() -> None:
    """The confirming look fails five times in a row."""

    async def run() -> None:
        async with Kie(duration=0.0) as kie, open_client(kie) as client:
            task = await client.submit("x", key="k")
            kie.fault("look", code=500, times=5)
            assert await received(client, task.id, kie.ref_of(task.id)) == 200
            await all_confirmed(client)
            assert await state_of(client._runtime.store, "k") is EntryState.SUCCEEDED

    run_scaled(run(), SPEED)


@HOWS
def test_a_record_that_lags_is_looked_at_again(passed: Passed) -> None:
    """Kie's record says for 20 s after the callback that the task is running."""

    async def run() -> None:
        async with Kie(duration=1.0) as kie, open_client(kie) as client:
            kie.lag = 20.0
            task = await client.submit("x", key="k")
            await asyncio.sleep(1.0)
            for _ in range(4):  # as often as Kie may send it
                assert await passed(client, task.id, kie.ref_of(task.id)) == 200
            await all_confirmed(client)
            assert await state_of(client._runtime.store, "k") is EntryState.SUCCEEDED
            assert len(kie.looks(task.id)) <= 4 + 5  # after 1, 3, 7, 15 and 31 s, not each four times

    run_scaled(run(), SPEED)


def test_deliver_raises_the_last_error_of_three() -> None:
    """A caller's handler then does not answer 200, and Kie sends the callback again."""

    async def run() -> None:
        async with Kie(duration=0.0) as kie, open_client(kie) as client:
            task = await client.submit("x", key="k")
            kie.fault("look", code=500, times=3)
            with pytest.raises(kie4o.InternalServerError):
                await delivered(client, task.id, kie.ref_of(task.id))
            assert len(kie.looks(task.id)) == 3
            assert await delivered(client, task.id, kie.ref_of(task.id)) == 200
            assert await state_of(client._runtime.store, "k") is EntryState.SUCCEEDED

    run_scaled(run(), SPEED)


# -- submits whose response was lost -------------------------------------------------------------------


@HOWS
def test_a_task_that_kie_knows_late_is_named(passed: Passed) -> None:
    """The response was lost, and Kie does not know the task when the callback names it."""

    async def run() -> None:
        async with Kie(duration=0.0, record_delay=20.0) as kie, open_client(kie) as client:
            kie.plan("x", answer="dropped")
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("x", key="k")
            [task_id] = kie.tasks
            assert caught.value.ref == kie.ref_of(task_id)
            assert await passed(client, task_id, caught.value.ref) == 200
            assert await state_of(client._runtime.store, "k") is EntryState.UNKNOWN
            await all_confirmed(client)
            assert await state_of(client._runtime.store, "k") is EntryState.SUCCEEDED
            assert (await client.generate("x", key="k")).task_id == task_id
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


def test_a_callback_before_the_response_is_lost_is_used_after_it() -> None:
    """The callback arrives while the submit waits for its response, which then is lost."""

    async def run() -> None:
        async with Kie(duration=0.0, latency=5.0) as kie, open_client(kie) as client:
            kie.plan("x", answer="dropped")
            submit = asyncio.create_task(client.submit("x", key="k"))
            await until(lambda: kie.tasks)
            [task_id] = kie.tasks
            assert await received(client, task_id, kie.ref_of(task_id)) == 200
            with pytest.raises(kie4o.SubmissionUnknownError):
                await submit
            await all_confirmed(client)
            assert await state_of(client._runtime.store, "k") is EntryState.SUCCEEDED
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


@HOWS
def test_an_id_that_kie_does_not_know_names_nothing(passed: Passed) -> None:
    """The right ref with an id that Kie never issued: the outcome stays unknown, until a true callback."""

    async def run() -> None:
        async with Kie(duration=0.0) as kie, open_client(kie) as client:
            kie.plan("x", answer="dropped")
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("x", key="k")
            ref = str(caught.value.ref)
            assert await passed(client, "f" * 32, ref) == 200
            await asyncio.sleep(5.0)
            entry = await client._runtime.store.find(key="k")
            assert entry is not None
            assert (entry.state, entry.task_id) == (EntryState.UNKNOWN, None)
            [task_id] = kie.tasks
            assert await passed(client, task_id, ref) == 200
            assert (await client.generate("x", key="k")).task_id == task_id

    run_scaled(run(), SPEED)


@HOWS
def test_a_wait_for_a_name_outlasts_an_id_that_kie_does_not_know(passed: Passed) -> None:
    """`generate` goes on waiting for a callback that names its task. An event tells of each."""
    heard: list[Any] = []

    async def run() -> None:
        async with Kie(duration=0.0) as kie, open_client(kie, on_event=heard.append) as client:
            kie.plan("x", answer="dropped")
            running = asyncio.create_task(client.generate("x", key="k"))
            await until(lambda: client._runtime.delivery.pending == 1)
            [task_id] = kie.tasks
            ref = kie.ref_of(task_id)
            assert await passed(client, "f" * 32, ref) == 200
            await asyncio.sleep(5.0)
            assert not running.done()
            assert await passed(client, task_id, ref) == 200
            assert (await running).task_id == task_id
            arrived = [each.task_id for each in heard if isinstance(each, kie4o.events.CallbackReceived)]
            assert arrived == ["f" * 32, task_id]

    run_scaled(run(), SPEED)


def test_a_name_that_another_process_has_saved_ends_the_wait_for_it() -> None:
    """As soon as the store tells of it, and not when it is looked for the next time."""

    class Neighbours(SharedAlone):
        async def news(self) -> AsyncGenerator[str | None]:
            await named.wait()
            yield about_ref(refs[0])
            await asyncio.Event().wait()

    async def run() -> None:
        loop = asyncio.get_running_loop()
        store = MemoryStore()
        store.shared = Neighbours()
        async with Kie(duration=0.0) as kie, open_client(kie, store=store) as client:
            kie.plan("x", answer="dropped")
            running = asyncio.create_task(client.generate("x", key="k"))
            await until(lambda: client._runtime.delivery.pending == 1)
            [task_id] = kie.tasks
            refs.append(kie.ref_of(task_id))
            await asyncio.sleep(1.0)
            await store.keep_callback(refs[0], task_id)
            start = loop.time()
            named.set()
            assert (await running).task_id == task_id
            assert loop.time() - start < 15

    refs: list[str] = []
    named = asyncio.Event()
    run_scaled(run(), SPEED)


def test_one_callback_ends_all_waits_for_it() -> None:
    """Two callers wait for the callback that names their task, which arrives twice; a third gave up."""

    async def run() -> None:
        async with Kie(duration=0.0) as kie, open_client(kie) as client:
            kie.plan("x", answer="dropped")
            first, *others = (asyncio.create_task(client.generate("x", key="k")) for _ in range(3))
            await until(lambda: client._runtime.delivery.pending == 3)
            first.cancel()
            await until(first.done)
            [task_id] = kie.tasks
            start = asyncio.get_running_loop().time()
            ref = kie.ref_of(task_id)
            assert await asyncio.gather(*(delivered(client, task_id, ref) for _ in range(2))) == [200, 200]
            assert [result.task_id for result in await asyncio.gather(*others)] == [task_id] * 2
            assert asyncio.get_running_loop().time() - start < 25.0  # they do not check it themselves

    run_scaled(run(), SPEED)


# -- closing, bounds and other errors ------------------------------------------------------------------


def test_closing_ends_confirmations_and_the_next_run_sees_the_end(tmp_path: Path) -> None:
    """A callback is answered, its confirmation fails, and the client is closed, at once: the entry is still
    unfinished, and whoever resumes it polls once."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Kie(duration=0.0) as kie:
            kie.fault("look", code=500, times="always")
            async with open_client(kie, store=tmp_path / "run.db") as client:
                task = await client.submit("x", key="k")
                assert await received(client, task.id, kie.ref_of(task.id)) == 200
                await until(lambda: kie.looks(task.id))
                await asyncio.sleep(0.2)
                assert client._runtime.delivery.pending == 1
                start = loop.time()
            assert loop.time() - start < 5.0
            assert not [each for each in asyncio.all_tasks() if each.get_name() == "kie4o callback"]
            kie.faults.clear()
            before = len(kie.looks(task.id))
            async with open_client(kie, store=tmp_path / "run.db") as later:
                assert [entry.task_id async for entry in later.unfinished()] == [task.id]
                assert [each.ok async for each in later.resume()] == [True]
            assert len(kie.looks(task.id)) == before + 1
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


class GatedStore(MemoryStore):
    """While its gate is closed, it does not find the entry of a ref."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.searches = 0  # that have begun

    async def find(self, *, ref: str | None = None, **other: Any) -> Entry | None:
        if ref is not None:
            self.searches += 1
            await self.gate.wait()
        return await super().find(ref=ref, **other)


@pytest.mark.parametrize("slow", [False, True])
def test_the_number_of_confirmations_is_bounded(slow: bool) -> None:
    """Beyond the limit a receiver answers 503, also if all callbacks arrive at once at a slow store; after
    the others are confirmed it takes more."""

    async def run() -> None:
        store = GatedStore()
        async with Kie(duration=0.0, limit=100) as kie, open_client(kie, store=store) as client:
            tasks = [await client.submit(f"{number}") for number in range(6)]
            kie.lag = 8.0
            receiver = client.receiver(allow_unsigned=True, pending=2)
            headers = [("content-type", "application/json")]

            async def statuses() -> list[int]:
                posts = (receiver.receive(headers, body_of(task.id), kie.ref_of(task.id)) for task in tasks)
                answers = asyncio.gather(*posts)
                await until(lambda: store.searches >= 2)
                store.gate.set()
                return sorted(await answers)

            if slow:
                store.gate.clear()
            assert await statuses() == [200, 200, 503, 503, 503, 503]
            assert client._runtime.delivery.pending == 2
            await until(lambda: client._runtime.delivery.pending == 0)
            assert await statuses() != [503] * 6

    run_scaled(run(), SPEED)


def test_a_callback_that_arrives_while_the_client_closes_is_refused() -> None:
    """It is answered with 503, so that Kie sends it again, and leaves no task behind."""

    async def run() -> None:
        store = GatedStore()
        async with Kie(duration=0.0) as kie:
            async with open_client(kie, store=store) as client:
                task = await client.submit("x", key="k")
                store.gate.clear()
                post = asyncio.create_task(received(client, task.id, kie.ref_of(task.id)))
                await until(lambda: store.searches)
            store.gate.set()
            assert await post == 503
            assert not [each for each in asyncio.all_tasks() if each.get_name() == "kie4o callback"]

    run_scaled(run(), SPEED)


def test_closing_ends_the_wait_for_a_name() -> None:
    """`generate` waits for a callback that names its task: the outcome is unknown, and is raised at once."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Kie(duration=60.0) as kie:
            kie.plan("x", answer="dropped")
            async with open_client(kie) as client:
                running = asyncio.create_task(client.generate("x", key="k"))
                await until(lambda: client._runtime.delivery.pending == 1)
                start = loop.time()
            with pytest.raises(kie4o.SubmissionUnknownError):
                await running
            assert loop.time() - start < 25.0

    run_scaled(run(), SPEED)


def test_closing_and_naming_in_the_same_moment() -> None:
    """The wait for a name that was just found is not ended a second time by closing."""

    async def run() -> None:
        async with Kie(duration=60.0) as kie, open_client(kie) as client:
            kie.plan("x", answer="dropped")
            running = asyncio.create_task(client.generate("x", key="k"))
            await until(lambda: client._runtime.delivery.pending == 1)
            [task_id] = kie.tasks
            entry = await client._runtime.store.find(key="k")
            assert entry is not None
            [waiter] = client._runtime.delivery._unnamed[entry.ref]
            waiter.set_result(entry.become(EntryState.SUBMITTED, task_id=task_id))
            await client._runtime.delivery.aclose()
            await client.aclose()
            with pytest.raises(kie4o.KieError) as caught:
                await running
            assert caught.value.task_id == task_id

    run_scaled(run(), SPEED)


# -- in virtual time -----------------------------------------------------------------------------------

RUNNING = TaskDetails("t", state=TaskState.RUNNING)
MISSING = TaskDetails("t", state=TaskState.MISSING)
DONE = TaskDetails("t", state=TaskState.SUCCEEDED, urls=("https://x.example/a.png",))
EMPTY = attrs.evolve(DONE, urls=())
CALLBACK = Callback("t", code=200, message="", urls=DONE.urls, ref="r", verified=False, details=DONE)


class Alone:
    """A delivery, with one submitted task in its store and looks that play a script."""

    def __init__(
        self,
        *script: TaskDetails | Exception,
        state: EntryState = EntryState.SUBMITTED,
        task_id: str | None = "t",
        **more: Any,
    ) -> None:
        self.script = script
        self.entry = Entry("k", request=ImageRequest("x"), ref="r", state=state, task_id=task_id)
        self.times: list[float] = []
        self.poller = TaskPoller(self._look, policy=PollPolicy(first=4.0, maximum=60.0, jitter=False))
        self.store = MemoryStore()
        self.delivery = Delivery(self.store, Ledger(self.store), self.poller, **more)
        self.answers = asyncio.Event()
        self.answers.set()

    async def _look(self, task_id: str) -> TaskDetails:
        step = self.script[min(len(self.times), len(self.script) - 1)]
        self.times.append(asyncio.get_running_loop().time())
        await self.answers.wait()
        if isinstance(step, Exception):
            raise step
        return step

    async def __aenter__(self) -> Alone:
        await self.store.save(self.entry)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.poller.aclose()
        await self.delivery.aclose()


@pytest.mark.parametrize("speed", [1.0, 5.0])
def test_the_delays_grow_and_a_stuck_task_is_given_up(caplog: pytest.LogCaptureFixture, speed: float) -> None:
    """Looks at 0, 1, 3, 7, 15, 31 s, then every 30 s, for an hour; then a warning says what to do."""

    async def run() -> list[float]:
        async with Alone(RUNNING, speed=speed) as alone:
            start = asyncio.get_running_loop().time()
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(7200.0 / speed)
            assert alone.delivery.pending == 0
            return [speed * (at - start) for at in alone.times]

    times = run_virtual(run())
    if speed == 1:  # the poller of an emulator's client is told of the speed too
        assert times[:6] == pytest.approx([0, 1, 3, 7, 15, 31])
    assert {round(after - before) for before, after in itertools.pairwise(times[5:])} == {30}
    assert 3570 <= times[-1] <= 3630
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "client.wait('t')" in warning


def test_a_task_that_kie_does_not_know_is_given_up_earlier(caplog: pytest.LogCaptureFixture) -> None:
    """Its record may be late by a minute and a half. The outcome stays unknown."""

    async def run() -> list[float]:
        async with Alone(MISSING, state=EntryState.UNKNOWN, task_id=None) as alone:
            start = asyncio.get_running_loop().time()
            assert (await alone.delivery.deliver(CALLBACK)).state is TaskState.MISSING
            await asyncio.sleep(7200.0)
            assert (alone.delivery.pending, await state_of(alone.store, "k")) == (0, EntryState.UNKNOWN)
            return [at - start for at in alone.times]

    assert run_virtual(run())[-1] == pytest.approx(91)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "Kie does not know the task" in warning


def test_a_wrong_key_is_not_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """An error that will not pass ends the confirmation with a warning."""

    async def run() -> int:
        async with Alone(kie4o.AuthenticationError("no", code=401)) as alone:
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(100.0)
            assert alone.delivery.pending == 0
            return len(alone.times)

    assert run_virtual(run()) == 1
    assert [each.levelno for each in caplog.records if each.levelno > logging.DEBUG] == [logging.WARNING]


@pytest.mark.parametrize("speed", [1.0, 10.0])
@pytest.mark.parametrize(
    ("record", "cause"),
    [(MISSING, "Kie does not know the task"), (EMPTY, "its record lists no images")],
    ids=["unknown", "without images"],
)
def test_a_record_is_given_up_after_the_time_in_which_it_may_lag(
    caplog: pytest.LogCaptureFixture, record: TaskDetails, cause: str, speed: float
) -> None:
    """After 90 s, or so many of an emulator, at the next look, with a warning. The task stays unfinished, so
    that the next run looks again."""

    async def run() -> list[float]:
        async with Alone(record, speed=speed) as alone:
            start = asyncio.get_running_loop().time()
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(7200.0 / speed)
            assert (alone.delivery.pending, await state_of(alone.store, "k")) == (0, EntryState.SUBMITTED)
            return [speed * (at - start) for at in alone.times]

    times = run_virtual(run())
    if speed == 1:
        assert times == pytest.approx([0, 1, 3, 7, 15, 31, 61, 91])
    assert 90 < times[-1] < 100
    [warning] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert cause in warning
    assert f"client.wait({CALLBACK.task_id!r}) polls the task" in warning


def test_a_record_without_images_is_looked_at_five_times_after_looks_that_failed() -> None:
    """As often as by a wait for its task."""
    fails = kie4o.APIConnectionError("no route")

    async def run() -> int:
        async with Alone(*[fails] * 20, EMPTY) as alone:
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(7200.0)
            assert alone.delivery.pending == 0
            return len(alone.times) - 20

    assert run_virtual(run()) == 5


def test_a_task_with_images_is_confirmed_however_long_its_submit_is_under_way() -> None:
    """Nothing can be named before the answer to the submit is known to be lost."""

    async def run() -> EntryState | None:
        async with Alone(DONE, state=EntryState.INTENT, task_id=None) as alone:
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(300.0)
            assert alone.delivery.pending == 1
            stored = await alone.store.find(key="k")
            assert stored is not None
            await alone.store.save(stored.become(EntryState.UNKNOWN))
            await asyncio.sleep(40.0)
            assert alone.delivery.pending == 0
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is EntryState.SUCCEEDED


def test_a_later_callback_renews_the_time_in_which_its_record_may_appear() -> None:
    """The first was far too early; Kie knows the task 150 s after it, and 80 s after the second."""

    async def run() -> EntryState | None:
        async with Alone(*[RUNNING] * 7, *[MISSING] * 3, DONE) as alone:
            for _ in range(2):
                assert await alone.delivery.accept(CALLBACK, limit=PENDING)
                await asyncio.sleep(70.0)
            await asyncio.sleep(30.0)
            assert len(alone.times) == len(alone.script)
            assert alone.delivery.pending == 0
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is EntryState.SUCCEEDED


def test_a_record_without_images_is_not_given_up_with_a_task_that_kie_does_not_know() -> None:
    """The looks fail until the time for an unknown task is over; then the record lists no images for a
    while."""

    async def run() -> EntryState | None:
        fails = kie4o.APIConnectionError("no route")
        async with Alone(*[fails] * 20, *[EMPTY] * 4, DONE) as alone:
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(1200.0)
            assert alone.delivery.pending == 0
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is EntryState.SUCCEEDED


@pytest.mark.parametrize("calls", [0, 1, 4])
def test_while_the_task_is_waited_for_there_are_no_further_looks(calls: int) -> None:
    """Callbacks that come too early cost at most one look each: the wait sees the end, and saves it."""

    async def run() -> list[float]:
        async with Alone(*[RUNNING] * 30, DONE) as alone:
            start = asyncio.get_running_loop().time()
            wait = asyncio.create_task(alone.poller.wait("t", since=start, timeout=None))
            await asyncio.sleep(1.0)
            for _ in range(calls):
                assert await alone.delivery.accept(CALLBACK, limit=PENDING)
                await asyncio.sleep(1.0)
            assert len(alone.times) <= calls + 1
            await asyncio.sleep(600.0)
            assert not wait.done()
            return alone.times

    assert len(run_virtual(run())) <= 600 / 60 + 5 + calls


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("after", [0.0, 0.5])
def test_a_store_that_fails_for_a_while_does_not_end_a_confirmation(named: bool, after: float) -> None:
    """It is read again later, as a task is looked at again."""

    class Failing(MemoryStore):
        fails = False

        async def find(self, **by: Any) -> Entry | None:
            if self.fails:
                raise kie4o.StoreError("disk I/O error")
            return await super().find(**by)

    async def run() -> EntryState | None:
        unnamed: dict[str, Any] = {"state": EntryState.UNKNOWN, "task_id": None}
        async with Alone(RUNNING, DONE, **({} if named else unnamed)) as alone:
            alone.store.__class__ = Failing
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(after)
            alone.store.fails = True
            await asyncio.sleep(10.0)
            alone.store.fails = False
            await asyncio.sleep(20.0)
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is EntryState.SUCCEEDED


def test_a_submit_that_is_answered_with_another_id_ends_the_confirmation() -> None:
    """The callback named one task while the submit was under way, and its response names another."""

    async def run() -> int:
        async with Alone(RUNNING, state=EntryState.INTENT, task_id=None) as alone:
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(0.5)
            await alone.store.save(alone.entry.become(EntryState.SUBMITTED, task_id="another"))
            await asyncio.sleep(100.0)
            assert alone.delivery.pending == 0
            return len(alone.times)

    assert run_virtual(run()) == 1


def test_confirmations_that_deliver_leaves_behind_are_bounded() -> None:
    """Beyond the limit `deliver` leaves it at its own look."""

    async def run() -> None:
        async with Alone(RUNNING) as alone:
            for name in map(str, range(1002)):
                await alone.store.save(Entry(name, request=ImageRequest("x"), ref=name, task_id=name))
                callback = attrs.evolve(CALLBACK, task_id=name, ref=name)
                assert (await alone.delivery.deliver(callback)).state is TaskState.RUNNING
            assert alone.delivery.pending == 1000

    run_virtual(run())


@pytest.mark.parametrize("closing", [True, False])
async def test_deliver_leaves_nothing_behind(closing: bool) -> None:
    """If what it has found is final, or the client is closed while it looks."""
    async with Alone(RUNNING if closing else DONE) as alone:
        alone.answers.clear()
        delivering = asyncio.create_task(alone.delivery.deliver(CALLBACK))
        await until(lambda: alone.times)
        if closing:
            await alone.delivery.aclose()
        alone.answers.set()
        assert (await delivering).state is (TaskState.RUNNING if closing else TaskState.SUCCEEDED)
        assert alone.delivery.pending == 0


async def test_a_repetition_leaves_nothing_behind() -> None:
    """Its task has ended; that somebody still waits for it changes nothing."""
    for verb in ("accept", "deliver"):
        async with Alone(RUNNING, state=EntryState.SUCCEEDED) as alone:
            await alone.store.save(attrs.evolve(alone.entry, details=DONE))
            wait = asyncio.create_task(alone.poller.wait("t"))
            await until(lambda: alone.poller.waiting)
            if verb == "accept":
                assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            else:
                assert await alone.delivery.deliver(CALLBACK) == DONE
            await asyncio.sleep(0.01)
            assert alone.delivery.pending == 0
            wait.cancel()
            await asyncio.wait([wait])


def test_repetitions_are_confirmed_together() -> None:
    """One confirmation for all; if it was given up, a later callback begins another."""

    async def run() -> EntryState | None:
        async with Alone(MISSING) as alone:
            for _ in range(3):
                assert await alone.delivery.accept(CALLBACK, limit=PENDING)
                await asyncio.sleep(1.5)
            assert alone.delivery.pending == 1
            await asyncio.sleep(300.0)
            assert alone.delivery.pending == 0
            alone.script = (*[MISSING] * (len(alone.times) + 1), DONE)
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(10.0)
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is EntryState.SUCCEEDED


def test_an_entry_that_is_gone_ends_its_confirmation() -> None:
    """Nothing is left to confirm."""

    async def run() -> None:
        async with Alone(RUNNING) as alone:
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(0.5)
            [task] = (each for each in asyncio.all_tasks() if each.get_name() == "kie4o callback")
            await alone.store.forget("k")
            await asyncio.wait([task], timeout=100.0)
            assert task.exception() is None
            assert len(alone.times) == 1

    run_virtual(run())


@pytest.mark.parametrize("gone", [True, False])
def test_an_entry_that_changes_while_its_task_is_polled(gone: bool) -> None:
    """It is no longer there, or something else has named its task: then its end is still awaited."""

    async def run() -> EntryState | None:
        async with Alone(RUNNING, DONE, state=EntryState.UNKNOWN, task_id=None) as alone:
            alone.answers.clear()
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(0.5)
            [task] = (each for each in asyncio.all_tasks() if each.get_name() == "kie4o callback")
            if gone:
                await alone.store.forget("k")
            else:
                await alone.store.save(alone.entry.become(EntryState.SUBMITTED, task_id="t"))
            alone.answers.set()
            await asyncio.wait([task], timeout=100.0)
            assert task.exception() is None
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is (None if gone else EntryState.SUCCEEDED)


def test_polls_that_fail_for_longer_than_a_record_may_be_late() -> None:
    """The end that is found then counts."""

    async def run() -> EntryState | None:
        async with Alone(*[kie4o.APIConnectionError("away")] * 40, DONE) as alone:
            start = asyncio.get_running_loop().time()
            assert await alone.delivery.accept(CALLBACK, limit=PENDING)
            await asyncio.sleep(3600.0)
            assert alone.times[-1] - start > 100
            return await state_of(alone.store, "k")

    assert run_virtual(run()) is EntryState.SUCCEEDED


async def test_who_waits_for_the_name_of_an_entry_that_is_gone_waits_until_the_end() -> None:
    """The store may have it again: it is read every half minute."""
    async with Alone(DONE, state=EntryState.UNKNOWN, task_id=None) as alone:
        await alone.store.forget("k")
        named = asyncio.create_task(alone.delivery.wait_for_name(alone.entry))
        await until(lambda: alone.delivery.pending)
        await alone.delivery.aclose()
        with pytest.raises(kie4o.KieError, match="closed before a callback arrived"):
            await named


async def test_a_callback_that_names_a_task_is_never_trusted() -> None:
    """Kie has to know the task."""
    async with Alone(MISSING, state=EntryState.UNKNOWN, task_id=None, trusting=True) as alone:
        assert await alone.delivery.deliver(CALLBACK) == MISSING
        assert await state_of(alone.store, "k") is EntryState.UNKNOWN


async def test_a_callback_that_is_trusted_needs_no_confirmation() -> None:
    """Also while its task is waited for."""
    async with Alone(RUNNING, trusting=True) as alone:
        wait = asyncio.create_task(alone.poller.wait("t"))
        await until(lambda: alone.poller.waiting)
        assert await alone.delivery.accept(CALLBACK, limit=PENDING)
        assert (await wait).source == "callback"
        await asyncio.sleep(0.01)
        assert alone.delivery.pending == 0
        assert await state_of(alone.store, "k") is EntryState.SUCCEEDED
        assert len(alone.times) <= 1  # that of the wait


async def test_closing_awaits_the_confirmations() -> None:
    """None is left that might use the store."""
    async with Alone(RUNNING) as alone:
        assert await alone.delivery.accept(CALLBACK, limit=PENDING)
        await until(lambda: alone.times)
        tasks = [each for each in asyncio.all_tasks() if each.get_name() == "kie4o callback"]
        await alone.delivery.aclose()
        assert [task.done() for task in tasks] == [True]


async def test_a_stored_callback_counts_as_one_that_has_arrived() -> None:
    """The task that it names is polled, and its end is saved."""
    async with Alone(DONE, state=EntryState.UNKNOWN, task_id=None) as alone:
        await alone.store.keep_callback("r", "t")
        alone.poller._trust.missed("t")
        assert not alone.poller._trust.relied_on
        entry = await alone.delivery.named_task("r")
        assert entry is not None
        assert entry.state is EntryState.SUCCEEDED
        assert alone.poller._trust.relied_on


async def test_what_is_kept_of_a_callback() -> None:
    """The id that it names, if its submit was sent and has none."""

    async def kept(callback: Callback, **entry: Any) -> tuple[Entry | None, tuple[str, ...]]:
        async with Alone(RUNNING, **entry) as alone:
            found = await alone.delivery.keep(callback)
            return found, tuple(await alone.store.callbacks_of("r"))

    for state in (EntryState.INTENT, EntryState.UNKNOWN, EntryState.FAILED):
        entry, ids = await kept(CALLBACK, state=state, task_id=None)
        assert (entry is not None, ids) == (True, ("t",))
    entry, ids = await kept(CALLBACK, state=EntryState.FAILED)
    assert (entry is not None, ids) == (True, ())
    with pytest.raises(kie4o.CallbackError):
        await kept(CALLBACK, state=EntryState.PLANNED, task_id=None)


async def test_a_signed_callback_without_a_ref_finds_a_task_that_is_waited_for() -> None:
    """Its entry too, if the client has submitted it."""
    signed = attrs.evolve(CALLBACK, ref=None, verified=True)
    async with Alone(RUNNING) as alone:
        waits = [asyncio.create_task(alone.poller.wait(name)) for name in ("t", "another")]
        await until(lambda: alone.poller.waiting == 2)
        entry = await alone.delivery.keep(signed)
        assert entry is not None
        assert entry.ref == "r"
        foreign = attrs.evolve(signed, task_id="another")
        assert await alone.delivery.keep(foreign) is None
        assert (await alone.delivery.deliver(foreign)).state is TaskState.RUNNING
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)


async def test_a_signed_callback_that_names_another_task_is_not_astray() -> None:
    """Its ref is that of a submit of this client: callbacks do reach it."""
    async with Alone(RUNNING) as alone:
        with pytest.raises(kie4o.CallbackError):
            await alone.delivery.keep(attrs.evolve(CALLBACK, task_id="another", verified=True))
        assert alone.poller._trust.relied_on


def test_at_the_speed_of_an_emulator_it_looks_for_a_name_as_often() -> None:
    """Every 30 emulated seconds."""

    async def run() -> None:
        async with Alone(DONE, state=EntryState.UNKNOWN, task_id=None, speed=10.0) as alone:
            start = asyncio.get_running_loop().time()
            named = asyncio.create_task(alone.delivery.wait_for_name(alone.entry))
            await asyncio.sleep(1.0)
            await alone.store.keep_callback("r", "t")
            assert (await named).task_id == "t"
            assert asyncio.get_running_loop().time() - start == pytest.approx(3.0)
            assert alone.delivery._unnamed == {}

    run_virtual(run())


@pytest.mark.parametrize(
    ("news", "found_at"),
    [("before", 0.0), (about_ref("r"), 1.0), (None, 1.0), (about_ref("another"), 30.0)],
)
def test_another_process_names_the_task(news: str | None, found_at: float) -> None:
    """One that waits for the name finds it at once if it is told, or else when it looks again."""

    async def run() -> None:
        async with Alone(DONE, state=EntryState.UNKNOWN, task_id=None) as alone:
            start = asyncio.get_running_loop().time()
            if news == "before":
                await alone.store.keep_callback("r", "t")
            named = asyncio.create_task(alone.delivery.wait_for_name(alone.entry))
            await asyncio.sleep(1.0)
            await alone.store.keep_callback("r", "t")
            for _ in range(2):
                alone.delivery.recheck(news)
            ended = named.done()
            assert (await named).task_id == "t"
            assert ended or asyncio.get_running_loop().time() - start == pytest.approx(found_at)
            assert ended == (news == "before")
            assert alone.delivery.pending == 0

    run_virtual(run())


async def test_an_unknown_ref_names_no_task() -> None:
    """Asking for the task of a ref that is not in the store is no error."""
    async with Alone(RUNNING) as alone:
        assert await alone.delivery.named_task("unknown") is None
        assert alone.times == []


@pytest.mark.parametrize(
    ("whose", "sign", "stray"),
    [
        ("another client's", "right", True),
        ("another client's", "wrong", False),
        ("another client's", "none", False),
        ("ours", "right", False),
        ("waited for here", "right", False),
    ],
)
async def test_a_signed_stray_callback_ends_rare_polls(whose: str, sign: str, stray: bool) -> None:
    """It is answered with 404, so that Kie repeats it, and shows that callbacks reach the wrong process. One
    that anyone could have sent has no such effect."""
    async with Kie(duration=60.0) as kie, open_client(kie) as other:
        async with open_client(kie, webhook_key=None if sign == "none" else KEY) as client:
            task = await (client if whose == "ours" else other).submit("x")
            if whose == "waited for here":
                waiting = asyncio.create_task(client.wait(task.id))
                await until(lambda: client._runtime.poller.waiting)
            headers = [("content-type", "application/json")]
            key = KEY if sign == "right" else "a wrong key"
            headers += kie4o.sign_callback(task.id, key=key, timestamp=time.time()).items()
            receiver = client.receiver(allow_unsigned=True)
            status = await receiver.receive(headers, body_of(task.id), kie.ref_of(task.id))
            assert status == (200 if whose == "ours" else 401 if sign == "wrong" else 404)
            assert client._runtime.poller._trust.relied_on is not stray
            if whose == "waited for here":
                waiting.cancel()


async def test_a_callback_for_a_finished_task_counts_as_one_that_has_arrived() -> None:
    """A poll that finds the end a little earlier does not turn all callbacks into missed ones."""
    async with Alone(DONE, state=EntryState.SUCCEEDED) as alone:
        await alone.store.save(attrs.evolve(alone.entry, details=DONE))
        alone.poller._trust.missed("t")
        assert not alone.poller._trust.relied_on
        await alone.delivery.deliver(CALLBACK)
        assert alone.poller._trust.relied_on
        assert alone.times == []


# -- without a ref -------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("whose", "accepted"), [("submitted", True), ("waited for", True), ("other", False)])
async def test_a_callback_without_a_ref_needs_a_signature(signed: bool, whose: str, accepted: bool) -> None:
    """Signed, it is accepted for a task that was submitted here or is waited for; unsigned never."""
    async with Kie(duration=60.0) as kie, open_client(kie) as elsewhere:
        async with client_of(kie.url, webhook_key=KEY if signed else None) as client:
            task = await (client if whose == "submitted" else elsewhere).submit("x")
            if whose == "waited for":
                waiting = asyncio.create_task(client.wait(task.id))
                await until(lambda: client._runtime.poller.waiting)
            headers = [("content-type", "application/json")]
            if signed:
                headers += kie4o.sign_callback(task.id, key=KEY, timestamp=time.time()).items()
            receiver = client.receiver(allow_unsigned=True)
            status = await receiver.receive(headers, body_of(task.id))
            assert status == (200 if signed and accepted else 404)
            if whose == "waited for":
                waiting.cancel()
