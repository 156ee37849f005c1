"""How a batch ends early: errors that stop it, leaving the loop, cancelling, closing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batches import (
    FEW,
    LETTERS,
    SPEED,
    all_of,
    at_rest,
    batch_tasks,
    client_of,
    kie_of,
    paid_is_known,
    paid_once,
)
from canary import CANARY_KEY
from cancelling import cancelled_after, cancelled_at
from clients import LOST, QUICK, MakeStore, until
from clocks import run_scaled
from faults import FaultServer, raw

import kie4o
from kie4o import AsyncKieClient, Completion, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState, Store

# -- what stops a batch ----------------------------------------------------------------------------

STOPPING = {
    401: kie4o.AuthenticationError,
    402: kie4o.InsufficientCreditsError,
    433: kie4o.KeyLimitError,
}


@pytest.mark.parametrize("code", STOPPING)
@pytest.mark.parametrize("lazy", [False, True])
def test_an_error_of_every_item_stops_the_batch(store: MakeStore, code: int, lazy: bool) -> None:
    """A wrong key, an empty balance or a reached cap stops the batch.

    Nothing more is sent, items in flight complete, then the error is raised with a note. The next run does
    the rest.
    """
    prompts = [f"{n}" for n in range(30)]

    async def run() -> None:
        async with kie_of(latency=0.2, duration=2.0) as kie:
            for _ in range(7):
                kie.next()
            for _ in prompts:
                kie.next(answer=code)
            async with client_of(kie, kept := store()) as client:
                completions: list[Completion] = []
                many = client.generate_many(iter(prompts) if lazy else prompts, max_in_flight=5)
                with pytest.raises(STOPPING[code]) as caught:
                    async for completion in many:
                        completions.append(completion)
                assert [note for note in caught.value.__notes__ if "run the same batch again" in note]
                assert sum(completion.ok for completion in completions) == 7
                failures = [each.error for each in completions if not each.ok]
                assert 1 <= len(failures) <= 5
                assert {type(error) for error in failures} == {STOPPING[code]}
                assert caught.value not in failures
                assert 8 <= len(kie.submits) <= 12
                await at_rest(client)
                await paid_is_known(kie, kept)
            kie._next.clear()
            async with client_of(kie, store()) as client:
                rest = await all_of(client.generate_many(prompts, max_in_flight=50))
                assert sum(completion.replayed for completion in rest) == 7
                assert all(completion.ok for completion in rest)
                paid_once(kie, prompts)

    run_scaled(run(), SPEED)


def test_a_batch_goes_on_after_a_top_up(store: MakeStore) -> None:
    """With credits for three of ten: three, the error, and after a top-up the other seven."""

    async def run() -> None:
        async with kie_of(credits=18) as kie:
            async with client_of(kie, store()) as client:
                with pytest.raises(kie4o.InsufficientCreditsError):
                    await all_of(client.generate_many(LETTERS, max_in_flight=1))
                assert (len(kie.submits), kie.paid) == (4, 3)
                kie.credits = 1000
                completions = await all_of(client.generate_many(LETTERS, max_in_flight=1))
                assert [completion.replayed for completion in completions] == [True] * 3 + [False] * 7
                paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_items_that_wait_for_a_slot_are_not_sent_after_the_stop() -> None:
    """Items that wait behind the refused ones are never sent, and not reported as failed."""

    async def run() -> None:
        async with kie_of(credits=0) as kie:
            async with client_of(kie, rate_limit=RateLimit(2, per=10.0)) as client:
                completions = []
                with pytest.raises(kie4o.InsufficientCreditsError):
                    async for completion in client.generate_many(LETTERS, max_in_flight=8):
                        completions.append(completion)
                assert 1 <= len(kie.submits) <= 2  # one if its refusal comes before the second is sent
                assert {type(each.error) for each in completions} == {kie4o.InsufficientCreditsError}
                assert len(completions) == len(kie.submits)
                await at_rest(client)

    run_scaled(run(), SPEED)


def test_a_stop_does_not_wait_for_the_source() -> None:
    """A source that gives nothing for hours does not delay the error."""

    async def run() -> None:
        closed = []

        async def source() -> AsyncIterator[str]:
            try:
                yield "a"
                yield "b"
                await asyncio.sleep(36_000)
            finally:
                closed.append(True)

        async with kie_of(duration=1.0) as kie, client_of(kie) as client:
            kie.plan("b", answer=402)
            start = asyncio.get_running_loop().time()
            with pytest.raises(kie4o.InsufficientCreditsError):
                async with asyncio.timeout(100):
                    await all_of(client.generate_many(source(), max_in_flight=5))
            assert asyncio.get_running_loop().time() - start < 20
            assert kie.paid == 1
            await at_rest(client)
            await until(lambda: closed == [True])

    run_scaled(run(), SPEED)


def test_a_stop_does_not_call_off_a_shared_submit() -> None:
    """A submit that a caller outside the batch shares by its key goes on."""

    async def run() -> None:
        async with kie_of(latency=1.0) as kie, client_of(kie, rate_limit=RateLimit(1, per=2.0)) as client:
            kie.plan("a", answer=402)
            batch = asyncio.create_task(all_of(client.generate_many({"a": "a", "b": "b"})))
            await until(lambda: len(kie.submits) == 1)  # "b" waits for the next slot
            outside = asyncio.create_task(client.generate("b", key="b"))
            with pytest.raises(kie4o.InsufficientCreditsError):
                await batch
            assert (await outside).urls

    run_scaled(run(), SPEED)


def test_a_stop_does_not_call_off_the_submit_of_an_outside_caller() -> None:
    """Not even if the item with its key has not joined it yet: the store is still asked for that item."""
    asked, answering = asyncio.Event(), asyncio.Event()

    class Slow(MemoryStore):
        async def find(self, *, key: str | None = None, **other: Any) -> Entry | None:
            if key == "b":
                asked.set()
                await answering.wait()
            return await super().find(key=key, **other)

    async def run() -> None:
        slots = RateLimit(1, per=20.0)
        async with kie_of(latency=1.0) as kie, client_of(kie, Slow(), rate_limit=slots) as client:
            kie.plan("a", answer=402)
            batch = asyncio.create_task(all_of(client.generate_many(iter([("a", "a"), ("b", "b")]))))
            await asked.wait()
            await until(lambda: len(kie.submits) == 1)
            outside = asyncio.create_task(client.generate("b", key="b"))  # waits for the next slot
            await until(lambda: client._runtime.limiter.waiting == 1)
            await until(lambda: client._runtime.submissions.live == 1)
            answering.set()
            with pytest.raises(kie4o.InsufficientCreditsError):
                await batch
            assert (await outside).urls

    run_scaled(run(), SPEED)


def test_a_stop_does_not_call_off_a_later_submit_of_an_outside_caller() -> None:
    """An item that was refused has no submit any more; another caller may send its request again."""

    async def run() -> None:
        slots = RateLimit(1, per=5.0)
        async with kie_of() as kie, client_of(kie, rate_limit=slots) as client:
            kie.plan("a", answer=422)
            kie.plan("b", answer=402)
            many = client.generate_many({"a": "a", "b": "b"})
            assert isinstance((await anext(many)).error, kie4o.UnprocessableEntityError)
            outside = asyncio.create_task(client.generate("a", key="a"))  # waits for the slot after "b"
            await until(lambda: client._runtime.limiter.waiting == 2)
            with pytest.raises(kie4o.InsufficientCreditsError):
                await all_of(many)
            assert (await outside).urls

    run_scaled(run(), SPEED)


def test_a_batch_stops_while_its_consumer_is_busy() -> None:
    """Items that wait for a slot are called off at once, not when the consumer asks for a completion."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, rate_limit=RateLimit(1, per=1.0)) as client:
            kie.plan("b", answer=402)
            with pytest.raises(kie4o.InsufficientCreditsError):
                async for _ in client.generate_many(LETTERS):
                    await asyncio.sleep(20.0)  # such as for a download
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("most", [1, 10])
def test_a_store_that_cannot_save_a_task_id_stops_the_batch(most: int) -> None:
    """Every further task would be paid without a record. The completion has the id of the one that was."""

    class Broken(MemoryStore):
        async def save(self, entry: Entry) -> None:
            if entry.state is EntryState.SUBMITTED:
                raise kie4o.StoreError("disk I/O error")
            await super().save(entry)

    async def run() -> None:
        slots = RateLimit(1, per=1.0)
        async with kie_of() as kie, client_of(kie, Broken(), rate_limit=slots) as client:
            completions = []
            with pytest.raises(kie4o.StoreError, match="disk I/O error"):
                async for completion in client.generate_many(LETTERS, max_in_flight=most):
                    completions.append(completion)
            assert len(kie.submits) == 1
            assert [completion.task_id for completion in completions] == list(kie.tasks)

    run_scaled(run(), SPEED)


def lost(kie: Emulator, prompts: str) -> None:
    for prompt in prompts:
        kie.plan(prompt, answer=LOST)


def test_five_unknown_in_a_row_stop_the_batch(store: MakeStore) -> None:
    """Then something is wrong, and further submits might be paid for nothing.

    Each of the five is a value with its ref; after them `SubmissionUnknownError` is raised.
    """

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store()) as client:
            lost(kie, "bcdefghij")
            completions = []
            with pytest.raises(kie4o.SubmissionUnknownError, match="5 submits in a row") as caught:
                async for completion in client.generate_many(LETTERS, max_in_flight=1):
                    completions.append(completion)
            assert [note for note in caught.value.__notes__ if "run the same batch again" in note]
            assert [type(each.error) for each in completions[1:]] == [kie4o.SubmissionUnknownError] * 5
            assert len({each.error.ref for each in completions[1:]}) == 5
            latest = completions[-1].error
            assert (caught.value.ref, caught.value.key) == (latest.ref, latest.key)
            assert f"ref {latest.ref} (sent " in str(caught.value)
            assert "prompt 'f'" in str(caught.value)
            assert len(kie.submits) == 6
            await at_rest(client)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("callback_url", [None, "https://example.com/kie"])
async def test_a_batch_that_expects_callbacks_stops_as_soon(callback_url: str | None) -> None:
    """It counts an unknown outcome when the answer is lost, and waits for its callback afterwards."""
    settings: dict[str, Any] = {"rate_limit": RateLimit(1, per=0.05), "callback_url": callback_url}
    async with (
        FaultServer(raw(b"", reset=True)) as server,
        AsyncKieClient(CANARY_KEY, base_url=server.url, wait_timeout=1.5, **settings) as client,
    ):
        completions = []
        with pytest.raises(kie4o.SubmissionUnknownError, match="5 submits in a row"):
            async for completion in client.generate_many(f"{n}" for n in range(60)):
                completions.append(completion)
        assert server.posts == 5
        assert [type(each.error) for each in completions] == [kie4o.SubmissionUnknownError] * 5
        assert len({each.error.ref for each in completions}) == 5


def test_a_task_of_an_earlier_run_does_not_start_the_count_anew() -> None:
    """Nothing was answered: four lost answers, a task that is only waited for, and the fifth."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            await client.submit("e", key="e")
            lost(kie, "abcdfghij")
            with pytest.raises(kie4o.SubmissionUnknownError, match="5 submits in a row"):
                await all_of(client.generate_many({each: each for each in LETTERS}, max_in_flight=1))
            assert len(kie.submits) == 1 + 5

    run_scaled(run(), SPEED)


def test_a_task_id_starts_the_count_anew_when_it_arrives() -> None:
    """Not when its task ends: "e" is accepted between four and four lost answers, and runs for long."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, rate_limit=RateLimit(1, per=1.0)) as client:
            lost(kie, "abcdfghi")
            kie.plan("e", duration=60.0)
            completions = await all_of(client.generate_many(LETTERS))
            assert sorted(each.request.prompt for each in completions if each.ok) == ["e", "j"]
            assert len(kie.submits) == len(LETTERS)

    run_scaled(run(), SPEED)


def test_four_unknown_in_a_row_do_not_stop_the_batch() -> None:
    """Any task id starts the count anew."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            lost(kie, "abcdfghi")
            kie.plan("j", outcome="failed")
            completions = await all_of(client.generate_many(LETTERS, max_in_flight=1))
            assert [type(each.error) for each in completions] == [
                *[kie4o.SubmissionUnknownError] * 4,
                type(None),
                *[kie4o.SubmissionUnknownError] * 4,
                kie4o.TaskFailedError,
            ]

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("lazy", [False, True])
def test_replayed_unknowns_do_not_count(store: MakeStore, lazy: bool) -> None:
    """Unknown outcomes of an earlier run are reported again but not counted."""

    async def run() -> None:
        async with kie_of() as kie:
            lost(kie, "abcde")
            async with client_of(kie, store()) as client:
                with pytest.raises(kie4o.SubmissionUnknownError):
                    await all_of(client.generate_many(LETTERS, max_in_flight=1))
            assert len(kie.submits) == 5
            lost(kie, "fghi")
            async with client_of(kie, store()) as client:
                source = iter(LETTERS) if lazy else LETTERS
                completions = await all_of(client.generate_many(source, max_in_flight=1))
                assert [each.replayed for each in completions] == [True] * 5 + [False] * 5
                assert [each.ok for each in completions] == [False] * 9 + [True]
                assert all(each.error.ref for each in completions[:9])
            assert len(kie.submits) == 10
            async with client_of(kie, store()) as client:
                completions = await all_of(client.generate_many(LETTERS, on_unknown="resubmit"))
                assert all(each.ok for each in completions)
                assert len(kie.submits) == 19

    run_scaled(run(), SPEED)


# -- leaving early ---------------------------------------------------------------------------------


async def resumes(kie: Emulator, client: AsyncKieClient, store: Store) -> None:
    """After a batch over `FEW` was left: nothing leaks, everything paid is known, and the batch can be
    completed.

    Nothing is paid twice.
    """
    await at_rest(client)
    await paid_is_known(kie, store)
    async for entry in store.unfinished():
        assert entry.state is EntryState.SUBMITTED
    completions = await all_of(client.generate_many(FEW))
    assert sorted(each.index for each in completions if each.ok) == list(range(len(FEW)))
    paid_once(kie, FEW)
    assert len(kie.submits) == len(FEW)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("after", range(1, len(FEW) + 1))
def test_breaking_out_of_the_loop(store: MakeStore, after: int, closing: bool) -> None:
    """After any completion, with and without `aclosing`: what is in flight stops and nothing is lost."""

    async def run() -> None:
        async with kie_of(latency=0.3) as kie, client_of(kie, kept := store(), max_in_flight=2) as client:
            count = 0
            if closing:
                async with contextlib.aclosing(client.generate_many(FEW)) as many:
                    async for _ in many:
                        count += 1
                        if count == after:
                            break
                assert [name for name in batch_tasks() if "submit" not in name] == []
            else:
                async for _ in client.generate_many(FEW):
                    count += 1
                    if count == after:
                        break
            await resumes(kie, client, kept)

    run_scaled(run(), SPEED)


async def one_cancel(kept: Store, cancel: Callable[[Any], Any]) -> str:
    """A batch that is cancelled somewhere; check every promise."""
    limits: dict[str, Any] = {"rate_limit": RateLimit(2, per=0.5), "max_in_flight": 2}
    async with kie_of(latency=0.1) as kie, client_of(kie, kept, **limits) as client:

        async def arriving() -> AsyncIterator[str]:
            for letter in FEW:
                await asyncio.sleep(0)
                yield letter

        how, value = await cancel(all_of(client.generate_many(arriving(), max_in_flight=3)))
        assert how != "raised", value
        await resumes(kie, client, kept)
        return how


@pytest.mark.parametrize("mode", ["pending", "done"])
def test_cancelling_at_every_suspension(mode) -> None:
    """Wherever the consumer is suspended, the cancel is not swallowed and leaves nothing behind."""

    async def run() -> None:
        for at in range(200):
            how = await one_cancel(MemoryStore(), lambda call, at=at: cancelled_at(call, at, mode))
            if how == "over":
                assert at > 5
                return
            assert how == "cancelled" or mode == "done"
        pytest.fail("the sweep did not end")

    run_scaled(run(), SPEED)


def test_cancelling_at_many_moments(store: MakeStore, tmp_path: Path) -> None:
    """Moments all over the run reach the inside of the tasks that the batch owns."""

    async def run() -> None:
        for moment in range(24):
            kept = (
                SQLiteStore(tmp_path / f"{moment}.db") if isinstance(store(), SQLiteStore) else MemoryStore()
            )

            async def cancel(call: Any, moment: int = moment) -> tuple[str, Any]:
                if moment < 10:
                    return await cancelled_after(call, moment * 4)
                try:
                    async with asyncio.timeout((moment - 10) * 0.1):
                        return "over", await call
                except TimeoutError:
                    return "cancelled", None

            await one_cancel(kept, cancel)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_source_that_raises(store: MakeStore, asynchronous: bool) -> None:
    """Its error is raised after what was in flight has stopped; what was paid is known."""

    class Broken(Exception):
        pass

    def source() -> Iterator[str]:
        yield from FEW[:3]
        raise Broken("no more")

    async def arriving() -> AsyncIterator[str]:
        for prompt in source():
            await asyncio.sleep(0.1)
            yield prompt

    async def run() -> None:
        async with kie_of(latency=0.3) as kie, client_of(kie, kept := store()) as client:
            with pytest.raises(Broken, match="no more"):
                await all_of(client.generate_many(arriving() if asynchronous else source()))
            await resumes(kie, client, kept)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("failing", ["iter", "first", "items"])
async def test_a_source_that_raises_at_once(failing: str) -> None:
    """Even one that cannot be iterated over."""

    class Source(dict[str, str]):
        def items(self) -> Any:
            raise LookupError("no items")

    class Other:
        def __iter__(self) -> Any:
            if failing == "iter":
                raise LookupError("no iterator")
            return self

        def __next__(self) -> Any:
            raise LookupError("no first")

    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(LookupError, match="no "):
            await all_of(client.generate_many(Source(a="x") if failing == "items" else Other()))
        assert len(kie.submits) == 0
        await at_rest(client)


def test_closing_the_client_ends_a_batch() -> None:
    """What is in flight is yielded, then the error is raised, without further POSTs and without a leak."""

    async def run() -> None:
        async with kie_of(duration=5.0) as kie:
            client = client_of(kie)
            completions = []

            async def consume() -> None:
                async for completion in client.generate_many(LETTERS, max_in_flight=2):
                    completions.append(completion)

            consumer = asyncio.create_task(consume())
            await until(lambda: kie.paid == 2)
            await client.aclose()
            with pytest.raises(kie4o.KieError, match="closed"):
                await asyncio.wait_for(consumer, 100)
            assert {completion.task_id for completion in completions} == kie.tasks.keys()
            assert len(kie.submits) == 2
            assert batch_tasks() == []

    run_scaled(run(), SPEED)


async def test_a_batch_delivers_what_is_in_flight_when_its_source_breaks() -> None:
    """What was paid completes and is yielded, then the error of the source is raised."""

    def source():
        yield "a"
        yield "b"
        raise OSError("the file is gone")

    async with (
        Emulator(duration=0.2) as kie,
        AsyncKieClient(CANARY_KEY, base_url=kie.url, poll=QUICK) as client,
    ):
        done = []
        with pytest.raises(OSError, match="gone"):
            async for completion in client.generate_many(source()):
                done.append(completion.ok)
        assert done == [True, True]


@pytest.mark.parametrize("lazy", [False, True])
async def test_an_on_update_that_raises_stops_the_batch(store: MakeStore, lazy: bool) -> None:
    """As a source that raises: nothing more is sent, what is in flight is yielded, and then the exception is
    raised with the id of its task. The next run has the rest, and nothing is paid twice."""

    class Broken(Exception):
        pass

    async def endless() -> AsyncIterator[str]:
        for prompt in prompts[:6]:
            yield prompt
        await asyncio.Event().wait()

    prompts = [f"{number}" for number in range(20)]
    async with kie_of(duration=0.2) as kie:
        async with client_of(kie, kept := store()) as client:
            broken: list[str] = []

            def on_update(details: kie4o.TaskDetails) -> None:
                if not broken and len(kie.tasks) >= 4:
                    broken.append(details.task_id)
                    raise Broken
                if details.task_id in broken:
                    raise AssertionError("it is called again")

            done: list[Completion] = []
            many = client.generate_many(endless() if lazy else prompts, max_in_flight=4, on_update=on_update)
            with pytest.raises(Broken) as caught:
                async for each in many:
                    done.append(each)
            assert any(broken[0] in note for note in caught.value.__notes__)
            assert any("run the same batch again" in note for note in caught.value.__notes__)
            assert all(each.ok for each in done)
            assert {each.task_id for each in done} | set(broken) == set(kie.tasks)
            assert len(kie.tasks) < 8
            await at_rest(client)
            await paid_is_known(kie, kept)
        async with client_of(kie, store()) as client:
            assert all(each.ok for each in await all_of(client.generate_many(prompts)))
        paid_once(kie, prompts)


async def test_a_kie_error_of_on_update_is_that_of_its_item(store: MakeStore) -> None:
    """A call in `on_update` that fails ends the wait of this item; the others go on."""
    async with kie_of(duration=0.2) as kie, client_of(kie, store()) as client:

        async def on_update(details: kie4o.TaskDetails) -> None:
            if kie.tasks[details.task_id].request["prompt"] == "b":
                raise kie4o.DownloadError("no room")

        done = {
            each.request.prompt: each for each in await all_of(client.generate_many(FEW, on_update=on_update))
        }
        assert [prompt for prompt, each in done.items() if not each.ok] == ["b"]
        assert isinstance(done["b"].error, kie4o.DownloadError)
        assert done["b"].task_id in kie.tasks


async def test_an_on_update_that_ends_an_iteration_does_not_end_the_batch_unseen(store: MakeStore) -> None:
    """A StopAsyncIteration that left the batch would look like its end."""
    async with kie_of() as kie, client_of(kie, store()) as client:

        async def on_update(details: kie4o.TaskDetails) -> None:
            raise StopAsyncIteration

        with pytest.raises(RuntimeError, match="on_update raised StopAsyncIteration"):
            await all_of(client.generate_many(FEW, on_update=on_update))
