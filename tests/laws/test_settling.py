"""Settling: what a person found out about an unknown outcome is saved, and laws 1 and 2 hold while it is."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from pathlib import Path
from typing import Any

import attrs
import dying
import pytest
from alone import Alone
from clients import LOST, MakeStore, client_of, until
from dying import SURVIVED, Run
from held import HeldServer
from paths import IMPORT_ROOT
from portable import environment

import kie4o
from kie4o import AsyncKieClient, SubmissionUnknownError, events, parse_callback
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import DuplicateTaskError, Entry, EntryState

CALLBACK = "https://me.example/kie"
PATHS = str(IMPORT_ROOT)
NOT_CHARGED = 500  # no task, and the answer does not say so


@pytest.fixture
async def kie() -> AsyncIterator[Emulator]:
    async with Emulator(clock="real", duration=0.0, credits=600) as kie:
        yield kie


async def lost(client: AsyncKieClient, kie: Emulator, key: str | None = "order-1", prompt: str = "a boat"):
    """A submit whose outcome is unknown, and the id of its task."""
    known = set(kie.tasks)
    kie.plan(prompt, answer=LOST)
    with pytest.raises(SubmissionUnknownError) as caught:
        await client.submit(prompt, key=key)
    [task_id] = set(kie.tasks) - known
    return caught.value, task_id


async def unfinished(client: AsyncKieClient) -> list[Entry]:
    return [entry async for entry in client.unfinished()]


def facts(entry: Entry | None) -> tuple[EntryState, str | None] | None:
    return None if entry is None else (entry.state, entry.task_id)


NAMES = ("key", "ref", "entry", "ref of a submit without a key", "entry of a submit without a key")


@pytest.mark.parametrize("name", NAMES)
async def test_a_task_that_a_person_found(kie: Emulator, store: MakeStore, name: str) -> None:
    """By the key, the ref or the entry: its end is saved, and in every later run nothing is sent for it."""
    key = None if "without" in name else "order-1"
    async with client_of(kie.url, store()) as client:
        error, task_id = await lost(client, kie, key)
        [entry] = await unfinished(client)
        which = entry if name.startswith("entry") else error.key if name == "key" else error.ref
        assert which is not None
        settled = await client.settle(which, task_id=task_id)
        assert facts(settled) == (EntryState.SUCCEEDED, task_id)
        assert settled.ref == error.ref
        assert await client.settle(which, task_id=task_id) == settled
    async with client_of(kie.url, store()) as later:
        assert await unfinished(later) == []
        assert (await later.wait(task_id)).source == "store"
        if key is not None:
            assert (await later.generate("a boat", key=key)).task_id == task_id
    assert len(kie.submits) == 1


async def test_a_task_that_is_still_running_is_resumed(store: MakeStore) -> None:
    """`unfinished()` lists it with its id, and `resume()` waits for it."""
    async with Emulator(duration=60.0, speed=100.0) as kie, client_of(kie.url, store()) as client:
        _, task_id = await lost(client, kie)
        settled = await client.settle("order-1", task_id=task_id)
        assert facts(settled) == (EntryState.SUBMITTED, task_id)
        assert [facts(entry) for entry in await unfinished(client)] == [facts(settled)]
        [done] = [done async for done in client.resume()]
        assert done.unwrap().task_id == task_id
        assert len(kie.submits) == 1


@pytest.mark.parametrize("key", ["order-1", None])
async def test_what_was_not_charged_is_submitted_again(
    kie: Emulator, store: MakeStore, key: str | None
) -> None:
    """`charged=False`: the same call submits again without `on_unknown`, in this run and in the next."""
    kie.plan("a boat", answer=NOT_CHARGED)
    async with client_of(kie.url, store()) as client:
        with pytest.raises(SubmissionUnknownError) as caught:
            await client.submit("a boat", key=key)
        settled = await client.settle(caught.value.key or caught.value.ref or "", charged=False)
        assert (facts(settled), settled.callers_key) == ((EntryState.FAILED, None), key)
        assert await client.settle(settled, charged=False) == settled
        assert await unfinished(client) == []
        if key is not None:
            with pytest.raises(kie4o.InvalidRequestError, match="no entry under 'order-1'"):
                await client.settle(key, charged=False)
    async with client_of(kie.url, kept := store()) as later:
        assert await unfinished(later) == []
        task = await later.submit("a boat", key=key)
        assert facts(await kept.find(ref=caught.value.ref)) == (EntryState.FAILED, None)
        assert facts(await kept.find(task_id=task.id)) == (EntryState.SUBMITTED, task.id)
    assert (len(kie.submits), kie.paid) == (2, 1)


async def test_a_person_may_err(kie: Emulator, store: MakeStore) -> None:
    """A callback, or the person again, names the task of what was said not to be charged: it is not lost."""
    async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
        one, first = await lost(client, kie, "one")
        two, second = await lost(client, kie, "two")
        for error in (one, two):
            await client.settle(error.ref or "", charged=False)
        callback = {"code": 200, "data": {"taskId": first}}
        await client.deliver(parse_callback(callback, ref=one.ref))
        await client.settle(two.ref or "", task_id=second)
        for error, task_id in ((one, first), (two, second)):
            entry = await kept.find(ref=error.ref)
            assert facts(entry) == (EntryState.SUCCEEDED, task_id)
            assert entry is not None
            assert entry.callers_key == error.key


async def test_the_submit_before_returns_to_its_key(kie: Emulator, store: MakeStore) -> None:
    """Two submits of a key are unknown. The second was not charged: the first has the key again, as it is
    now, whether it is still unknown or has its task."""
    async with client_of(kie.url, kept := store()) as client:
        first, task_id = await lost(client, kie)
        kie.plan("a boat", answer=NOT_CHARGED)
        with pytest.raises(SubmissionUnknownError):
            await client.submit("a boat", key="order-1", on_unknown="resubmit")
        kie.plan("a boat", answer=NOT_CHARGED)
        with pytest.raises(SubmissionUnknownError) as caught:
            await client.submit("a boat", key="order-1", on_unknown="resubmit")
        entries = {entry.ref: entry for entry in await unfinished(client)}
        assert len(entries) == 3
        [middle] = [entry for ref, entry in entries.items() if ref not in (first.ref, caught.value.ref)]
        await client.settle(middle, charged=False)
        await client.settle("order-1", charged=False)
        entry = await kept.find(key="order-1")
        assert entry is not None
        assert (entry.ref, entry.state, entry.keyed) == (first.ref, EntryState.UNKNOWN, True)
        with pytest.raises(SubmissionUnknownError):
            await client.submit("a boat", key="order-1")
        await client.settle("order-1", task_id=task_id)
        assert (await client.generate("a boat", key="order-1")).task_id == task_id
        assert await unfinished(client) == []
    assert len(kie.submits) == 3


async def test_an_earlier_submit_is_settled_by_its_ref(kie: Emulator, store: MakeStore) -> None:
    """Its key has another task by then, and the error says how."""
    async with client_of(kie.url, kept := store()) as client:
        first, task_id = await lost(client, kie)
        second = await client.submit("a boat", key="order-1", on_unknown="resubmit")
        with pytest.raises(kie4o.InvalidRequestError, match=f"{second.id}.*earlier submits.*by their refs"):
            await client.settle("order-1", task_id=task_id)
        settled = await client.settle(first.ref or "", task_id=task_id)
        assert (facts(settled), settled.callers_key) == ((EntryState.SUCCEEDED, task_id), "order-1")
        assert (await client.generate("a boat", key="order-1")).task_id == second.id
        assert facts(await kept.find(key="order-1")) == (EntryState.SUCCEEDED, second.id)


# -- what is refused, and changes nothing --------------------------------------------------------------


async def test_arguments_are_checked(kie: Emulator) -> None:
    """Exactly one of the two, and a key that can be one; nothing is polled."""
    async with client_of(kie.url) as client:
        for more in ({}, {"task_id": "t1", "charged": False}, {"task_id": "t1", "charged": True}):
            with pytest.raises(kie4o.InvalidRequestError, match="either task_id= or charged=False"):
                await client.settle("order-1", **more)
        with pytest.raises(kie4o.InvalidRequestError, match=r"has an id at kie\.ai/logs"):
            await client.settle("order-1", charged=True)
        for wrong in ({"charged": 0}, {"charged": "no"}, {"task_id": "a b"}, {"task_id": ""}):
            with pytest.raises(kie4o.InvalidRequestError, match=r"invalid (charged|task_id)="):
                await client.settle("order-1", **wrong)
        for key in ("", None, 7, b"order-1"):
            with pytest.raises(kie4o.InvalidRequestError, match="invalid key="):
                await client.settle(key, charged=False)  # type: ignore[arg-type]  # the wrong type on purpose
        with pytest.raises(kie4o.InvalidRequestError, match="no entry under 'order-1'"):
            await client.settle("order-1", charged=False)


async def test_a_task_must_be_confirmed(kie: Emulator, store: MakeStore) -> None:
    """Kie does not know it, the poll fails, or it was asked for another prompt."""
    async with client_of(kie.url, store()) as client:
        _, task_id = await lost(client, kie)
        other = await client.submit("a house")
        _, house = await lost(client, kie, "order-2", "a house by the sea")
        before = await unfinished(client)
        with pytest.raises(kie4o.TaskNotFoundError) as caught:
            await client.settle("order-1", task_id="0" * 32)
        assert caught.value.task_id == "0" * 32
        with pytest.raises(
            kie4o.InvalidRequestError, match=f"task {house} was asked for 'a house by the sea'"
        ):
            await client.settle("order-1", task_id=house)
        with pytest.raises(DuplicateTaskError, match="belongs to another submit"):
            await client.settle("order-1", task_id=other.id)
        kie.fault("look", code=401)
        with pytest.raises(kie4o.AuthenticationError):
            await client.settle("order-1", task_id=task_id)
        assert await unfinished(client) == before
        assert facts(await client.settle("order-1", task_id=task_id)) == (EntryState.SUCCEEDED, task_id)
        with pytest.raises(DuplicateTaskError, match="belongs to the submit under key 'order-1'"):
            await client.settle("order-2", task_id=task_id)


async def test_an_outcome_that_is_known_stays(kie: Emulator, store: MakeStore) -> None:
    """Each other state of a key: the error says which."""
    kie.plan("a failure", outcome="failed")
    async with client_of(kie.url, kept := store()) as client:
        task = await client.submit("a boat", key="submitted")
        await client.generate("a boat", key="succeeded")
        with pytest.raises(kie4o.TaskFailedError):
            await client.generate("a failure", key="failed")
        for key in ("submitted", "succeeded", "failed"):
            for more in ({"charged": False}, {"task_id": "0" * 32}):
                with pytest.raises(kie4o.InvalidRequestError, match=f"outcome is known: {key}") as caught:
                    await client.settle(key, **more)
                assert caught.value.key == key
        assert facts(await client.settle("submitted", task_id=task.id)) == (EntryState.SUBMITTED, task.id)
        entry = await kept.find(key="submitted")
        assert entry is not None
        await kept.claim(attrs.evolve(entry, key="planned", ref="r", state=EntryState.PLANNED, task_id=None))
        with pytest.raises(kie4o.InvalidRequestError, match="it was not sent"):
            await client.settle("planned", charged=False)


async def test_a_prompt_is_compared_as_people_read_it(kie: Emulator) -> None:
    """White space and composed letters do not count. A prompt that Kie enriched or does not tell is not
    compared."""
    async with client_of(kie.url) as client:
        for number, (asked, recorded, more) in enumerate(
            [
                (" two  boats\n", "two boats", {}),
                ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}", {}),
                ("a boat", "A detailed painting of a boat", {"is_enhance": True}),
                (None, "a prompt of Kie's", {"files_url": ["https://a.example/1.png"]}),
                ("a boat", None, {}),
                ("a boat", " ", {}),
            ]
        ):
            kie.next(answer=LOST)
            with pytest.raises(SubmissionUnknownError) as caught:
                await client.submit(kie4o.ImageRequest(asked, **more), key=f"{number}")
            task = list(kie.tasks.values())[-1]
            task.request["prompt"] = recorded
            assert (await client.settle(caught.value.ref or "", task_id=task.id)).task_id == task.id


async def test_a_store_that_has_lost_the_entry(kie: Emulator) -> None:
    """Nothing was saved, and `settle` does not say that it was."""

    class Forgetful(MemoryStore):
        finds = 9

        async def find(self, **by: Any) -> Entry | None:
            self.finds -= 1
            return await super().find(**by) if self.finds >= 0 else None

    async with client_of(kie.url, store := Forgetful()) as client:
        await lost(client, kie)
        store.finds = 1
        with pytest.raises(kie4o.KieError, match="could not be settled; call settle again"):
            await client.settle("order-1", charged=False)


# -- races -----------------------------------------------------------------------------------------------


async def test_a_generate_that_waits_goes_on(kie: Emulator, store: MakeStore) -> None:
    """It waits for a callback that would name its task; a person is faster."""
    async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
        kie.plan("a boat", answer=LOST, callback="never")
        generating = asyncio.create_task(client.generate("a boat", key="order-1"))
        await until(lambda: kie.tasks)
        entry = None
        while entry is None or entry.state is not EntryState.UNKNOWN:
            await asyncio.sleep(0.01)
            entry = await kept.find(key="order-1")
        [task_id] = kie.tasks
        await client.settle("order-1", task_id=task_id)
        assert (await asyncio.wait_for(generating, 5)).task_id == task_id
    assert len(kie.submits) == 1


async def test_a_generate_that_waits_for_what_was_not_charged_ends(kie: Emulator, store: MakeStore) -> None:
    """It says what to do: the next call submits."""
    async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
        kie.plan("a boat", answer=NOT_CHARGED)
        generating = asyncio.create_task(client.generate("a boat", key="order-1"))
        entry = None
        while entry is None or entry.state is not EntryState.UNKNOWN:
            await asyncio.sleep(0.01)
            entry = await kept.find(key="order-1")
        await client.settle("order-1", charged=False)
        with pytest.raises(SubmissionUnknownError, match="not charged: the same call submits it") as caught:
            await asyncio.wait_for(generating, 5)
        assert (caught.value.ref, caught.value.key) == (entry.ref, "order-1")
        assert len(kie.submits) == 1
        await client.generate("a boat", key="order-1", timeout=5)


async def test_the_next_call_returns_the_submit_before_one_that_was_not_charged(
    kie: Emulator, store: MakeStore
) -> None:
    """The error of the call that waits says that too."""
    async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
        first, task_id = await lost(client, kie)
        kie.plan("a boat", answer=NOT_CHARGED)
        generating = asyncio.create_task(client.generate("a boat", key="order-1", on_unknown="resubmit"))
        entry = None
        while entry is None or entry.ref == first.ref or entry.state is not EntryState.UNKNOWN:
            await asyncio.sleep(0.01)
            entry = await kept.find(key="order-1")
        await client.settle(first.ref or "", task_id=task_id)
        await client.settle("order-1", charged=False)
        with pytest.raises(SubmissionUnknownError, match="returns the outcome of the submit before it"):
            await asyncio.wait_for(generating, 5)
        assert (await client.generate("a boat", key="order-1", timeout=5)).task_id == task_id
    assert len(kie.submits) == 2


@pytest.mark.parametrize("turns", range(-22, 24, 4))
@pytest.mark.parametrize("key", ["order-1", None])
async def test_settling_races_a_callback(
    kie: Emulator, store: MakeStore, turns: int, key: str | None
) -> None:
    """Two sources name different tasks of one prompt: one of them wins, and it is not overwritten.

    The callback arrives so many turns of the loop after the person, or before.
    """
    heard: list[events.Event] = []
    async with client_of(kie.url, kept := store(), callback_url=CALLBACK, on_event=heard.append) as client:
        error, task_id = await lost(client, kie, key)
        kie.plan("a boat", answer=LOST)
        with pytest.raises(SubmissionUnknownError):
            await client.submit("a boat")  # another, of which only the id is used
        other = next(each for each in kie.tasks if each != task_id)

        async def after(turns: int, call: Coroutine[Any, Any, object]) -> object:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await call

        callback = parse_callback({"code": 200, "data": {"taskId": task_id}}, ref=error.ref)
        settling = after(-turns, client.settle(error.ref or "", task_id=other))
        delivery = after(turns, client.deliver(callback))
        outcomes = await asyncio.gather(settling, delivery, return_exceptions=True)
        entry = await kept.find(ref=error.ref)
        assert entry is not None
        assert entry.task_id in (task_id, other)
        if entry.task_id == other:
            assert outcomes[0] == entry
        else:
            assert isinstance(outcomes[0], kie4o.KieError)
        owners = [each for each in (task_id, other) if facts(await kept.find(task_id=each))]
        assert owners == [entry.task_id]
        assert sum(isinstance(each, events.Named | events.Settled) for each in heard) == 1


@pytest.mark.parametrize("turns", range(0, 40, 3))
@pytest.mark.parametrize("charged", [None, False])
async def test_settling_races_a_resubmit(store: MakeStore, turns: int, charged: bool | None) -> None:
    """If settling succeeds, what is sent afterwards knows of it; if it is refused, nothing has changed."""
    async with Emulator(duration=0.0, credits=600) as kie, client_of(kie.url, kept := store()) as client:
        error, task_id = await lost(client, kie)
        more = {"task_id": task_id} if charged is None else {"charged": charged}

        async def resubmit() -> kie4o.ImageTask:
            for _ in range(turns):
                await asyncio.sleep(0)
            return await client.submit("a boat", key="order-1", on_unknown="resubmit")

        submitting = asyncio.create_task(resubmit())
        try:
            settled = await client.settle("order-1", **more)
        except kie4o.StoreError:
            settled = None
        task = await submitting
        first, current = await kept.find(ref=error.ref), await kept.find(key="order-1")
        assert first is not None
        assert current is not None
        assert current.task_id == task.id
        if settled is None:
            assert (len(kie.submits), first.state) == (2, EntryState.UNKNOWN)
        elif charged is None:
            assert first.task_id == task_id
            resubmitted = settled.key != "order-1"  # during the poll, before anything was saved
            assert (len(kie.submits), task.id == task_id) == ((2, False) if resubmitted else (1, True))
        else:
            assert (len(kie.submits), first.state) == (2, EntryState.FAILED)


async def test_a_key_that_is_being_submitted_is_left_alone(store: MakeStore) -> None:
    """By this process: a submit that has not been answered."""
    async with HeldServer() as server, client_of(server.url, store()) as client:
        submitting = asyncio.create_task(client.submit("a boat", key="order-1"))
        await until(lambda: server.prompts)
        for more in ({"charged": False}, {"task_id": "0" * 32}):
            with pytest.raises(kie4o.StoreError, match="is being submitted now"):
                await client.settle("order-1", **more)
        task_id = server.accept("a boat")
        assert (await submitting).id == task_id


async def test_an_earlier_submit_is_left_alone_while_its_key_is_submitted_again(store: MakeStore) -> None:
    """It returns to the key if the new submit is refused, and can be settled then: the key is not stuck."""
    async with HeldServer() as server, client_of(server.url, store()) as client:
        submitting = asyncio.create_task(client.submit("a boat", key="order-1"))
        await until(lambda: server.prompts)
        server.lose("a boat")
        with pytest.raises(SubmissionUnknownError) as caught:
            await submitting
        submitting = asyncio.create_task(client.submit("a boat", key="order-1", on_unknown="resubmit"))
        await until(lambda: len(server.prompts) > 1)
        for more in ({"charged": False}, {"task_id": "0" * 32}):
            with pytest.raises(kie4o.StoreError, match="is being submitted now"):
                await client.settle(caught.value.ref or "", **more)
        server.refuse("a boat", 402)
        with pytest.raises(kie4o.InsufficientCreditsError):
            await submitting
        await client.settle(caught.value.ref or "", charged=False)
        submitting = asyncio.create_task(client.submit("a boat", key="order-1"))
        await until(lambda: len(server.prompts) > 2)
        task_id = server.accept("a boat")
        assert (await submitting).id == task_id


async def test_an_earlier_submit_is_left_alone_if_its_key_is_submitted_while_it_is_confirmed() -> None:
    """The resubmit begins during the poll of the task that a person found; nothing is changed."""
    async with (
        Emulator(clock="real", duration=0.0) as kie,
        client_of(kie.url, kept := MemoryStore()) as client,
    ):
        error, task_id = await lost(client, kie)
        kie.look_latency, kie.latency = 0.2, 1.0
        settling = asyncio.create_task(client.settle(error.ref or "", task_id=task_id))
        await asyncio.sleep(0.1)
        resubmit = asyncio.create_task(client.submit("a boat", key="order-1", on_unknown="resubmit"))
        with pytest.raises(kie4o.StoreError, match="is being submitted now"):
            await settling
        assert facts(await kept.find(ref=error.ref)) == (EntryState.UNKNOWN, None)
        assert (await resubmit).id != task_id


async def test_a_refused_resubmit_that_could_not_be_undone_does_not_keep_the_key(store: MakeStore) -> None:
    """The store fails when its INTENT is undone; settling the submit before it frees the key all the same."""
    kept = store()
    async with HeldServer() as server, client_of(server.url, kept) as client:
        submitting = asyncio.create_task(client.submit("a boat", key="order-1"))
        await until(lambda: server.prompts)
        server.lose("a boat")
        with pytest.raises(SubmissionUnknownError) as caught:
            await submitting
        submitting = asyncio.create_task(client.submit("a boat", key="order-1", on_unknown="resubmit"))
        await until(lambda: len(server.prompts) > 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(kept), "save", full)
            server.refuse("a boat", 402)
            with pytest.raises(kie4o.InsufficientCreditsError):
                await submitting
        await client.settle("order-1", charged=False)
        assert await kept.find(key="order-1") is None
        assert facts(await kept.find(ref=caught.value.ref)) == (EntryState.FAILED, None)
        submitting = asyncio.create_task(client.submit("a boat", key="order-1"))
        await until(lambda: len(server.prompts) > 2)
        task_id = server.accept("a boat")
        assert (await submitting).id == task_id


async def full(*_: object) -> None:
    raise kie4o.StoreError("the disk is full")


class Gated(MemoryStore):
    """A store in which the next call of one method waits for the test."""

    def __init__(self) -> None:
        super().__init__()
        self.method = ""
        self.reached = asyncio.Event()
        self.open_gate = asyncio.Event()

    async def _pass(self, method: str) -> None:
        if method == self.method:
            self.method = ""
            self.reached.set()
            await self.open_gate.wait()

    async def callbacks_of(self, ref: str) -> Sequence[str]:
        await self._pass("callbacks_of")
        return await super().callbacks_of(ref)

    async def begin(self, entry: Entry, superseded: Entry | None = None) -> None:
        await self._pass("begin")
        await super().begin(entry, superseded)

    async def save(self, entry: Entry) -> None:
        await self._pass("save")
        await super().save(entry)


@pytest.mark.parametrize("key", ["order-1", None])
async def test_a_callback_waits_for_a_settlement_that_is_saved(kie: Emulator, key: str | None) -> None:
    """It names another task: what is saved last must not replace what was saved first."""
    store = Gated()
    async with client_of(kie.url, store, callback_url=CALLBACK) as client:
        error, task_id = await lost(client, kie, key)
        _, other = await lost(client, kie, "another submit, of which only the task is used")
        store.method = "save"
        settling = asyncio.create_task(client.settle(error.ref or "", task_id=other))
        await asyncio.wait_for(store.reached.wait(), 5)
        callback = parse_callback({"code": 200, "data": {"taskId": task_id}}, ref=error.ref)
        delivering = asyncio.create_task(client.deliver(callback))
        await asyncio.sleep(0.1)
        assert facts(await store.find(ref=error.ref)) == (EntryState.UNKNOWN, None)
        store.open_gate.set()
        assert (await settling).task_id == other
        await delivering
        assert facts(await store.find(ref=error.ref)) == (EntryState.SUCCEEDED, other)


@pytest.mark.parametrize("method", ["callbacks_of", "begin"])
async def test_a_resubmit_begins_while_the_latest_submit_is_settled(method: str) -> None:
    """Of three submits of a key the second was not charged. The third begins while that is found out, and
    waits for a slot, or while it is saved: the first is not lost."""
    store = Gated()
    async with HeldServer() as server:
        limit = kie4o.RateLimit(2, per=2.0)
        async with client_of(server.url, store, rate_limit=limit) as client:
            refs = []
            for number in range(2):
                submitting = asyncio.create_task(
                    client.submit("a boat", key="order-1", on_unknown="resubmit" if number else "hold")
                )
                await until(lambda number=number: len(server.prompts) > number)
                server.lose("a boat")
                with pytest.raises(SubmissionUnknownError) as caught:
                    await submitting
                refs.append(caught.value.ref)
            store.method = method
            settling = asyncio.create_task(client.settle("order-1", charged=False))
            await asyncio.wait_for(store.reached.wait(), 5)
            submitting = asyncio.create_task(client.submit("a boat", key="order-1", on_unknown="resubmit"))
            await asyncio.sleep(0.05)
            store.open_gate.set()
            [settled] = await asyncio.gather(settling, return_exceptions=True)
            await until(lambda: len(server.prompts) > 2)
            task_id = server.accept("a boat")
            assert (await submitting).id == task_id
            state = EntryState.FAILED if method == "begin" else EntryState.UNKNOWN
            assert isinstance(settled, Entry if method == "begin" else kie4o.StoreError)
            assert facts(await store.find(ref=refs[0])) == (EntryState.UNKNOWN, None)
            assert facts(await store.find(ref=refs[1])) == (state, None)
            assert facts(await store.find(key="order-1")) == (EntryState.SUBMITTED, task_id)


class HeldElsewhere(MemoryStore):
    """A store of several processes, another of which holds every key."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Alone()
        self.held = False
        self.changed: Entry | None = None  # by another process, since this one has read it
        self.claimed: list[str] = []

    async def claim(self, entry: Entry, **more: object) -> Entry | None:
        if more.get("wait") is False:
            self.claimed.append(entry.key)
            return None if self.held else self.changed or await super().claim(entry)
        return await super().claim(entry)

    async def release(self, key: str) -> None:
        if key in self.claimed:
            self.claimed.remove(key)
        await super().release(key)


async def test_a_key_that_another_process_holds_is_left_alone(kie: Emulator) -> None:
    """The claim does not wait, and is let go of afterwards."""
    store = HeldElsewhere()
    async with client_of(kie.url, store) as client:
        error, task_id = await lost(client, kie)
        store.held = True
        with pytest.raises(kie4o.StoreError, match="by this process or another"):
            await client.settle("order-1", task_id=task_id)
        store.held, store.claimed = False, []
        entry = await store.find(key="order-1")
        assert entry is not None
        store.changed = entry.become(EntryState.SUBMITTED, task_id="1" * 32)
        with pytest.raises(kie4o.StoreError, match="by this process or another"):
            await client.settle("order-1", task_id=task_id)
        assert store.claimed == []
        store.changed = None
        assert facts(await store.find(ref=error.ref)) == (EntryState.UNKNOWN, None)
        await client.settle("order-1", task_id=task_id)
        assert store.claimed == []
        assert facts(await store.find(key="order-1")) == (EntryState.SUCCEEDED, task_id)


async def test_a_key_is_let_go_if_its_settlement_is_cancelled(kie: Emulator) -> None:
    """The store may have claimed it all the same."""

    class Slow(HeldElsewhere):
        async def claim(self, entry: Entry, **more: object) -> Entry | None:
            stored = await super().claim(entry, **more)
            if self.claimed:
                await asyncio.sleep(3600)
            return stored

    async with client_of(kie.url, store := Slow()) as client:
        _, task_id = await lost(client, kie)
        settling = asyncio.create_task(client.settle("order-1", task_id=task_id))
        await until(lambda: store.claimed)
        settling.cancel()
        await asyncio.wait([settling], timeout=5)
        assert settling.cancelled()
        assert store.claimed == []


async def test_a_callback_that_was_not_confirmed_speaks_against_it(kie: Emulator, store: MakeStore) -> None:
    """`charged=False` while a callback is stored that names a task: it is polled first."""
    async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
        error, task_id = await lost(client, kie)
        await kept.keep_callback(error.ref or "", "f" * 32)  # Kie knows no such task
        await kept.keep_callback(error.ref or "", task_id)
        with pytest.raises(kie4o.InvalidRequestError, match=f"a callback has named its task {task_id}"):
            await client.settle("order-1", charged=False)
        assert [entry.state for entry in await unfinished(client)] == [EntryState.UNKNOWN]


# -- a process that dies in between ------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.posix("a signal that kills")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("charged", [None, False])
@pytest.mark.parametrize("twice", [False, True])
async def test_a_process_that_is_killed_while_it_settles(
    kie: Emulator, tmp_path: Path, charged: bool | None, twice: bool, after: bool
) -> None:
    """`kill -9` before and after each write: the next run finds the entry as it was or as it was to be,
    and the same again completes it."""
    for at in range(1, 5):
        path, prompt = tmp_path / f"{at}.db", f"boat {at}"
        async with client_of(kie.url, path) as client:
            error, task_id = await lost(client, kie, "order-1", prompt)
            first = error
            if twice:
                kie.plan(prompt, answer=NOT_CHARGED if charged is False else LOST)
                with pytest.raises(SubmissionUnknownError) as caught:
                    await client.submit(prompt, key="order-1", on_unknown="resubmit")
                task_id, error = list(kie.tasks)[-1], caught.value
        found = task_id if charged is None else None
        run = Run(kie.url, str(path), error.ref or "", found, at, after)
        child = await asyncio.create_subprocess_exec(
            sys.executable, dying.__file__, json.dumps(attrs.asdict(run)), env=environment(PYTHONPATH=PATHS)
        )
        code = await child.wait()
        assert code in (-9, SURVIVED)
        async with client_of(kie.url, kept := SQLiteStore(path)) as client:
            entry, other = await kept.find(ref=error.ref), await kept.find(ref=first.ref)
            assert entry is not None
            assert other is not None
            assert entry.unnamed or entry.task_id == task_id
            if twice:
                assert other.state is EntryState.UNKNOWN
                assert (other.key == "order-1") is (entry.state is EntryState.FAILED)
            await client.settle(run.ref, task_id=found, charged=charged)
            async for _ in client.resume():
                pass
            refs = {each.ref for each in await unfinished(client)}
            assert refs == ({first.ref} if twice else set())
        if code == SURVIVED:
            assert at > 1
            return
    pytest.fail("the process was killed at more writes than there are")


# -- words ------------------------------------------------------------------------------------------------


PROMPT = "A calm lake under the northern lights, seen from the window of a train"


@pytest.mark.parametrize("key", ["order-1", None])
async def test_an_unknown_outcome_can_be_found_in_the_logs(
    kie: Emulator, store: MakeStore, key: str | None
) -> None:
    """The error and the entry say when it was sent, the start of the prompt, the key and the ref, in this run
    and the next; and the error what to do."""
    async with client_of(kie.url, store()) as client:
        error, _ = await lost(client, kie, key, PROMPT)
        texts = [str(error)]
    async with client_of(kie.url, store()) as later:
        [entry] = await unfinished(later)
        [done] = [done async for done in later.resume()]
        texts += [str(entry), str(done.error)]
        if key is not None:
            with pytest.raises(SubmissionUnknownError) as caught:
                await later.submit(PROMPT, key=key)
            texts.append(str(caught.value))
    assert entry.sent_at is not None
    times = {re.search(r"sent (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC)", text)[1] for text in texts}  # type: ignore[index]
    assert len(times) == 1
    for text in texts:
        assert "'A calm lake under the northern lights, …'" in text
        assert "train" not in text
        assert f"ref {error.ref}" in text
        assert ("key 'order-1'" in text) is (key is not None)
    for text in (texts[0], *texts[2:]):
        name = repr(key or error.ref)
        assert f"check kie.ai/logs, then call client.settle({name}, task_id='...')" in text
        assert f"client.settle({name}, charged=False) if it is not there" in text


async def test_the_time_of_a_submit_outlives_its_process(tmp_path: Path) -> None:
    """A process died with the answer outstanding: the error of the next says when it was sent, not when the
    store was opened again."""
    sent = 1_700_000_000.0  # 2023-11-14 22:13:20 UTC
    store = SQLiteStore(tmp_path / "run.db")
    await store.open()
    request = kie4o.ImageRequest("a boat")
    entry = Entry(
        "order-1", request=request, ref="r", state=EntryState.INTENT, sent_at=sent, submitted_at=sent
    )
    await store.begin(entry)
    await store.aclose()
    async with Emulator() as kie, client_of(kie.url, tmp_path / "run.db") as client:
        with pytest.raises(SubmissionUnknownError, match=r"sent 2023-11-14 22:13:20 UTC"):
            await client.submit("a boat", key="order-1")
