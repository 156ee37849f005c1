"""What the client saves and when: before it sends, after the answer, and what it does when a save fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import pytest
from clients import MakeStore, client_of, state_of
from clocks import run_scaled
from faults import FaultServer, raw

import kie4o
from kie4o import ImageRequest, RateLimit, StoreError
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState, Store

SPEED = 20  # loop seconds per second


class Watched:
    """A store that records the states it saves, and fails to save those in `broken`."""

    def __init__(self, store: Store, *broken: EntryState) -> None:
        self._store = store
        self.broken = set(broken)
        self.history: list[EntryState] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self.save(entry)

    async def save(self, entry: Entry) -> None:
        self.history.append(entry.state)
        if entry.state in self.broken:
            raise StoreError("the store cannot be used: the disk is full")
        await self._store.save(entry)


@pytest.mark.parametrize("key", ["a", None])
@pytest.mark.parametrize("outcome", ["success", "failed"])
def test_the_outcome_is_saved(store: MakeStore, outcome: str, key: str | None) -> None:
    """INTENT, SUBMITTED, then the outcome with its details, in this order and nothing else."""

    async def run() -> None:
        async with Emulator(duration=0.0, outcome=outcome) as kie:
            kept = Watched(store())
            async with client_of(kie.url, kept) as client:
                with contextlib.suppress(kie4o.TaskFailedError):
                    await client.generate("x", key=key)
                end = EntryState.SUCCEEDED if outcome == "success" else EntryState.FAILED
                assert kept.history == [EntryState.INTENT, EntryState.SUBMITTED, end]
                assert [entry async for entry in kept.unfinished()] == []
                [task_id] = kie.tasks
                if key is not None:
                    entry = await kept.find(key=key)
                    assert entry == await kept.find(task_id=task_id)
                    assert (entry.state, entry.task_id, entry.request) == (end, task_id, ImageRequest("x"))
                    assert (entry.details.task_id, entry.details.state.value) == (task_id, end.value)
                    assert entry.details.raw["taskId"] == task_id

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("how", ["task", "wait", "resume"])
def test_every_way_of_waiting_saves_the_outcome(store: MakeStore, how: str) -> None:
    """The outcome is saved whether it is learned from the handle, by the id or by `resume`."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie, client_of(kie.url, kept := store()) as client:
            task = await client.submit("x", key="a")
            if how == "task":
                result = await task
            elif how == "wait":
                result = await client.wait(task.id)
            else:
                [completion] = [completion async for completion in client.resume()]
                result = completion.unwrap()
            assert await state_of(kept, "a") is EntryState.SUCCEEDED
            again = await client.generate("x", key="a")
            assert (again, again.source, len(kie.submits)) == (result, "store", 1)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize(("days", "end"), [(13, EntryState.SUBMITTED), (15, EntryState.FAILED)])
def test_a_task_that_kie_does_not_know_fails_after_14_days(
    store: MakeStore, days: int, end: EntryState
) -> None:
    """A task that Kie does not know has failed once its images would have expired.

    Before that the API key may be the wrong one, so the task stays unfinished.
    """

    async def run() -> None:
        async with Emulator() as kie, client_of(kie.url, kept := store()) as client:
            await client.credits()  # opens the store
            old = Entry("a", request=ImageRequest("x"), ref="r" * 24)
            await kept.claim(old)
            then = time.time() - days * 86400
            await kept.save(old.become(EntryState.SUBMITTED, task_id="0" * 32, submitted_at=then))
            with pytest.raises(kie4o.TaskNotFoundError):
                await client.wait("0" * 32)
            assert await state_of(kept, "a") is end
            assert [entry.key async for entry in client.unfinished()] == (["a"] if days < 14 else [])
            assert len(kie.submits) == 0

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("key", ["a", None])
def test_no_intent_no_post(store: MakeStore, key: str | None) -> None:
    """If the INTENT cannot be saved, nothing is sent and `StoreError` is raised.

    Later the same call works: no slot and no permit was lost.
    """

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kept = Watched(store(), EntryState.INTENT)
            limits: dict[str, Any] = {"rate_limit": RateLimit(1, per=5.0), "max_in_flight": 1}
            async with client_of(kie.url, kept, **limits) as client:
                for verb in (client.submit, client.generate):
                    with pytest.raises(StoreError, match="full") as caught:
                        await verb("x", key=key)
                    assert caught.value.task_id is None
                assert len(kie.submits) == 0
                assert [entry async for entry in kept.unfinished()] == []
                kept.broken.clear()
                start = asyncio.get_running_loop().time()
                assert (await client.generate("x", key=key)).urls
                assert asyncio.get_running_loop().time() - start < 5.0  # the slot was free
                assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


def test_no_claim_no_post() -> None:
    """If the key cannot be claimed, nothing is sent."""

    class Broken(MemoryStore):
        async def claim(self, entry: Entry, **options: Any) -> Entry | None:
            raise StoreError("the disk is full")

    async def run() -> None:
        async with Emulator() as kie, client_of(kie.url, Broken()) as client:
            with pytest.raises(StoreError, match="full"):
                await client.submit("x", key="a")
            assert len(kie.submits) == 0

    run_scaled(run(), SPEED)


def errors_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("key", ["a", None])
@pytest.mark.parametrize("verb", ["submit", "generate"])
def test_a_paid_id_that_cannot_be_saved_is_not_lost(
    store: MakeStore, verb: str, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The error and the log have the id, its key returns the task, and waiting for it works.

    The save is repeated, at growing intervals, until it succeeds.
    """

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kept = Watched(store(), EntryState.SUBMITTED)
            async with client_of(kie.url, kept) as client:
                with pytest.raises(StoreError, match="paid") as caught:
                    await getattr(client, verb)("x", key=key)
                [task_id] = kie.tasks
                assert (caught.value.task_id, caught.value.key) == (task_id, key)
                assert [line for line in errors_in(caplog) if task_id in line]
                if key is not None:
                    assert (await client.submit("x", key=key)).id == task_id
                tries = len(kept.history)
                await asyncio.sleep(100.0)
                assert 4 <= len(kept.history) - tries <= 10
                assert await kept.find(task_id=task_id) is None
                kept.broken.clear()
                async with asyncio.timeout(60.0):
                    while (entry := await kept.find(task_id=task_id)) is None:
                        await asyncio.sleep(1.0)
                assert entry.state is EntryState.SUBMITTED
                tries = len(kept.history)
                await asyncio.sleep(60.0)
                assert len(kept.history) == tries  # not saved again
                assert (await client.wait(task_id)).urls
                if key is not None:
                    assert (await client.generate("x", key=key)).source == "store"
            assert len(kie.submits) == 1

    run_scaled(run(), 100)


def test_closing_saves_what_could_not_be_saved(store: MakeStore, caplog: pytest.LogCaptureFixture) -> None:
    """Closing tries to save the id once more; if that fails too, the log has it."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kept = Watched(store(), EntryState.SUBMITTED)
            async with client_of(kie.url, kept) as client:
                with pytest.raises(StoreError) as caught:
                    await client.submit("x", key="a")
                kept.broken.clear()
            async with client_of(kie.url, store()) as later:
                assert (await later.generate("x", key="a")).task_id == caught.value.task_id
            kept = Watched(store(), EntryState.SUBMITTED)
            async with client_of(kie.url, kept) as client:
                with pytest.raises(StoreError) as caught:
                    await client.submit("y", key="b")
                caplog.clear()
            assert [line for line in errors_in(caplog) if caught.value.task_id in line]
            async with client_of(kie.url, store()) as later:  # and is not paid a second time
                with pytest.raises(kie4o.SubmissionUnknownError):
                    await later.generate("y", key="b")
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("outcome", ["success", "failed"])
def test_an_outcome_that_cannot_be_saved_is_still_returned(
    store: MakeStore, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller gets the images or the failure, and the log has a line.

    The next call gets the same, and the outcome is saved once the store works.
    """

    async def run() -> None:
        async with Emulator(duration=0.0, outcome=outcome) as kie:
            kept = Watched(store(), EntryState.SUCCEEDED, EntryState.FAILED)
            async with client_of(kie.url, kept) as client:
                for _ in range(2):
                    try:
                        task_id = (await client.generate("x", key="a")).task_id
                    except kie4o.TaskFailedError as error:
                        task_id = error.task_id
                    assert list(kie.tasks) == [task_id]
                    assert [line for line in errors_in(caplog) if task_id in line]
                assert await state_of(kept, "a") is EntryState.SUBMITTED
                end = next(iter({EntryState.SUCCEEDED, EntryState.FAILED} & set(kept.history)))
                kept.broken.clear()
                await asyncio.sleep(40.0)
                assert await state_of(kept, "a") is end
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


def test_an_unknown_outcome_that_cannot_be_saved_is_not_sent_again(store: MakeStore) -> None:
    """If UNKNOWN cannot be saved, the saved INTENT has the same effect: the key is not sent again."""

    async def run() -> None:
        async with FaultServer(raw(b"")) as server:
            for broken in ([EntryState.UNKNOWN], []):
                async with client_of(server.url, Watched(store(), *broken)) as client:
                    for _ in range(2):
                        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                            await client.generate("x", key="a")
                        assert caught.value.ref
            assert server.posts == 1

    run_scaled(run(), SPEED)
