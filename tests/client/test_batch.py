"""Batches: requests are taken lazily and paid once over any number of runs, and errors are values."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from batches import FEW, LETTERS, SPEED, all_of, at_rest, client_of, kie_of, paid_once
from clients import LOST, MakeStore, until
from clocks import run_scaled

import kie4o
from kie4o import ImageRequest
from kie4o.batch.batch import _KEYS_AT_ONCE
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry


def letters() -> Iterator[str]:
    yield from LETTERS


async def letters_arriving() -> AsyncIterator[str]:
    for letter in LETTERS:
        await asyncio.sleep(0.1)
        yield letter


class Iterable:
    """An object that can be iterated over, and nothing else."""

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

# -- sources ---------------------------------------------------------------------------------------


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
        assert len(kie.submits) == 0


@pytest.mark.parametrize("wrong", ["a prompt", b"bytes", 5, None, ImageRequest("x"), object])
async def test_a_source_that_is_no_collection_is_refused(wrong: Any) -> None:
    """A single prompt is not a list of letters; the `InvalidRequestError` says what to pass."""
    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(kie4o.InvalidRequestError, match="list"):
            await all_of(client.generate_many(wrong))
        assert len(kie.submits) == 0
        await at_rest(client)


def test_completions_arrive_while_the_source_waits() -> None:
    """A source may wait for one completion before it gives the next prompt."""

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
    """At most `max_in_flight` requests, and the one being fetched, are taken and not completed.

    That holds while the consumer is slow, too.
    """

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
                    await asyncio.sleep(3.0)  # those in flight complete meanwhile
                assert taken <= yielded + most + 1
            assert (taken, yielded) == (20, 20)

    run_scaled(run(), SPEED)


def most_unfinished(kie: Emulator) -> int:
    """The largest number of tasks that Kie worked on at once."""
    moments = [(task.created, 1) for task in kie.tasks.values()]
    moments += [(task.created + task.duration, -1) for task in kie.tasks.values()]
    most = now = 0
    for _, change in sorted(moments):
        now += change
        most = max(most, now)
    return most


@pytest.mark.parametrize(("most", "of_client"), [(1, 100), (4, 100), (100, 4), (None, 4)])
def test_max_in_flight_bounds_unfinished_tasks(most: int | None, of_client: int) -> None:
    """Kie never works on more than `max_in_flight` of the batch, nor of the client.

    Control: with a wide limit the same batch has more at once.
    """

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
async def test_an_invalid_max_in_flight_is_refused(most: Any) -> None:
    """`max_in_flight` is a whole number from 1."""
    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(kie4o.InvalidRequestError, match=r"max_in_flight=.*, or None"):
            await all_of(client.generate_many(["x"], max_in_flight=most))
        assert len(kie.submits) == 0


@pytest.mark.parametrize("fields", [{"prompt": "x"}, {"prompt": "x", "size": "3:2", "files_url": ["a.png"]}])
async def test_the_fields_of_one_request_are_no_batch(fields: Any) -> None:
    """They would be paid for as prompts, "3:2" among them."""
    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(kie4o.InvalidRequestError, match=r"pass \[ImageRequest\(\*\*fields\)\]"):
            await all_of(client.generate_many(fields))
        assert kie.submits == []
        named = {"prompt": "a wish", "sizes": "two of them"}  # ids that only resemble fields
        assert [done.key for done in await all_of(client.generate_many(named))] == list(named)


# -- keys ------------------------------------------------------------------------------------------


def test_equal_prompts_are_separate_items_with_stable_keys() -> None:
    """The same prompt three times is three tasks under three keys.

    Another run, from a list or a generator, has the same keys in the same order.
    """

    async def run() -> None:
        prompts = ["x", "y", "x", "x", "y"]
        keys = []
        for source in (prompts, iter(prompts)):
            async with kie_of() as kie, client_of(kie) as client:
                completions = await all_of(client.generate_many(source))
                completions.sort(key=lambda completion: completion.index)
                assert len({completion.task_id for completion in completions}) == len(kie.submits) == 5
                keys.append([completion.key for completion in completions])
        assert keys[0] == keys[1]
        assert len(set(keys[0])) == 5

    run_scaled(run(), SPEED)


def test_the_key_of_a_request_never_changes() -> None:
    """An older store knows the items of a batch by these keys; with others they would be paid again."""

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
            assert len(kie.submits) == 6

    run_scaled(run(), SPEED)


def test_a_custom_id_is_one_item_of_one_batch() -> None:
    """The key is "name/id", and no two pairs share one: "/" and "%" are escaped in the name.

    Control: without that, names and ids with a "/" do.
    """
    names = ["a", "a/b", "a/", "/a", "/", "a%2Fb", "a%252Fb", "a%", "a/b/c", "100 %"]
    ids = ["c", "b/c", "/c", "/", "2Fb/c", "%2Fb/c", "b%2Fc", "a/b/c"]
    pairs = [(name, custom_id) for name in names for custom_id in ids]

    async def run() -> None:
        keys = {}
        async with kie_of() as kie, client_of(kie) as client:
            for name, custom_id in pairs:
                [done] = await all_of(client.generate_many({custom_id: f"{name} {custom_id}"}, batch=name))
                keys[name, custom_id] = done.key
            assert len(kie.submits) == len(pairs)
        assert len(set(keys.values())) == len(pairs)
        assert keys["a", "b/c"] == "a/b/c"
        assert len({f"{name}/{custom_id}" for name, custom_id in pairs}) < len(pairs)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("name", [5, None, b"spring", ["spring"]])
async def test_the_name_of_a_batch_is_a_string(name: Any) -> None:
    """Anything else is refused with a sentence, before anything is sent."""
    async with kie_of() as kie, client_of(kie) as client:
        with pytest.raises(kie4o.InvalidRequestError, match="batch"):
            await all_of(client.generate_many(["x"], batch=name))
        assert len(kie.submits) == 0


# -- running it again ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES)
def test_a_second_run_is_replayed(store: MakeStore, source: str) -> None:
    """A new client on the same store replays every item, with equal results and without a POST."""

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
            assert len(kie.submits) == 10

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("source", ["list", "mapping", "generator"])
def test_finished_items_come_first(store: MakeStore, source: str) -> None:
    """In a list or a mapping they come first, wherever they are, and before the first POST.

    A generator is not read ahead, but finished items cost no POST there either.
    """

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
                        assert len(kie.submits) == 3
            replayed = {LETTERS[completion.index] for completion in completions if completion.replayed}
            assert replayed == set("cgj")
            assert len(completions) == 10
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_submitted_items_are_waited_for(store: MakeStore) -> None:
    """Items that an earlier run only submitted are neither submitted again nor replayed."""

    async def run() -> None:
        async with kie_of(duration=30.0) as kie:
            async with client_of(kie, store(), max_in_flight=4) as client:
                first = asyncio.create_task(all_of(client.generate_many(LETTERS)))
                await until(lambda: client._runtime.poller.waiting == 4)
                first.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await first
            assert len(kie.submits) == 4
            async with client_of(kie, store()) as client:
                completions = await all_of(client.generate_many(LETTERS))
            assert len(completions) == 10
            assert all(completion.ok and not completion.replayed for completion in completions)
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_two_runs_at_once_share_their_posts() -> None:
    """The same batch twice at once in one client has one task per item."""

    async def run() -> None:
        async with kie_of(latency=0.5) as kie, client_of(kie) as client:
            first, second = await asyncio.gather(
                *(all_of(client.generate_many(LETTERS, max_in_flight=4)) for _ in range(2))
            )
            assert {each.key: each.task_id for each in first} == {each.key: each.task_id for each in second}
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_retry_failed_resubmits_only_failed_tasks(store: MakeStore) -> None:
    """`retry_failed` submits the items whose task failed, and nothing else."""

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
            assert len(kie.submits) == 12

    run_scaled(run(), SPEED)


# -- errors are values -----------------------------------------------------------------------------


def test_an_invalid_item_does_not_affect_others() -> None:
    """An item of a wrong type or an invalid request completes with its error and is not sent."""
    invalid = ["", " ", 5, None, True, {"prompt": "x"}, b"x", "\ud800", ["x"], object(), ImageRequest, 1.5]
    fine = [
        "fine",
        ImageRequest("with a file", files_url=["https://a.example/1.png"]),
        ImageRequest(files_url=["https://a.example/1.png"], n_variants=2),
    ]

    async def run() -> None:
        for source in ([*invalid, *fine], iter([*invalid, *fine])):
            async with kie_of() as kie, client_of(kie) as client:
                completions = await all_of(client.generate_many(source, max_in_flight=3))
                assert sorted(each.index for each in completions) == list(range(len(invalid) + len(fine)))
                assert len({each.key for each in completions}) == len(completions)
                for completion in completions:
                    if completion.index >= len(invalid):
                        assert completion.ok
                        continue
                    assert isinstance(completion.error, kie4o.InvalidRequestError)
                    assert (completion.request, completion.task_id, completion.result) == (None, None, None)
                    with pytest.raises(kie4o.InvalidRequestError):
                        completion.unwrap()
                assert len(kie.submits) == len(fine)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("name", ["", "spring"])
def test_an_invalid_custom_id_is_a_value(name: str) -> None:
    """An id that cannot be a key fails only its item."""

    async def run() -> None:
        requests: dict[Any, str] = {5: "x", ("a",): "x", "k" * 513: "x", "a\nb": "x", "\ud800": "x"}
        async with kie_of() as kie, client_of(kie) as client:
            many = client.generate_many({**requests, "fine": "x"}, batch=name)
            completions = {each.index: each for each in await all_of(many)}
            for index in range(5):
                assert isinstance(completions[index].error, kie4o.InvalidRequestError)
            assert completions[5].ok
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


def test_failed_tasks_and_refusals_are_values() -> None:
    """A failed task completes with its error and task id, a refusal with its error and key."""

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
    """Whether or not the first request under an id has ended: `KeyConflictError` for this item only."""

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


# -- what a list costs -----------------------------------------------------------------------------


class Asked(MemoryStore):
    """A store that knows which keys were looked up, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.together: list[str] = []
        self.alone: list[str | None] = []

    async def find_many(self, keys: Sequence[str]) -> Sequence[Entry | None]:
        self.together += keys
        return await super().find_many(keys)

    async def find(self, *, key: str | None = None, **other: Any) -> Entry | None:
        self.alone += [] if key is None else [key]
        return await super().find(key=key, **other)


class Walked(Mapping[str, str]):
    """A mapping that counts how often each item is taken, and by which task."""

    def __init__(self, letters: list[str]) -> None:
        self._letters = letters
        self.taken: Counter[str] = Counter()
        self.tasks: set[str] = set()

    def __getitem__(self, key: str) -> str:
        current = asyncio.current_task()
        self.taken[key] += 1
        self.tasks.add("" if current is None else current.get_name())
        return key.removeprefix("id ")

    def __iter__(self) -> Iterator[str]:
        return (f"id {letter}" for letter in self._letters)

    def __len__(self) -> int:
        return len(self._letters)


def test_a_list_is_taken_once_and_looked_up_once() -> None:
    """Whatever has ended or not: one walk, one look-up of each key, and none again of what has to run.

    Controls: a generator is not searched, so that each of its keys is looked up alone; and a key that was
    stored without an outcome is looked up again, since it may have one by now.
    """

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store := Asked()) as client:
            await all_of(client.generate_many(letter for letter in "abc"))
            assert len(store.alone) == 3
            assert store.together == []
            for finished, source in ((0, Walked(list("defgh"))), (5, Walked(list("defghij")))):
                store.alone, store.together = [], []
                done = await all_of(client.generate_many(source, max_in_flight=2))
                assert sum(each.replayed for each in done) == finished
                assert set(source.taken.values()) == {1}
                assert store.together == list(source)
                assert store.alone == []
            task = await client.submit("k", key="id k")
            await client.generate_many({"id k": "k"}).__anext__()
            assert store.alone == ["id k"]
            assert task.id in kie.tasks

    run_scaled(run(), SPEED)


def test_a_finished_list_ends_with_its_last_item() -> None:
    """Nothing is taken or looked up after it, also where the last group of keys is a whole one."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store := Asked()) as client:
            prompts = {f"id {number}": f"{number}" for number in range(_KEYS_AT_ONCE)}
            await all_of(client.generate_many(prompts))
            source = Walked([f"{number}" for number in range(_KEYS_AT_ONCE)])
            many = client.generate_many(source)
            for _ in range(_KEYS_AT_ONCE):
                assert (await anext(many)).replayed
            calls, taken = len(store.together), source.taken.total()
            with pytest.raises(StopAsyncIteration):
                await anext(many)
            assert (len(store.together), source.taken.total()) == (calls, taken)

    run_scaled(run(), SPEED)


def test_a_source_that_needs_no_waiting_gets_no_task() -> None:
    """Its requests are taken in the task of the caller. Control: those of an async generator are not."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            source, here = Walked(LETTERS), asyncio.current_task()
            await all_of(client.generate_many(source, max_in_flight=3))
            assert here is not None
            assert source.tasks == {here.get_name()}
            names = set()

            async def arriving() -> AsyncIterator[str]:
                for letter in FEW:
                    current = asyncio.current_task()
                    names.add("" if current is None else current.get_name())
                    yield letter

            await all_of(client.generate_many(arriving()))
            assert names == {"kie4o batch source"}

    run_scaled(run(), SPEED)


# -- keys that get an outcome after the list was searched ----------------------------------------------

OUTCOMES: dict[str, tuple[str, dict[str, Any]]] = {
    "done": ("", {}),
    "failed": ("TaskFailedError", {"outcome": "failed"}),
    "unknown": ("SubmissionUnknownError", {"answer": LOST}),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("credits", [None, 6])
def test_an_id_that_a_list_has_twice_is_replayed(outcome: str, credits: int | None) -> None:
    """Its request is paid once and fits the budget once; the others are replayed. So is it in a generator,
    whose keys are looked up one by one."""

    async def run(source: Callable[[Any], Any]) -> list[tuple[bool, str]]:
        error, plan = OUTCOMES[outcome]
        async with kie_of() as kie, client_of(kie) as client:
            kie.plan("a", **plan)
            pairs = source([("id", "a")] * 3)
            done = await all_of(client.generate_many(pairs, max_in_flight=1, max_credits=credits))
            assert [type(each.error).__name__ for each in done] == [error or "NoneType"] * 3
            assert len(kie.submits) == 1
            return [each.replayed for each in done]

    assert run_scaled(run(list), SPEED) == run_scaled(run(iter), SPEED) == [False, True, True]


@pytest.mark.parametrize("outcome", OUTCOMES)
@pytest.mark.parametrize("credits", [None, 6])
def test_an_item_that_another_caller_finishes_first_is_replayed(outcome: str, credits: int | None) -> None:
    """Between the search of the list and its turn: it is not paid again, and costs this run nothing."""

    async def run() -> None:
        error, plan = OUTCOMES[outcome]
        async with kie_of() as kie, client_of(kie) as client:
            kie.plan("b", **plan)
            many = client.generate_many({"a": "a", "b": "b"}, max_in_flight=1, max_credits=credits)
            assert not (await anext(many)).replayed
            with contextlib.suppress(kie4o.KieError):
                await client.generate("b", key="b")
            [second] = await all_of(many)
            assert second.replayed
            assert type(second.error).__name__ == (error or "NoneType")
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


async def test_others_have_their_turn_while_a_list_is_searched() -> None:
    """Also with a store in memory, which never waits: at least once for each group of keys."""
    source, taken = Walked([f"{number}" for number in range(5 * _KEYS_AT_ONCE)]), set[int]()

    async def other() -> None:
        while True:
            taken.add(source.taken.total())
            await asyncio.sleep(0)

    async with kie_of() as kie, client_of(kie) as client:
        many, watcher = client.generate_many(source), asyncio.create_task(other())
        first = asyncio.ensure_future(anext(many))
        while source.taken.total() < len(source):
            await asyncio.sleep(0)
        for task in (watcher, first):
            task.cancel()
        await asyncio.gather(watcher, first, return_exceptions=True)
    assert len(taken) >= 5


# -- any length ------------------------------------------------------------------------------------

PROMPTS = 200_000  # a million take half a minute with the same result
FLAT = f"""
import asyncio, collections, hashlib, resource, sys
from kie4o.batch.batch import Batch
from kie4o.batch.budget import Budget
from kie4o.batch.items import Items
from kie4o.stores.memory import MemoryStore
from kie4o import ImageResult, TaskDetails, TaskState
from kie4o.pricing import PUBLISHED
from kie4o.submission.resending import NO_RESUBMIT

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20

async def generate(request, key, resubmit, *, wait, observer):
    observer.admitted()
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

async def items(source):
    while (item := source.next()) is not None:
        yield item

def prompts(count):
    return (f"prompt {{n}}" for n in range(count))

async def main():
    async def recalled(ref: str) -> None:
        return None

    batch = Batch(
        prompts({PROMPTS // 20}),
        MemoryStore(),
        generate,
        lambda key, why: False,
        recalled,
        max_in_flight=20,
        resubmit=NO_RESUBMIT,
        budget=Budget(None, PUBLISHED),
    )
    print(*await growth(batch, 1000))
    print(*await growth(items(Items(prompts({PROMPTS}), "")), 1000))
    before = resident()
    seen = collections.Counter(hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts({PROMPTS}))
    print(len(seen), resident() - before)

asyncio.run(main())
"""


@pytest.mark.posix("/proc/self/statm")
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.sweep
@pytest.mark.once
def test_a_batch_of_any_length_runs_in_flat_memory() -> None:
    """Memory does not grow from the 1,000th item on, over 10,000 items with an instant `generate`.

    It grows by 20 bytes for each item in the part that makes keys and counts equal requests. Measured as
    resident memory, in MiB, of a process of its own. Control: counting the items in a dict takes more.
    """
    run = subprocess.run(
        [sys.executable, "-c", FLAT], check=True, capture_output=True, text=True, timeout=120
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    whole, keys, naive = [(int(count), float(grown)) for count, grown in lines]
    assert (whole[0], keys[0], naive[0]) == (PROMPTS // 20, PROMPTS, PROMPTS)
    assert whole[1] < 15
    assert keys[1] < 8
    assert naive[1] > 25


# -- on_update -----------------------------------------------------------------------------------


async def test_on_update_sees_every_poll_of_every_item(store: MakeStore) -> None:
    """Each has the id of its task, and the last of each shows its end; replayed items are not polled."""
    async with kie_of(duration=0.5) as kie:
        async with client_of(kie, store()) as client:
            await client.generate("a", key="a")
            seen: list[kie4o.TaskDetails] = []
            requests = {letter: letter for letter in FEW}
            done = await all_of(client.generate_many(requests, on_update=seen.append))
            polled = {each.task_id for each in done if not each.replayed}
            assert len(polled) == len(FEW) - 1
            assert {details.task_id for details in seen} == polled
            ends = [details.task_id for details in seen if details.state.ended]
            assert sorted(ends) == sorted(polled)
            assert len(seen) > len(ends)
        with pytest.raises(kie4o.InvalidRequestError, match="on_update=7"):
            await all_of(client.generate_many(FEW, on_update=7))  # type: ignore[arg-type]  # on purpose


async def test_on_update_of_resume(store: MakeStore) -> None:
    """The same for what an earlier run has left."""
    async with kie_of(duration=0.5) as kie:
        async with client_of(kie, store()) as client:
            ids = {(await client.submit(letter)).id for letter in FEW}
        async with client_of(kie, store()) as client:
            seen: list[str] = []

            async def on_update(details: kie4o.TaskDetails) -> None:
                seen.append(details.task_id)

            assert all(done.ok for done in await all_of(client.resume(on_update=on_update)))
            assert set(seen) == ids
