"""Closing and cancelling during submits: nothing more is paid, and what may be paid stays known."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from clients import MakeStore, client_of, state_of, until
from clocks import KIND, run_scaled
from faults import Connection, FaultServer
from held import HeldServer, never_connects

import kie4o
from kie4o import AsyncKieClient, RateLimit
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState

SPEED = 100  # loop seconds per second
LIMIT = 5.0  # seconds within which a call ends
AMPLE = RateLimit(100, per=10.0)


async def ended(*calls: asyncio.Task[Any], limit: float = LIMIT) -> list[Any]:
    """What the calls returned or raised; a call that goes on fails the test."""
    _, running = await asyncio.wait(calls, timeout=limit)
    assert not running
    return await asyncio.gather(*calls, return_exceptions=True)


class StallsOnce(MemoryStore):
    """The first save of an entry in this state does not return."""

    def __init__(self, state: EntryState) -> None:
        super().__init__()
        self.state = state
        self.stalled = asyncio.Event()

    async def save(self, entry: Entry) -> None:
        if entry.state is self.state and not self.stalled.is_set():
            self.stalled.set()
            await asyncio.sleep(3600)
        await super().save(entry)


# -- closing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["submit", "generate"])
@pytest.mark.parametrize("in_flight", [1, 2])
async def test_closing_sends_nothing_that_waits_for_a_permit(in_flight: int, verb: str, api_key: str) -> None:
    """A permit that becomes free while the client closes goes to a call that then sends nothing.

    Otherwise that request is paid by a client whose connections are closed before it is answered.
    """
    sent = ["first", "second"][:in_flight]
    async with HeldServer() as kie:
        client = client_of(kie.url, api_key=api_key, max_in_flight=in_flight, rate_limit=AMPLE)
        running = [asyncio.create_task(client.submit(prompt)) for prompt in sent]
        await until(lambda: kie.posts == in_flight)
        waiting = asyncio.create_task(getattr(client, verb)("third"))
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.02)
        first = kie.accept("first")
        await asyncio.sleep(0.1)  # the other submit keeps the connections open
        others = [kie.accept(prompt) for prompt in sent[1:]]
        [error] = await ended(waiting)
        assert isinstance(error, kie4o.KieError)
        assert error.task_id is None
        assert [task.id for task in await ended(*running)] == [first, *others]
        await ended(closing)
        assert sorted(kie.prompts) == sent


@pytest.mark.parametrize("key", ["a", None])
def test_a_submit_that_closing_cuts_short_may_be_paid(
    store: MakeStore, api_key: str, key: str | None
) -> None:
    """After 25 s without an answer its outcome is unknown, and the store of the next client says so.

    Its key is not sent again.
    """
    most = 26 if KIND == "asyncio" else 60  # seconds; others have no virtual time

    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with HeldServer() as kie:
            client = client_of(kie.url, store(), api_key=api_key)
            running = asyncio.create_task(client.submit("x", key=key))
            await until(lambda: kie.posts == 1)
            start = loop.time()
            await ended(asyncio.create_task(client.aclose()), limit=100.0)
            assert 25 <= loop.time() - start < most
            [error] = await asyncio.gather(running, return_exceptions=True)
            assert isinstance(error, kie4o.SubmissionUnknownError)
            async with client_of(kie.url, store(), api_key=api_key) as later:
                unfinished = [(entry.state, entry.ref) async for entry in later.unfinished()]
                assert unfinished == [(EntryState.UNKNOWN, error.ref)]
                if key is not None:
                    [again] = await ended(asyncio.create_task(later.submit("x", key=key)), limit=100.0)
                    assert isinstance(again, kie4o.SubmissionUnknownError)
            assert kie.posts == 1

    run_scaled(run(), SPEED)


def test_a_lost_answer_is_reported_once_though_closing_cuts_its_record_short(api_key: str) -> None:
    """The store does not answer; what is known is recorded again."""

    reported: list[kie4o.events.Event] = []

    async def run() -> None:
        store = StallsOnce(EntryState.UNKNOWN)
        async with HeldServer() as kie:
            client = client_of(kie.url, store, api_key=api_key, on_event=reported.append)
            running = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            kie.lose("x")
            await until(lambda: any(isinstance(each, kie4o.events.Unknown) for each in reported))
            await ended(asyncio.create_task(client.aclose()), limit=100.0)
            [error] = await ended(running)
            assert isinstance(error, kie4o.SubmissionUnknownError), error
            assert await state_of(store, "a") is EntryState.UNKNOWN
            assert len([each for each in reported if isinstance(each, kie4o.events.Unknown)]) == 1

    run_scaled(run(), SPEED)


def test_half_a_refusal_is_no_refusal(store: MakeStore, api_key: str) -> None:
    """Closing gives up on an answer whose status says no and whose body is not complete.

    A task id may be in the rest of it, so the key is not sent again.
    """

    async def half(connection: Connection) -> None:
        await connection.request()
        await connection.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 100\r\n\r\nerror")
        await asyncio.sleep(3600)

    async def run() -> None:
        async with FaultServer(half) as kie:
            client = client_of(kie.url, store(), api_key=api_key)
            running = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            await asyncio.sleep(1.0)
            await ended(asyncio.create_task(client.aclose()), limit=100.0)
            [error] = await ended(running)
            assert isinstance(error, kie4o.SubmissionUnknownError), error
            async with client_of(kie.url, store(), api_key=api_key) as later:
                [again] = await ended(asyncio.create_task(later.submit("x", key="a")), limit=100.0)
                assert isinstance(again, kie4o.SubmissionUnknownError), again
            assert kie.posts == 1

    run_scaled(run(), SPEED)


def test_the_store_is_closed_after_what_it_saves_of_a_submit_that_is_cut_short(api_key: str) -> None:
    """Also if that takes a while: a store that is closed could not save it."""

    class SlowOnce(MemoryStore):
        saving, closed_while_saving = 0, False

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.UNKNOWN and not self.saving:
                self.saving += 1
                await asyncio.sleep(1.0)
                self.saving -= 1
            await super().save(entry)

        async def aclose(self) -> None:
            self.closed_while_saving = self.saving > 0
            await super().aclose()

    async def run() -> None:
        async with HeldServer() as kie:
            client = client_of(kie.url, store := SlowOnce(), api_key=api_key)
            running = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            await ended(asyncio.create_task(client.aclose()), limit=100.0)
            assert not store.closed_while_saving
            [error] = await ended(running)
            assert isinstance(error, kie4o.SubmissionUnknownError), error

    run_scaled(run(), SPEED)


def test_closing_saves_an_id_whose_save_it_has_cut_short(api_key: str) -> None:
    """The store stalls once, for longer than closing waits. The caller gets its paid task all the same."""

    async def run() -> None:
        async with HeldServer() as kie:
            client = client_of(kie.url, store := StallsOnce(EntryState.SUBMITTED), api_key=api_key)
            running = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            task_id = kie.accept("x")
            await until(store.stalled.is_set)
            await ended(asyncio.create_task(client.aclose()), limit=100.0)
            [task] = await ended(running)
            assert isinstance(task, kie4o.ImageTask), task
            assert task.id == task_id
            assert await state_of(store, "a") is EntryState.SUBMITTED

    run_scaled(run(), SPEED)


def test_closing_does_not_raise_the_refusal_that_it_cuts_short(api_key: str) -> None:
    """It is its caller's. The store stalls for longer than closing waits while the refusal is recorded."""

    async def run() -> None:
        async with HeldServer() as kie:
            client = client_of(kie.url, store := StallsOnce(EntryState.PLANNED), api_key=api_key)
            running = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            kie.refuse("x", 402)
            await until(store.stalled.is_set)
            [closed] = await ended(asyncio.create_task(client.aclose()), limit=100.0)
            assert closed is None
            [error] = await ended(running)
            assert isinstance(error, kie4o.InsufficientCreditsError), error
            assert await state_of(store, "a") is None

    run_scaled(run(), SPEED)


# -- called off before anything is sent --------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_resubmit_that_is_called_off_leaves_the_outcome_unknown(
    store: MakeStore, how: str, api_key: str
) -> None:
    """A resubmit that is called off while it connects costs nothing, but the first submit may have.

    Its key is not sent again by the next call.
    """
    async with HeldServer() as kie:
        async with client_of(kie.url, store(), api_key=api_key) as client:
            lost = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            kie.lose("x")
            [unknown] = await ended(lost)
            assert isinstance(unknown, kie4o.SubmissionUnknownError)
        with never_connects() as url:
            async with client_of(url, kept := store(), api_key=api_key) as client:
                running = asyncio.create_task(client.submit("x", key="a", on_unknown="resubmit"))
                await intent(kept, "a", running)
                await called_off(client, running, how)
        async with client_of(kie.url, store(), api_key=api_key) as later:
            [again] = await ended(asyncio.create_task(later.submit("x", key="a")))
            assert isinstance(again, kie4o.SubmissionUnknownError)
            assert again.ref == unknown.ref
        assert kie.posts == 1


@pytest.mark.parametrize("how", ["cancel", "close"])
async def test_a_first_submit_that_is_called_off_leaves_its_key_free(
    store: MakeStore, how: str, api_key: str
) -> None:
    """Called off while it connects, a submit is undone: the next call under its key is sent."""
    with never_connects() as url:
        async with client_of(url, kept := store(), api_key=api_key) as client:
            running = asyncio.create_task(client.submit("x", key="a"))
            await intent(kept, "a", running)
            await called_off(client, running, how)
    async with HeldServer() as kie, client_of(kie.url, store(), api_key=api_key) as later:
        assert [entry async for entry in later.unfinished()] == []
        running = asyncio.create_task(later.submit("x", key="a"))
        await until(lambda: kie.posts == 1 or running.done())
        task_id = kie.accept("x")
        [task] = await ended(running)
        assert task.id == task_id
        assert kie.posts == 1


@pytest.mark.parametrize("first", ["cancel", "close"])
async def test_closing_does_not_interrupt_the_undoing_of_a_submit(first: str, api_key: str) -> None:
    """A submit is being called off when the client closes (again): its key is free afterwards."""

    class SlowToUndo(MemoryStore):
        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.PLANNED:
                task = asyncio.current_task()
                assert task is not None
                cancelling.append(task.cancelling())
                undoing.set()
                await asyncio.sleep(0.1)
            await super().save(entry)

    cancelling: list[int] = []  # what a store with timeouts or task groups of its own would go by
    undoing = asyncio.Event()
    with never_connects() as url:
        async with client_of(url, kept := SlowToUndo(), api_key=api_key) as client:
            running = asyncio.create_task(client.submit("x", key="a"))
            await intent(kept, "a", running)
            if first == "cancel":
                running.cancel()
            closing = [asyncio.create_task(client.aclose())] if first == "close" else []
            await until(undoing.is_set)
            await asyncio.sleep(0.02)
            await ended(asyncio.create_task(client.aclose()), *closing)
            assert await state_of(kept, "a") is None
            await asyncio.wait([running], timeout=LIMIT)
            assert running.done()
            assert cancelling == [0]


async def intent(kept: Any, key: str, running: asyncio.Task[Any]) -> None:
    """Wait until the request is about to be sent."""
    for _ in range(1000):
        if await state_of(kept, key) is EntryState.INTENT:
            break
        assert not running.done()
        await asyncio.sleep(0.001)
    assert await state_of(kept, key) is EntryState.INTENT
    await asyncio.sleep(0.02)


async def called_off(client: AsyncKieClient, running: asyncio.Task[Any], how: str) -> None:
    if how == "cancel":
        running.cancel()
        await asyncio.wait([running], timeout=LIMIT)
        assert running.cancelled()
    await ended(asyncio.create_task(client.aclose()))
    if how == "close":
        [error] = await ended(running)
        assert "nothing was charged" in str(error)
        assert error.key == "a"


async def test_a_cancelled_call_keeps_its_permit_until_the_answer(api_key: str) -> None:
    """A caller that is cancelled after the request was sent makes no room for another task."""
    async with HeldServer() as kie:
        async with client_of(kie.url, api_key=api_key, max_in_flight=1, rate_limit=AMPLE) as client:
            first = asyncio.create_task(client.generate("first"))
            await until(lambda: kie.posts == 1)
            first.cancel()
            await asyncio.wait([first], timeout=LIMIT)
            second = asyncio.create_task(client.submit("second"))
            await asyncio.sleep(0.1)
            assert kie.prompts == ["first"]
            kie.accept("first")
            await until(lambda: kie.posts == 2)
            task_id = kie.accept("second")
            [task] = await ended(second)
            assert task.id == task_id
