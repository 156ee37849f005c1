"""Whatever interrupts a call after its submit, the error says which task is paid, or which ref may be."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from clients import LOST, MakeStore, client_of, until
from clocks import run_scaled

import kie4o
from kie4o import ImageTask, PollPolicy, StoreError, SubmissionUnknownError, TaskDetails
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry

SPEED = 20  # loop seconds per second
LOOK = "/api/v1/gpt4o-image/record-info"
HOOK = "https://example.com/kie/{ref}"


async def ended(call: asyncio.Task[Any], limit: float = 100.0) -> Any:
    """What the call returned or raised; a call that goes on fails the test."""
    await asyncio.wait([call], timeout=limit)
    assert call.done()
    return None if call.cancelled() else call.exception() or call.result()


# -- a store that fails after an outcome became unknown ----------------------------------------------


class Failing(MemoryStore):
    """The methods named in `broken` fail: those by which the callbacks of a ref are found."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[str] = set()

    async def find(self, **by: Any) -> Entry | None:
        if "find" in self.broken and by.get("ref") is not None:
            raise StoreError("the disk cannot be read")
        return await super().find(**by)

    async def callbacks_of(self, ref: str) -> Any:
        if "callbacks_of" in self.broken:
            raise StoreError("the disk cannot be read")
        return await super().callbacks_of(ref)


@pytest.mark.parametrize("verb", ["submit", "generate", "resume"])
@pytest.mark.parametrize("broken", ["find", "callbacks_of"])
def test_a_store_that_fails_later_does_not_hide_an_unknown_outcome(
    broken: str, verb: str, api_key: str
) -> None:
    """The key of a lost answer is asked for again, and the store cannot say whether a callback came.

    The error is still that the outcome is unknown, with its key and its ref.
    """

    async def run() -> None:
        async with Emulator() as kie, client_of(kie.url, store := Failing(), api_key=api_key) as client:
            kie.plan("x", answer=LOST)
            first = await ended(asyncio.create_task(client.submit("x", key="k")))
            assert isinstance(first, SubmissionUnknownError)
            store.broken = {broken}

            async def resumed() -> Any:
                [completion] = [each async for each in client.resume()]
                return completion.error

            call = resumed() if verb == "resume" else getattr(client, verb)("x", key="k")
            again = await ended(asyncio.create_task(call))
            assert isinstance(again, SubmissionUnknownError), again
            assert (again.key, again.ref) == ("k", first.ref)
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("verb", ["submit", "generate"])
def test_a_callback_that_was_kept_gives_an_unknown_key_its_task(
    store: MakeStore, verb: str, api_key: str
) -> None:
    """Each call under the key finds the task that is paid, and sends nothing."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("x", answer=LOST)
            async with client_of(kie.url, kept := store(), api_key=api_key) as client:
                unknown = await ended(asyncio.create_task(client.submit("x", key="k")))
                assert isinstance(unknown, SubmissionUnknownError)
                [task_id] = kie.tasks
                await kept.keep_callback(unknown.ref, task_id)
            async with client_of(kie.url, store(), api_key=api_key) as later:
                found = await ended(asyncio.create_task(getattr(later, verb)("x", key="k")))
                assert not isinstance(found, Exception), found
                assert (found.id if verb == "submit" else found.task_id) == task_id
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


def test_an_unknown_outcome_of_an_earlier_run_is_raised_at_once(store: MakeStore, api_key: str) -> None:
    """Also with callbacks: the one of an earlier run may have come long ago, so it is not waited for."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Emulator(callback="never") as kie:
            kie.plan("x", answer=LOST)
            async with client_of(kie.url, store(), api_key=api_key) as client:
                await ended(asyncio.create_task(client.submit("x", key="k")))
            async with client_of(kie.url, store(), api_key=api_key, callback_url=HOOK) as later:
                start = loop.time()
                error = await ended(asyncio.create_task(later.generate("x", key="k")))
                assert isinstance(error, SubmissionUnknownError)
                assert loop.time() - start < 20.0
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


# -- what interrupts a wait ----------------------------------------------------------------------------


async def test_an_error_of_the_callers_own_function_names_the_paid_task(api_key: str) -> None:
    """`on_update` raises: its exception is passed on, with a note that names the task."""

    def fails(details: TaskDetails) -> None:
        raise ValueError("my own fault")

    async with Emulator(duration=0.0) as kie, client_of(kie.url, api_key=api_key) as client:
        with pytest.raises(ValueError, match="my own fault") as caught:
            await client.generate("x", on_update=fails)
        [task_id] = kie.tasks
        assert any(task_id in note for note in caught.value.__notes__)


async def test_a_timeout_around_a_call_names_the_paid_task(api_key: str) -> None:
    """`asyncio.timeout` cancels the wait: the cancellation has the note, and the id is in the store."""
    async with Emulator(duration=3600.0) as kie, client_of(kie.url, api_key=api_key) as client:

        async def generate() -> None:
            try:
                await client.generate("x", key="k")
            except asyncio.CancelledError as error:
                notes.extend(error.__notes__)
                raise

        notes: list[str] = []
        call = asyncio.create_task(generate())
        await until(lambda: kie.tasks and client._runtime.poller.waiting)
        call.cancel()
        await asyncio.wait([call], timeout=5)
        [task_id] = kie.tasks
        assert any(task_id in note for note in notes)
        assert [entry.task_id async for entry in client.unfinished()] == [task_id]


@pytest.mark.parametrize("verb", ["generate", "task.wait", "client.wait"])
def test_the_time_limit_of_a_call_counts_from_the_answer_and_names_the_task(verb: str, api_key: str) -> None:
    """`timeout=` is what the wait takes, whatever `wait_timeout` is; the submit is not counted."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Emulator(duration=3600.0, latency=10.0) as kie:
            async with client_of(kie.url, api_key=api_key, wait_timeout=1000.0) as client:
                start = loop.time()
                if verb == "generate":
                    call = client.generate("x", timeout=20.0)
                else:
                    task = await client.submit("x")
                    wait = task.wait if verb == "task.wait" else partial(client.wait, task.id)
                    call = wait(timeout=20.0)
                error = await ended(asyncio.create_task(call))
                assert isinstance(error, kie4o.TaskTimeoutError)
                assert [error.task_id] == list(kie.tasks)
                assert 28 < loop.time() - start < 45

    run_scaled(run(), SPEED)


# -- what a wait costs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["generate", "await", "wait"])
def test_the_first_look_comes_after_the_first_delay(how: str, api_key: str) -> None:
    """Counted from the answer of the submit: a task that was just submitted is not looked at at once."""

    async def run() -> None:
        poll = PollPolicy(first=20.0, maximum=20.0, jitter=False)
        async with Emulator(duration=3600.0) as kie:
            async with client_of(kie.url, api_key=api_key, poll=poll) as client:
                if how == "generate":
                    call = asyncio.create_task(client.generate("x"))
                    await until(lambda: client._runtime.poller.waiting)
                else:
                    task: ImageTask = await client.submit("x")
                    await asyncio.sleep(8.0)
                    call = asyncio.ensure_future(task.wait() if how == "wait" else _result_of(task))
                await asyncio.sleep(7.0)
                assert kie.requests[LOOK] == 0
                await asyncio.sleep(13.0 if how == "generate" else 7.0)
                await until(lambda: kie.requests[LOOK])
                assert kie.requests[LOOK] == 1
                call.cancel()
                await asyncio.wait([call], timeout=5)

    run_scaled(run(), SPEED)


async def _result_of(task: ImageTask) -> Any:
    return await task


def test_with_callbacks_a_task_is_looked_at_rarely(api_key: str) -> None:
    """A callback is expected, so there is no look in the first minute, whatever the policy."""

    async def run() -> None:
        async with Emulator(duration=3600.0, callback="never") as kie:
            async with client_of(kie.url, api_key=api_key, callback_url=HOOK) as client:
                call = asyncio.create_task(client.generate("x"))
                await until(lambda: client._runtime.poller.waiting)
                await asyncio.sleep(40.0)
                assert kie.requests[LOOK] == 0
                call.cancel()
                await asyncio.wait([call], timeout=5)

    run_scaled(run(), SPEED)


# -- the callback of a request of its own --------------------------------------------------------------


def test_a_request_with_its_own_callback_url_waits_for_its_callback(api_key: str) -> None:
    """Also if the client has none: the answer is lost, and `generate` waits until its deadline."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Emulator(callback="never") as kie, client_of(kie.url, api_key=api_key) as client:
            for callback_url, least, most in ((HOOK, 18.0, 40.0), (None, 0.0, 10.0)):
                kie.plan("x", answer=LOST)
                start = loop.time()
                call = client.generate("x", timeout=20.0, callback_url=callback_url)
                error = await ended(asyncio.create_task(call))
                assert isinstance(error, SubmissionUnknownError)
                assert least <= loop.time() - start < most

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("own", [True, False])
def test_the_default_deadline_ends_the_wait_for_a_callback(own: bool, api_key: str) -> None:
    """Without `timeout=` the wait for the callback of a lost answer takes `wait_timeout`."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        more: dict[str, Any] = {} if own else {"callback_url": HOOK}
        async with Emulator(callback="never") as kie:
            async with client_of(kie.url, api_key=api_key, wait_timeout=15.0, **more) as client:
                kie.plan("x", answer=LOST)
                start = loop.time()
                call = client.generate("x", **({"callback_url": HOOK} if own else {}))
                error = await ended(asyncio.create_task(call))
                assert isinstance(error, SubmissionUnknownError)
                assert 13.0 < loop.time() - start < 40.0

    run_scaled(run(), SPEED)
