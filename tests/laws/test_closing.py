"""Closing: nothing paid is lost, no caller hangs, and another client's store stays open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from canary import CANARY_KEY
from cancelling import cancelled_at
from clients import until
from faults import GOOD_BODY, TASK_ID, Connection, FaultServer, accepting, good_body, http, raw, task_id_of

import kie4o.submission.submissions
from kie4o import AsyncKieClient, KieError, RateLimit, StoreError, StoreLockedError, SubmissionUnknownError
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

NEXT_SLOT = RateLimit(1, per=1.0)


def client_of(url: str, **more: Any) -> AsyncKieClient:
    return AsyncKieClient(CANARY_KEY, base_url=url, **more)


async def outcome_of(awaitable: Awaitable[Any]) -> Any:
    """What the awaitable returns, or the error it raises, within 10 s."""
    [outcome] = await asyncio.wait_for(asyncio.gather(awaitable, return_exceptions=True), 10)
    return outcome


class LateServer(FaultServer):
    """Answers the submits once `go` is set."""

    def __init__(self) -> None:
        super().__init__(self._late)
        self.go = asyncio.Event()

    async def _late(self, connection: Connection) -> None:
        while True:
            await connection.request()
            await self.go.wait()
            await connection.send(http(good_body(self.posts)))


# -- a store that another client has open ----------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_client_that_was_locked_out_leaves_the_store_open(kind: str, tmp_path: Path) -> None:
    """A client that got `StoreLockedError` does not close the store of the one that has it.

    Otherwise a third client could open it, and two would pay for one key.
    """
    store: Store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "run.db")
    async with LateServer() as kie, client_of(kie.url, store=store) as client:
        running = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        for _ in range(2):
            other = client_of(kie.url, store=store)
            with pytest.raises(StoreLockedError):
                await other.submit("x", key="k")
            await other.aclose()
        kie.go.set()
        assert (await running).id == TASK_ID
        entry = await store.find(key="k")
        assert entry is not None
        assert entry.task_id == TASK_ID
        assert kie.posts == 1


async def test_a_closed_client_leaves_the_store_to_the_next(tmp_path: Path) -> None:
    """A second close does not close a store that another client has opened since."""
    store = SQLiteStore(tmp_path / "run.db")
    async with LateServer() as kie:
        kie.go.set()
        first = client_of(kie.url, store=store)
        await first.submit("x")
        await first.aclose()
        async with client_of(kie.url, store=store) as second:
            await second.submit("x")
            await first.aclose()
            assert (await second.submit("x")).id == task_id_of(3)


# -- what was paid keeps its id --------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["generate", "generate_many"])
async def test_a_task_id_that_arrives_while_closing_is_on_the_error(verb: str) -> None:
    """A task id that arrives while the client closes is on the error that `generate` raises."""
    async with LateServer() as kie:
        client = client_of(kie.url)

        async def batch() -> Any:
            [completion] = [each async for each in client.generate_many(["x"])]
            return completion.error

        running = asyncio.create_task(batch() if verb == "generate_many" else client.generate("x"))
        await until(lambda: kie.posts == 1)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.05)
        kie.go.set()
        error = await outcome_of(running)
        assert isinstance(error, KieError)
        assert error.task_id == TASK_ID
        await closing


class Failing(MemoryStore):
    """A store with one method that fails while `fails` is set."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.fails = False
        setattr(self, name, self._failing(getattr(self, name)))

    def _failing(self, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def call(*words: Any, **more: Any) -> Any:
            if self.fails:
                raise StoreError("disk I/O error")
            return await method(*words, **more)

        return call


async def test_a_store_that_fails_after_the_answer_does_not_hide_the_id() -> None:
    """A `StoreError` after the answer carries the task id."""
    store = Failing("find")
    async with LateServer() as kie, client_of(kie.url, store=store) as client:
        running = asyncio.create_task(client.generate("x", callback_url="https://example.com/kie"))
        await until(lambda: kie.posts == 1)
        store.fails = True
        kie.go.set()
        error = await outcome_of(running)
        assert isinstance(error, StoreError)
        assert error.task_id == TASK_ID


async def test_a_store_that_fails_after_a_lost_answer_does_not_hide_the_ref() -> None:
    """A store that fails after a lost answer still lets `SubmissionUnknownError` carry key and ref."""
    store = Failing("callbacks_of")
    store.fails = True
    async with FaultServer(raw(b"")) as kie, client_of(kie.url, store=store) as client:
        error = await outcome_of(
            client.generate("x", key="k", callback_url="https://example.com/kie", timeout=0.3)
        )
        assert isinstance(error, SubmissionUnknownError)
        assert (error.key, bool(error.ref)) == ("k", True)
        assert kie.posts == 1


async def test_an_id_that_was_being_saved_when_all_was_cancelled_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A task id whose save fails after both submit and close were cancelled is in the log."""

    class Slow(MemoryStore):
        async def save(self, entry: Entry) -> None:
            if entry.task_id is not None:
                await asyncio.sleep(0.3)
                raise StoreError("disk full")
            await super().save(entry)

    monkeypatch.setattr(kie4o.submission.submissions, "DRAIN", 0.05)
    async with FaultServer(raw(http(GOOD_BODY))) as kie:
        client = client_of(kie.url, store=Slow())
        running = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.1)
        closing.cancel()
        with caplog.at_level(logging.ERROR, "kie4o"):
            await asyncio.gather(running, closing, return_exceptions=True)
        assert TASK_ID in caplog.text


# -- no caller hangs or is cancelled ---------------------------------------------------------------


@pytest.mark.parametrize("lost", ["before", "meanwhile"])
async def test_waiting_for_the_callback_of_a_lost_answer_ends_with_the_client(lost: str) -> None:
    """Closing ends the wait for a callback with `SubmissionUnknownError`, even without a timeout."""

    async def hang_up(connection: Connection) -> None:
        await connection.request()
        await go.wait()

    go = asyncio.Event()
    async with FaultServer(hang_up) as kie:
        client = client_of(kie.url, callback_url="https://example.com/kie", wait_timeout=None)
        running = asyncio.create_task(client.generate("x", key="k"))
        await until(lambda: kie.posts == 1)
        if lost == "before":
            go.set()
            await until(lambda: client._runtime.submissions.live == 0)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.05)
        go.set()
        error = await outcome_of(running)
        assert isinstance(error, SubmissionUnknownError)
        assert (error.key, bool(error.ref)) == ("k", True)
        await closing


@pytest.mark.parametrize("turns", range(4))
async def test_closing_in_the_tick_of_a_submit(turns: int) -> None:
    """A submit whose task has not started yet gets a `KieError`, is not cancelled, and sends nothing."""
    async with FaultServer(raw(http(GOOD_BODY))) as kie:
        client = client_of(kie.url, rate_limit=NEXT_SLOT)
        await client.submit("takes the slot")
        running = asyncio.create_task(client.submit("x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await client.aclose()
        error = await outcome_of(running)
        assert isinstance(error, KieError)
        assert kie.posts == 1


@pytest.mark.parametrize("turns", range(5))
async def test_closing_again_while_a_submit_is_called_off(turns: int, tmp_path: Path) -> None:
    """A second close does not cut short what the first one began."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(3):  # fill the backlog, so that a connect waits
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        client = client_of(f"http://127.0.0.1:{full.getsockname()[1]}", store=tmp_path / "run.db")
        running = asyncio.create_task(client.submit("x", key="k"))
        await until(
            lambda: any(each.entry.submitted_at for each in client._runtime.submissions._live.values())
        )
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(client.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(client.aclose(), closing)
        assert "nothing was charged" in str(await outcome_of(running))


async def test_nothing_is_resent_while_closing() -> None:
    """A refused submit is not resent while the client closes, though another caller joined it."""
    refusal = http(b'{"code":429,"msg":"too many","data":null}')

    async def refuse(connection: Connection) -> None:
        await connection.request()
        await go.wait()
        await connection.send(refusal)

    go = asyncio.Event()
    async with FaultServer(refuse) as kie:
        client = client_of(kie.url, max_in_flight=2, rate_limit=RateLimit(1, per=0.5))
        first = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: kie.posts == 1)
        other = asyncio.create_task(client.submit("y"))  # has the second permit, and waits for a slot
        await until(lambda: client._runtime.limiter.waiting == 1)
        second = asyncio.create_task(client.submit("x", key="k"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.05)
        go.set()
        for running in (first, second, other):
            assert isinstance(await outcome_of(running), KieError)
        await asyncio.wait_for(closing, 5)
        assert kie.posts == 1


@pytest.mark.parametrize("mode", ["pending", "done"])
async def test_a_close_that_the_loop_cuts_short_still_closes_everything(mode: Any, tmp_path: Path) -> None:
    """`asyncio.run` cancels every task in the end, so also the one that closes: wherever that happens, the
    sessions are closed, and a second close closes the store."""
    for at in range(40):
        async with LateServer() as kie:
            kie.go.set()
            store = SQLiteStore(tmp_path / f"{mode}{at}.db")
            client = client_of(kie.url, store=store)
            task = await client.submit("x")
            await outcome_of(client.details(task.id))
            sessions = client._runtime.transport._open()
            ended, _ = await cancelled_at(client._runtime._close(), at, mode)
            assert all(session.closed for session in sessions)
            await client.aclose()
            async with client_of(kie.url, store=store) as later:
                assert (await later.submit("x")).id == task_id_of(2)
        if ended == "over":
            break
    assert at > 2
    assert ended == "over"


async def test_two_closes_save_an_id_that_could_not_be_saved() -> None:
    """Two closes at once save a task id that could not be saved before."""

    class Full(MemoryStore):
        full = True

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.SUBMITTED:
                await asyncio.sleep(0)
                if self.full:
                    raise StoreError("disk full")
            await super().save(entry)

    store = Full()
    async with FaultServer(raw(http(GOOD_BODY))) as kie:
        client = client_of(kie.url, store=store)
        with pytest.raises(StoreError):
            await client.submit("x", key="k")
        store.full = False
        await asyncio.gather(client.aclose(), client.aclose())
        entry = await store.find(key="k")
        assert entry is not None
        assert entry.task_id == TASK_ID


async def test_a_second_close_continues_one_that_was_cancelled() -> None:
    """A second close waits for the store that a cancelled one was closing."""

    class Slow(MemoryStore):
        async def aclose(self) -> None:
            await asyncio.sleep(0.1)
            await super().aclose()

    store = Slow()
    async with FaultServer(accepting) as kie:
        client = client_of(kie.url, store=store)
        await client.submit("x")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.aclose(), 0.05)
        await client.aclose()
        async with client_of(kie.url, store=store) as later:
            assert (await later.submit("x")).id == task_id_of(2)


async def test_a_store_that_fails_temporarily_does_not_end_the_wait_for_a_callback() -> None:
    """`generate` goes on waiting for a callback while the store fails temporarily."""
    store = Failing("callbacks_of")
    store.fails = True
    url = "https://example.com/kie/{ref}"
    details = kie4o.TaskDetails(TASK_ID, state=kie4o.TaskState.SUCCEEDED, urls=("https://x.example/a.png",))
    async with (
        FaultServer(raw(b"")) as kie,
        client_of(kie.url, store=store, callback_url=url, trust_callbacks=True) as client,
    ):
        running = asyncio.create_task(client.generate("x", key="k"))
        await until(lambda: client._runtime.delivery._unnamed)
        await asyncio.sleep(0.05)
        assert not running.done()
        store.fails = False
        [ref] = client._runtime.delivery._unnamed
        entry = await store.find(ref=ref)
        assert entry is not None
        for future in client._runtime.delivery._unnamed[ref]:
            future.set_result(entry.become(EntryState.SUCCEEDED, task_id=TASK_ID, details=details))
        assert (await outcome_of(running)).task_id == TASK_ID


async def test_an_id_in_a_partial_answer_is_kept(monkeypatch) -> None:
    """An answer that has arrived except for its last bytes when the client stops waiting is used.

    The id is saved, and the caller gets the task.
    """
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.2)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(GOOD_BODY), GOOD_BODY)

    async def almost(connection: Connection) -> None:
        await connection.request()
        await connection.send(head)
        await asyncio.sleep(60)

    store = MemoryStore()
    async with FaultServer(almost) as server:
        client = AsyncKieClient(CANARY_KEY, base_url=server.url, timeout=60, store=store)
        submit = asyncio.create_task(client.submit("x"))
        await until(lambda: server.posts)
        await asyncio.sleep(0.05)
        await client.aclose()
        assert (await submit).id == TASK_ID
        assert [(entry.state, entry.task_id) async for entry in store.unfinished()] == [
            (EntryState.SUBMITTED, TASK_ID)
        ]


async def test_closing_before_the_answer_is_unknown_not_cancelled(monkeypatch) -> None:
    """A submit that closing cut short raises `SubmissionUnknownError` with its ref."""
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.1)

    async def never(connection: Connection) -> None:
        await connection.request()
        await asyncio.sleep(60)

    async with FaultServer(never) as server:
        client = AsyncKieClient(CANARY_KEY, base_url=server.url, timeout=60)
        submit = asyncio.create_task(client.submit("x"))
        await until(lambda: server.posts)
        await client.aclose()
        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
            await submit
        assert caught.value.ref


async def test_free_calls_stop_with_the_client() -> None:
    """A free call that waits before its next try ends when the client closes."""
    async with FaultServer(raw(b"")) as server:
        client = AsyncKieClient(CANARY_KEY, base_url=server.url)
        call = asyncio.create_task(client.credits())
        await until(lambda: server.connections)
        await client.aclose()
        with pytest.raises(kie4o.KieError, match="closed"):
            await call


async def test_closing_again_after_a_cancelled_close_spares_another_client() -> None:
    """A close that is cancelled during its last save has closed the store for good: the next client may open
    the same store object, and a second close of the first leaves it open."""

    class Full(MemoryStore):
        full = True

        async def save(self, entry: Entry) -> None:
            if self.full and entry.state is EntryState.SUBMITTED:
                await asyncio.sleep(0.1)
                raise StoreError("the disk is full")
            await super().save(entry)

    store = Full()
    async with FaultServer(accepting) as kie:
        first = client_of(kie.url, store=store)
        with pytest.raises(StoreError):
            await first.submit("x", key="k")
        closing = asyncio.create_task(first.aclose())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        store.full = False
        async with client_of(kie.url, store=store) as second:
            await first.aclose()
            with pytest.raises(kie4o.StoreLockedError):
                await store.open()
            assert (await second.submit("y", key="other")).id == task_id_of(2)
