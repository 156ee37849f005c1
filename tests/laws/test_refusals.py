"""Law 1: a refusal that was read stays a refusal, whatever interrupts or fails the note of it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from clients import client_of, state_of, until
from faults import FaultServer, accepting, answer

import kie4o
from kie4o import RateLimit, StoreError
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

# A client whose loop ends before it is closed says so, when it is collected.
pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
REFUSED = b'{"code":402,"msg":"no credits","data":null}'


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Clients that were not closed are collected in their own test."""
    yield
    gc.collect()


class Slow(MemoryStore):
    """Takes half a second to store that nothing was charged, and says when it begins."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = True
        self.notes = 0  # begun

    async def save(self, entry: Entry) -> None:
        if self.slow and entry.state in (EntryState.PLANNED, EntryState.FAILED):
            self.notes += 1
            await asyncio.sleep(0.5)
        await super().save(entry)


@pytest.mark.parametrize("cut", ["ctrl-c", "close"])
@pytest.mark.parametrize("body", [REFUSED, b"<html>403 Forbidden</html>"])
def test_a_refusal_that_is_being_noted_is_noted(
    cut: str, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C, which cancels every task, and by a close that has waited long enough.

    The key is free, and with the close the caller gets the refusal.
    """
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.05)

    async def main() -> Store:
        store = Slow()
        async with FaultServer(answer(body, "403 Forbidden")) as kie:
            client = client_of(kie.url, store)
            call = asyncio.create_task(client.generate("a boat", key="order-1"))
            await until(lambda: store.notes)
            if cut == "close":
                await client.aclose()
                with pytest.raises(kie4o.APIStatusError):
                    await call
            return store  # asyncio.run cancels what is still running

    store = asyncio.run(main())
    assert asyncio.run(state_of(store, "order-1")) in (None, EntryState.PLANNED)


def test_a_refused_resubmit_that_is_cut_short_leaves_the_failed_task() -> None:
    """What was stored under the key before is stored under it again, and nowhere else."""

    async def main() -> tuple[Store, str]:
        store = Slow()
        store.slow = False
        async with Emulator(duration=0.0, outcome="failed") as kie:
            client = client_of(kie.url, store)
            with pytest.raises(kie4o.TaskFailedError):
                await client.generate("a boat", key="order-1")
            [task_id] = kie.tasks
            store.slow = True
            kie.plan("a boat", answer=402)
            call = asyncio.create_task(client.generate("a boat", key="order-1", retry_failed=True))
            await until(lambda: store.notes == 2)  # the earlier submit under its ref, then under its key
            assert not call.done()
            assert len(kie.submits) == 2
            return store, task_id

    store, task_id = asyncio.run(main())
    entry = asyncio.run(store.find(key="order-1"))
    assert entry is not None
    assert (entry.state, entry.task_id, entry.earlier) == (EntryState.FAILED, task_id, ())
    assert asyncio.run(store.find(ref=entry.ref)) == entry


def test_refusals_that_were_read_are_in_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The store as shipped: Ctrl-C at the first refusal of twenty, ten times.

    Only submits whose refusal was not read yet are unknown to the next run.
    """
    keys = [f"order-{number}" for number in range(20)]
    read = unknown = 0

    async def main(store: Store) -> None:
        async with FaultServer(answer(REFUSED)) as kie:
            client = client_of(kie.url, store, rate_limit=RateLimit(20, per=10.0))
            calls = [asyncio.create_task(client.generate(f"boat {key}", key=key)) for key in keys]
            await until(lambda: "a submit was refused" in caplog.text)
            assert calls  # asyncio.run cancels them

    async def unknown_in(store: Store) -> int:
        await store.aclose()
        async with client_of("http://127.0.0.1:9", store) as client:
            return len([entry async for entry in client.unfinished()])

    for number in range(10):
        caplog.clear()
        with caplog.at_level("DEBUG", "kie4o"):
            asyncio.run(main(store := SQLiteStore(tmp_path / f"{number}.db")))
        refusals = caplog.text.count("a submit was refused")
        read += refusals
        unknown += max(0, asyncio.run(unknown_in(store)) - (len(keys) - refusals))
    assert read >= 10
    assert unknown == 0


@pytest.mark.parametrize("key", ["order-1", None])
async def test_a_note_that_failed_is_written_again(key: str | None) -> None:
    """The disk is full for a moment when a refusal is noted: soon after the key is free all the same."""

    class Flaky(MemoryStore):
        failures = 0

        async def save(self, entry: Entry) -> None:
            self._fail(entry.state is EntryState.PLANNED)
            await super().save(entry)

        async def forget(self, key: str) -> None:
            self._fail(True)
            await super().forget(key)

        def _fail(self, unpaid: bool) -> None:
            if unpaid and self.failures == 0:
                self.failures += 1
                raise StoreError("the disk is full")

    store = Flaky()
    async with FaultServer(answer(REFUSED), accepting) as kie, client_of(kie.url, store) as client:
        with pytest.raises(kie4o.InsufficientCreditsError):
            await client.submit("a boat", key=key)
        [entry] = store._entries.values()
        assert entry.state is EntryState.INTENT
        assert (await client.submit("a boat", key=key)).id  # at once
        await until(lambda: EntryState.INTENT not in {each.state for each in store._entries.values()})
        assert kie.posts == 2
        assert len(store._entries) == 1


class Stalling(MemoryStore):
    """Stores an INTENT only after the client has given up."""

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        async def write() -> None:
            await asyncio.sleep(1.1)
            await super(Stalling, self).begin(entry, superseded)

        await asyncio.shield(asyncio.ensure_future(write()))


@pytest.mark.parametrize("key", ["order-1", None])
async def test_an_intent_that_was_given_up_is_undone(key: str | None) -> None:
    """A write that takes too long may still happen. Nothing was sent, so the key is free in the end."""
    store = Stalling()
    async with FaultServer(accepting) as kie, client_of(kie.url, store) as client:
        with pytest.raises(StoreError, match="did not respond"):
            await client.generate("a boat", key=key, timeout=0.1)
        await until(lambda: EntryState.INTENT in {each.state for each in store._entries.values()})
        await until(lambda: EntryState.INTENT not in {each.state for each in store._entries.values()})
        assert kie.posts == 0
        assert [entry async for entry in store.unfinished()] == []


async def test_a_refusal_of_one_caller_is_that_of_the_other(tmp_path: Path) -> None:
    """Two callers share a submit that is refused after a 402: both get the error, and nothing is stored."""
    async with Emulator() as kie, client_of(kie.url, tmp_path / "run.db") as client:
        kie.plan("a boat", answer=402)
        calls = [client.submit("a boat", key="order-1") for _ in range(2)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in errors] == [kie4o.InsufficientCreditsError] * 2
        assert [entry async for entry in client.unfinished()] == []
        assert len(kie.submits) == 1
