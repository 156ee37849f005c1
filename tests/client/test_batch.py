"""Batches: lazily taken, paid once over any number of runs, errors as values, a clean end at any point."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cancelling import cancelled_after, cancelled_at
from clocks import run_scaled

import kie4o
from kie4o import AsyncKieClient, Completion, ImageRequest, PollPolicy, RateLimit
from kie4o.emulator import Answer, Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import EntryState, Store

QUICK = PollPolicy(first=0.34, maximum=0.34, jitter=False)
SPEED = 50  # loop seconds per second
LOST = Answer(500, task_created=True)  # the task is paid, and the answer does not say so
AMPLE = 10_000  # of a limit that should not matter
LETTERS = list("abcdefghij")

MakeStore = Callable[[], Store]


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    """What is remembered: each call gives a store for one more client, all with the same memory."""
    memory = MemoryStore()
    return lambda: memory if request.param == "memory" else SQLiteStore(tmp_path / "run.db")


def kie_of(**more: Any) -> Emulator:
    return Emulator(**{"duration": 0.0, "limit": AMPLE, "credits": 1e6} | more)


def client_of(kie: Emulator, store: Store | None = None, **more: Any) -> AsyncKieClient:
    settings: dict[str, Any] = {"poll": QUICK, "timeout": 500, "rate_limit": RateLimit(AMPLE, per=10.0)}
    return AsyncKieClient("sk-test", base_url=kie.url, store=store, **settings | more)


async def all_of(completions: AsyncIterator[Completion]) -> list[Completion]:
    return [completion async for completion in completions]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; it fails the test if it never does."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < 5
        await asyncio.sleep(0.001)


def batch_tasks() -> list[str]:
    names = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    return [name for name in names if name.startswith(("kie4o batch", "kie4o submit", "kie4o resume"))]


async def at_rest(client: AsyncKieClient) -> None:
    """Nothing of a batch is left: no task, no waiter, no slot, no place."""
    await until(lambda: not batch_tasks())
    await until(lambda: client._poller.waiting == client._submissions.live == 0)
    assert (client._limiter.open, client._limiter.waiting) == (0, 0)
    assert client._lifecycle.permits.in_use == 0


async def paid_is_known(kie: Emulator, store: Store) -> None:
    """Law 2: every task that Kie has is in the store."""
    for task_id in kie.tasks:
        assert await store.find(task_id=task_id) is not None


def paid_once(kie: Emulator, prompts: list[str]) -> None:
    """Law 1: each prompt, all of which differ, has one task."""
    assert sorted(task.request["prompt"] for task in kie.tasks.values()) == sorted(prompts)


def letters() -> Iterator[str]:
    yield from LETTERS


async def letters_arriving() -> AsyncIterator[str]:
    for letter in LETTERS:
        await asyncio.sleep(0.1)
        yield letter


class Iterable:
    """Something that can be iterated over, and nothing else."""

    def __iter__(self) -> Iterator[str]:
        return iter(LETTERS)


SOURCES: dict[str, Callable[[], Any]] = {
    "list": lambda: LETTERS,
    "tuple": lambda: tuple(LETTERS),
    "dict view": lambda: dict.fromkeys(LETTERS).keys(),
    "iterable": Iterable,
    "generator": letters,
    "async generator": letters_arriving,
    "mapping": lambda: {f"id {letter}": letter for letter in LETTERS},
    "requests": lambda: [ImageRequest(letter) for letter in LETTERS],
}

# -- where requests come from -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_source(source: str) -> None:
    """Each request completes once, with its own index, request, key, task and result."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            completions = await all_of(client.generate_many(SOURCES[source](), max_in_flight=4))
            assert sorted(completion.index for completion in completions) == list(range(10))
            for completion in completions:
                letter = LETTERS[completion.index]
                assert completion.request == ImageRequest(letter)
                assert completion.ok
                assert not completion.replayed
                assert completion.unwrap().task_id == completion.task_id
                assert kie.tasks[completion.task_id].request["prompt"] == letter
                if source == "mapping":
                    assert completion.key == f"id {letter}"
            assert len({completion.key for completion in completions}) == 10
            paid_once(kie, LETTERS)
            await at_rest(client)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("empty", [[], (), {}, iter([])], ids=lambda empty: type(empty).__name__)
async def test_nothing_to_do(empty: Any) -> None:
    """An empty batch ends at once."""
    async with kie_of() as kie, client_of(kie) as client:
        assert await all_of(client.generate_many(empty)) == []
        assert kie.posts == 0


@pytest.mark.parametrize("wrong", ["a prompt", b"bytes", 5, None, ImageRequest("x"), object])
async def test_what_is_no_collection_is_refused(wrong: Any) -> None:
    """A single prompt is not a list of letters: `InvalidRequestError` says what to write."""
    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(kie4o.InvalidRequestError, match="list"):
            await all_of(client.generate_many(wrong))
        assert kie.posts == 0
        await at_rest(client)


def test_completions_come_while_the_source_still_waits() -> None:
    """A source that gives the next prompt only after the last one completed does not stand still."""

    async def run() -> None:
        completed = asyncio.Event()

        async def source() -> AsyncIterator[str]:
            for letter in "abc":
                yield letter
                await asyncio.wait_for(completed.wait(), 100)
                completed.clear()

        async with kie_of() as kie, client_of(kie) as client:
            seen = []
            async for completion in client.generate_many(source(), max_in_flight=5):
                seen.append(completion.index)
                completed.set()
            assert seen == [0, 1, 2]

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("most", [1, 3])
def test_requests_are_taken_lazily(most: int, asynchronous: bool) -> None:
    """What was taken never exceeds what was completed by more than `max_in_flight` and the one that
    is being fetched, also while the consumer is slow."""

    async def run() -> None:
        taken = yielded = 0

        def source() -> Iterator[str]:
            nonlocal taken
            for n in range(20):
                taken += 1
                assert taken <= yielded + most + 1
                yield f"{n}"

        async def arriving() -> AsyncIterator[str]:
            for prompt in source():
                yield prompt

        async with kie_of() as kie, client_of(kie) as client:
            requests = arriving() if asynchronous else source()
            async for _ in client.generate_many(requests, max_in_flight=most):
                yielded += 1
                if yielded % 5 == 0:
                    await asyncio.sleep(3.0)  # all that are under way complete meanwhile
                assert taken <= yielded + most + 1
            assert (taken, yielded) == (20, 20)

    run_scaled(run(), SPEED)


def most_unfinished(kie: Emulator) -> int:
    """How many tasks Kie was working on at once, at the most."""
    moments = [(task.created, 1) for task in kie.tasks.values()]
    moments += [(task.created + task.duration, -1) for task in kie.tasks.values()]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize(("most", "of_client"), [(1, 100), (4, 100), (100, 4), (None, 4)])
def test_at_most_so_many_are_unfinished(most: int | None, of_client: int) -> None:
    """Kie never works on more than `max_in_flight` of the batch, nor than the client allows; with a
    wide limit the same batch has many more at once."""

    prompts = [f"{n}" for n in range(10)]

    async def run() -> None:
        chance = random.Random(5)
        durations = {"duration": lambda: chance.uniform(1.0, 4.0)}
        async with kie_of(**durations) as kie, client_of(kie, max_in_flight=of_client) as client:
            assert len(await all_of(client.generate_many(prompts, max_in_flight=most))) == 10
            assert 1 <= most_unfinished(kie) <= min(most or of_client, of_client)
        async with kie_of(duration=8.0) as kie, client_of(kie) as client:
            await all_of(client.generate_many(prompts))
            assert most_unfinished(kie) > 4

    run_scaled(run(), 20)


@pytest.mark.parametrize("most", [0, -1, True, 2.5, "5"])
async def test_an_impossible_width_is_refused(most: Any) -> None:
    """`max_in_flight` is a whole number from 1 on."""
    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(kie4o.KieError, match="max_in_flight"):
            await all_of(client.generate_many(["x"], max_in_flight=most))
        assert kie.posts == 0


# -- keys -------------------------------------------------------------------------------------------------


def test_equal_prompts_are_separate_items_with_stable_keys() -> None:
    """The same prompt three times is three tasks under three keys; another run, be it from a list or
    a generator, has the same keys in the same places."""

    async def run() -> None:
        prompts = ["x", "y", "x", "x", "y"]
        keys = []
        for source in (prompts, iter(prompts)):
            async with kie_of() as kie, client_of(kie) as client:
                completions = await all_of(client.generate_many(source))
                completions.sort(key=lambda completion: completion.index)
                assert len({completion.task_id for completion in completions}) == kie.posts == 5
                keys.append([completion.key for completion in completions])
        assert keys[0] == keys[1]
        assert len(set(keys[0])) == 5

    run_scaled(run(), SPEED)


def test_the_key_of_a_request_never_changes() -> None:
    """A store of an older kie4o knows a batch by these keys: others would pay for it again."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            first, second = await all_of(client.generate_many(["x", "x"], max_in_flight=1))
            assert first.key == "b20621b90a26c45a15a9a9be940d0a4db8fbaf93d710d6cb3541660bf0ee4b11"
            assert second.key == "41d4bff44065a461c4865e4b01b23361c6672a5b99271cd453f453cd0dad8cc5"
            [named] = await all_of(client.generate_many(["x"], batch="spring"))
            assert named.key == "6239ca55b1c256d7165ebade3f85ed231f89aa270b37e69a7203b13e42f96953"

    run_scaled(run(), SPEED)


def test_another_name_is_another_batch(store: MakeStore) -> None:
    """`batch="name"` keeps equal prompts and equal custom ids of two batches apart."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store()) as client:
            for name in ("", "spring", "autumn", ""):
                for requests in (["x"], {"id": "x"}):
                    [completion] = await all_of(client.generate_many(requests, batch=name))
                    assert completion.ok
            assert kie.posts == 6

    run_scaled(run(), SPEED)


# -- running it again ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_a_second_run_is_replayed(store: MakeStore, source: str) -> None:
    """In a new client on the same store: every item again, replayed, with equal results, 0 POSTs."""

    async def run() -> None:
        async with kie_of() as kie:
            kie.plan("c", outcome="policy")
            async with client_of(kie, store()) as client:
                first = await all_of(client.generate_many(SOURCES[source]()))
                assert not any(completion.replayed for completion in first)
            looks = kie.requests.total()
            async with client_of(kie, store()) as client:
                second = await all_of(client.generate_many(SOURCES[source]()))
            assert kie.requests.total() == looks
            assert all(completion.replayed for completion in second)
            by_index = {completion.index: completion for completion in first}
            assert len(by_index) == len(second) == 10
            for again in second:
                before = by_index[again.index]
                assert (again.key, again.request, again.task_id) == (
                    before.key,
                    before.request,
                    before.task_id,
                )
                if before.ok:
                    assert again.result == before.result
                    assert again.result.details.raw == before.result.details.raw
                    assert again.result.source == "store"
                else:
                    assert (type(again.error), str(again.error)) == (type(before.error), str(before.error))
                    assert again.error.details == before.error.details
            assert kie.posts == 10

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("source", ["list", "mapping", "generator"])
def test_what_has_ended_comes_before_anything_is_submitted(store: MakeStore, source: str) -> None:
    """Of a list or a mapping the finished items come first, wherever they stand, and before the first
    POST; a generator is not read ahead, but what has ended costs no POST there either."""

    async def run() -> None:
        async with kie_of() as kie:
            async with client_of(kie, store()) as client:
                ended = {f"id {letter}": letter for letter in "cgj"}
                await all_of(client.generate_many(ended if source == "mapping" else list("cgj")))
            async with client_of(kie, store()) as client:
                completions = []
                async for completion in client.generate_many(SOURCES[source](), max_in_flight=2):
                    completions.append(completion)
                    if source != "generator" and len(completions) <= 3:
                        assert completion.replayed
                        assert kie.posts == 3
            replayed = {LETTERS[completion.index] for completion in completions if completion.replayed}
            assert replayed == set("cgj")
            assert len(completions) == 10
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_what_was_submitted_is_waited_for(store: MakeStore) -> None:
    """Items that an earlier run had submitted, and no more, are not submitted again and not replayed."""

    async def run() -> None:
        async with kie_of(duration=3.0) as kie:
            async with client_of(kie, store(), max_in_flight=4) as client:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(2.0):
                        await all_of(client.generate_many(LETTERS))
            assert kie.posts == 4
            async with client_of(kie, store()) as client:
                completions = await all_of(client.generate_many(LETTERS))
            assert len(completions) == 10
            assert all(completion.ok and not completion.replayed for completion in completions)
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_two_runs_at_once_share_their_posts() -> None:
    """The same batch twice at the same moment in one client: one task for each item."""

    async def run() -> None:
        async with kie_of(latency=0.5) as kie, client_of(kie) as client:
            first, second = await asyncio.gather(
                *(all_of(client.generate_many(LETTERS, max_in_flight=4)) for _ in range(2))
            )
            assert {each.key: each.task_id for each in first} == {each.key: each.task_id for each in second}
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_only_the_failed_are_retried(store: MakeStore) -> None:
    """`retry_failed` sends those whose task failed again, and nothing else."""

    async def run() -> None:
        async with kie_of() as kie:
            kie.plan("c", outcome="failed")
            kie.plan("d", outcome="failed")
            kie.plan("d", outcome="failed")
            async with client_of(kie, store()) as client:
                await all_of(client.generate_many(LETTERS))
            async with client_of(kie, store()) as client:
                completions = await all_of(client.generate_many(LETTERS, retry_failed=True))
            assert sorted(LETTERS[each.index] for each in completions if not each.replayed) == ["c", "d"]
            assert [LETTERS[each.index] for each in completions if not each.ok] == ["d"]
            assert kie.posts == 12

    run_scaled(run(), SPEED)


# -- errors are values --------------------------------------------------------------------------------------


def test_a_poisoned_item_harms_no_other() -> None:
    """What is no request, be it of a wrong type or impossible, completes with its error, in its place,
    and is not sent; all others complete."""
    poison = ["", " ", 5, None, True, {"prompt": "x"}, b"x", "\ud800", ["x"], object(), ImageRequest, 1.5]
    fine = [
        "fine",
        ImageRequest("with a file", files_url=["https://a.example/1.png"]),
        ImageRequest(files_url=["https://a.example/1.png"], n_variants=2),
    ]

    async def run() -> None:
        for source in ([*poison, *fine], iter([*poison, *fine])):
            async with kie_of() as kie, client_of(kie) as client:
                completions = await all_of(client.generate_many(source, max_in_flight=3))
                assert sorted(each.index for each in completions) == list(range(len(poison) + len(fine)))
                assert len({each.key for each in completions}) == len(completions)
                for completion in completions:
                    if completion.index >= len(poison):
                        assert completion.ok
                        continue
                    assert isinstance(completion.error, kie4o.InvalidRequestError)
                    assert (completion.request, completion.task_id, completion.result) == (None, None, None)
                    with pytest.raises(kie4o.InvalidRequestError):
                        completion.unwrap()
                assert kie.posts == len(fine)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("name", ["", "spring"])
def test_an_impossible_custom_id_is_a_value_too(name: str) -> None:
    """An id that cannot be a key fails its item only."""

    async def run() -> None:
        requests: dict[Any, str] = {5: "x", ("a",): "x", "k" * 513: "x", "a\nb": "x", "\ud800": "x"}
        async with kie_of() as kie, client_of(kie) as client:
            many = client.generate_many({**requests, "fine": "x"}, batch=name)
            completions = {each.index: each for each in await all_of(many)}
            for index in range(5):
                assert isinstance(completions[index].error, kie4o.InvalidRequestError)
            assert completions[5].ok
            assert kie.posts == 1

    run_scaled(run(), SPEED)


def test_failed_tasks_and_refusals_are_values() -> None:
    """A failed task completes with its error and task id, a refused one with its error and key."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            kie.plan("b", outcome="policy")
            kie.plan("c", outcome="input")
            kie.plan("d", outcome="failed")
            kie.plan("e", answer=422)
            kie.plan("f", answer=LOST)
            errors = {
                "b": kie4o.ContentPolicyError,
                "c": kie4o.InputImageError,
                "d": kie4o.TaskFailedError,
                "e": kie4o.UnprocessableEntityError,
                "f": kie4o.SubmissionUnknownError,
            }
            completions = await all_of(client.generate_many(LETTERS, max_in_flight=3))
            assert len(completions) == 10
            for completion in completions:
                letter = LETTERS[completion.index]
                assert type(completion.error) is errors.get(letter, type(None))
                assert completion.ok == (letter not in errors)
                if completion.error is not None:
                    assert completion.error.key == completion.key
                    assert completion.error.task_id == completion.task_id
                assert (completion.task_id in kie.tasks) == (letter not in "ef")
            assert next(each for each in completions if LETTERS[each.index] == "f").error.ref

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("ended", [False, True])
def test_a_custom_id_used_for_another_request_is_a_value(store: MakeStore, ended: bool) -> None:
    """Whether the first request under an id has ended or not: `KeyConflictError` for this item only."""

    async def run() -> None:
        async with kie_of(duration=0.0 if ended else 5.0) as kie:
            async with client_of(kie, store()) as client:
                await (client.generate if ended else client.submit)("x", key="a")
            async with client_of(kie, store()) as client:
                completions = await all_of(client.generate_many({"a": "y", "b": "z"}))
                errors = {each.key: type(each.error) for each in completions}
                assert errors == {"a": kie4o.KeyConflictError, "b": type(None)}
                paid_once(kie, ["x", "z"])

    run_scaled(run(), SPEED)


# -- what stops a batch -------------------------------------------------------------------------------------

STOPPING = {
    401: kie4o.AuthenticationError,
    402: kie4o.InsufficientCreditsError,
    433: kie4o.KeyLimitError,
}


@pytest.mark.parametrize("code", STOPPING)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_every_item_would_meet_stops_the_batch(store: MakeStore, code: int, lazy: bool) -> None:
    """A wrong key, an empty balance or a used-up cap: no more than those under way are sent, what is
    in flight completes, then the error is raised with its note; the next run goes on with the rest."""
    prompts = [f"{n}" for n in range(60)]

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
                assert 8 <= kie.posts <= 12
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
    """With credits for three of ten: three, the error; after topping up the other seven."""

    async def run() -> None:
        async with kie_of(credits=18) as kie:
            async with client_of(kie, store()) as client:
                with pytest.raises(kie4o.InsufficientCreditsError):
                    await all_of(client.generate_many(LETTERS, max_in_flight=1))
                assert (kie.posts, kie.accepted) == (4, 3)
                kie.credits = 1000
                completions = await all_of(client.generate_many(LETTERS, max_in_flight=1))
                assert [completion.replayed for completion in completions] == [True] * 3 + [False] * 7
                paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_items_that_wait_for_a_slot_are_not_sent_after_the_stop() -> None:
    """With a window of two, the items behind the refused ones never leave, and none of them is
    reported as failed."""

    async def run() -> None:
        async with kie_of(credits=0) as kie:
            async with client_of(kie, rate_limit=RateLimit(2, per=10.0)) as client:
                completions = []
                with pytest.raises(kie4o.InsufficientCreditsError):
                    async for completion in client.generate_many(LETTERS, max_in_flight=8):
                        completions.append(completion)
                assert kie.posts == 2
                assert {type(each.error) for each in completions} == {kie4o.InsufficientCreditsError}
                assert len(completions) == 2
                await at_rest(client)

    run_scaled(run(), SPEED)


def test_a_stop_does_not_wait_for_the_source() -> None:
    """A source that gives nothing more for hours does not keep the error back: what is in flight
    completes, then it is raised."""

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
            assert kie.accepted == 1
            await at_rest(client)
            await until(lambda: closed == [True])

    run_scaled(run(), SPEED)


def test_a_stop_does_not_call_off_what_others_wait_for() -> None:
    """A submit that a caller outside the batch shares by its key is called off only by its last
    waiter: a batch that stops leaves it alone."""

    async def run() -> None:
        async with kie_of(latency=1.0) as kie, client_of(kie, rate_limit=RateLimit(1, per=2.0)) as client:
            kie.plan("a", answer=402)
            batch = asyncio.create_task(all_of(client.generate_many({"a": "a", "b": "b"})))
            await until(lambda: kie.posts == 1)  # "b" waits for the next slot
            outside = asyncio.create_task(client.generate("b", key="b"))
            with pytest.raises(kie4o.InsufficientCreditsError):
                await batch
            assert (await outside).urls

    run_scaled(run(), SPEED)


def lost(kie: Emulator, prompts: str) -> None:
    for prompt in prompts:
        kie.plan(prompt, answer=LOST)


def test_five_unknown_in_a_row_stop_the_batch(store: MakeStore) -> None:
    """Then something is wrong at large, and every further submit may be paid for nothing: each of the
    five is a value with its ref, then `SubmissionUnknownError` says so."""

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
            assert kie.posts == 6
            await at_rest(client)

    run_scaled(run(), SPEED)


def test_four_unknown_and_a_success_do_not_stop_it() -> None:
    """The run is broken by any other outcome of a submit."""

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
    """Those of an earlier run are held and reported again, and say nothing about this one: it goes
    on, even with four new ones after them."""

    async def run() -> None:
        async with kie_of() as kie:
            lost(kie, "abcde")
            async with client_of(kie, store()) as client:
                with pytest.raises(kie4o.SubmissionUnknownError):
                    await all_of(client.generate_many(LETTERS, max_in_flight=1))
            assert kie.posts == 5
            lost(kie, "fghi")
            async with client_of(kie, store()) as client:
                source = iter(LETTERS) if lazy else LETTERS
                completions = await all_of(client.generate_many(source, max_in_flight=1))
                assert [each.replayed for each in completions] == [True] * 5 + [False] * 5
                assert [each.ok for each in completions] == [False] * 9 + [True]
                assert all(each.error.ref for each in completions[:9])
            assert kie.posts == 10
            async with client_of(kie, store()) as client:
                completions = await all_of(client.generate_many(LETTERS, on_unknown="resubmit"))
                assert all(each.ok for each in completions)
                assert kie.posts == 19

    run_scaled(run(), SPEED)


# -- leaving early ------------------------------------------------------------------------------------------

FEW = LETTERS[:5]


async def and_once_more(kie: Emulator, client: AsyncKieClient, store: Store) -> None:
    """After a batch over `FEW` was left: nothing leaks, everything paid is known, and running it again
    completes it without a second payment."""
    await at_rest(client)
    await paid_is_known(kie, store)
    async for entry in store.unfinished():
        assert entry.state is EntryState.SUBMITTED
    completions = await all_of(client.generate_many(FEW))
    assert sorted(each.index for each in completions if each.ok) == list(range(len(FEW)))
    paid_once(kie, FEW)
    assert kie.posts == len(FEW)


@pytest.mark.parametrize("closing", [False, True])
@pytest.mark.parametrize("after", range(1, len(FEW) + 1))
def test_breaking_out_of_the_loop(store: MakeStore, after: int, closing: bool) -> None:
    """After any completion, with and without `aclosing`: what is under way stops, nothing is lost."""

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
            await and_once_more(kie, client, kept)

    run_scaled(run(), SPEED)


async def one_cancel(kept: Store, cancel: Callable[[Any], Any]) -> str:
    """A batch that is cancelled somewhere; then every promise is checked."""
    limits: dict[str, Any] = {"rate_limit": RateLimit(2, per=0.5), "max_in_flight": 2}
    async with kie_of(latency=0.1) as kie, client_of(kie, kept, **limits) as client:

        async def arriving() -> AsyncIterator[str]:
            for letter in FEW:
                await asyncio.sleep(0)
                yield letter

        how, value = await cancel(all_of(client.generate_many(arriving(), max_in_flight=3)))
        assert how != "raised", value
        await and_once_more(kie, client, kept)
        return how


@pytest.mark.parametrize("mode", ["pending", "done"])
def test_cancelling_at_every_suspension(mode) -> None:
    """Wherever the consumer is suspended: the cancel is not swallowed and leaves nothing behind."""

    async def run() -> None:
        for at in range(200):
            how = await one_cancel(MemoryStore(), lambda call, at=at: cancelled_at(call, at, mode))
            if how == "over":
                assert at > 5
                return
            assert how == "cancelled" or mode == "done"
        pytest.fail("the sweep never came to its end")

    run_scaled(run(), SPEED)


def test_cancelling_at_many_moments(store: MakeStore, tmp_path: Path) -> None:
    """At moments all over the run, which reach the inside of the tasks that the batch owns."""

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
    """Its error comes out as it is, after what was under way has been stopped; nothing leaks, and what
    was paid is known."""

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
            await and_once_more(kie, client, kept)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("failing", ["iter", "first", "items"])
async def test_a_source_that_raises_at_once(failing: str) -> None:
    """Also if it cannot even be iterated over."""

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
        assert kie.posts == 0
        await at_rest(client)


def test_closing_the_client_ends_a_batch() -> None:
    """A batch whose client is closed comes to its end, without further POSTs and without a leak."""

    async def run() -> None:
        async with kie_of(duration=5.0) as kie:
            client = client_of(kie)
            call = asyncio.create_task(all_of(client.generate_many(FEW, max_in_flight=2)))
            await until(lambda: kie.accepted == 2)
            await client.aclose()
            with contextlib.suppress(kie4o.KieError):
                completions = await asyncio.wait_for(call, 100)
                assert not any(completion.ok for completion in completions)
            assert kie.posts == 2
            assert batch_tasks() == []

    run_scaled(run(), SPEED)


# -- any length ---------------------------------------------------------------------------------------------

PROMPTS = 200_000  # a million take half a minute and show the same
FLAT = f"""
import asyncio, collections, hashlib, resource, sys
from kie4o.batch import Batch, _items
from kie4o.stores.memory import MemoryStore
from kie4o.models import ImageResult, TaskDetails, TaskState
from kie4o.submission.resending import NO_RESUBMIT

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20

async def generate(request, key, gate):
    gate()
    await asyncio.sleep(0)
    details = TaskDetails(key, state=TaskState.SUCCEEDED, urls=("https://images.example/1.png",))
    return ImageResult(key, urls=details.urls, details=details)

async def growth(steps, first):
    count, before = 0, None
    async for _ in steps:
        count += 1
        if count == first:
            before = resident()
    return count, resident() - before

def prompts(count):
    return (f"prompt {{n}}" for n in range(count))

async def main():
    async def recalled(ref: str) -> None:
        return None

    batch = Batch(
        MemoryStore(), generate, lambda key, why: False, recalled, max_in_flight=20, resubmit=NO_RESUBMIT
    )
    print(*await growth(batch.run(prompts({PROMPTS // 20})), 1000))
    print(*await growth(_items(prompts({PROMPTS}), ""), 1000))
    before = resident()
    seen = collections.Counter(hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts({PROMPTS}))
    print(len(seen), resident() - before)

asyncio.run(main())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.sweep
def test_a_batch_of_any_length_runs_in_flat_memory() -> None:
    """Measured in a process of its own: the resident memory that it gains from the 1,000th item on, in
    MiB, over 10,000 items of a whole batch with an instant `generate`, and over 200,000 through the
    part that makes keys and counts equal requests. Control: counting them in a dict takes more."""
    run = subprocess.run(
        [sys.executable, "-c", FLAT], check=True, capture_output=True, text=True, timeout=120
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    whole, keys, naive = [(int(count), float(grown)) for count, grown in lines]
    assert (whole[0], keys[0], naive[0]) == (PROMPTS // 20, PROMPTS, PROMPTS)
    assert whole[1] < 15
    assert keys[1] < 15
    assert naive[1] > 25


# -- unfinished and resume --------------------------------------------------------------------------------


def test_resume_waits_for_everything_that_is_owed(store: MakeStore) -> None:
    """`unfinished` lists exactly what is submitted or unknown, whoever submitted it; `resume` waits for
    all of it without a POST, an unknown one completes with its error, and only that one is owed then."""

    async def run() -> None:
        async with kie_of(duration=4.0) as kie:
            kie.plan("done", duration=0.0)
            kie.plan("fails", outcome="policy")
            kie.plan("lost", answer=LOST)
            kie.plan("refused", answer=400)
            async with client_of(kie, store()) as client:
                ids = {key: (await client.submit(key, key=key)).id for key in ("one", "two", "fails")}
                ids["no key"] = (await client.submit("no key", n_variants=2)).id
                await client.generate("done", key="done")
                for key in ("lost", "refused"):
                    with pytest.raises(kie4o.KieError):
                        await client.submit(key, key=key)
            posts = kie.posts
            async with client_of(kie, store()) as client:
                owed = {entry.request.prompt: entry async for entry in client.unfinished()}
                assert {prompt: entry.task_id for prompt, entry in owed.items()} == {**ids, "lost": None}
                completions = {each.request.prompt: each async for each in client.resume()}
                assert completions.keys() == owed.keys()
                assert {completions[prompt].task_id for prompt in ids} == set(ids.values())
                assert all(completions[prompt].ok for prompt in ("one", "two", "no key"))
                assert len(completions["no key"].unwrap()) == 2
                assert not completions["no key"].unwrap().partial
                assert isinstance(completions["fails"].error, kie4o.ContentPolicyError)
                unknown = completions["lost"].error
                assert isinstance(unknown, kie4o.SubmissionUnknownError)
                assert (unknown.key, unknown.ref) == ("lost", owed["lost"].ref)
                assert [name for name, each in completions.items() if each.replayed] == ["lost"]
                assert [entry.key async for entry in client.unfinished()] == ["lost"]
                again = await client.generate("one", key="one")
                assert (again, again.source) == (completions["one"].result, "store")
                await at_rest(client)
            assert kie.posts == posts

    run_scaled(run(), SPEED)


async def test_nothing_to_resume(store: MakeStore) -> None:
    """A store that owes nothing resumes to nothing."""
    async with kie_of() as kie, client_of(kie, store()) as client:
        assert await all_of(client.resume()) == []
        assert [entry async for entry in client.unfinished()] == []


async def test_what_is_unknown_waits_for_no_place() -> None:
    """`resume` tells what it only reads from the store although all places are taken."""
    async with kie_of(duration=3600.0) as kie:
        kie.plan("lost", answer=LOST)
        async with client_of(kie, MemoryStore(), max_in_flight=1) as client:
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.submit("lost", key="lost")
            running = asyncio.create_task(client.generate("long"))
            while len(kie.tasks) < 2:
                await asyncio.sleep(0.01)
            async with contextlib.aclosing(client.resume()) as completions:
                first = await asyncio.wait_for(anext(completions), 5.0)
            assert isinstance(first.error, kie4o.SubmissionUnknownError)
            running.cancel()


def test_resume_keeps_to_max_in_flight_and_may_be_left() -> None:
    """Leaving after the first completion leaves nothing behind, and the rest is still owed."""

    async def run() -> None:
        async with kie_of(duration=3.0) as kie:
            async with client_of(kie, kept := MemoryStore()) as client:
                for letter in FEW:
                    await client.submit(letter, key=letter)
            async with client_of(kie, kept, max_in_flight=2) as later:
                async for completion in later.resume():
                    assert completion.ok
                    assert later._poller.waiting <= 2
                    break
                await at_rest(later)
                assert 1 <= len([entry async for entry in later.unfinished()]) < len(FEW)
                assert all(each.ok for each in await all_of(later.resume()))
                assert [entry async for entry in later.unfinished()] == []
            assert kie.posts == len(FEW)

    run_scaled(run(), SPEED)


async def test_a_batch_delivers_what_is_in_flight_when_its_source_breaks() -> None:
    """The source raises: what was paid completes and is yielded, then the source's error is raised."""

    def source():
        yield "a"
        yield "b"
        raise OSError("the file is gone")

    async with (
        Emulator(duration=0.2) as kie,
        AsyncKieClient("sk-test", base_url=kie.url, poll=QUICK) as client,
    ):
        done = []
        with pytest.raises(OSError, match="gone"):
            async for completion in client.generate_many(source()):
                done.append(completion.ok)
        assert done == [True, True]
