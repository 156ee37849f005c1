"""Law 6: cancel every public coroutine at each suspension; nothing leaks, and no paid id is lost."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, cast

import aiohttp
import anyio
import attrs
import pytest
from canary import CANARY_KEY
from cancelling import Mode, cancelled_after, cancelled_at
from clients import QUICK, until
from clocks import run_scaled
from faults import open_sockets
from left_behind import Books, store_of
from proving import DEEP, tried

from kie4o import AsyncKieClient, ImageRequest, ImageResult, ImageTask, RateLimit
from kie4o.callbacks.receiving import CallbackReceiver
from kie4o.emulator import Emulator
from kie4o.files.disk import PREFIX
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

pytestmark = pytest.mark.usefixtures("collected")

SPEED = 20  # loop seconds per second
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
MODES = ["pending", "done", "level"]


@attrs.define
class World:
    """One client on one emulator, and what a call may need."""

    kie: Emulator
    client: AsyncKieClient
    folder: Path
    task: ImageTask
    ref: str = ""  # of that task
    result: ImageResult | None = None  # of an earlier task
    unknown: bool = False  # the store does not know that the task is that of the ref
    callers: list[asyncio.Task[Any]] = attrs.Factory(list)  # of submits that are under way

    def callback(self) -> dict[str, Any]:
        return {"code": 200, "msg": "success", "data": {"taskId": self.task.id, "info": None}}

    async def submit_slowly(self) -> None:
        """Two submits that Kie has received and not answered."""
        before = len(self.kie.submits)
        self.kie.latency = 1.0
        self.callers = [asyncio.create_task(self.client.submit(f"slow {number}")) for number in range(2)]
        # In a task, so that this is one suspension, however long it takes.
        await asyncio.create_task(until(lambda: len(self.kie.submits) == before + 2))


async def every(generator: AsyncGenerator[Any]) -> list[Any]:
    async with contextlib.aclosing(generator):
        return [item async for item in generator]


async def close(world: World) -> None:
    await world.client.aclose()


async def use(world: World) -> None:
    """`async with client` that is left before its submits are answered."""
    async with world.client:
        await world.submit_slowly()


async def awaited(task: ImageTask) -> ImageResult:
    return await task


Cancel = Callable[[Coroutine[Any, Any, Any]], Awaitable[tuple[str, Any]]]
Case = Callable[[World], Coroutine[Any, Any, Any]]
SETTLE = "AsyncKieClient.settle"
BACKUP = "AsyncKieClient.backup"
NOT_CHARGED = "the ref of a submit that was not charged"
# A call of each public coroutine and async generator, by its name and what is special about the call.
PAYING: dict[str, Case] = {
    "AsyncKieClient.submit": lambda world: world.client.submit("x"),
    "AsyncKieClient.submit, keyed": lambda world: world.client.submit("x", key="k"),
    "AsyncKieClient.generate": lambda world: world.client.generate("x"),
    "AsyncKieClient.generate_many": lambda world: every(world.client.generate_many(["x", "y"])),
}
CLOSING: dict[str, Case] = {
    "AsyncKieClient.aclose": close,
    "AsyncKieClient.__aexit__": use,
}
FREE: dict[str, Case] = {
    "AsyncKieClient.__aenter__": lambda world: world.client.__aenter__(),
    "AsyncKieClient.wait": lambda world: world.client.wait(world.task.id),
    "AsyncKieClient.details": lambda world: world.client.details(world.task.id),
    "AsyncKieClient.upload": lambda world: world.client.upload(PNG),
    "AsyncKieClient.upload, a file": lambda world: world.client.upload(world.folder / "mask.png"),
    "AsyncKieClient.upload_from_url": lambda world: world.client.upload_from_url(world.result.urls[0]),
    "AsyncKieClient.download": lambda world: world.client.download(world.result, world.folder / "images"),
    "AsyncKieClient.fetch": lambda world: world.client.fetch(world.result),
    "AsyncKieClient.download_url": lambda world: world.client.download_url(
        world.result.task_id, world.result.urls[0]
    ),
    "AsyncKieClient.credits": lambda world: world.client.credits(),
    BACKUP: lambda world: world.client.backup(world.folder / "backup.db"),
    "AsyncKieClient.prune": lambda world: world.client.prune(older_than=1e9),
    "AsyncKieClient.deliver": lambda world: world.client.deliver(
        world.client.parse_callback(world.callback(), ref=world.ref)
    ),
    "AsyncKieClient.find": lambda world: world.client.find("k"),
    "AsyncKieClient.spent": lambda world: world.client.spent(),
    "AsyncKieClient.state": lambda world: world.client.state(),
    "AsyncKieClient.unfinished": lambda world: every(world.client.unfinished()),
    "AsyncKieClient.resume": lambda world: every(world.client.resume()),
    SETTLE: lambda world: world.client.settle(world.ref, task_id=world.task.id),
    "AsyncKieClient.settle, not charged": lambda world: world.client.settle(NOT_CHARGED, charged=False),
    "ImageTask.wait": lambda world: world.task.wait(),
    "ImageTask.details": lambda world: world.task.details(),
    "ImageTask.updates": lambda world: every(world.task.updates()),
    "ImageTask.__await__": lambda world: awaited(world.task),
    "CallbackReceiver.receive": lambda world: world.client.receiver(allow_unsigned=True).receive(
        [("Content-Type", "application/json")], json.dumps(world.callback()).encode(), world.ref
    ),
}
CASES = PAYING | CLOSING | FREE
KEYED = ("AsyncKieClient.submit, keyed", "AsyncKieClient.generate_many")  # which the same again pays once


def test_every_public_coroutine_is_cancelled() -> None:
    """A new verb has to be added to the cases above."""
    public = {
        f"{owner.__name__}.{name}"
        for owner in (AsyncKieClient, ImageTask, CallbackReceiver)
        for name, member in vars(owner).items()
        if inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member) or name == "__await__"
        if not name.startswith("_") or name.startswith("__")
    }
    assert {case.split(",")[0] for case in CASES} == public


async def world_of(case: str, kie: Emulator, store: Store, folder: Path) -> World:
    """A client for this case. Nothing is open yet in those of which the call would open it."""
    client = AsyncKieClient(
        CANARY_KEY,
        base_url=kie.url,
        poll=QUICK,
        store=store,
        max_in_flight=1 if case in PAYING else 5,
        rate_limit=RateLimit(1, per=0.2) if case in PAYING else RateLimit(20, per=10.0),
    )
    world = World(kie, client, folder, client.task("none"))
    if case in FREE and case != "AsyncKieClient.__aenter__":
        world.result = await client.generate("an earlier one")
        world.task = await client.submit("x")
        entry = await store.find(task_id=world.task.id)
        assert entry is not None
        world.ref = entry.ref
        (folder / "mask.png").write_bytes(PNG)
        world.unknown = case == SETTLE
        if world.unknown:
            await store.save(attrs.evolve(entry, state=EntryState.UNKNOWN, task_id=None))
        await store.save(
            Entry(
                "unpaid", request=entry.request, ref=NOT_CHARGED, state=EntryState.UNKNOWN, submitted_at=1e9
            )
        )
    if case == "AsyncKieClient.aclose":
        await world.submit_slowly()
    return world


Kind = Literal["memory", "sqlite", "postgres"]
KINDS: dict[Kind, Callable[[Path], Store]] = {
    "memory": lambda folder: MemoryStore(),
    "sqlite": lambda folder: SQLiteStore(folder / "run.db"),
    "postgres": lambda folder: store_of(folder.name),
}


async def one_cancel(
    case: str, cancel: Cancel, *, kind: Kind, busy: bool = False, books: Books | None = None
) -> str:
    """One client, one call, one cancel; check every promise, and return how the call ended."""
    tried()
    before = open_sockets()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = KINDS[kind](folder)
        async with Emulator(duration=0.0, latency=0.002, credits=600) as kie:
            world = await world_of(case, kie, store, folder)
            try:
                if busy:  # take the slot, so that the call first waits in the limiter
                    await world.client.submit("other")
                ended, value = await cancel(CASES[case](world))
                assert ended != "raised", value
                if world.client._runtime.closed:
                    await check_closed(world, store)
                else:
                    if case in KEYED:  # the same again finds what was paid
                        await CASES[case](world)
                    await check_open(world, store)
            finally:
                await world.client.aclose()
                await asyncio.gather(*world.callers, return_exceptions=True)
        assert [path.name for path in folder.rglob("*") if path.name.startswith(PREFIX)] == []
    await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if "kie4o" in task.get_name()] == []
    if books is not None:
        await books.nothing_left()
    gc.collect()
    await until(lambda: open_sockets() <= before)
    return ended


async def check_closed(world: World, store: Store) -> None:
    """Once closing has returned or was cancelled, no id is lost, even if the process ends now."""
    await store.open()
    try:
        assert await lost(world.kie, store) == []
    finally:
        await store.aclose()
    _, hanging = await asyncio.wait(world.callers, timeout=100) if world.callers else ((), ())
    assert not hanging


async def check_open(world: World, store: Store) -> None:
    client = world.client
    await until(lambda: client._runtime.submissions.live == 0)
    await until(lambda: client._runtime.poller.waiting == 0)
    assert client._runtime.limiter.open == 0
    assert client._runtime.limiter.waiting == 0
    assert client._runtime.lifecycle.permits.in_use == 0
    if world.unknown:  # the same again completes it
        await client.settle(world.ref, task_id=world.task.id)
    assert (await client.generate("z")).urls  # the only permit and the only slot are free again
    assert await lost(world.kie, store) == []
    assert len(world.kie.submits) == len(world.kie.tasks)
    assert all(task.submits == 1 for task in world.kie.tasks.values())


async def lost(kie: Emulator, store: Store) -> list[str]:
    """The paid tasks that the store does not know."""
    return [task_id for task_id in kie.tasks if await store.find(task_id=task_id) is None]


async def sweep_suspensions(case: str, mode: Mode, kind: Kind, *, busy: bool = False) -> int:
    """Cancel at the first suspension, at later ones, and so on. Returns how many calls were cancelled."""
    cancelled, suspensions = 0, range(300) if DEEP else [0, *range(1 + MODES.index(mode), 300, 3)]
    async with books_of(kind) as books:
        for at in suspensions:
            cancel = lambda call, at=at: cancelled_at(call, at, mode)  # noqa: E731  # binds `at`
            ended = await one_cancel(case, cancel, kind=kind, busy=busy, books=books)
            # Closing that is shielded from the scope is complete when it returns.
            cancelled += ended == "cancelled" or (ended == "returned" and case in CLOSING)
            if ended == "over":
                return cancelled
    pytest.fail("the sweep did not end")


async def sweep_ticks(case: str, turns: Iterable[int], kind: Kind) -> int:
    """Cancel after so many turns of the loop, until the call is over before that."""
    cancelled = 0
    async with books_of(kind) as books:
        for ticks in turns:
            cancel = lambda call, ticks=ticks: cancelled_after(call, ticks)  # noqa: E731  # binds `ticks`
            ended = await one_cancel(case, cancel, kind=kind, books=books)
            cancelled += ended == "cancelled"
            if ended == "over":
                break
    return cancelled


def books_of(kind: Kind) -> AbstractAsyncContextManager[Books | None]:
    return Books.opened() if kind == "postgres" else contextlib.nullcontext()


SWEEPS = [pytest.param(case, mode) for case in CASES for mode in MODES]
TICKING = [*PAYING, "AsyncKieClient.wait"]


@pytest.mark.parametrize(("case", "mode"), SWEEPS)
@pytest.mark.sweep
def test_cancel_at_every_suspension(case: str, mode: Mode) -> None:
    """At each suspension of the caller, pending or just done, and by a scope that cancels again and again.

    Only a call that was complete returns, and nothing is left behind. By default each suspension but the
    first, at which every mode cancels, has one mode; HYPOTHESIS_PROFILE=deep takes all three.
    """
    assert run_scaled(sweep_suspensions(case, mode, "sqlite"), SPEED) >= 1
    if case in PAYING:
        assert run_scaled(sweep_suspensions(case, mode, "memory"), SPEED) >= 1
        assert run_scaled(sweep_suspensions(case, mode, "memory", busy=True), SPEED) >= 1


@pytest.mark.parametrize("case", TICKING)
@pytest.mark.sweep
def test_cancel_after_every_tick(case: str) -> None:
    """After each turn of the loop, until after the answer of the submit.

    This reaches the inside of the submit's own task: connecting, sending and reading. By default it is every
    third turn, and under each version of Python others; HYPOTHESIS_PROFILE=deep takes all.
    """
    turns = range(120) if DEEP else range(sys.version_info.minor % 3, 120, 3)
    assert run_scaled(sweep_ticks(case, turns, "memory"), SPEED) >= (5 if DEEP else 2)


# -- over a database -------------------------------------------------------------------------------

QUICK_OVER_POSTGRES = [("AsyncKieClient.submit, keyed", "done"), ("AsyncKieClient.__aenter__", "level")]
OVER_POSTGRES = [
    pytest.param(case, mode, marks=() if (case, mode) in QUICK_OVER_POSTGRES else pytest.mark.proof)
    for case in CASES
    for mode in MODES
    if case != BACKUP
]


@pytest.mark.parametrize(("case", "mode"), OVER_POSTGRES)
@pytest.mark.sweep
@pytest.mark.posix("PostgreSQL")
def test_cancel_at_every_suspension_over_postgres(case: str, mode: Mode) -> None:
    """The same, and by the books of the server no lease, place, key or connection is left."""
    assert run_scaled(sweep_suspensions(case, mode, "postgres"), SPEED) >= 1
    if case in PAYING:
        assert run_scaled(sweep_suspensions(case, mode, "postgres", busy=True), SPEED) >= 1


@pytest.mark.parametrize("case", TICKING)
@pytest.mark.sweep
@pytest.mark.proof
@pytest.mark.posix("PostgreSQL")
def test_cancel_after_every_tick_over_postgres(case: str) -> None:
    """Turns of the loop, of which statements take many more than a memory store: until the call is over."""
    assert run_scaled(sweep_ticks(case, range(600), "postgres"), SPEED) >= 5


# -- controls --------------------------------------------------------------------------------------


async def naive_submit(session: aiohttp.ClientSession, url: str, kept: list[str], prompt: str = "x") -> None:
    """What people write first: the caller's own coroutine posts, then remembers the id."""
    async with session.post(
        f"{url}/api/v1/gpt4o-image/generate",
        json={"prompt": prompt, "size": "1:1"},
        headers={"Authorization": f"Bearer {CANARY_KEY}"},
    ) as response:
        kept.append((await response.json())["data"]["taskId"])


@pytest.mark.posix("PostgreSQL")
async def test_control_the_books_of_a_database_show_what_is_left() -> None:
    """Control: a lease, a place, a key and connections of a client that is not closed, and not those of one
    that is."""
    entry = Entry("k", request=ImageRequest("x"), ref="r", state=EntryState.PLANNED)
    async with Books.opened() as books:
        store = store_of("unclosed")
        await store.open()
        assert store.shared is not None
        await store.claim(entry)
        limiter = store.shared.limiter(RateLimit(1, per=0.2))
        slot = await limiter.acquire()
        await store.shared.lead(["a task"])
        left = await books.left()
        assert left.pop("connections") >= 3
        assert left == {"leases": 1, "places in the window": 1, "held keys": 1, "polled tasks": 1}
        slot.release(counted=False)
        await store.shared.leave({"a task": None})
        await store.aclose()
        await books.nothing_left()


@pytest.mark.parametrize("mode", ["ticks", *MODES])
async def test_control_a_naive_client_loses_paid_ids(mode: str) -> None:
    """Control: the same sweeps over a naive submit find ids that were paid and are not known."""
    async with Emulator(duration=0.0, latency=0.002, credits=6000, limit=10_000) as kie:
        async with aiohttp.ClientSession() as session:
            kept: list[str] = []
            for at in range(60):
                call = naive_submit(session, kie.url, kept)
                ended, _ = await (
                    cancelled_after(call, at) if mode == "ticks" else cancelled_at(call, at, cast(Mode, mode))
                )
                await asyncio.sleep(0.01)
                if ended == "over":
                    break
            assert set(kie.tasks) - set(kept)


# -- a cancel scope around everything --------------------------------------------------------------

IN_FLIGHT = 5
PATIENCE = 0.2  # seconds after which the scope ends
ANSWER = 1.0  # seconds that an answer takes


class NaiveClient:
    """Submits in tasks of its own and awaits them on closing, as is right where a cancel strikes once."""

    def __init__(self, url: str, *, spin: bool = False) -> None:
        self._url = url
        self._spin = spin
        self._tasks: list[asyncio.Task[None]] = []
        self.kept: list[str] = []

    async def __aenter__(self) -> NaiveClient:
        self._session = aiohttp.ClientSession()
        return self

    async def submit(self, prompt: str) -> None:
        self._tasks.append(asyncio.create_task(naive_submit(self._session, self._url, self.kept, prompt)))
        await asyncio.shield(self._tasks[-1])

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._drain()
        finally:
            for task in self._tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                await self._session.close()

    async def _drain(self) -> None:
        while pending := [task for task in self._tasks if not task.done()]:
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError:
                if not self._spin:
                    raise


async def cut(kie: Emulator, client: AsyncKieClient | NaiveClient) -> float:
    """Submits inside a scope that ends before their answers come; the CPU time that this took."""
    cpu, before = time.process_time(), len(kie.submits)
    with anyio.move_on_after(PATIENCE):
        async with client:
            await asyncio.gather(*(client.submit(f"image {number}") for number in range(IN_FLIGHT)))
    assert len(kie.submits) - before == IN_FLIGHT
    return time.process_time() - cpu


@pytest.fixture
async def slow() -> AsyncIterator[Emulator]:
    # A client that spins never idles, so virtual time would stand still.
    async with Emulator(clock="real", duration=0.0, latency=ANSWER) as kie:
        yield kie


@pytest.mark.paced
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_client_in_a_cancel_scope_keeps_every_id(slow: Emulator, kind: str, tmp_path: Path) -> None:
    """Of five submits whose answers come after the scope was cancelled all ids are stored, and waiting for
    them costs no CPU time. The control goes on waiting when it is cancelled: it keeps a core busy."""
    spinning = NaiveClient(slow.url, spin=True)
    control = await cut(slow, spinning)
    assert sorted(spinning.kept) == sorted(slow.tasks)
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "run.db")
    cpu = []
    for _ in range(3):  # a machine that does other things charges some of them with more
        cpu.append(await cut(slow, AsyncKieClient(CANARY_KEY, base_url=slow.url, store=store)))
    await store.open()
    assert len(slow.tasks) == 4 * IN_FLIGHT
    assert sorted(await lost(slow, store)) == sorted(spinning.kept)
    await store.aclose()
    print(f"{cpu} s of CPU, {control} s by one that spins")
    assert min(cpu) < control / 5


@pytest.mark.paced
async def test_control_waiting_on_closing_is_not_enough(slow: Emulator) -> None:
    """Control: a client that awaits its submits on closing loses every id in the same scope."""
    client = NaiveClient(slow.url)
    await cut(slow, client)
    assert len(slow.tasks) == IN_FLIGHT
    assert client.kept == []


# -- single cases ----------------------------------------------------------------------------------


async def test_a_cancelled_generate_keeps_its_permit_until_it_is_answered() -> None:
    """`max_in_flight` counts a POST whose caller is gone: the next one starts when it is answered."""
    async with Emulator(duration=0.0, latency=0.1) as kie:
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK, max_in_flight=1) as client:
            first = asyncio.create_task(client.generate("a"))
            await until(lambda: len(kie.submits) == 1)
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            assert client._runtime.lifecycle.permits.in_use == client._runtime.lifecycle.permits.limit
            await client.submit("b")
            times = sorted(task.created for task in kie.tasks.values())
            assert times[1] - times[0] >= 0.1 - 1e-9


async def test_one_of_two_callers_of_a_key_leaves() -> None:
    """A submit that two callers share by its key goes on when one of them is cancelled."""
    async with Emulator(duration=0.0) as kie:
        limit = RateLimit(1, per=0.2)
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK, rate_limit=limit) as client:
            await client.submit("takes the slot")
            first = asyncio.create_task(client.submit("x", key="k"))
            second = asyncio.create_task(client.submit("x", key="k"))
            await asyncio.sleep(0.01)
            first.cancel()
            assert (await second).id in kie.tasks
            assert first.cancelled()
            assert len(kie.submits) == 2


async def test_asyncio_timeout_around_generate_is_clean() -> None:
    """`asyncio.timeout` around a call ends it with `TimeoutError` and leaves nothing behind."""
    async with Emulator(duration=60.0) as kie:
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.generate("x")
            assert client._runtime.poller.waiting == 0
