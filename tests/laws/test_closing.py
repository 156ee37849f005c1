"""Closing: nothing paid is lost by it, nobody hangs on it, and nobody else's store is closed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cancelling import cancelled_at
from clients import until
from faults import GOOD_BODY, TASK_ID, Connection, FaultServer, http, raw

import kie4o.submission.submissions
from kie4o import AsyncKieClient, KieError, RateLimit, StoreError, StoreLockedError, SubmissionUnknownError
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

NEXT_SLOT = RateLimit(1, per=1.0)


def client_of(url: str, **more: Any) -> AsyncKieClient:
    return AsyncKieClient("sk-test", base_url=url, **more)


async def outcome_of(awaitable: Awaitable[Any]) -> Any:
    """What it gives, or the error it raises; in time."""
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
            await connection.send(http(GOOD_BODY))


# -- somebody else's store -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_client_that_found_the_store_taken_leaves_it_open(kind: str, tmp_path: Path) -> None:
    """Closing it must not close the store under the one that has it: a third could open it, and both
    would pay for one key."""
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
    """Closing it again does not close what another has opened since."""
    store = SQLiteStore(tmp_path / "run.db")
    async with LateServer() as kie:
        kie.go.set()
        first = client_of(kie.url, store=store)
        await first.submit("x")
        await first.aclose()
        async with client_of(kie.url, store=store) as second:
            await second.submit("x")
            await first.aclose()
            assert (await second.submit("x")).id == TASK_ID


# -- what was paid keeps its id --------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["generate", "generate_many"])
async def test_an_answer_that_closing_waits_for_is_named(verb: str) -> None:
    """The task id arrives while the client is closing: nobody waits for the images any more, and the
    error says for which task."""
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
    """A store whose named method fails, once it is told to."""

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
    store = Failing("callbacks_of")
    store.fails = True
    async with FaultServer(raw(b"")) as kie, client_of(kie.url, store=store) as client:
        error = await outcome_of(
            client.generate("x", key="k", callback_url="https://example.com/kie", timeout=0.3)
        )
        assert isinstance(error, SubmissionUnknownError)
        assert (error.key, bool(error.ref)) == ("k", True)
        assert kie.posts == 1


async def test_an_id_that_was_being_written_when_all_was_cancelled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is slow and then full, and whoever closes loses patience: the id is at least told."""

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


# -- nobody hangs, and nobody is cancelled by us ---------------------------------------------------------


@pytest.mark.parametrize("lost", ["before", "meanwhile"])
async def test_waiting_for_the_callback_of_a_lost_answer_ends_with_the_client(lost: str) -> None:
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
            await until(lambda: client._submissions.live == 0)
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0.05)
        go.set()
        error = await outcome_of(running)
        assert isinstance(error, SubmissionUnknownError)
        assert (error.key, bool(error.ref)) == ("k", True)
        await closing


@pytest.mark.parametrize("turns", range(4))
async def test_closing_in_the_tick_of_a_submit(turns: int) -> None:
    """Its task may not have begun: the caller hears that nothing was charged, and is not cancelled."""
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
async def test_closing_again_while_a_submit_is_taken_back(turns: int, tmp_path: Path) -> None:
    """The second one does not cut short what the first one began."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        for _ in range(3):  # nobody accepts, so that a connect waits
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        client = client_of(f"http://127.0.0.1:{full.getsockname()[1]}", store=tmp_path / "run.db")
        running = asyncio.create_task(client.submit("x", key="k"))
        await until(lambda: any(each.entry.submitted_at for each in client._submissions._live.values()))
        await asyncio.sleep(0.1)
        closing = asyncio.create_task(client.aclose())
        for _ in range(turns):
            await asyncio.sleep(0)
        await asyncio.gather(client.aclose(), closing)
        assert "nothing was charged" in str(await outcome_of(running))


async def test_nothing_is_sent_again_while_closing() -> None:
    """A caller who waited for a place joins a submit that closing waits for, and which is then refused."""
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
        other = asyncio.create_task(client.submit("y"))  # has the second place, and waits for a slot
        await until(lambda: client._limiter.waiting == 1)
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
async def test_a_cancelled_close_still_closes_everything(mode: Any, tmp_path: Path) -> None:
    """Wherever it is cancelled: sessions and store are closed, if not by it then by a second one."""
    for at in range(40):
        async with LateServer() as kie:
            kie.go.set()
            store = SQLiteStore(tmp_path / f"{mode}{at}.db")
            client = client_of(kie.url, store=store)
            task = await client.submit("x")
            await outcome_of(client.details(task.id))
            sessions = (client._transport._pays, client._transport._reads)
            ended, _ = await cancelled_at(client.aclose(), at, mode)
            assert all(session is not None and session.closed for session in sessions)
            await client.aclose()
            async with client_of(kie.url, store=store) as later:
                assert (await later.submit("x")).id == TASK_ID
        if ended == "over":
            break
    assert at > 2
    assert ended == "over"


async def test_two_closes_and_an_id_that_could_not_be_written() -> None:
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


async def test_a_close_that_was_cancelled_is_gone_on_with() -> None:
    """The store takes its time to close, and whoever closed lost patience: a second close waits for it."""

    class Slow(MemoryStore):
        async def aclose(self) -> None:
            await asyncio.sleep(0.1)
            await super().aclose()

    store = Slow()
    async with FaultServer(raw(http(GOOD_BODY))) as kie:
        client = client_of(kie.url, store=store)
        await client.submit("x")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.aclose(), 0.05)
        await client.aclose()
        async with client_of(kie.url, store=store) as later:
            assert (await later.submit("x")).id == TASK_ID


async def test_a_store_that_fails_in_passing_does_not_end_the_wait_for_a_callback() -> None:
    store = Failing("callbacks_of")
    store.fails = True
    url = "https://example.com/kie/{ref}"
    details = kie4o.TaskDetails(TASK_ID, state=kie4o.TaskState.SUCCEEDED, urls=("https://x.example/a.png",))
    async with (
        FaultServer(raw(b"")) as kie,
        client_of(kie.url, store=store, callback_url=url, trust_callbacks=True) as client,
    ):
        running = asyncio.create_task(client.generate("x", key="k"))
        await until(lambda: bool(client._delivery._unnamed))
        await asyncio.sleep(0.05)
        assert not running.done()
        store.fails = False
        [ref] = client._delivery._unnamed
        entry = await store.find(ref=ref)
        assert entry is not None
        for future in client._delivery._unnamed[ref]:
            future.set_result(entry.become(EntryState.SUCCEEDED, task_id=TASK_ID, details=details))
        assert (await outcome_of(running)).task_id == TASK_ID


async def test_an_id_that_arrived_before_the_loop_was_torn_down_is_kept(monkeypatch) -> None:
    """The answer is there but for its last bytes when the client stops waiting for it: the id is
    recorded, and whoever waited gets the task."""
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.2)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(GOOD_BODY), GOOD_BODY)

    async def almost(connection: Connection) -> None:
        await connection.request()
        await connection.send(head)
        await asyncio.sleep(60)

    store = MemoryStore()
    async with FaultServer(almost) as server:
        client = AsyncKieClient("sk-test", base_url=server.url, timeout=60, store=store)
        submit = asyncio.create_task(client.submit("x"))
        while not server.posts:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        await client.aclose()
        assert (await submit).id == TASK_ID
        assert [(entry.state, entry.task_id) async for entry in store.unfinished()] == [
            (EntryState.SUBMITTED, TASK_ID)
        ]


async def test_closing_on_an_answer_that_never_comes_is_unknown_not_cancelled(monkeypatch) -> None:
    """Whoever waits for a submit that closing cut short gets the unknown outcome with its ref."""
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 0.1)

    async def never(connection: Connection) -> None:
        await connection.request()
        await asyncio.sleep(60)

    async with FaultServer(never) as server:
        client = AsyncKieClient("sk-test", base_url=server.url, timeout=60)
        submit = asyncio.create_task(client.submit("x"))
        while not server.posts:
            await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
            await submit
        assert caught.value.ref


async def test_free_calls_stop_with_the_client() -> None:
    """A read that pauses before its next try does not open a new session on a closed client."""
    async with FaultServer(raw(b"")) as server:
        client = AsyncKieClient("sk-test", base_url=server.url)
        call = asyncio.create_task(client.credits())
        while not server.connections:
            await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(kie4o.KieError, match="closed"):
            await call
