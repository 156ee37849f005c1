"""Task ids that could not be saved are saved later, and an older one replaces no newer one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Any

import attrs
import pytest
from alone import Alone
from clients import LOST, client_of, state_of, until
from clocks import run_scaled, run_virtual
from entries import ended, entry_of, submitted
from held import HeldServer

import kie4o
from kie4o import AsyncKieClient, RateLimit, StoreError
from kie4o.emulator import Emulator
from kie4o.events import Event, NotReleased, NotSaved, Saved
from kie4o.events.reporter import Reporter
from kie4o.stores.ledger import Ledger
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import DuplicateTaskError, Entry, EntryState, KeyInUseError

SPEED = 50  # loop seconds per second
SLOW = 10
SAVED_BY = 35.0  # seconds within which a repaired store has everything: writes are repeated every 30 s


class Stubborn(SQLiteStore):
    """Saves of task ids fail for the keys in `broken`, and wait for the gate of their key and number."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.broken: set[str] = set()
        self.ends_fail = False
        self.late_saves_fail = False
        self.saves: Counter[str] = Counter()  # of task ids, by key
        self.gates: dict[tuple[str, int], asyncio.Event] = {}

    def gate(self, key: str, number: int) -> asyncio.Event:
        return self.gates.setdefault((key, number), asyncio.Event())

    def open_gates(self) -> None:
        for gate in self.gates.values():
            gate.set()

    async def save(self, entry: Entry) -> None:
        if entry.state is EntryState.SUBMITTED:
            self.saves[entry.key] += 1
            if entry.key in self.broken:
                raise StoreError("the disk is full")
            gate = self.gates.get((entry.key, self.saves[entry.key]))
            if gate is not None:
                await gate.wait()
                if self.late_saves_fail:
                    raise StoreError("the disk is full")
        if entry.state.ended and self.ends_fail:
            raise StoreError("the disk is full")
        await super().save(entry)


@contextlib.asynccontextmanager
async def client_on(store: Stubborn, kie: Emulator, api_key: str) -> AsyncIterator[AsyncKieClient]:
    """A client that can be closed, whatever becomes of the test."""
    async with client_of(kie.url, store, api_key=api_key) as client:
        try:
            yield client
        finally:
            store.open_gates()


async def id_of(store: Any, key: str) -> str | None:
    entry = await store.find(key=key)
    return None if entry is None else entry.task_id


async def saved(store: Any, key: str, task_id: str) -> None:
    """Wait until the store has the id under the key; fail if it never does."""
    loop = asyncio.get_running_loop()
    until_then = loop.time() + SAVED_BY
    while await id_of(store, key) != task_id:
        assert loop.time() < until_then, await id_of(store, key)
        await asyncio.sleep(0.2)


async def fails_to_save(client: AsyncKieClient, key: str, **more: Any) -> str:
    """A submit whose id cannot be saved; return the id, which its error has."""
    with pytest.raises(StoreError, match="paid") as caught:
        await client.submit(key, key=key, **more)
    assert caught.value.task_id is not None
    return caught.value.task_id


# -- an older entry and a newer one ------------------------------------------------------------------


def test_an_older_entry_that_is_saved_late_replaces_no_newer_one(tmp_path: Path, api_key: str) -> None:
    """While the ids of an earlier failure are written again, a key gets its second task.

    The store keeps the second task, and the key is not paid a third time.
    """

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator(duration=0.0) as kie, client_on(store, kie, api_key) as client:
            kie.plan("b", outcome="failed")
            store.broken = {"a"}
            await fails_to_save(client, "a")
            own, again = store.gate("b", 1), store.gate("a", 2)
            first = asyncio.create_task(client.generate("b", key="b"))
            await until(lambda: store.saves["b"])  # its own save takes long
            store.broken.clear()
            await until(lambda: store.saves["a"] == 2)  # and so does the repeated one of the other key
            own.set()
            with pytest.raises(kie4o.TaskFailedError):
                await first
            second = await client.generate("b", key="b", retry_failed=True)
            again.set()
            await asyncio.sleep(5.0)
            entry = await store.find(key="b")
            assert (entry.state, entry.task_id) == (EntryState.SUCCEEDED, second.task_id)
            result = await client.generate("b", key="b", retry_failed=True)
            assert (result, result.source) == (second, "store")
            assert len(kie.submits) == 3

    run_scaled(run(), SPEED)


def test_a_save_that_ends_late_drops_no_newer_entry(tmp_path: Path, api_key: str) -> None:
    """The end of a task becomes known while its id is still being saved, and cannot be saved at first.

    It is saved once the store works again.
    """

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator(duration=0.0) as kie, client_on(store, kie, api_key) as client:
            own = store.gate("b", 1)
            call = asyncio.create_task(client.submit("b", key="b"))
            await until(lambda: store.saves["b"] == 1)
            store.ends_fail = True
            [task_id] = kie.tasks
            assert (await client.details(task_id)).state is kie4o.TaskState.SUCCEEDED
            own.set()
            assert (await call).id == task_id
            store.ends_fail = False
            await asyncio.sleep(SAVED_BY)
            assert await state_of(store, "b") is EntryState.SUCCEEDED

    run_scaled(run(), SPEED)


def test_a_save_that_fails_late_is_not_repeated_over_a_newer_entry(tmp_path: Path, api_key: str) -> None:
    """The end of a task is saved while its id is still being saved, which fails: the end stays."""

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator(duration=0.0) as kie, client_on(store, kie, api_key) as client:
            own, store.late_saves_fail = store.gate("b", 1), True
            call = asyncio.create_task(client.submit("b", key="b"))
            await until(lambda: store.saves["b"] == 1)
            [task_id] = kie.tasks
            assert (await client.details(task_id)).state is kie4o.TaskState.SUCCEEDED
            assert await state_of(store, "b") is EntryState.SUCCEEDED
            own.set()
            with pytest.raises(StoreError):
                await call
            await asyncio.sleep(SAVED_BY)
            assert await state_of(store, "b") is EntryState.SUCCEEDED

    run_scaled(run(), SPEED)


def test_an_older_entry_is_not_even_saved_for_a_moment(tmp_path: Path, api_key: str) -> None:
    """The second id of a key waits for the store to work again when it is the turn of the first.

    The store then keeps the INTENT of the second submit: if the process were killed now, the next one would
    know that the second submit may be paid.
    """

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator(duration=0.0) as kie, client_on(store, kie, api_key) as client:
            kie.plan("b", outcome="failed")
            store.broken = {"a"}
            await fails_to_save(client, "a")
            own, again = store.gate("b", 1), store.gate("a", 2)
            first = asyncio.create_task(client.generate("b", key="b"))
            await until(lambda: store.saves["b"])
            store.broken.clear()
            await until(lambda: store.saves["a"] == 2)
            own.set()
            with pytest.raises(kie4o.TaskFailedError) as failed:
                await first
            store.broken.add("b")
            second = await fails_to_save(client, "b", retry_failed=True)
            store.broken.clear()
            store.gate("b", store.saves["b"] + 1)  # whatever is saved next waits
            again.set()
            await until(lambda: store.saves["b"] > 2)
            store.open_gates()
            task_ids = set()
            for _ in range(20):
                task_ids.add(await id_of(store, "b"))
                await asyncio.sleep(0.1)
            assert failed.value.task_id not in task_ids
            await saved(store, "b", second)

    run_scaled(run(), SPEED)


class Refusing(SQLiteStore):
    """Saves of entries in these states fail."""

    def __init__(self, path: Path, *states: EntryState) -> None:
        super().__init__(path)
        self.broken = set(states)

    async def save(self, entry: Entry) -> None:
        if entry.state in self.broken:
            raise StoreError("the disk is full")
        await super().save(entry)


def test_a_refusal_that_is_saved_late_does_not_hide_the_next_submit(tmp_path: Path, api_key: str) -> None:
    """A key was refused, which could not be saved, and is submitted again; then the store works.

    Until the answer arrives the store has the INTENT: if the process were killed now, the key would not be
    sent a third time.
    """

    async def run() -> None:
        store = Refusing(tmp_path / "run.db", EntryState.PLANNED)
        async with HeldServer() as kie, client_of(kie.url, store, api_key=api_key) as client:
            refused = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            kie.refuse("x", 402)
            await asyncio.wait([refused], timeout=50)
            assert refused.done()
            assert isinstance(refused.exception(), kie4o.InsufficientCreditsError)
            call = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 2)
            store.broken.clear()
            await asyncio.sleep(SAVED_BY)
            assert (await store.find(key="a")).state is EntryState.INTENT
            task_id = kie.accept("x")
            await asyncio.wait([call], timeout=50)
            assert call.done()
            assert call.result().id == await id_of(store, "a") == task_id

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("per", [0.9, 1.1])
def test_a_refusal_is_not_saved_in_the_turn_of_the_next_submit(per: float, api_key: str) -> None:
    """The same if the repeated save and the slot of the second submit are due in one turn of the loop."""

    class FailsOnce(MemoryStore):
        failures = 1

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.PLANNED and self.failures:
                self.failures -= 1
                raise StoreError("the disk is full")
            await super().save(entry)

    async def run() -> None:
        store, limit = FailsOnce(), RateLimit(1, per=per)
        async with (
            HeldServer() as kie,
            client_of(kie.url, store, api_key=api_key, rate_limit=limit) as client,
        ):
            refused = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: kie.posts == 1)
            kie.refuse("x", 402)
            await asyncio.wait([refused], timeout=50)
            assert refused.done()
            call = asyncio.create_task(client.submit("x", key="a"))
            await until(lambda: client._runtime.limiter.waiting == 1)
            time.sleep(2.0 / SLOW)  # the save is repeated after a second: now both are due
            await until(lambda: kie.posts == 2)
            assert (await store.find(key="a")).state is EntryState.INTENT
            task_id = kie.accept("x")
            await asyncio.wait([call], timeout=50)
            assert call.done()
            assert call.result().id == await id_of(store, "a") == task_id

    run_scaled(run(), SLOW)


def test_a_failure_that_is_saved_late_does_not_hide_the_next_submit(tmp_path: Path, api_key: str) -> None:
    """The same for a task that failed, which could not be saved, and whose key is submitted again."""

    async def run() -> None:
        store = Refusing(tmp_path / "run.db", EntryState.FAILED)
        latencies = iter([0.0, 2 * SAVED_BY])
        async with (
            Emulator(duration=0.0, latency=lambda: next(latencies)) as kie,
            client_of(kie.url, store, api_key=api_key) as client,
        ):
            kie.plan("x", outcome="failed")
            with pytest.raises(kie4o.TaskFailedError):
                await client.generate("x", key="a")
            call = asyncio.create_task(client.submit("x", key="a", retry_failed=True))
            await asyncio.sleep(5.0)
            if call.done():  # the key waits for its failure to be saved
                return
            store.broken.clear()
            await asyncio.sleep(SAVED_BY)
            assert (await store.find(key="a")).state is EntryState.INTENT
            await asyncio.wait([call], timeout=3 * SAVED_BY)
            assert call.done()
            assert call.result().id == await id_of(store, "a")

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("closes", [False, True])
def test_a_resubmit_that_cannot_begin_leaves_the_outcome_unknown(
    closes: bool, tmp_path: Path, api_key: str
) -> None:
    """The INTENT of a resubmit cannot be saved, so nothing is sent; the first submit may still be paid.

    Its key is not sent again, now or after the next start.
    """

    class CannotBegin(SQLiteStore):
        broken = False

        async def begin(self, entry: Entry, *more: Any) -> None:
            if self.broken:
                raise StoreError("the disk is full")
            await super().begin(entry, *more)

    async def run() -> None:
        store = CannotBegin(tmp_path / "run.db")
        async with HeldServer() as kie:
            async with client_of(kie.url, store, api_key=api_key) as client:
                lost = asyncio.create_task(client.submit("x", key="a"))
                await until(lambda: kie.posts == 1)
                kie.lose("x")
                await asyncio.wait([lost], timeout=50)
                assert lost.done()
                assert isinstance(lost.exception(), kie4o.SubmissionUnknownError)
                store.broken = True
                call = asyncio.create_task(client.submit("x", key="a", on_unknown="resubmit"))
                await asyncio.wait([call], timeout=50)
                assert call.done()
                assert isinstance(call.exception(), StoreError)
                store.broken = False
                await asyncio.sleep(0.0 if closes else SAVED_BY)
                if not closes:
                    again = asyncio.create_task(client.submit("x", key="a"))
                    await asyncio.wait([again], timeout=50)
                    assert again.done()
                    assert isinstance(again.exception(), kie4o.SubmissionUnknownError)
            async with client_of(kie.url, SQLiteStore(tmp_path / "run.db"), api_key=api_key) as later:
                again = asyncio.create_task(later.submit("x", key="a"))
                await asyncio.wait([again], timeout=50)
                assert again.done()
                assert isinstance(again.exception(), kie4o.SubmissionUnknownError)
            assert kie.posts == 1

    run_scaled(run(), SPEED)


def test_an_id_that_is_not_saved_yet_is_not_taken_for_that_of_another_submit(
    tmp_path: Path, api_key: str
) -> None:
    """Kie's answer to one submit arrives for another as well: its own task, if there is one, is not known."""

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with HeldServer() as kie, client_of(kie.url, store, api_key=api_key) as client:
            store.broken = {"a"}
            first = asyncio.create_task(client.submit("a", key="a"))
            await until(lambda: kie.posts == 1)
            task_id = kie.accept("a")
            await asyncio.wait([first], timeout=50)
            assert first.done()
            assert isinstance(first.exception(), StoreError)
            second = asyncio.create_task(client.submit("b", key="b"))
            await until(lambda: kie.posts == 2)
            kie.accept("b", task_id)
            await asyncio.wait([second], timeout=50)
            assert second.done()
            assert isinstance(second.exception(), kie4o.SubmissionUnknownError), second
            store.broken.clear()
            await saved(store, "a", task_id)
            assert await id_of(store, "b") is None

    run_scaled(run(), SPEED)


def test_a_task_that_a_callback_has_named_is_not_forgotten_again(tmp_path: Path, api_key: str) -> None:
    """The unknown outcome was saved though the store said that it was not, and is saved again later.

    If a callback has named the task meanwhile, the key keeps its id.
    """

    class SaysNo(SQLiteStore):
        lies = 1

        async def save(self, entry: Entry) -> None:
            await super().save(entry)
            if entry.state is EntryState.UNKNOWN and self.lies:
                self.lies -= 1
                raise StoreError("the store did not respond in time")

    async def run() -> None:
        store = SaysNo(tmp_path / "run.db")
        async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
            kie.plan("x", answer=LOST)
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("x", key="a")
            [task_id] = kie.tasks
            await store.keep_callback(caught.value.ref, task_id)
            assert (await client.submit("x", key="a")).id == task_id
            await asyncio.sleep(SAVED_BY)
            assert await id_of(store, "a") == task_id
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


# -- several failures --------------------------------------------------------------------------------


def test_an_id_that_cannot_be_saved_keeps_no_other_from_being_saved(tmp_path: Path, api_key: str) -> None:
    """The repeated save of one key goes on failing; the other key's id is saved all the same."""

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
            store.broken = {"a", "b", "c"}
            ids = {key: await fails_to_save(client, key) for key in ("a", "b", "c")}
            store.broken = {"a"}
            await saved(store, "b", ids["b"])
            await saved(store, "c", ids["c"])
            assert await id_of(store, "a") is None
            store.broken.clear()
            await saved(store, "a", ids["a"])
            assert len(kie.submits) == 3

    run_scaled(run(), SPEED)


def test_a_later_failure_is_written_again_like_the_first(tmp_path: Path, api_key: str) -> None:
    """The store fails, works, and fails again: each time the ids are saved without closing the client."""

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
            for key in ("a", "b"):
                store.broken = {key}
                task_id = await fails_to_save(client, key)
                await asyncio.sleep(3.0)
                store.broken.clear()
                await saved(store, key, task_id)
                await asyncio.sleep(SAVED_BY)
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


def test_a_long_failure_does_not_put_off_the_save_for_longer(tmp_path: Path, api_key: str) -> None:
    """After five minutes without a store the id is still saved within half a minute of its repair."""

    async def run() -> None:
        store = Stubborn(tmp_path / "run.db")
        async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
            store.broken = {"a"}
            task_id = await fails_to_save(client, "a")
            await asyncio.sleep(300.0)
            store.broken.clear()
            await saved(store, "a", task_id)

    run_scaled(run(), 2 * SPEED)


def test_what_cannot_be_saved_is_tried_ever_less_often() -> None:
    """Again after one second, then after twice as long each time, up to half a minute."""

    class Full(MemoryStore):
        async def save(self, entry: Entry) -> None:
            tried.append(asyncio.get_running_loop().time())
            raise StoreError("the disk is full")

    async def run() -> None:
        ledger = Ledger(Full())
        await ledger.unknown(UNKNOWN)
        await asyncio.sleep(92.0)
        await ledger.aclose()

    tried: list[float] = []
    run_virtual(run())
    gaps = [round(later - earlier, 3) for earlier, later in itertools.pairwise(tried[:-1])]
    assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_an_id_without_a_key_is_saved_later_too(tmp_path: Path, api_key: str) -> None:
    """A submit without a key, of which the store had only the INTENT."""

    async def run() -> None:
        class Full(SQLiteStore):
            full = True

            async def save(self, entry: Entry) -> None:
                if self.full and entry.state is EntryState.SUBMITTED:
                    raise StoreError("the disk is full")
                await super().save(entry)

        store = Full(tmp_path / "run.db")
        async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
            with pytest.raises(StoreError) as caught:
                await client.submit("x")
            assert [caught.value.task_id] == list(kie.tasks)
            assert caught.value.key is None
            store.full = False
            await asyncio.sleep(SAVED_BY)
            assert [entry.task_id async for entry in client.unfinished()] == [caught.value.task_id]

    run_scaled(run(), SPEED)


def test_the_end_of_a_task_is_saved_later_if_its_waiter_is_cancelled(api_key: str) -> None:
    """The cancel undoes the save; it is repeated without closing the client."""

    class Undoing(MemoryStore):
        saving = False

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.SUCCEEDED and not self.saving:
                self.saving = True
                await asyncio.Event().wait()
            await super().save(entry)

    async def run() -> None:
        store = Undoing()
        async with Emulator(duration=0.0) as kie, client_of(kie.url, store, api_key=api_key) as client:
            task = await client.submit("x", key="a")
            waiter = asyncio.create_task(task.details())
            await until(lambda: store.saving)
            waiter.cancel()
            await asyncio.wait([waiter], timeout=5)
            assert waiter.cancelled()
            await asyncio.sleep(SAVED_BY)
            assert await state_of(store, "a") is EntryState.SUCCEEDED

    run_scaled(run(), SPEED)


# -- closing -----------------------------------------------------------------------------------------


def writers() -> list[str]:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return [task.get_name() for task in tasks if task.get_name().startswith("kie4o")]


@pytest.mark.parametrize("repaired", [True, False])
@pytest.mark.parametrize("failures", [1, 3])
async def test_closing_leaves_no_writer_behind(
    failures: int, repaired: bool, tmp_path: Path, api_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After the close no task of the client runs, and each id is in the store or in the log."""
    store = Stubborn(tmp_path / "run.db")
    async with Emulator() as kie:
        client = client_of(kie.url, store, api_key=api_key)
        store.broken = {f"{number}" for number in range(failures)}
        ids = {key: await fails_to_save(client, key) for key in sorted(store.broken)}
        caplog.clear()
        if repaired:
            store.broken.clear()
        closing = asyncio.create_task(client.aclose())
        await asyncio.wait([closing], timeout=5)
        assert closing.done()
        assert not closing.cancelled()
        assert closing.exception() is None
        assert writers() == []
        errors = " ".join(record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR)
        assert all((task_id in errors) is not repaired for task_id in ids.values())
        later = SQLiteStore(tmp_path / "run.db")
        await later.open()
        assert {key: await id_of(later, key) for key in ids} == (ids if repaired else dict.fromkeys(ids))
        await later.aclose()


@pytest.mark.parametrize("failed", [False, True])
async def test_no_writer_outlives_the_close(failed: bool) -> None:
    """Neither one that has nothing left to save, nor one for a write that fails after the close."""
    store = Gated()
    ledger = Ledger(store)
    if failed:
        store.saves_fail = True
        await ledger.unknown(UNKNOWN)
        store.saves_fail = False
        await ledger.unknown(UNKNOWN)
    assert len(writers()) == failed
    await ledger.aclose()
    assert writers() == []
    store.saves_fail = True
    await ledger.unknown(UNKNOWN)
    assert writers() == []


async def test_the_store_is_closed_after_the_last_save_has_ended(api_key: str) -> None:
    """A repeated save that is under way when the client closes ends before the store is closed."""

    class Slow(MemoryStore):
        saves = saving = 0
        saving_at_close: int | None = None

        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.SUBMITTED:
                self.saves += 1
                if self.saves == 1:
                    raise StoreError("the disk is full")
                if self.saves == 2:
                    await self._wait_for_the_thread()
            await super().save(entry)

        async def _wait_for_the_thread(self) -> None:
            self.saving += 1
            begun.set()
            try:
                await asyncio.sleep(3600)
            finally:  # a cancel does not stop what a thread does
                await asyncio.sleep(0.3)
                self.saving -= 1

        async def aclose(self) -> None:
            self.saving_at_close = self.saving
            await super().aclose()

    store, begun = Slow(), asyncio.Event()
    async with Emulator() as kie:
        client = client_of(kie.url, store, api_key=api_key)
        task_id = await fails_to_save(client, "a")
        await until(begun.is_set)  # after a second
        closing = asyncio.create_task(client.aclose())
        await asyncio.wait([closing], timeout=5)
        assert closing.done()
        assert store.saving_at_close == 0
        assert await id_of(store, "a") == task_id


async def test_an_unknown_outcome_that_cannot_be_saved_is_told(api_key: str) -> None:
    """The caller learns that it is unknown; the event, that the store does not know it yet."""

    class Forgetful(MemoryStore):
        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.UNKNOWN:
                raise StoreError("the disk is full")
            await super().save(entry)

    heard: list[Any] = []
    async with (
        HeldServer() as kie,
        client_of(kie.url, Forgetful(), api_key=api_key, on_event=heard.append) as client,
    ):
        call = asyncio.create_task(client.submit("x", key="a"))
        await until(lambda: kie.posts == 1)
        kie.lose("x")
        await asyncio.wait([call], timeout=5)
        assert isinstance(call.exception(), kie4o.SubmissionUnknownError)
    told = [(each.key, each.state) for each in heard if isinstance(each, kie4o.events.NotSaved)]
    assert told == [("a", "unknown")]


async def test_the_store_is_written_no_more_than_needed(api_key: str) -> None:
    """The end of a task once, however often it is polled; and where no other process has them, keys of
    submitted requests are not released."""

    class Counting(MemoryStore):
        async def save(self, entry: Entry) -> None:
            saved.append(entry.state)
            await super().save(entry)

        async def release(self, key: str) -> None:
            released.append(key)
            await super().release(key)

    saved: list[EntryState] = []
    released: list[str] = []
    async with Emulator(duration=0.0) as kie, client_of(kie.url, Counting(), api_key=api_key) as client:
        result = await client.generate("x", key="a")
        for _ in range(2):
            await client.details(result.task_id)
    assert saved == [EntryState.INTENT, EntryState.SUBMITTED, EntryState.SUCCEEDED]
    assert released == []


# -- keys that other processes use ---------------------------------------------------------------------


class Shared(MemoryStore):
    """A store that several processes share, as far as keys are concerned."""

    def __init__(self, *, held: bool = False, release_fails: bool = False) -> None:
        super().__init__()
        self.shared = Alone()
        self.held = held
        self.release_fails = release_fails
        self.taken: list[set[EntryState]] = []
        self.released: list[str] = []

    async def claim(
        self, entry: Entry, *, takes: Collection[EntryState] = (EntryState.PLANNED,), wait: bool = True
    ) -> Entry | None:
        self.taken.append(set(takes))
        return None if self.held else await super().claim(entry, takes=takes, wait=wait)

    async def release(self, key: str) -> None:
        self.released.append(key)
        if self.release_fails:
            raise StoreError("the connection is lost")


async def test_a_key_that_another_process_holds_is_not_sent(api_key: str) -> None:
    """It is submitting just now: `StoreError` names the key."""
    async with Emulator() as kie, client_of(kie.url, Shared(held=True), api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x", key="a"))
        await asyncio.wait([call], timeout=5)
        error = call.exception()
        assert isinstance(error, StoreError), error
        assert error.key == "a"
        assert len(kie.submits) == 0


async def test_a_caller_that_waits_for_a_key_joins_one_that_does_not(api_key: str) -> None:
    """An item of a batch does not wait for a key that another process has in hand, and is told so, once. A
    call that has joined it waits, and gets its task."""

    class HeldForAWhile(Shared):
        async def claim(self, entry: Entry, *, wait: bool = True, **options: Any) -> Entry | None:
            claims.append(wait)
            if len(claims) > 2:
                raise StoreError("one claim too many")
            await (free if wait else asked).wait()
            return await super().claim(entry, **options) if wait else None

    claims: list[bool] = []
    asked, free = asyncio.Event(), asyncio.Event()
    async with Emulator() as kie, client_of(kie.url, HeldForAWhile(), api_key=api_key) as client:
        generate = client._runtime.lifecycle.generate
        item = asyncio.create_task(generate(kie4o.ImageRequest("x"), "a", wait=False))
        await until(lambda: claims)
        call = asyncio.create_task(client.submit("x", key="a"))
        await asyncio.sleep(0.02)
        asked.set()
        await asyncio.wait([item], timeout=5)
        assert isinstance(item.exception(), KeyInUseError)
        await until(lambda: len(claims) == 2)
        assert not call.done()
        free.set()
        await asyncio.wait([call], timeout=5)
        assert call.result().id in kie.tasks
        assert claims == [False, True]


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, set()),
        ({"on_unknown": "resubmit"}, {EntryState.UNKNOWN}),
        ({"retry_failed": True}, {EntryState.FAILED}),
    ],
    ids=["default", "resubmit", "retry"],
)
async def test_a_key_is_taken_in_the_states_from_which_it_is_sent(
    options: dict[str, Any], more: set[EntryState], api_key: str
) -> None:
    """Another process must not send it at the same time; what is only read need not be held."""
    store = Shared()
    async with Emulator(duration=0.0) as kie, client_of(kie.url, store, api_key=api_key) as client:
        await client.submit("x", key="a", **options)
    assert store.taken[0] == {EntryState.PLANNED} | more


async def test_a_store_that_is_slow_to_release_a_key_delays_no_caller(api_key: str) -> None:
    """The caller has its task id, and its permit is free, as soon as the id is saved. What has no key holds
    none."""

    class SlowToRelease(Shared):
        async def release(self, key: str) -> None:
            await released.wait()
            await super().release(key)

    store, released = SlowToRelease(), asyncio.Event()
    async with Emulator() as kie:
        async with client_of(kie.url, store, api_key=api_key, max_in_flight=1) as client:
            calls = [asyncio.create_task(client.submit("x", key=key)) for key in ("a", None, "b")]
            done, _ = await asyncio.wait(calls, timeout=2)
            released.set()
            assert len(done) == 3
            assert {call.result().id for call in calls} == set(kie.tasks)
    assert store.released == ["a", "b"]


@pytest.mark.parametrize("release_fails", [False, True])
@pytest.mark.parametrize("outcome", ["accepted", "refused", "lost", "conflict", "called off"])
async def test_a_key_that_was_claimed_is_released_whatever_its_submit_came_to(
    outcome: str, release_fails: bool, api_key: str
) -> None:
    """And if that fails, the caller still learns the outcome."""
    store = Shared(release_fails=release_fails)
    limit = RateLimit(1, per=0.3)
    async with (
        HeldServer() as kie,
        client_of(kie.url, store, api_key=api_key, rate_limit=limit) as client,
    ):
        earlier = asyncio.create_task(client.submit("y", key="earlier"))
        await until(lambda: kie.posts == 1)
        kie.accept("y")
        await asyncio.wait([earlier], timeout=5)
        key = "earlier" if outcome == "conflict" else "a"
        store.released.clear()
        call = asyncio.create_task(client.submit("x", key=key))
        await until(lambda: client._runtime.limiter.waiting or call.done())
        task_id = None
        if outcome == "called off":
            call.cancel()
        elif outcome != "conflict":
            await until(lambda: kie.posts == 2)
        if outcome == "accepted":
            task_id = kie.accept("x")
        elif outcome == "refused":
            kie.refuse("x", 402)
        elif outcome == "lost":
            kie.lose("x")
        await asyncio.wait([call], timeout=5)
        assert call.done()
        await until(lambda: client._runtime.submissions.live == 0)
        if outcome == "accepted":
            assert call.result().id == task_id
        elif outcome == "called off":
            assert call.cancelled()
        else:
            kinds = {
                "refused": kie4o.InsufficientCreditsError,
                "lost": kie4o.SubmissionUnknownError,
                "conflict": kie4o.KeyConflictError,
            }
            assert isinstance(call.exception(), kinds[outcome])
        # A conflict holds no key: the stored entry is in none of the states that are submitted again.
        assert store.released == ([] if outcome == "conflict" else [key])


async def test_a_key_is_released_if_its_claim_is_cancelled(api_key: str) -> None:
    """The store has stored it by then: without the release every such call would leave an entry behind."""

    class Slow(Shared):
        async def claim(self, entry: Entry, **options: Any) -> Entry | None:
            stored = await super().claim(entry, **options)
            claimed.set()
            await asyncio.Event().wait()
            return stored

    store, claimed = Slow(), asyncio.Event()
    async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
        call = asyncio.create_task(client.submit("x", key="a"))
        await asyncio.wait_for(claimed.wait(), 5)
        call.cancel()
        await asyncio.wait([call], timeout=5)
        assert call.cancelled()
        await until(lambda: client._runtime.submissions.live == 0)
        assert store.released == ["a"]
        assert len(kie.submits) == 0


async def test_a_claim_that_is_cancelled_leaves_nothing_in_a_file(tmp_path: Path, api_key: str) -> None:
    """The same in a store of ours, at each of the first turns of the loop."""
    store = SQLiteStore(tmp_path / "run.db")
    async with Emulator() as kie, client_of(kie.url, store, api_key=api_key) as client:
        await client.credits()  # opened
        for turns in range(6):
            call = asyncio.create_task(client.submit("x", key=f"{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.wait([call], timeout=5)
            assert call.cancelled()
        await until(lambda: client._runtime.submissions.live == 0)
        assert [await store.find(key=f"{turns}") for turns in range(6)] == [None] * 6


async def test_a_claim_waits_for_another_process_unless_it_is_told_not_to() -> None:
    """As a batch tells it."""

    class HeldForAWhile(Shared):
        async def claim(self, entry: Entry, *, wait: bool = True, **options: Any) -> Entry | None:
            return await super().claim(entry, **options) if wait else None

    ledger = Ledger(HeldForAWhile())
    with pytest.raises(KeyInUseError):
        await ledger.claim(UNKNOWN, (EntryState.UNKNOWN,), wait=False)
    assert await ledger.claim(UNKNOWN, (EntryState.UNKNOWN,)) == UNKNOWN


async def test_a_key_that_is_not_released_is_told() -> None:
    """Other processes wait for it meanwhile."""
    heard: list[Event] = []
    await heard_by(heard, Shared(release_fails=True)).release(UNKNOWN)
    assert [type(each) for each in heard] == [NotReleased]


async def test_a_key_that_another_process_holds_is_not_released() -> None:
    """It was not to be had for a settlement."""
    store = Shared(held=True)
    await store.save(UNKNOWN)
    with pytest.raises(StoreError, match="by this process or another"):
        await Ledger(store).settle(UNKNOWN, "t-1", never)
    assert store.released == []


async def test_what_is_not_saved_yet_can_be_settled() -> None:
    """The store has the INTENT still; no other process has changed it."""

    class Full(Shared):
        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.UNKNOWN:
                raise StoreError("the disk is full")
            await super().save(entry)

    store = Full()
    ledger = Ledger(store)
    await store.save(UNKNOWN.become(EntryState.INTENT))
    await ledger.unknown(UNKNOWN)
    settled = await ledger.settle(UNKNOWN, "t-1", never)
    assert (settled.state, settled.task_id) == (EntryState.SUBMITTED, "t-1")
    assert await store.find(key="k") == settled
    await ledger.aclose()


# -- one write waits for another -----------------------------------------------------------------------


class Gated(MemoryStore):
    """Looking for an `EARLIER` submit of the key waits for the gate, and so holds the key's lock; saves and
    searches fail if they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.saves_fail = self.finds_fail = False

    async def save(self, entry: Entry) -> None:
        if self.saves_fail:
            raise StoreError("the disk is full")
        await super().save(entry)

    async def find(self, **by: Any) -> Entry | None:
        if self.finds_fail:
            raise StoreError("disk I/O error")
        if by.get("ref") == EARLIER.ref:
            await self.gate.wait()
        return await super().find(**by)


EARLIER = entry_of("earlier", ref="earlier", state=EntryState.UNKNOWN, keyed=False, superseded_key="k")
UNKNOWN = entry_of(state=EntryState.UNKNOWN)
BEFORE = entry_of(ref="before", state=EntryState.UNKNOWN)
INTENT = entry_of(ref="second", state=EntryState.INTENT)


def heard_by(heard: list[Event], store: MemoryStore) -> Ledger:
    """A ledger whose events go into the list."""
    return Ledger(store, Reporter([(heard.append, (Event,))]))


def never(name: str) -> bool:
    """No submit is under way."""
    return False


@pytest.mark.parametrize(
    "newer", [UNKNOWN.become(EntryState.SUBMITTED, task_id="t-2"), INTENT], ids=["named", "submitted again"]
)
def test_what_was_saved_while_its_key_was_locked_is_not_saved_again(newer: Entry) -> None:
    """It may have been followed by something newer."""

    async def run() -> None:
        store = Gated()
        ledger = Ledger(store)
        await store.save(EARLIER)
        naming = asyncio.create_task(ledger.name_task(EARLIER, "t-1"))
        store.saves_fail = True
        await ledger.unknown(UNKNOWN)
        store.saves_fail = False
        await asyncio.sleep(5.0)  # it waits for the lock to save it again
        await ledger.unknown(UNKNOWN)
        await store.save(newer)
        store.gate.set()
        await naming
        await asyncio.sleep(SAVED_BY)
        assert await store.find(key="k") == newer

    run_virtual(run())


@pytest.mark.parametrize("previous", [None, BEFORE], ids=["alone", "after another"])
def test_a_refusal_whose_key_stays_locked_is_saved_later(previous: Entry | None) -> None:
    """As one that cannot be saved; the submit before it returns to the key."""

    async def run() -> None:
        store, heard = Gated(), list[Event]()
        ledger = heard_by(heard, store)
        for entry in (EARLIER, BEFORE.superseded(), INTENT):
            await store.save(entry)
        naming = asyncio.create_task(ledger.name_task(EARLIER, "t-1"))
        await asyncio.sleep(0)
        assert (await ledger.unpaid(INTENT, previous)).state is EntryState.PLANNED
        assert await state_of(store, "k") is EntryState.INTENT
        assert [each.state for each in heard if isinstance(each, NotSaved)] == ["planned"]
        store.gate.set()
        await naming
        await asyncio.sleep(SAVED_BY)
        assert await store.find(key="k") == (previous or attrs.evolve(INTENT, state=EntryState.PLANNED))

    run_virtual(run())


def test_an_unknown_outcome_is_saved_later() -> None:
    """In place of the INTENT, which no callback may name."""

    async def run() -> None:
        store = Gated()
        ledger = Ledger(store)
        await store.save(UNKNOWN.become(EntryState.INTENT))
        store.saves_fail = True
        await ledger.unknown(UNKNOWN)
        store.saves_fail = False
        await asyncio.sleep(SAVED_BY)
        assert await store.find(key="k") == UNKNOWN

    run_virtual(run())


@pytest.mark.parametrize("again", [False, True])
def test_a_submit_that_returns_to_its_key_later_keeps_the_task_that_was_named_meanwhile(again: bool) -> None:
    """A callback names it for as long as the refusal of the submit after it waits for the key."""

    async def run() -> None:
        store = Gated()
        ledger = Ledger(store)
        for entry in (EARLIER, INTENT):
            await store.save(entry)
        naming = asyncio.create_task(ledger.name_task(EARLIER, "t-1"))
        await asyncio.sleep(0)
        earlier = attrs.evolve(EARLIER, key="k", keyed=True, superseded_key=None)
        await ledger.unpaid(INTENT, earlier)
        store.gate.set()
        named = await naming
        known = earlier.become(EntryState.SUBMITTED, task_id="t-1")
        assert await ledger.claim(earlier, (EntryState.UNKNOWN,)) == known  # before it is saved
        if again:
            await ledger.begin(attrs.evolve(INTENT, ref="again"), earlier)
            assert await store.find(task_id="t-1") == known.superseded()
            return
        await asyncio.sleep(SAVED_BY)
        assert await store.find(key="k") == known
        assert named.task_id == "t-1"
        assert await store.find(ref=EARLIER.ref) == await store.find(task_id="t-1")

    run_virtual(run())


async def test_nothing_is_sent_while_the_submit_before_it_cannot_be_read() -> None:
    """It would be stored as it was last known, without the task that a callback has named since."""
    store = Gated()
    await store.save(UNKNOWN)
    ledger = Ledger(store)
    named = await ledger.name_task(UNKNOWN, "t-1")
    store.finds_fail = True
    with pytest.raises(StoreError, match="disk I/O error"):
        await ledger.begin(INTENT, UNKNOWN)
    store.finds_fail = False
    await ledger.aclose()
    assert await store.find(key="k") == named


def test_a_refusal_does_not_restore_what_cannot_be_read() -> None:
    """The submit before it is saved again later, with the task that a callback has named since."""

    async def run() -> None:
        store = Gated()
        for entry in (EARLIER, INTENT):
            await store.save(entry)
        ledger = Ledger(store)
        store.gate.set()
        await ledger.name_task(EARLIER, "t-1")
        store.finds_fail = True
        await ledger.unpaid(INTENT, attrs.evolve(EARLIER, key="k", keyed=True, superseded_key=None))
        store.finds_fail = False
        await asyncio.sleep(SAVED_BY)
        found = await store.find(key="k")
        assert found is not None
        assert (found.ref, found.task_id) == (EARLIER.ref, "t-1")

    run_virtual(run())


async def test_a_task_that_is_not_saved_yet_is_given_to_no_other_submit() -> None:
    """A callback names the task of a submit whose id could not be saved."""
    store = Gated()
    ledger = Ledger(store)
    await store.save(UNKNOWN)
    store.saves_fail = True
    with pytest.raises(StoreError, match="paid"):
        await ledger.submitted(entry_of("another", state=EntryState.SUBMITTED, task_id="t-1"))
    store.saves_fail = False
    with pytest.raises(DuplicateTaskError):
        await ledger.name_task(UNKNOWN, "t-1")
    assert await store.find(key="k") == UNKNOWN
    await ledger.aclose()


def test_a_task_of_another_submit_is_not_kept_for_later() -> None:
    """The caller is told, and says what becomes of the entry."""

    async def run() -> None:
        store, heard = MemoryStore(), list[Event]()
        ledger = heard_by(heard, store)
        await store.save(submitted("another", task_id="t-1"))
        await store.save(INTENT)
        with pytest.raises(DuplicateTaskError):
            await ledger.submitted(INTENT.become(EntryState.SUBMITTED, task_id="t-1"))
        assert await ledger.find("k") == INTENT
        await asyncio.sleep(SAVED_BY)
        assert await store.find(key="k") == INTENT
        assert heard == []

    run_virtual(run())


async def test_a_submit_may_get_its_task_twice_at_once() -> None:
    """Its answer cannot be saved while a callback names the same task: that is no other submit's."""
    store = Gated()
    ledger = Ledger(store)
    await store.save(EARLIER)
    naming = asyncio.create_task(ledger.name_task(EARLIER, "t-1"))
    await asyncio.sleep(0)
    answered = EARLIER.become(EntryState.SUBMITTED, task_id="t-1")
    store.saves_fail = True
    with pytest.raises(StoreError, match="paid"):
        await ledger.submitted(answered)
    store.saves_fail = False
    store.gate.set()
    assert await naming == await store.find(task_id="t-1") == answered
    await ledger.aclose()


async def test_what_is_not_saved_yet_is_found() -> None:
    """By its key and by its ref."""
    store = Gated()
    ledger = Ledger(store)
    store.saves_fail = True
    await ledger.unknown(UNKNOWN)
    assert [await ledger.find(name) for name in ("k", UNKNOWN.ref, "another")] == [UNKNOWN, UNKNOWN, None]
    store.saves_fail = False
    named = await ledger.name_task(UNKNOWN, "t-1")
    assert named.task_id == "t-1"
    assert await ledger.find("k") == named
    await ledger.aclose()


@pytest.mark.parametrize("stored", [None, submitted("k", task_id="t-2")], ids=["removed", "named"])
async def test_what_is_found_out_too_late_changes_nothing(stored: Entry | None) -> None:
    """The entry has its task, or is gone, since the callback or the person has seen it."""
    store = MemoryStore()
    ledger = Ledger(store)
    if stored is not None:
        await store.save(stored)
    assert await ledger.name_task(UNKNOWN, "t-1") == (stored or UNKNOWN)
    assert await ledger.settle(UNKNOWN, "t-1", never) == (stored or UNKNOWN)
    assert await store.find(key="k") == stored


# -- submits without a key ------------------------------------------------------------------------------


UNKEYED = attrs.evolve(EARLIER, superseded_key=None)


@pytest.mark.parametrize("settles", [False, True], ids=["named", "settled"])
def test_submits_without_a_key_do_not_wait_for_each_other(settles: bool) -> None:
    """The store stalls for one of them."""

    async def run() -> None:
        def write(entry: Entry, task_id: str) -> asyncio.Task[Entry]:
            to_do = ledger.settle(entry, task_id, never) if settles else ledger.name_task(entry, task_id)
            return asyncio.create_task(to_do)

        store = Gated()
        ledger = Ledger(store)
        other = entry_of("other", state=EntryState.UNKNOWN, keyed=False, ref="other")
        for entry in (UNKEYED, other):
            await store.save(entry)
        first = write(UNKEYED, "t-1")
        second = write(other, "t-2")
        await asyncio.wait([second], timeout=5)
        assert (first.done(), second.done()) == (False, True)
        store.gate.set()
        assert [(await each).task_id for each in (first, second)] == ["t-1", "t-2"]

    run_virtual(run())


async def test_a_submit_without_a_key_is_not_settled_while_it_is_under_way() -> None:
    """It goes by its ref."""
    store = MemoryStore()
    await store.save(UNKEYED)
    with pytest.raises(StoreError, match="is being submitted now"):
        await Ledger(store).settle(UNKEYED, "t-1", lambda name: name == UNKEYED.ref)
    assert await store.find(ref=UNKEYED.ref) == UNKEYED


# -- what was not charged ---------------------------------------------------------------------------------


def test_the_end_of_a_task_that_is_not_saved_yet_returns_to_its_key() -> None:
    """With its entry, since the submit after it was not charged; and it stays there."""

    async def run() -> None:
        store = Gated()
        ledger = Ledger(store)
        earlier = submitted("k", ref="earlier", task_id="t-1").superseded()
        latest = attrs.evolve(UNKNOWN, earlier=("earlier",))
        for entry in (earlier, latest):
            await store.save(entry)
        store.gate.set()
        store.saves_fail = True
        await ledger.finish(details_of(earlier))
        store.saves_fail = False
        await ledger.settle(latest, None, never)
        await asyncio.sleep(SAVED_BY)
        stored = await store.find(key="k")
        assert stored is not None
        assert (stored.state, stored.task_id) == (EntryState.SUCCEEDED, "t-1")

    run_virtual(run())


async def test_the_submit_before_one_that_was_not_charged_may_be_gone() -> None:
    """Then the key is free; that it was not charged is told."""
    store, heard = MemoryStore(), list[Event]()
    ledger = heard_by(heard, store)
    await store.save(latest := attrs.evolve(UNKNOWN, earlier=("pruned",)))
    settled = await ledger.settle(latest, None, never)
    assert settled == await store.find(ref=latest.ref)
    assert await store.find(key="k") is None
    assert [(each.key, each.state) for each in heard if isinstance(each, Saved)] == [("k", "failed")]


# -- the end of a task ------------------------------------------------------------------------------------


class SlowToFind(MemoryStore):
    """What it has found by a task id it tells once it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def find(self, *, task_id: str | None = None, **by: Any) -> Entry | None:
        entry = await super().find(task_id=task_id, **by)
        if task_id is not None:
            await self.gate.wait()
        return entry


def details_of(entry: Entry) -> kie4o.TaskDetails:
    details = ended(entry).details
    assert details is not None
    return details


async def test_an_end_is_not_saved_for_an_entry_that_is_removed_while_others_move() -> None:
    """Nothing of it returns, and nothing is told."""
    store, heard = SlowToFind(), list[Event]()
    ledger = heard_by(heard, store)
    for entry in (ending := submitted("a"), BEFORE):
        await store.save(entry)
    finishing = asyncio.create_task(ledger.finish(details_of(ending)))
    await asyncio.sleep(0)
    await ledger.begin(INTENT, BEFORE)
    await store.forget("a")
    heard.clear()
    store.gate.set()
    await finishing
    assert await store.find(key="a") is None
    assert heard == []


@pytest.mark.parametrize("refused", [False, True], ids=["leaves", "returns"])
async def test_an_end_follows_its_entry_that_has_moved_since_it_was_read(refused: bool) -> None:
    """It leaves its key to the next submit, or returns to it when that is refused."""
    store = SlowToFind()
    ledger = Ledger(store)
    before = submitted("k", ref="before", task_id="t-1")
    for entry in (before.superseded(), INTENT) if refused else (before,):
        await store.save(entry)
    finishing = asyncio.create_task(ledger.finish(details_of(before)))
    await asyncio.sleep(0)
    await (ledger.unpaid(INTENT, before) if refused else ledger.begin(INTENT, before))
    store.gate.set()
    await finishing
    end = ended(before)
    assert await store.find(ref="before") == (end if refused else end.superseded())
    assert await store.find(key="k") == (end if refused else INTENT)


# -- what is told -----------------------------------------------------------------------------------------


async def test_the_line_of_a_save_names_its_entry(caplog: pytest.LogCaptureFixture) -> None:
    """In the log of a program that asks for it."""
    caplog.set_level(logging.DEBUG, "kie4o")
    await Ledger(MemoryStore(), Reporter()).unknown(UNKNOWN)
    assert caplog.messages == [f"{UNKNOWN.name} is saved as unknown"]
