"""One batch in several processes: they share its items, each is paid once, and each process yields all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import attrs
import postgres
import pytest
from batch_child import KEY, WaitingStore, client_of
from batches import at_rest
from paths import IMPORT_ROOT, SUPPORT
from portable import PATIENCE, environment
from postgres import opened

from kie4o import (
    AsyncKieClient,
    Completion,
    CreditLimitError,
    ImageRequest,
    StoreError,
    TaskDetails,
    TaskFailedError,
    TaskState,
)
from kie4o.batch import elsewhere
from kie4o.emulator import Emulator
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.postgres import database as database_module
from kie4o.stores.postgres import window as window_module
from kie4o.stores.postgres.database import Database
from kie4o.stores.postgres.schema import migrate
from kie4o.stores.store import Entry, EntryState

CHILD = SUPPORT / "batch_child.py"
LEASE = "CREATE OR REPLACE FUNCTION kie4o.lease() RETURNS interval LANGUAGE sql AS $$ SELECT interval '{}' $$"


def emulator(**more: Any) -> Emulator:
    return Emulator(clock="real", limit=1_000_000, credits=1_000_000, **more)


@attrs.frozen
class Done:
    """A completion of another process."""

    index: int
    task_id: str | None
    replayed: bool
    submitted: bool
    error: str | None


class Child:
    """A process with one batch. `done` are its completions so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.done: list[Done] = []

    async def line(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self.process.stdout.readline()).decode().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")

    async def finished(self) -> list[Done]:
        """All completions, once the batch has ended; fewer if the process was killed."""
        while (line := await self.line()) not in ("null", ""):
            self.done.append(Done(*json.loads(line)))
        return self.done


@contextlib.asynccontextmanager
async def batches(
    count: int, url: str, kie: Emulator, prompts: int, in_flight: int, *more: str
) -> AsyncIterator[list[Child]]:
    """Processes that begin with the same prompts at the same moment."""
    words = [sys.executable, str(CHILD), url, kie.url, str(prompts), str(in_flight), *more]
    children = []
    try:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=environment(PYTHONPATH=str(IMPORT_ROOT)),
            )
            children.append(Child(process))
        for child in children:
            assert await child.line() == "open"
        for child in children:
            child.go()
        yield children
    finally:
        for child in children:
            if child.process.returncode is None:
                child.process.kill()
            await child.process.wait()


def prompts_of(kie: Emulator) -> Counter[str]:
    return Counter(submit.request["prompt"] for submit in kie.submits)


@pytest.fixture
async def url() -> str:
    return postgres.shared_url()


async def shorten_leases(database: Database) -> None:
    """The processes renew theirs twice a second."""
    await migrate(database)
    await database.rows(LEASE.format("2 s"))


# -- several processes -------------------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.posix("SIGKILL")
@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=[pytest.mark.sweep, pytest.mark.proof])])
async def test_one_of_three_processes_is_killed(rounds: int) -> None:
    """In mid-run. The others yield every item; what it was sending when it died has an unknown outcome."""
    prompts = 60
    for number in range(rounds):
        url = postgres.shared_url()
        async with opened(url) as database, emulator(duration=0.6, latency=0.03) as kie:
            await shorten_leases(database)
            async with batches(3, url, kie, prompts, 5) as (victim, *others):
                while len(kie.submits) < 20 + number:
                    await asyncio.sleep(0.01)
                victim.process.kill()
                all_done = await asyncio.gather(*(child.finished() for child in [victim, *others]))
        assert set(prompts_of(kie).values()) == {1}
        for done in all_done[1:]:
            assert sorted(each.index for each in done) == list(range(prompts))
            errors = {each.error for each in done} - {None}
            assert errors <= {"SubmissionUnknownError"}
            unknown = [each.index for each in done if each.error is not None]
            assert len(unknown) <= 5
        here = [{each.index for each in done if each.submitted} for done in all_done]
        assert not here[1] & here[2]
        assert not (here[1] | here[2]) & here[0]
        assert min(len(here[1]), len(here[2])) > 5
        print("submitted by each", [len(each) for each in here])


@pytest.mark.once
@pytest.mark.posix("SIGSTOP")
async def test_a_process_that_stands_still_goes_on(url: str) -> None:
    """It is taken for dead while its items wait for slots. What others have taken over by then is passed over
    when it is back, and it yields every item too."""
    prompts = 40
    async with opened(url) as database, emulator(duration=0.5) as kie:
        await shorten_leases(database)
        async with batches(2, url, kie, prompts, 8, "slow") as children:
            all_done = [asyncio.create_task(child.finished()) for child in children]
            while len(kie.submits) < 8:
                await asyncio.sleep(0.01)
            children[0].process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(5)
            children[0].process.send_signal(signal.SIGCONT)
            for done in await asyncio.gather(*all_done):
                assert sorted(each.index for each in done) == list(range(prompts))
                assert {each.error for each in done} <= {None, "SubmissionUnknownError"}
        assert set(prompts_of(kie).values()) == {1}


@pytest.mark.once
@pytest.mark.parametrize("passes", [True, False], ids=["rule", "control"])
async def test_processes_work_on_different_items(url: str, passes: bool) -> None:
    """Together they have as many tasks in flight as each may have. Control: each takes a place for an item
    where it meets it, so that all of them wait for the same tasks."""
    async with emulator(duration=1.0) as kie:
        async with batches(3, url, kie, 18, 2, *([] if passes else ["control"])) as children:
            results = await asyncio.gather(*(child.finished() for child in children))
        for done in results:
            assert sorted(each.index for each in done) == list(range(18))
            assert {each.error for each in done} == {None}
        assert sum(each.submitted for done in results for each in done) == len(kie.submits) == 18
        assert not any(each.submitted and each.replayed for done in results for each in done)
        spans = [(task.created, task.end or 0.0) for task in kie.tasks.values()]
        most = max(sum(begun <= at < end for begun, end in spans) for at, _ in spans)
        took = max(end for _, end in spans) - min(begun for begun, _ in spans)
        print("at once", most, "in", took)
        assert (most >= 5) is passes


# -- one process, and items in the hands of others ----------------------------------------------------


@contextlib.asynccontextmanager
async def another(url: str) -> AsyncIterator[PostgresStore]:
    """Another live process on the tables."""
    store = PostgresStore(url, Secret(KEY))
    await store.open()
    try:
        yield store
    finally:
        await store.aclose()


def entry(key: str, task_id: str | None = None) -> Entry:
    """As another process submits it, or has submitted it."""
    planned = Entry(key, request=ImageRequest(f"prompt {key}"), ref=f"ref of {key}")
    if task_id is None:
        return planned
    return planned.become(EntryState.SUBMITTED, task_id=task_id, sent_at=1.0, submitted_at=1.0)


PROMPTS = {key: f"prompt {key}" for key in ("held", "polled", "free 1", "free 2")}


def requests_of(source: str) -> Any:
    if source == "mapping":
        return PROMPTS

    async def arriving() -> AsyncIterator[tuple[str, str]]:
        for pair in PROMPTS.items():
            yield pair

    def taken() -> Iterator[tuple[str, str]]:
        yield from PROMPTS.items()

    return arriving() if source == "async" else taken()


@contextlib.asynccontextmanager
async def running(client: AsyncKieClient, requests: Any, **more: Any) -> AsyncIterator[list[Completion]]:
    """A batch that goes on inside; its completions so far."""
    done: list[Completion] = []

    async def collect() -> None:
        async for completion in client.generate_many(requests, **more):
            done.append(completion)

    task = asyncio.create_task(collect())
    try:
        yield done
    finally:
        task.cancel()
        await asyncio.wait([task])


async def completed(done: list[Completion], count: int) -> list[Completion]:
    async with asyncio.timeout(PATIENCE):
        while len(done) < count:
            await asyncio.sleep(0.01)
    return done


@pytest.mark.parametrize("source", ["mapping", "generator", "async"])
@pytest.mark.parametrize("passes", [True, False], ids=["rule", "control"])
async def test_a_place_is_not_held_by_an_item_in_other_hands(
    url: str, monkeypatch: pytest.MonkeyPatch, source: str, passes: bool
) -> None:
    """Neither by one that another process submits, nor by one whose task it polls. They come once they are in
    nobody's hands: the one as a submit, the other as a replay. Control: the first takes the only place."""
    monkeypatch.setattr(elsewhere, "ASK", 0.3)
    store = (PostgresStore if passes else WaitingStore)(url, Secret(KEY))
    async with emulator(duration=0.0) as kie, another(url) as other, client_of(store, kie.url, 1) as client:
        assert other.shared is not None
        await other.claim(entry("held"))
        await other.save(polled := entry("polled", "t-polled"))
        assert await other.shared.lead(["t-polled"]) == {"t-polled": None}
        async with running(client, requests_of(source)) as done:
            if not passes:
                await asyncio.sleep(1.5)
                assert done == []
                return
            await completed(done, 2)
            await asyncio.sleep(2 * elsewhere.ASK)
            assert [each.key for each in done] == ["free 1", "free 2"]
            assert client._runtime.lifecycle.permits.in_use == 0
            await other.release("held")
            assert (await completed(done, 3))[2].key == "held"
            assert done[2].submitted
            details = TaskDetails(
                "t-polled", state=TaskState.SUCCEEDED, urls=("https://images.example/1.png",)
            )
            await other.save(polled.become(EntryState.SUCCEEDED, details=details))
            await other.shared.leave({"t-polled": details})
            assert (await completed(done, 4))[3].key == "polled"
            assert done[3].replayed
            assert not done[3].submitted
            assert sorted(prompts_of(kie)) == ["prompt free 1", "prompt free 2", "prompt held"]


async def test_items_of_a_process_that_dies_are_taken_over(url: str) -> None:
    """What it had not sent is submitted here, and its task is waited for here."""
    store = PostgresStore(url, Secret(KEY))
    async with emulator(duration=0.0) as kie, another(url) as other, client_of(store, kie.url, 1) as client:
        assert other.shared is not None
        task_id = (await client.submit("prompt polled", key="polled")).id
        await other.claim(entry("held"))
        await other.shared.lead([task_id])
        async with running(client, PROMPTS) as done:
            await completed(done, 2)
            await other._database.rows(
                "UPDATE kie4o.process SET expires_at = clock_timestamp() WHERE id = %s", other._process.id
            )
            await completed(done, 4)
        assert {each.key: each.submitted for each in done[2:]} == {"held": True, "polled": False}
        assert all(each.ok for each in done)
        assert len(kie.submits) == 4


async def test_a_failure_of_another_process_is_not_paid_for_again(url: str) -> None:
    """With `retry_failed`, where it submits the item again at the moment. Control: a failure that was there
    before is."""
    store = PostgresStore(url, Secret(KEY))
    async with emulator(duration=0.0) as kie, another(url) as other, client_of(store, kie.url, 1) as client:
        old = attrs.evolve(entry("held", "t-old"), state=EntryState.FAILED, details=failed("t-old"))
        for key in ("held", "before"):
            await other.save(attrs.evolve(old, key=key, ref=f"ref of {key}", task_id=f"t-{key}"))
        await other.claim(entry("held"), takes=(EntryState.FAILED,))
        prompts = dict.fromkeys(("held", "before"), "prompt held")
        async with running(client, prompts, retry_failed=True) as done:
            await completed(done, 1)
            assert done[0].ok
            assert done[0].submitted
            await other.release("held")
            await completed(done, 2)
        assert isinstance(done[1].error, TaskFailedError)
        assert len(kie.submits) == 1


def failed(task_id: str) -> TaskDetails:
    return TaskDetails(task_id, state=TaskState.FAILED, error_message="it failed")


async def test_what_stops_a_batch_ends_it_beside_items_in_other_hands(url: str) -> None:
    """The event of the caller, a limit of credits, and closing the iterator: nothing is left waiting."""
    store = PostgresStore(url, Secret(KEY))
    async with emulator(duration=0.0) as kie, another(url) as other, client_of(store, kie.url, 2) as client:
        await other.claim(entry("held"))
        stop = asyncio.Event()
        seen = []
        async with asyncio.timeout(PATIENCE):
            async for completion in client.generate_many({"held": "prompt held", "a": "a"}, stop=stop):
                seen.append(completion.key)
                stop.set()
            with pytest.raises(CreditLimitError):
                async for completion in client.generate_many(
                    {"held": "prompt held", "b": "b", "c": "c"}, max_credits=6, max_in_flight=1
                ):
                    seen.append(completion.key)
            async with contextlib.aclosing(client.generate_many({"held": "prompt held", "d": "d"})) as batch:
                seen.append((await anext(batch)).key)
        assert seen == ["a", "b", "d"]
        await at_rest(client)


async def test_a_caller_who_waits_joins_a_batch_that_does_not(url: str) -> None:
    """`generate` under a key that a batch has just passed over waits for the other process."""
    store = PostgresStore(url, Secret(KEY))
    async with emulator(duration=0.0) as kie, another(url) as other, client_of(store, kie.url, 2) as client:
        await other.claim(entry("held"))
        async with running(client, {"held": "prompt held"}) as done:
            waiting = asyncio.create_task(client.generate("prompt held", key="held"))
            await asyncio.sleep(1.5)
            assert not waiting.done()
            await other.release("held")
            result = await asyncio.wait_for(waiting, PATIENCE)
            await completed(done, 1)
            assert done[0].task_id == result.task_id
        assert len(kie.submits) == 1


@pytest.mark.parametrize("ridden_out", [True, False], ids=["rule", "control"])
async def test_a_restart_of_the_database_is_only_a_delay(
    monkeypatch: pytest.MonkeyPatch, ridden_out: bool
) -> None:
    """All items are done, each is paid once. Control: without that the batch stops at once."""
    if not ridden_out:
        monkeypatch.setattr(database_module, "OUTAGE", 0.0)
        monkeypatch.setattr(window_module, "OUTAGE", 0.0)
    prompts = [f"prompt {number}" for number in range(40)]
    with postgres.own_server() as server:
        store, stopped = PostgresStore(server.url, Secret(KEY)), False
        async with emulator(duration=0.5) as kie, client_of(store, kie.url, 8) as client:
            done = []
            try:
                async for completion in client.generate_many(prompts):
                    done.append(completion)
                    if len(done) == 5:
                        restarting = asyncio.create_task(asyncio.to_thread(server.restart, signal.SIGQUIT))
            except StoreError:
                stopped = True
            await restarting
            assert stopped is not ridden_out
            assert set(prompts_of(kie).values()) == {1}
            if ridden_out:
                assert len(done) == len(kie.submits) == len(prompts)
                assert all(completion.ok for completion in done)
