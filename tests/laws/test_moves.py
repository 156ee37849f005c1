"""A key that is submitted again while its earlier submit is still written about: no paid task is lost.

The earlier submit moves to its ref, and back if the new one is refused. Reads and writes of a slow store that
enclose such a move must not undo it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from clients import client_of, state_of, until
from faults import TASK_ID, Connection, FaultServer, good_body, http, task_id_of

import kie4o
from kie4o import AsyncKieClient, StoreError, events, parse_callback
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState

CALLBACK = "https://me.example/kie/{ref}"
LOST = b""
NO_CREDITS = http(b'{"code":402,"msg":"no credits"}')
FLAGS = {"SUCCESS": 1, "GENERATE_FAILED": 3}
LAG = 0.01  # seconds


class Kie(FaultServer):
    """Answers the n-th submit with the n-th of `answers`, later ones with a task of their own.

    Every task that is polled has the same status.
    """

    def __init__(self, *answers: bytes | asyncio.Future[bytes], status: str = "SUCCESS") -> None:
        super().__init__(self._respond)
        self.answers = answers
        self.status = status

    async def _respond(self, connection: Connection) -> None:
        await connection.request()
        if self.heads[-1].startswith(b"GET "):
            return await connection.send(http(self._details(self.heads[-1])))
        number = self.posts
        answer = self.answers[number - 1] if number <= len(self.answers) else http(good_body(number))
        return await connection.send(answer if isinstance(answer, bytes) else await answer)

    def _details(self, head: bytes) -> bytes:
        task_id = head.split()[1].rpartition(b"taskId=")[2]
        images = b'{"result_urls":["https://images.example/1.png"]}' if self.status == "SUCCESS" else b"null"
        return b'{"code":200,"data":{"taskId":"%s","status":"%s","successFlag":%d,"response":%s}}' % (
            task_id,
            self.status.encode(),
            FLAGS.get(self.status, 0),
            images,
        )


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be saved is saved again soon."""
    monkeypatch.setattr("kie4o.stores.ledger._FIRST_DELAY", 0.05)


def later() -> asyncio.Future[bytes]:
    """An answer that the test gives."""
    return asyncio.get_running_loop().create_future()


async def lost(client: AsyncKieClient) -> str:
    """A first submit of the key whose answer is lost; return its ref."""
    with pytest.raises(kie4o.SubmissionUnknownError) as caught:
        await client.submit("a boat", key="order-1")
    assert caught.value.ref is not None
    return caught.value.ref


def resubmit(client: AsyncKieClient) -> asyncio.Task[kie4o.ImageTask]:
    return asyncio.create_task(client.submit("a boat", key="order-1", on_unknown="resubmit"))


# -- a callback names the earlier task while the resubmit is refused ---------------------------------


async def test_an_outcome_that_is_saved_late_follows_its_entry_back_to_its_key() -> None:
    """The outcome of the earlier task cannot be saved while the key is submitted again, which is refused.

    It is saved under the key, not under the ref that the entry had meanwhile: the key keeps its paid task.
    """

    class FailsOnce(MemoryStore):
        failures = 1

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.SUCCEEDED and self.failures:
                self.failures -= 1
                raise StoreError("the disk is full")
            await super().save(entry)

    store, refusal = FailsOnce(), later()
    async with Kie(LOST, refusal) as kie:
        async with client_of(kie.url, store, callback_url=CALLBACK) as client:
            ref = await lost(client)
            again = resubmit(client)
            await until(lambda: kie.posts == 2)
            await client.deliver(parse_callback({"data": {"taskId": TASK_ID}}, ref=ref))
            refusal.set_result(NO_CREDITS)
            with pytest.raises(kie4o.InsufficientCreditsError):
                await again
        assert store.failures == 0
        async with client_of(kie.url, store) as client:  # by now everything is saved
            assert (await client.submit("a boat", key="order-1")).id == TASK_ID
        assert await state_of(store, "order-1") is EntryState.SUCCEEDED
        assert kie.posts == 2


class Lagging(MemoryStore):
    """A store that is asked over a network: the answer to a read is late, and so is a write."""

    calls = 0

    async def find(self, **names: Any) -> Entry | None:
        entry = await super().find(**names)
        await self._lag()
        return entry

    async def save(self, entry: Entry) -> None:
        await self._lag()
        await super().save(entry)

    async def _lag(self) -> None:
        self.calls += 1
        await asyncio.sleep(LAG)


@pytest.mark.parametrize("at", range(7))
async def test_a_callback_and_a_refusal_at_the_same_time(at: int) -> None:
    """The refusal arrives at each call that the callback makes of the store; the key has the named task."""
    store, refusal = Lagging(), later()
    async with (
        Kie(LOST, refusal) as kie,
        client_of(kie.url, store, callback_url=CALLBACK) as client,
    ):
        ref = await lost(client)
        again = resubmit(client)
        await until(lambda: kie.posts == 2)
        store.calls = 0
        callback = parse_callback({"data": {"taskId": TASK_ID}}, ref=ref)
        delivery = asyncio.create_task(client.deliver(callback))
        await until(lambda: store.calls >= at or delivery.done())
        refusal.set_result(NO_CREDITS)
        with pytest.raises(kie4o.InsufficientCreditsError):
            await again
        await delivery
        assert (await client.submit("a boat", key="order-1")).id == TASK_ID
        entry = await store.find(key="order-1")
        assert entry is not None
        assert entry.ref == ref
        assert kie.posts == 2


# -- writes that end late ----------------------------------------------------------------------------


async def test_a_write_that_ends_late_replaces_no_newer_one() -> None:
    """That a key was not charged is saved again over a slow connection, while the key is submitted again.

    Writes of this store may overtake each other, as those of a pool of connections do.
    """

    class Pool(MemoryStore):
        failures = 1
        writing = False

        async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
            if self.failures:
                self.failures -= 1
                raise OSError("connection lost")
            await super().begin(entry, superseded)

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.PLANNED:
                self.writing = True
                await go.wait()
            await super().save(entry)

    store, go = Pool(), asyncio.Event()
    async with Kie() as kie, client_of(kie.url, store) as client:
        with pytest.raises(StoreError, match="connection lost"):
            await client.submit("a boat", key="order-1")
        await until(lambda: store.writing)
        call = asyncio.create_task(client.submit("a boat", key="order-1"))
        await asyncio.wait([call], timeout=0.3)  # it may wait for the write
        go.set()
        assert (await call).id == TASK_ID
        assert (await client.submit("a boat", key="order-1")).id == TASK_ID
        assert await state_of(store, "order-1") is EntryState.SUBMITTED
        assert kie.posts == 1


async def test_a_read_that_ends_late_does_not_undo_a_resubmit() -> None:
    """Two callers wait for a task that fails. The store answers the second only after the first has
    submitted the key again: the key keeps its second task, which is paid."""

    class Remote(MemoryStore):
        late: asyncio.Task[Any] | None = None

        async def find(self, **names: Any) -> Entry | None:
            entry = await super().find(**names)
            if asyncio.current_task() is self.late and kie.status == "GENERATE_FAILED":
                has_read.set()
                await go.wait()
            return entry

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.FAILED:
                await has_read.wait()
            await super().save(entry)

    store, has_read, go = Remote(), asyncio.Event(), asyncio.Event()
    async with Kie(status="GENERATING") as kie, client_of(kie.url, store) as client:
        task = await client.submit("a boat", key="order-1")
        store.late = asyncio.create_task(client.wait(task.id))
        await until(lambda: len(kie.heads) > kie.posts)  # it waits for the task
        kie.status = "GENERATE_FAILED"
        with pytest.raises(kie4o.TaskFailedError):
            await task
        second = await client.submit("a boat", key="order-1", retry_failed=True)
        go.set()
        with pytest.raises(kie4o.TaskFailedError):
            await store.late
        assert second.id == task_id_of(2)
        assert [entry.task_id async for entry in client.unfinished()] == [second.id]
        assert (await client.submit("a boat", key="order-1", retry_failed=True)).id == second.id
        failed = await store.find(task_id=task.id)
        assert failed is not None
        assert (failed.state, failed.callers_key) == (EntryState.FAILED, "order-1")
        assert kie.posts == 2


class Stalling(MemoryStore):
    """Each call that is named stalls once, until the test lets it go on."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.stalled: list[str] = []

    async def claim(self, entry: Entry, **more: Any) -> Entry | None:
        stored = await super().claim(entry, **more)
        await self._stall("claim")
        return stored

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self._stall("begin")
        await super().begin(entry, superseded)

    async def save(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED:
            await self._stall("save")
        await super().save(entry)

    def stall(self, *names: str) -> None:
        self.gates = {name: asyncio.Event() for name in names}
        self.stalled = []

    async def _stall(self, name: str) -> None:
        if name in self.gates and name not in self.stalled:
            self.stalled.append(name)
            await self.gates[name].wait()


async def ends_while_it_moves(client: AsyncKieClient, kie: Kie, store: Stalling) -> None:
    """The end of the first task is read while its entry moves, and is saved after that."""
    await until(lambda: "begin" in store.stalled)
    kie.status = "SUCCESS"
    polls = len(kie.heads)
    ending = asyncio.create_task(client.details(TASK_ID))
    await until(lambda: len(kie.heads) > polls)
    await asyncio.sleep(0.05)
    store.gates["begin"].set()
    assert (await ending).state.name == "SUCCEEDED"


async def test_an_outcome_that_is_read_while_its_entry_leaves_its_key_does_not_return_to_it() -> None:
    """A callback names the first task just before its key is submitted again. Both are paid and kept."""
    async with (
        Kie(LOST, status="GENERATING") as kie,
        client_of(kie.url, store := Stalling(), callback_url=CALLBACK) as client,
    ):
        ref = await lost(client)
        store.stall("claim", "save", "begin")
        again = resubmit(client)
        await until(lambda: "claim" in store.stalled)
        callback = parse_callback({"data": {"taskId": TASK_ID}}, ref=ref)
        delivery = asyncio.create_task(client.deliver(callback))
        await until(lambda: "save" in store.stalled)
        store.gates["claim"].set()
        await asyncio.sleep(0.05)  # now the resubmit waits for the callback to be saved
        store.gates["save"].set()
        await ends_while_it_moves(client, kie, store)
        await delivery
        second = await again
        assert second.id == task_id_of(2)
        assert await state_of(store, "order-1") is EntryState.SUBMITTED
        first = await store.find(task_id=TASK_ID)
        assert first is not None
        assert (first.state, first.callers_key) == (EntryState.SUCCEEDED, "order-1")


async def test_an_outcome_that_is_read_while_its_entry_returns_to_its_key_stays_there() -> None:
    """The submit after it was not charged, as a person says: the key has the first task, and is not paid
    again."""
    async with (
        Kie(LOST, LOST, status="GENERATING") as kie,
        client_of(kie.url, store := Stalling(), callback_url=CALLBACK) as client,
    ):
        ref = await lost(client)
        with pytest.raises(kie4o.SubmissionUnknownError):
            await resubmit(client)
        await client.deliver(parse_callback({"data": {"taskId": TASK_ID}}, ref=ref))
        store.stall("begin")
        settling = asyncio.create_task(client.settle("order-1", charged=False))
        await ends_while_it_moves(client, kie, store)
        await settling
        assert await state_of(store, "order-1") is EntryState.SUCCEEDED
        assert (await client.submit("a boat", key="order-1")).id == TASK_ID
        assert kie.posts == 2


# -- what is saved again -----------------------------------------------------------------------------


async def test_an_id_that_turns_out_to_be_another_submits_is_unknown() -> None:
    """It could not be saved at first. The key is then as after any lost answer: held, until it is submitted
    again by the caller's choice."""

    class FailsOnce(MemoryStore):
        failures = 1

        async def save(self, entry: Entry) -> None:
            if entry.key == "b" and entry.state is EntryState.SUBMITTED and self.failures:
                self.failures -= 1
                raise StoreError("the disk is full")
            await super().save(entry)

    store, heard = FailsOnce(), list[events.Event]()
    async with (
        Kie(http(good_body(1)), http(good_body(1))) as kie,
        client_of(kie.url, store, on_event=heard.append) as client,
    ):
        await client.submit("a boat", key="a")
        with pytest.raises(StoreError, match="paid"):
            await client.submit("a house", key="b")
        await until(lambda: client._runtime.ledger._writer is None)
        assert await state_of(store, "b") is EntryState.UNKNOWN
        assert [each.key for each in heard if isinstance(each, events.Misattributed)] == ["b"]
        with pytest.raises(kie4o.SubmissionUnknownError):
            await client.submit("a house", key="b")
        assert (await client.submit("a house", key="b", on_unknown="resubmit")).id == task_id_of(3)
        assert (await client.submit("a boat", key="a")).id == TASK_ID
        assert kie.posts == 3


def test_a_client_is_closed_in_another_loop_while_an_id_is_not_saved(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its loop has ended, and with it the task that would have saved the id. Closing logs the id."""

    class Full(MemoryStore):
        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.SUBMITTED:
                raise StoreError("the disk is full")
            await super().save(entry)

    async def submit() -> AsyncKieClient:
        async with Kie() as kie:
            client = client_of(kie.url, Full())
            with pytest.raises(StoreError, match="paid"):
                await client.submit("a boat", key="order-1")
            return client

    async def close(client: AsyncKieClient) -> None:
        await client.aclose()

    client = asyncio.run(submit())
    caplog.clear()
    asyncio.run(close(client))
    assert TASK_ID in caplog.text
