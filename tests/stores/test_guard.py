"""The guard of a store: each call has a limit of its own, however many are under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from clients import state_of
from clocks import VirtualLoop, run_virtual
from entries import PATIENCE, submitted

from kie4o import StoreError
from kie4o.stores.guard import LIMIT, Guard, limited, time_limit
from kie4o.stores.ledger import Ledger
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState

FAR = 10 * PATIENCE


class Stuck(MemoryStore):
    """A store that finds nothing before it is told to, and may take its time when it is cancelled.

    Its `save` succeeds then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.answers = asyncio.Event()
        self.cancelled = 0
        self.dallies: asyncio.Event | None = None  # set when it does

    async def find(self, **names: Any) -> Entry | None:
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            if self.dallies is not None:
                self.dallies.set()
                await self.answers.wait()
            raise
        return await super().find(**names)

    async def save(self, entry: Entry) -> None:
        try:
            await self.answers.wait()
        except asyncio.CancelledError:
            await super().save(entry)


@pytest.fixture
async def store() -> Stuck:
    return Stuck()


@pytest.fixture
def guard(store: Stuck) -> Guard:
    return Guard(store)


@pytest.fixture
def start(guard: Guard) -> Callable[..., asyncio.Task[Any]]:
    def start(limit: float, call: Coroutine[Any, Any, Any] | None = None) -> asyncio.Task[Any]:
        """Begin a call that has so many seconds."""
        guard.limit = limit
        return asyncio.create_task(call or _found(guard))

    return start


async def _found(guard: Guard) -> object:
    return await guard.find(key="a")


async def _begun() -> None:
    await asyncio.sleep(0)
    await asyncio.sleep(0)


async def test_calls_end_at_their_own_limits(start: Callable[..., asyncio.Task[Any]], store: Stuck) -> None:
    """In whatever order they began; what has more time is not affected, and returns."""
    calls = {}
    for limit in (0.2, FAR, 0.05, 0.3, 0.1):
        calls[limit] = start(limit)
        await _begun()
    for limit in (0.05, 0.1, 0.2, 0.3):
        done, _ = await asyncio.wait(calls.values(), timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        assert done == {calls[limit]}
        with pytest.raises(StoreError, match=rf"did not respond within {limit:g} s"):
            calls.pop(limit).result()
    store.answers.set()
    assert await asyncio.wait_for(calls[FAR], PATIENCE) is None
    assert store.cancelled == 4


async def test_a_limit_counts_after_others_have_ended(
    start: Callable[..., asyncio.Task[Any]], store: Stuck
) -> None:
    """A call that ends takes no other's limit with it, and the next one has one again."""
    first, second = start(0.1), start(0.1)
    await _begun()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    for call in (second, start(0.1)):
        with pytest.raises(StoreError, match=r"did not respond"):
            await asyncio.wait_for(call, PATIENCE)
    assert store.cancelled == 3


async def test_a_caller_that_is_cancelled_after_the_limit_is_cancelled(
    start: Callable[..., asyncio.Task[Any]], guard: Guard, store: Stuck
) -> None:
    """The store has not returned yet: the caller's cancel is not swallowed, that of the limit is undone."""
    left: list[int] = []

    async def call() -> None:
        try:
            await guard.find(key="a")
        finally:
            task = asyncio.current_task()
            assert task is not None
            left.append(task.cancelling())

    task = start(0.05, call())
    store.dallies = asyncio.Event()
    await asyncio.wait_for(store.dallies.wait(), PATIENCE)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, PATIENCE)
    assert left == [1]


async def test_a_store_that_returns_in_spite_of_the_limit_has_returned(
    start: Callable[..., asyncio.Task[Any]], guard: Guard
) -> None:
    """Its task is as it was before: a later wait is not cancelled."""
    task: asyncio.Task[None] = start(0.05, _save(guard))
    await asyncio.wait_for(task, PATIENCE)
    assert task.cancelling() == 0


@pytest.mark.parametrize(("seconds", "given"), [(None, 30), (50.0, 30), (5.0, 5), (0.2, 1)])
def test_a_call_has_30_s_or_the_timeout_of_its_verb(seconds: float | None, given: float) -> None:
    """Whichever is shorter, and a second at least. So has the wait for an earlier write of the same key."""

    class Saves(Stuck):
        save = MemoryStore.save

    async def run() -> None:
        loop, store = asyncio.get_running_loop(), Saves()
        guard = Guard(store)
        ledger = Ledger(guard)
        entry = submitted("a", keyed=True)
        with limited(seconds):
            start = loop.time()
            with pytest.raises(StoreError, match=f"within {given} s"):
                await guard.find(key="a")
            assert loop.time() - start == pytest.approx(given)
            writing = asyncio.create_task(held(ledger, entry))
            await asyncio.sleep(0.1)
            start = loop.time()
            await ledger.unpaid(entry)
            assert loop.time() - start == pytest.approx(given)
            writing.cancel()
        store.answers.set()
        await asyncio.sleep(2.0)  # it is saved later all the same
        assert await state_of(store, "a") is EntryState.PLANNED
        await ledger.aclose()

    async def held(ledger: Ledger, entry: Entry) -> None:
        async with ledger._naming(entry):
            await asyncio.sleep(3600)

    run_virtual(run())


@pytest.mark.parametrize("seconds", [None, LIMIT, 50.0])
def test_a_longer_timeout_inside_a_shorter_one_changes_nothing(seconds: float | None) -> None:
    """And a limit ends with its verb."""
    with limited(5.0):
        with limited(seconds):
            assert time_limit() == 5.0
        with limited(2.0):
            assert time_limit() == 2.0
        assert time_limit() == 5.0
    assert time_limit() == LIMIT


def test_a_key_that_no_other_process_can_have_is_claimed_in_time() -> None:
    """Only in a store that several share a claim waits, for as long as another has the key."""

    class Stuck(MemoryStore):
        async def claim(self, *words: Any, **more: Any) -> Entry | None:
            await asyncio.sleep(3600)
            return None

    async def run() -> None:
        with pytest.raises(StoreError, match="within 30 s"):
            await Guard(Stuck()).claim(submitted("a"), takes=())

    run_virtual(run())


def test_opening_has_ten_minutes() -> None:
    """A large file is read from end to end."""

    class Stuck(MemoryStore):
        async def open(self) -> None:
            await asyncio.sleep(3600)

    async def run() -> None:
        with pytest.raises(StoreError, match="within 600 s"):
            await Guard(Stuck()).open()

    run_virtual(run())


async def test_a_call_of_a_task_that_was_cancelled_before_has_its_limit_too(
    start: Callable[..., asyncio.Task[Any]], guard: Guard
) -> None:
    """As one that cleans up: it is not cancelled once more."""

    async def cleans_up() -> None:
        try:
            await asyncio.sleep(FAR)
        except asyncio.CancelledError:
            await guard.find(key="a")

    call = start(0.05, cleans_up())
    await _begun()
    call.cancel()
    with pytest.raises(StoreError, match="did not respond"):
        await asyncio.wait_for(call, PATIENCE)


def test_the_calls_share_a_timer() -> None:
    """None is left when they have ended; nor does one that may wait for ever have any."""
    timers: list[asyncio.TimerHandle] = []

    class Loop(VirtualLoop):
        def call_at(self, *args: Any, **more: Any) -> asyncio.TimerHandle:
            timers.append(super().call_at(*args, **more))
            return timers[-1]

    class Shared(Stuck):
        shared = object()  # type: ignore[assignment]  # nothing asks it

        async def claim(self, *words: Any, **more: Any) -> Entry | None:
            return await self.find(key="a")

    def pending() -> int:
        return [timer.cancelled() for timer in timers].count(False)

    async def run() -> None:
        store = Shared()
        guard = Guard(store)
        claim = asyncio.create_task(guard.claim(submitted("a")))
        await _begun()
        assert timers == []
        calls = [asyncio.create_task(_found(guard)) for _ in range(20)]
        await _begun()
        assert pending() == 1
        store.answers.set()
        await asyncio.gather(claim, *calls)
        assert pending() == 0

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())


async def test_a_limit_cancels_once(start: Callable[..., asyncio.Task[Any]], store: Stuck) -> None:
    """A store that takes its time to undo what it does is not interrupted in that."""
    call = start(0.05)
    store.dallies = asyncio.Event()
    await asyncio.wait_for(store.dallies.wait(), PATIENCE)
    await asyncio.sleep(0.05)
    store.answers.set()
    with pytest.raises(StoreError, match="did not respond"):
        await asyncio.wait_for(call, PATIENCE)


async def test_what_a_store_raises_when_its_caller_is_cancelled_is_a_store_error() -> None:
    """Nothing foreign leaves the guard."""

    class Raises(MemoryStore):
        async def find(self, **names: Any) -> Entry | None:
            try:
                await asyncio.sleep(FAR)
            except asyncio.CancelledError:
                raise OSError("the connection is lost") from None
            return None

    call = asyncio.create_task(_found(Guard(Raises())))
    await _begun()
    call.cancel()
    with pytest.raises(StoreError, match="the connection is lost"):
        await call


async def test_an_iteration_that_is_left_is_closed() -> None:
    """What the store holds open for it, such as a cursor, is closed with it."""

    class Cursor(MemoryStore):
        closed = False

        async def unfinished(self) -> AsyncIterator[Entry]:
            try:
                async for entry in super().unfinished():
                    yield entry
            finally:
                self.closed = True

    store = Cursor()
    for key in "ab":
        await store.save(submitted(key))
    async with contextlib.aclosing(Guard(store).unfinished()) as entries:
        assert (await anext(entries)).key == "a"
        assert not store.closed
    assert store.closed


async def _save(guard: Guard) -> None:
    await guard.save(submitted("a"))
    await asyncio.sleep(0)
    assert await guard.inner.find_many(["a"]) != [None]
