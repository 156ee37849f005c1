"""`client.state()`: what a client does, and the last failures; and the reprs that show the gist of it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from alone import Alone
from canary import CANARY_KEY
from clients import LOST, client_of, until

import kie4o
from kie4o import AsyncKieClient, ClientState, RateLimit, StoreError, TaskPoller
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry

PROMPT = "A dragon over the harbour of a town that has no name"


def failures(state: ClientState) -> dict[str, str]:
    return {each.call: each.cause for each in state.failures}


# -- what it does ------------------------------------------------------------------------------------------


async def test_a_client_that_is_not_used_does_nothing(tmp_path: Path) -> None:
    """And asking opens nothing, before the first use and after the end."""
    client = client_of("http://127.0.0.1:9", tmp_path / "run.db")
    before = await client.state()
    assert before == ClientState(
        open=False,
        in_flight=0,
        max_in_flight=100,
        waiting_for_place=0,
        waiting_for_slot=0,
        submits=0,
        tasks=0,
        window_used=0,
        window_limit=20,
        next_slot=0.0,
        failures=(),
        callback_ago=None,
        callbacks_missing=False,
    )
    assert not list(tmp_path.iterdir())
    async with client:
        now = await client.state()
        assert now == attrs.evolve(before, open=True, unfinished=0, unknown=0)
    assert await client.state() == before


async def test_the_counts_are_those_of_the_moment(kie: Emulator) -> None:
    """Two tasks in flight, one request that waits for a slot, one that waits for a place; then none."""
    kie.duration = 300.0
    limit = RateLimit(2, per=60.0)
    async with client_of(kie.url, rate_limit=limit, max_in_flight=3) as client:
        calls = [asyncio.create_task(client.generate(f"{number}")) for number in range(4)]
        runtime = client._runtime
        await until(lambda: runtime.poller.waiting == 2 and runtime.limiter.waiting == 1)
        state = await client.state()
        assert (state.in_flight, state.max_in_flight, state.tasks, state.submits) == (3, 3, 2, 1)
        assert (state.waiting_for_place, state.waiting_for_slot) == (1, 1)
        assert (state.window_used, state.window_limit) == (2, 2)
        assert state.next_slot is not None
        assert 0 < state.next_slot <= 60.1
        assert (state.unfinished, state.unknown) == (2, 0)
        assert repr(client) == "<AsyncKieClient: open, 3 of 3 in flight, 2 of 2 slots in use, 2 waiting>"
        assert repr(runtime.limiter) == "<RateLimiter: 2 of 2 slots in use per 60 s, 1 waiting>"
        assert repr(runtime.poller) == "<TaskPoller: 2 tasks waited for>"
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: not runtime.submissions.live)
        state = await client.state()
        assert (state.in_flight, state.tasks, state.submits) == (0, 0, 0)
        assert (state.waiting_for_place, state.waiting_for_slot) == (0, 0)
        assert state.unfinished == 2


async def test_a_slot_is_free_again_after_the_window(kie: Emulator) -> None:
    """Nothing has to be submitted for that."""
    async with client_of(kie.url, rate_limit=RateLimit(2, per=0.2)) as client:
        await client.submit("x")
        state = await client.state()
        assert (state.window_used, state.next_slot) == (1, 0.0)
        await asyncio.sleep(0.3)
        state = await client.state()
        assert (state.window_used, state.next_slot) == (0, 0.0)


async def test_a_pause_of_all_submits_is_seen(kie: Emulator) -> None:
    """After a refusal for too many calls no slot is free for a window."""
    kie.next(answer=429)
    async with client_of(kie.url, rate_limit=RateLimit(5, per=30.0)) as client:
        call = asyncio.create_task(client.submit("x"))
        await until(lambda: client._runtime.limiter.waiting)
        state = await client.state()
        assert state.next_slot is not None
        assert 29 < state.next_slot < 31
        assert failures(state)["submit"].startswith("429")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)


async def test_it_is_json(kie: Emulator) -> None:
    """`attrs.asdict` of it, as a health endpoint sends it."""
    kie.next(answer=422)
    async with client_of(kie.url) as client:
        with pytest.raises(kie4o.APIStatusError):
            await client.submit("x")
        sent = json.loads(json.dumps(attrs.asdict(await client.state())))
    assert sent["failures"][0]["call"] == "submit"
    assert set(sent) == {field.name for field in attrs.fields(ClientState)}


async def test_another_thread_may_read_the_counts() -> None:
    """As the gauges of metrics do, while the client works; nothing is raised."""
    read: list[ClientState] = []
    raised: list[BaseException] = []
    stopped = threading.Event()
    async with (
        Emulator(duration=0.4, limit=1000) as kie,
        client_of(kie.url, rate_limit=RateLimit(5, per=0.05)) as client,
    ):

        def read_always() -> None:
            try:
                while not stopped.is_set():
                    read.append(client._runtime.state())
                    assert repr(client)
                    stopped.wait(0.001)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=read_always)
        thread.start()
        try:
            async for done in client.generate_many([f"{number}" for number in range(40)]):
                assert done.ok
        finally:
            stopped.set()
            await asyncio.to_thread(thread.join)
    assert raised == []
    assert max(state.in_flight for state in read) > 5
    assert 0 < max(state.window_used or 0 for state in read) <= 5


# -- failures ----------------------------------------------------------------------------------------------


async def test_the_last_failure_of_each_call(kie: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """Without a hook, and with the log at ERROR: a submit, a poll, and a free call; the latest first."""
    caplog.set_level(logging.ERROR, "kie4o")
    kie.duration = 3.0
    kie.next(answer=422)
    kie.plan("second", answer=LOST)
    async with client_of(kie.url) as client, client_of(kie.url) as other:
        with pytest.raises(kie4o.APIStatusError):
            await client.submit("first")
        assert (await other.state()).failures == ()
        assert failures(await client.state())["submit"].startswith("422")
        with pytest.raises(kie4o.SubmissionUnknownError):
            await client.submit("second")
        state = await client.state()
        assert failures(state)["submit"].startswith("500")
        assert (state.unfinished, state.unknown) == (1, 1)
        kie.fault("look", code=500)
        assert (await client.generate("third")).urls
        kie.fault("credits", code=500)
        await client.credits()
        state = await client.state()
    assert [each.call for each in state.failures] == ["free call", "poll", "submit"]
    agos = [each.ago for each in state.failures]
    assert agos == sorted(agos)
    assert agos[0] >= 0


class Failing(MemoryStore):
    """A store that answers, fails or says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.how = "answers"

    async def unfinished(self) -> AsyncIterator[Entry]:
        if self.how == "fails":
            raise StoreError("the disk is gone")
        if self.how == "says nothing":
            raise StoreError
        if self.how == "stalls":
            await asyncio.Event().wait()
        async for entry in super().unfinished():
            yield entry

    async def save(self, entry: Entry) -> None:
        if self.how != "answers":
            raise StoreError("the disk is gone")
        await super().save(entry)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("fails", "the disk is gone"),
        ("says nothing", "StoreError"),
        ("stalls", "no answer within 1 s"),
    ],
)
async def test_a_store_that_fails_is_a_value(how: str, reason: str, kie: Emulator) -> None:
    """Nothing is raised, within a second or so; and once it answers again the failure is gone."""
    store = Failing()
    async with client_of(kie.url, store) as client:
        await client.submit("x")
        store.how = how
        state = await asyncio.wait_for(client.state(), 5)
        assert state.store_failure == reason
        assert (state.open, state.unfinished, state.unknown) == (True, None, None)
        store.how = "answers"
        state = await client.state()
        assert (state.store_failure, state.unfinished) == (None, 1)


async def test_what_could_not_be_saved_is_the_last_failure_of_the_store(kie: Emulator) -> None:
    """It is tried again, and the failure is still the last one."""
    store = Failing()
    async with client_of(kie.url, store) as client:
        kie.plan("x", duration=0.0)
        task = await client.submit("x")
        store.how = "fails"
        await task
        assert failures(await client.state()) == {"store": "the disk is gone"}
        store.how = "answers"


async def test_many_unfinished_entries_are_counted_up_to_a_thousand(kie: Emulator) -> None:
    """So that a probe does not read them all."""
    store = MemoryStore()
    async with client_of(kie.url, store) as client:
        await client.submit("x")
        [entry] = [entry async for entry in store.unfinished()]
        for number in range(1200):
            key, ref = f"key {number}", f"ref {number}"
            await store.save(attrs.evolve(entry, key=key, ref=ref, task_id=f"{number:032}"))
        assert (await client.state()).unfinished == 1000


# -- callbacks and other processes -------------------------------------------------------------------------


async def test_whether_callbacks_are_heard(kie: Emulator) -> None:
    """A task that ends without one is a miss; one that arrives is remembered; one that is refused fails."""
    kie.duration = 0.4
    async with client_of(kie.url, callback_url="http://127.0.0.1:9/kie/{ref}", wait_timeout=5.0) as client:
        state = await client.state()
        assert (state.callback_ago, state.callbacks_missing) == (None, False)
        kie.plan("x", callback="never")
        await client.generate("x")
        assert (await client.state()).callbacks_missing
        kie.plan("y", callback="never", duration=300.0)
        task = await client.submit("y")
        [entry] = [entry async for entry in client.unfinished()]
        body = {"code": 200, "msg": "success", "data": {"taskId": task.id, "info": None}}
        await client.deliver(client.parse_callback(body, ref=entry.ref))
        state = await client.state()
        assert state.callback_ago is not None
        assert 0 <= state.callback_ago < 5
        receiver = client.receiver(allow_unsigned=True)
        status = await receiver.receive([("Content-Type", "application/json")], b"{}", entry.ref)
        assert status == 400
        assert [each.call for each in (await client.state()).failures] == ["callback"]


class Shared(MemoryStore, Alone):
    """A store that others use as well: they have taken slots, and its notifications do not arrive."""

    def __init__(self, used: int) -> None:
        super().__init__()
        self.shared = self
        self.heard = False
        self.used = used

    async def slots_used(self, per: float) -> int:
        return self.used


@pytest.mark.parametrize("used", [7, 20])
async def test_the_slots_of_other_processes_count(used: int, kie: Emulator) -> None:
    """Those that the store knows, and whether it tells of what they write."""
    async with client_of(kie.url, Shared(used)) as client:
        state = await client.state()
        assert (state.window_used, state.database_heard) == (used, False)


async def test_a_client_of_another_loop_is_refused(kie: Emulator) -> None:
    """As in every other call."""

    def ask() -> str:
        with pytest.raises(kie4o.KieError, match="one event loop"):
            asyncio.run(client.state())
        return repr(client)

    async with client_of(kie.url) as client:
        assert (await asyncio.to_thread(ask)).startswith("<AsyncKieClient: open, 0 of 100")


# -- reprs -------------------------------------------------------------------------------------------------


async def test_a_repr_has_no_secret(kie: Emulator) -> None:
    """Neither a key nor a prompt, of whatever a debugger may show."""
    kie.duration = 300.0
    async with client_of(kie.url, webhook_key="canary-webhook") as client:
        call = asyncio.create_task(client.generate(PROMPT))
        await until(lambda: client._runtime.poller.waiting)
        parts: list[Any] = [client, client._runtime.limiter, client._runtime.poller]
        shown = " ".join(map(repr, parts))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert CANARY_KEY not in shown
    assert "canary-webhook" not in shown
    assert PROMPT[:10] not in shown
    assert "\n" not in shown


def test_a_repr_at_any_time() -> None:
    """Of a client that was refused while it was made, of one that is not used, and of a poller alone."""
    assert repr(AsyncKieClient.__new__(AsyncKieClient)) == "<AsyncKieClient>"
    client = AsyncKieClient("key")
    assert repr(client) == "<AsyncKieClient: not open, 0 of 100 in flight, 0 of 20 slots in use, 0 waiting>"
    poller = TaskPoller(lambda task_id: asyncio.sleep(0))  # type: ignore[arg-type]  # never called
    assert repr(poller) == "<TaskPoller: 0 tasks waited for>"
