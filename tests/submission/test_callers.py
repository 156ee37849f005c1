"""Callers that share a submit, join one, or leave one: each learns what its money came to."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import pytest
from clients import LOST, client_of, state_of, until
from clocks import run_scaled
from held import HeldServer

import kie4o
from kie4o import ImageRequest, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState, KeyInUseError

SPEED = 50  # loop seconds per second
LIMIT = 5.0  # seconds within which a call ends


async def ended(call: asyncio.Task[Any], limit: float = LIMIT) -> Any:
    """What the call returned or raised; a call that goes on fails the test."""
    await asyncio.wait([call], timeout=limit)
    assert call.done()
    return None if call.cancelled() else call.exception() or call.result()


class CancelsAtTheSave(MemoryStore):
    """Cancels a call so many turns of the loop after the save of a task id has begun, which takes some."""

    def __init__(self, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.call: asyncio.Task[Any] | None = None

    async def save(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED and self.call is not None:
            self._cancel_after(self.turns)
            for _ in range(5):
                await asyncio.sleep(0)
        await super().save(entry)

    def _cancel_after(self, turns: int) -> None:
        assert self.call is not None
        if turns:
            asyncio.get_running_loop().call_soon(self._cancel_after, turns - 1)
        else:
            self.call.cancel()


@pytest.mark.parametrize("leaves", [0, 1])
async def test_a_caller_that_leaves_with_the_answer_hides_it_from_no_other(leaves: int, api_key: str) -> None:
    """Of two callers of a key one is cancelled in any turn around the answer: the other gets the task."""
    for turns in range(16):
        store = CancelsAtTheSave(turns)
        async with HeldServer() as kie, client_of(kie.url, store, api_key=api_key) as client:
            calls = [asyncio.create_task(client.submit("x", key="k")) for _ in range(2)]
            store.call = calls[leaves]
            await until(lambda: kie.posts == 1)
            task_id = kie.accept("x")
            task = await ended(calls[1 - leaves])
            assert isinstance(task, kie4o.ImageTask), (turns, task)
            assert task.id == task_id
            await ended(calls[leaves])
            assert kie.posts == 1


@pytest.mark.parametrize("leaves", [0, 1])
def test_a_caller_that_leaves_calls_off_no_submit_that_another_waits_for(leaves: int, api_key: str) -> None:
    """Of two callers of a key, whose request waits for a slot, one is cancelled: the other gets the task."""

    async def run() -> None:
        async with Emulator() as kie:
            limit = RateLimit(1, per=5.0)
            async with client_of(kie.url, api_key=api_key, rate_limit=limit) as client:
                await client.submit("takes the slot")
                calls = [asyncio.create_task(client.submit("x", key="k")) for _ in range(2)]
                await until(lambda: client._runtime.limiter.waiting == 1)
                calls[leaves].cancel()
                await ended(calls[leaves])
                task = await ended(calls[1 - leaves], 100)
                assert isinstance(task, kie4o.ImageTask), task
                assert (task.id in kie.tasks, len(kie.submits)) == (True, 2)

    run_scaled(run(), SPEED)


def test_a_caller_that_joins_an_abandoned_submit_has_it_sent_again(api_key: str) -> None:
    """The first caller of a key is cancelled after the request was sent, and another one comes.

    If Kie then refuses for now, the request is sent again, for the caller that waits.
    """

    async def run() -> None:
        async with HeldServer() as kie:
            async with client_of(kie.url, api_key=api_key, rate_limit=RateLimit(5, per=1.0)) as client:
                first = asyncio.create_task(client.submit("x", key="k"))
                await until(lambda: kie.posts == 1)
                first.cancel()
                await ended(first)
                second = asyncio.create_task(client.submit("x", key="k"))
                await asyncio.sleep(1.0)
                kie.refuse("x", 429)
                await until(lambda: kie.posts == 2 or second.done())
                assert not second.done(), second.exception()
                task_id = kie.accept("x")
                assert (await ended(second)).id == task_id

    run_scaled(run(), SPEED)


async def test_another_request_under_a_key_that_is_being_submitted_is_a_conflict(api_key: str) -> None:
    """It does not get the task of the first request, and nothing is sent for it."""
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        first = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        second = asyncio.create_task(client.submit("y", key="k"))
        assert isinstance(await ended(second), kie4o.KeyConflictError)
        task_id = kie.accept("x")
        assert (await ended(first)).id == task_id
        assert kie.prompts == ["x"]


async def test_a_caller_that_comes_while_a_submit_is_called_off_submits_anew(api_key: str) -> None:
    """It gets a task of its own and not the error of the submit that was called off."""

    class SlowToUndo(MemoryStore):
        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.PLANNED:
                undoing.set()
                await asyncio.sleep(0.1)
            await super().save(entry)

        async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
            await super().begin(entry, superseded)
            if not undoing.is_set():
                begun.set()
                await asyncio.sleep(3600)

    begun, undoing = asyncio.Event(), asyncio.Event()
    async with HeldServer() as kie, client_of(kie.url, SlowToUndo(), api_key=api_key) as client:
        first = asyncio.create_task(client.submit("x", key="k"))
        await until(begun.is_set)
        first.cancel()
        await until(undoing.is_set)
        second = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1 or second.done())
        assert not second.done(), second.exception()
        task_id = kie.accept("x")
        assert (await ended(second)).id == task_id
        assert kie.posts == 1


async def test_callers_that_resubmit_in_the_turn_of_the_outcome_share_one_post(api_key: str) -> None:
    """A caller that resubmits as soon as it learns of an unknown outcome shares its submit with the next.

    Two POSTs in all: the lost one and one more.
    """
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:

        async def until_accepted() -> str:
            try:
                return (await client.submit("x", key="k")).id
            except kie4o.SubmissionUnknownError:
                return (await client.submit("x", key="k", on_unknown="resubmit")).id

        calls = [asyncio.create_task(until_accepted())]
        await until(lambda: kie.posts == 1)
        kie.lose("x")
        await until(lambda: kie.posts == 2)
        calls += [asyncio.create_task(client.submit("x", key="k", on_unknown="resubmit")) for _ in range(2)]
        await asyncio.sleep(0.1)
        assert kie.posts == 2
        task_id = kie.accept("x")
        assert await ended(calls[0]) == task_id
        assert [(await ended(call)).id for call in calls[1:]] == [task_id] * 2
        assert kie.posts == 2


def test_a_batch_that_stops_calls_off_no_submit_of_another_caller(api_key: str) -> None:
    """An item that waits for a slot when its batch stops is still submitted if another call has its key."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("first", answer=402)
            limit = RateLimit(1, per=5.0)
            async with client_of(kie.url, api_key=api_key, rate_limit=limit) as client:
                own = asyncio.create_task(client.submit("blocks"))
                await until(lambda: len(kie.submits) == 1)
                batch = {"first": "first", "second": "second"}

                async def stopped() -> None:
                    async for _ in client.generate_many(batch):
                        pass

                running = asyncio.create_task(stopped())
                await until(lambda: client._runtime.submissions.live == 2)
                shared = asyncio.create_task(client.generate("second", key="second"))
                assert isinstance(await ended(running, 100), kie4o.InsufficientCreditsError)
                result = await ended(shared, 100)
                assert isinstance(result, kie4o.ImageResult), result
                assert (await ended(own)).id in kie.tasks
                assert kie.paid == 2

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("state", ["unknown", "waiting", "sent", "over"])
async def test_what_a_batch_that_stops_can_call_off(state: str, api_key: str) -> None:
    """A submit that waits for its slot is, and stays so when it is called off again; nothing else is."""
    heard: list[Any] = []
    async with HeldServer() as kie:
        limit = RateLimit(1, per=600.0)
        async with client_of(kie.url, api_key=api_key, rate_limit=limit, on_event=heard.append) as client:
            submissions = client._runtime.submissions
            first = asyncio.create_task(client.submit("first", key="sent"))
            await until(lambda: kie.posts == 1)
            waiting = asyncio.create_task(client.submit("second", key="waiting"))
            await until(lambda: submissions.is_live("waiting"))
            if state == "over":
                kie.accept("first")
                await ended(first)
            key = "sent" if state == "over" else state
            expected = state == "waiting"
            assert [submissions.call_off(key, "the batch stopped") for _ in range(2)] == [expected] * 2
            told = [each for each in heard if isinstance(each, kie4o.events.CalledOff)]
            assert [(each.key, each.cause) for each in told] == [("waiting", "the batch stopped")] * expected
            if expected:
                error = await ended(waiting)
                assert str(error).startswith("the batch stopped before the request was sent"), error
                assert error.key == "waiting"
                over = [
                    (each.key, each.error) for each in heard if isinstance(each, kie4o.events.SubmitEnded)
                ]
                assert over == [("waiting", "KieError")]
                assert not [each for each in heard if isinstance(each, kie4o.events.Orphaned)]
            if not first.done():
                kie.accept("first")
                assert isinstance(await ended(first), kie4o.ImageTask)
    assert kie.posts == 1


async def test_a_refusal_of_a_batch_is_not_repeated_for_the_caller_that_joined(api_key: str) -> None:
    """Such a caller submits anew only if another process had the key, for which a batch does not wait."""

    async def batch(client: kie4o.AsyncKieClient) -> list[Any]:
        return [item.error async for item in client.generate_many({"k": "x"})]

    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        running = asyncio.create_task(batch(client))
        await until(lambda: kie.posts == 1)
        joined = asyncio.create_task(client.submit("x", key="k"))
        await asyncio.sleep(0.02)
        kie.refuse("x", 422)
        assert isinstance(await ended(joined), kie4o.UnprocessableEntityError)
        [error] = await ended(running)
        assert isinstance(error, kie4o.UnprocessableEntityError)
        assert kie.posts == 1


async def test_each_caller_has_an_error_of_its_own(api_key: str) -> None:
    """What one of them changes or chains is not seen by the other. An event tells of the second caller."""
    heard: list[Any] = []
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key, on_event=heard.append) as client:
        calls = [asyncio.create_task(client.submit("x", key="k")) for _ in range(2)]
        await until(lambda: kie.posts == 1)
        kie.refuse("x", 422, "a bad request")
        first, second = [await ended(call) for call in calls]
        assert isinstance(first, kie4o.UnprocessableEntityError)
        assert first is not second
        assert (str(first), first.code, first.key) == (str(second), second.code, second.key)
    assert [each.key for each in heard if isinstance(each, kie4o.events.SubmitJoined)] == ["k"]


async def test_a_call_that_the_store_answers_calls_nothing_off(api_key: str) -> None:
    """Nothing of it was sent, and its caller does not wait any more; but nobody has left it."""
    heard: list[Any] = []
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key, on_event=heard.append) as client:
        first = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        task_id = kie.accept("x")
        assert (await ended(first)).id == task_id
        assert (await client.submit("x", key="k")).id == task_id
        assert [each for each in heard if isinstance(each, kie4o.events.CalledOff)] == []


async def test_a_caller_does_not_outlive_the_submit_that_it_waits_for(api_key: str) -> None:
    """Something may cancel every task but its own, as `asyncio.run` does at its end."""
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x"))
        await until(lambda: kie.posts == 1)
        [submit] = [task for task in asyncio.all_tasks() if task.get_name() == "kie4o submit"]
        submit.cancel()
        await asyncio.wait([call], timeout=LIMIT)
        assert call.cancelled()


async def test_a_submit_that_has_not_begun_can_be_called_off(api_key: str) -> None:
    """In the turn in which it was started: its caller is told that nothing was charged."""
    heard: list[Any] = []
    async with (
        HeldServer() as kie,
        client_of(kie.url, api_key=api_key, on_event=heard.append) as client,
    ):
        submissions = client._runtime.submissions
        call = asyncio.create_task(client.submit("x", key="k"))
        await asyncio.sleep(0)
        assert submissions.call_off("k", "the batch stopped")
        error = await ended(call)
        assert isinstance(error, kie4o.KieError)
        assert "nothing was charged" in str(error)
        assert (error.key, kie.posts) == ("k", 0)
        assert [event.error for event in heard if isinstance(event, kie4o.events.SubmitEnded)] == ["KieError"]


class KeepsNoIds(MemoryStore):
    async def save(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED:
            raise kie4o.StoreError("the disk is full")
        await super().save(entry)


async def test_an_id_that_cannot_be_kept_is_told_once_and_raised(api_key: str) -> None:
    """The task is paid, so it is reported; the caller learns that nothing has its id but this error."""
    heard: list[Any] = []
    async with (
        HeldServer() as kie,
        client_of(kie.url, KeepsNoIds(), api_key=api_key, on_event=heard.append) as client,
    ):
        running = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        task_id = kie.accept("x")
        error = await ended(running, 60)
        assert isinstance(error, kie4o.StoreError), error
        assert error.task_id == task_id
    told = [each.task_id for each in heard if isinstance(each, kie4o.events.Submitted)]
    assert told == [task_id]


# -- callers that are gone -------------------------------------------------------------------------


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.name == "kie4o"]


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_refusal_that_no_caller_sees_is_logged(
    leaves: bool, api_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At WARNING, once, with what Kie said. A refusal that the caller gets is not logged as well."""
    heard: list[Any] = []
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key, on_event=heard.append) as client:
        call = asyncio.create_task(client.submit("x"))
        await until(lambda: kie.posts == 1)
        if leaves:
            call.cancel()
            await ended(call)
        kie.refuse("x", 402, "credits are used up")
        await until(lambda: client._runtime.submissions.live == 0)
        await asyncio.sleep(0.02)
        error = await ended(call)
        assert error is None if leaves else isinstance(error, kie4o.InsufficientCreditsError)
        assert sum("credits are used up" in line for line in warnings_in(caplog)) == leaves
        orphaned = [each.cause for each in heard if isinstance(each, kie4o.events.Orphaned)]
        assert orphaned == ["402 credits are used up"] * leaves


def test_a_submit_that_is_called_off_is_not_logged(api_key: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its caller left before anything was sent: there is nothing to tell."""

    async def run() -> None:
        async with Emulator() as kie:
            async with client_of(kie.url, api_key=api_key, rate_limit=RateLimit(1, per=60.0)) as client:
                await client.submit("takes the slot")
                call = asyncio.create_task(client.submit("x"))
                await until(lambda: client._runtime.limiter.waiting == 1)
                call.cancel()
                await until(lambda: client._runtime.submissions.live == 0)
                assert warnings_in(caplog) == []
                assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


def test_a_submit_whose_end_after_a_call_off_is_cut_short_is_not_logged(
    api_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller left while a store of the caller's was busy, and closing does not wait for that store."""

    class Busy(MemoryStore):
        async def claim(self, entry: Entry, **more: Any) -> Entry | None:
            claiming.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)
                raise
            return None

    claiming, heard = asyncio.Event(), list[Any]()

    async def run() -> None:
        async with Emulator() as kie:
            async with client_of(kie.url, Busy(), api_key=api_key, on_event=heard.append) as client:
                call = asyncio.create_task(client.submit("x", key="k"))
                await claiming.wait()
                call.cancel()
                await ended(call)
            assert len(kie.submits) == 0

    run_scaled(run(), SPEED)
    assert [each.error for each in heard if isinstance(each, kie4o.events.SubmitEnded)] == ["KieError"]
    assert not [each for each in heard if isinstance(each, kie4o.events.Orphaned)]
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("how", ["called off", "cancelled"])
async def test_a_submit_that_ends_before_it_began_ends_its_call(how: str, api_key: str) -> None:
    """Called off in the turn in which it was started, as by a batch, or cancelled with the loop."""
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        call, submissions = asyncio.create_task(client.submit("x", key="k")), client._runtime.submissions
        while not submissions.is_live("k"):
            await asyncio.sleep(0)
        if how == "called off":
            assert submissions.call_off("k", "the batch was stopped")
        else:
            submissions._live["k"].task.cancel()
        error = await ended(call)
        assert (error is None) == (how == "cancelled")
        assert (
            how in str(error) or call.cancelled() or "the batch was stopped before the request" in str(error)
        )
        assert (submissions.live, kie.posts) == (0, 0)


async def test_a_store_that_swallows_a_cancellation_sends_no_request(api_key: str) -> None:
    """A store of the caller's returns as if nothing had been cancelled: the submit ends before it begins."""

    class Swallowing(MemoryStore):
        async def claim(self, entry: Entry, **more: Any) -> Entry | None:
            claiming.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                return await super().claim(entry, **more)

    claiming = asyncio.Event()
    async with HeldServer() as kie, client_of(kie.url, Swallowing(), api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x", key="k"))
        await claiming.wait()
        call.cancel()
        assert await ended(call) is None
        await until(lambda: not client._runtime.submissions.live)
        assert (kie.posts, await state_of(client._runtime.store, "k")) == (0, None)


async def test_a_caller_that_waits_for_another_process_outlives_one_that_does_not(api_key: str) -> None:
    """It joined the submit of a caller that raises instead, and then submits itself."""

    class InUse(MemoryStore):
        """Another process has the key in hand for a while."""

        async def claim(self, entry: Entry, *, wait: bool = True, **more: Any) -> Entry | None:
            await asked.wait()
            return await super().claim(entry, **more) if wait else None

    asked, request = asyncio.Event(), ImageRequest("x")
    async with HeldServer() as kie, client_of(kie.url, InUse(), api_key=api_key) as client:
        await client.spent()  # opens it
        submissions, permit = client._runtime.submissions, await client._runtime.lifecycle.permits.acquire()
        with permit:
            calls = [
                asyncio.create_task(submissions.submit(request, "k", permit, wait=wait))
                for wait in (False, False, True)
            ]
            await until(lambda: submissions.live)
            asked.set()
            await until(lambda: kie.posts == 1)
            task_id = kie.accept("x")
            assert (await ended(calls[2])).task_id == task_id
            for call in calls[:2]:
                assert isinstance(await ended(call), KeyInUseError)


async def test_what_was_submitted_before_is_the_same_if_nothing_is_logged(
    api_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a hook nobody wants to know, and nothing is made ready for that."""
    caplog.set_level(logging.ERROR, "kie4o")
    async with HeldServer() as kie, client_of(kie.url, api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        task_id = kie.accept("x")
        assert (await ended(call)).id == (await client.submit("x", key="k")).id == task_id
        assert kie.posts == 1
    assert [record for record in caplog.records if record.name == "kie4o"] == []


def test_a_lost_answer_without_a_caller_is_unknown_for_the_next(api_key: str) -> None:
    """The caller left after the request was sent, and the answer is lost: the key is not sent again."""

    async def run() -> None:
        async with Emulator(latency=5.0) as kie:
            kie.plan("x", answer=LOST)
            async with client_of(kie.url, api_key=api_key) as client:
                call = asyncio.create_task(client.submit("x", key="k"))
                await until(lambda: len(kie.submits) == 1)
                call.cancel()
                await until(lambda: client._runtime.submissions.live == 0)
                again = asyncio.create_task(client.submit("x", key="k"))
                assert isinstance(await ended(again, 100), kie4o.SubmissionUnknownError)
                assert len(kie.submits) == 1

    run_scaled(run(), SPEED)
