"""A store that never returns, or raises something foreign: verbs keep their timeouts, closing its 30 seconds.

What was paid is in the error and in the log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from clients import client_of, state_of, until
from faults import TASK_ID, FaultServer, accepting, stall

import kie4o
from kie4o import StoreError
from kie4o.emulator import Emulator
from kie4o.stores import guard
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState

METHODS = ("claim", "begin", "save", "find", "release", "forget")


class Troubled(MemoryStore):
    """A store of the caller's, some of whose methods do what `trouble` does in place of their work."""

    def __init__(self, trouble: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.trouble = trouble
        self.in_trouble: set[str] = set()  # names of methods, or of the states that are saved

    async def open(self) -> None:
        await self._maybe("open")
        await super().open()

    async def claim(self, entry: Entry, **options: Any) -> Entry | None:
        await self._maybe("claim")
        return await super().claim(entry, **options)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self._maybe("begin")
        await super().begin(entry, superseded)

    async def save(self, entry: Entry) -> None:
        await self._maybe("save", entry.state.value)
        await super().save(entry)

    async def release(self, key: str) -> None:
        await self._maybe("release")
        await super().release(key)

    async def forget(self, key: str) -> None:
        await self._maybe("forget")
        await super().forget(key)

    async def find(self, **names: Any) -> Entry | None:
        await self._maybe("find")
        return await super().find(**names)

    async def aclose(self) -> None:
        await self._maybe("aclose")
        await super().aclose()

    async def _maybe(self, *names: str) -> None:
        if self.in_trouble.intersection(names):
            await self.trouble()


async def never() -> None:
    await asyncio.Event().wait()


async def foreign() -> None:
    raise OSError(5, "Input/output error")


async def cancels_itself() -> None:
    """What the store awaits is cancelled, not the caller."""
    inner = asyncio.ensure_future(never())
    asyncio.get_running_loop().call_soon(inner.cancel)
    await inner


TROUBLES = [never, foreign, cancels_itself]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits as shipped, divided by ten."""
    monkeypatch.setattr(guard, "LIMIT", guard.LIMIT / 10)
    monkeypatch.setattr(guard, "SHORTEST", guard.SHORTEST / 10)
    monkeypatch.setattr(guard, "OPENING", 1.0)
    monkeypatch.setattr("kie4o.closing.CLOSING", 3.0)
    monkeypatch.setattr("kie4o.closing.SHORTEST_STEP", 0.1)
    monkeypatch.setattr("kie4o.submission.submissions.DRAIN", 2.5)


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("where", ["claim", "begin", "intent"])
async def test_before_the_post_nothing_is_sent(where: str, trouble: Any) -> None:
    """A `StoreError` within the timeout of the verb, and no POST; later the key works."""
    store = Troubled(trouble)
    store.in_trouble.add(where)
    async with FaultServer(accepting) as kie, client_of(kie.url, store) as client:
        start = time.monotonic()
        with pytest.raises(StoreError):
            await client.generate("a boat", key="order-1", timeout=0.2)
        assert time.monotonic() - start < 1.0
        assert kie.posts == 0
        store.in_trouble.clear()
        assert (await client.submit("a boat", key="order-1")).id == TASK_ID
        assert kie.posts == 1


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("verb", ["submit", "generate"])
async def test_after_the_post_the_error_and_the_log_have_the_id(
    verb: str, trouble: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if the store never works again, and then closing logs it once more."""
    store = Troubled(trouble)
    store.in_trouble.add("submitted")
    async with FaultServer(accepting) as kie:
        client = client_of(kie.url, store)
        start = time.monotonic()
        options = {"timeout": 0.2} if verb == "generate" else {}
        with pytest.raises(StoreError) as caught:
            await getattr(client, verb)("a boat", key="order-1", **options)
        assert time.monotonic() - start < (1.0 if verb == "generate" else 4.0)
        assert (caught.value.task_id, caught.value.key) == (TASK_ID, "order-1")
        assert TASK_ID in caplog.text
        caplog.clear()
        await client.aclose()
        assert TASK_ID in caplog.text
        assert time.monotonic() - start < 6.0


async def test_a_task_id_is_saved_again_without_the_timeout_of_its_verb(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A save takes longer than the timeout of `generate`, and is undone if it is cancelled."""

    async def slow() -> None:
        await asyncio.sleep(0.5)

    monkeypatch.setattr("kie4o.stores.ledger._FIRST_DELAY", 0.05)
    store = Troubled(slow)
    store.in_trouble.add("submitted")
    async with FaultServer(accepting) as kie, client_of(kie.url, store) as client:
        with pytest.raises(StoreError, match="paid"):
            await client.generate("a boat", key="order-1", timeout=0.2)
        start = time.monotonic()
        while await state_of(store, "order-1") is not EntryState.SUBMITTED:
            assert time.monotonic() - start < 5
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_a_result_is_returned_although_it_cannot_be_saved(trouble: Any) -> None:
    """The images are there: a store that fails at the end does not withhold them."""
    store = Troubled(trouble)
    async with Emulator(duration=0.0) as kie, client_of(kie.url, store) as client:
        store.in_trouble.update({"find", "succeeded"})
        start = time.monotonic()
        assert (await client.generate("a boat", key="order-1", timeout=0.8)).urls
        assert time.monotonic() - start < 3.0


async def test_an_unknown_task_is_not_found_although_the_store_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is that of the task."""
    monkeypatch.setattr("kie4o.polling.findings.GRACE", 0.5)
    store, task_id = Troubled(foreign), "0" * 32
    async with Emulator() as kie, client_of(kie.url, store) as client:
        wait = asyncio.create_task(client.wait(task_id))
        await until(lambda: kie.requests)
        store.in_trouble.add("find")
        with pytest.raises(kie4o.TaskNotFoundError) as caught:
            await wait
        assert caught.value.task_id == task_id


@pytest.mark.parametrize("verb", ["wait", "details", "unfinished", "resume", "deliver"])
async def test_every_verb_ends(verb: str) -> None:
    """A store that never returns ends the other verbs with a `StoreError`, or does not concern them."""
    store = Troubled(never)
    async with Emulator(duration=0.0) as kie, client_of(kie.url, store) as client:
        task = await client.submit("a boat")
        store.in_trouble.update({*METHODS, "unfinished"})
        callback = kie4o.parse_callback({"data": {"taskId": task.id}}, ref="r")
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "wait": lambda: client.wait(task.id, timeout=0.5),
            "details": lambda: client.details(task.id),
            "unfinished": lambda: anext(client.unfinished()),
            "resume": lambda: anext(client.resume()),
            "deliver": lambda: client.deliver(callback),
        }
        async with asyncio.timeout(8):
            try:
                await calls[verb]()
            except StoreError as error:
                assert "did not respond" in str(error)


async def test_a_store_that_never_opens() -> None:
    """The first call ends, and so does closing."""
    store = Troubled(never)
    store.in_trouble.add("open")
    client = client_of("http://127.0.0.1:9", store)
    async with asyncio.timeout(5):
        with pytest.raises(StoreError, match="did not respond"):
            await client.submit("a boat")
        await client.aclose()


async def test_a_store_that_opens_after_the_close_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing does not wait for it, the caller learns of the close, and the next client works."""
    monkeypatch.setattr("kie4o.closing.CLOSING", 0.3)
    go = asyncio.Event()

    async def slow() -> None:
        opening.set()
        await go.wait()

    store, opening = Troubled(slow), asyncio.Event()
    store.in_trouble.add("open")
    async with FaultServer(accepting) as kie:
        client = client_of(kie.url, store)
        call = asyncio.create_task(client.submit("a boat"))
        await opening.wait()
        await client.aclose()
        assert not call.done()
        go.set()
        with pytest.raises(kie4o.KieError, match="the client is closed"):
            await call
        store.in_trouble.clear()
        async with client_of(kie.url, store) as later:
            await later.submit("a boat")
        assert kie.posts == 1


async def test_a_scope_of_anyio_around_the_first_call_leaves_a_working_client() -> None:
    """It is cancelled while the store is being opened. Such a scope cancels in each turn of the loop, so also
    when the store is closed again."""

    class Slow(MemoryStore):
        scope: anyio.CancelScope | None = None

        async def recent(self, per: float) -> list[float]:
            if self.scope is not None:
                self.scope.cancel()
                await never()
            return await super().recent(per)

        async def aclose(self) -> None:
            await asyncio.sleep(0.01)
            await super().aclose()

    store = Slow()
    async with FaultServer(accepting) as kie:
        client = client_of(kie.url, store)
        with anyio.CancelScope() as store.scope:
            await client.submit("a boat")
        assert kie.posts == 0
        store.scope = None
        try:
            assert (await client.submit("a boat")).id == TASK_ID
        finally:
            await client.aclose()


@pytest.mark.parametrize("trouble", [never, foreign])
@pytest.mark.parametrize("answered", [True, False])
async def test_closing_ends_in_time(answered: bool, trouble: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Every method of the store is in trouble when the client closes, with ten submits under way."""
    store = Troubled(trouble)
    async with FaultServer(accepting if answered else stall) as kie:
        client = client_of(kie.url, store)
        calls = [asyncio.create_task(client.generate(f"boat {n}", key=f"order-{n}")) for n in range(10)]
        await until(lambda: kie.posts == 10)
        store.in_trouble.update({*METHODS, "aclose"})
        start = time.monotonic()
        [closed] = await asyncio.gather(client.aclose(), return_exceptions=True)
        late = "the client was closed, but Runtime._close_store did not end in time"  # on a busy machine
        assert isinstance(closed, StoreError) or late in caplog.text
        assert time.monotonic() - start < 4.0
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, kie4o.KieError)
            assert error.key is not None or error.task_id is not None
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if "kie4o" in task.get_name()] == []


async def test_closing_a_healthy_store_is_not_cut_short() -> None:
    """The control: each of 20 saves takes most of what a call may take while the client closes."""

    async def slow() -> None:
        await asyncio.sleep(0.5)

    store = Troubled(slow)
    async with FaultServer(accepting) as kie:
        client = client_of(kie.url, store)
        store.in_trouble.add("submitted")
        calls = [asyncio.create_task(client.submit(f"boat {n}", key=f"order-{n}")) for n in range(20)]
        await until(lambda: kie.posts == 20)
        await client.aclose()
        assert {(await call).id for call in calls} == {
            entry.task_id async for entry in store.unfinished() if entry.state is EntryState.SUBMITTED
        }


async def test_a_foreign_error_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The message has the store's own words and the class, so that its author finds it."""
    store = Troubled(foreign)
    store.in_trouble.add("claim")
    async with FaultServer(accepting) as kie, client_of(kie.url, store) as client:
        with pytest.raises(StoreError, match="Input/output error") as caught:
            await client.submit("a boat", key="order-1")
        assert "Troubled raised a OSError" in caught.value.__notes__[0]
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


async def test_a_timeout_of_the_stores_own_is_not_taken_for_ours() -> None:
    """A socket of the store timed out at once: the error does not speak of our limit."""

    async def timed_out() -> None:
        raise TimeoutError("no connection after 0.1 s")

    store = Troubled(timed_out)
    store.in_trouble.add("begin")
    async with FaultServer(accepting) as kie, client_of(kie.url, store) as client:
        with pytest.raises(StoreError, match=r"failed: no connection after 0\.1 s"):
            await client.submit("a boat", key="order-1")
        assert kie.posts == 0


@pytest.mark.parametrize("where", ["submitted", "planned"])
async def test_a_write_that_is_repeated_does_not_hold_up_its_key(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor longer than the timeout of the verb: the repeated write hangs when the key is used again."""
    monkeypatch.setattr("kie4o.stores.ledger._FIRST_DELAY", 0.05)
    store = Troubled(never)
    store.in_trouble.update({"submitted"} if where == "submitted" else {"planned", "begin"})
    async with Emulator(duration=0.0) as kie, client_of(kie.url, store) as client:
        with pytest.raises(StoreError):
            await client.generate("a boat", key="order-1", timeout=0.2)
        await until(lambda: any(lock.locked() for lock in client._runtime.ledger._locks.values()))
        start = time.monotonic()
        if where == "submitted":
            assert (await client.generate("a boat", key="order-1", timeout=0.5)).urls
        else:
            with pytest.raises(StoreError):
                await client.generate("a boat", key="order-1", timeout=0.5)
        assert time.monotonic() - start < 1.5
