"""A batch that its caller ends early by an event, and the ids and entries that such a program works with."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
from batches import LETTERS, SPEED, all_of, at_rest, client_of, kie_of, paid_is_known, paid_once
from clients import MakeStore
from clocks import run_scaled

from kie4o import EntryState, InvalidRequestError, RateLimit


@pytest.mark.parametrize("in_flight", [1, 3, 100])
def test_a_stop_submits_nothing_more_and_yields_what_is_in_flight(store: MakeStore, in_flight: int) -> None:
    """What waits for a slot is not sent either, the loop ends without an error, and the next run does the
    rest."""

    async def run() -> None:
        async with kie_of(duration=30.0) as kie:
            stop, kept = asyncio.Event(), store()
            async with client_of(kie, kept, rate_limit=RateLimit(2, per=10.0)) as client:
                many = client.generate_many(LETTERS, max_in_flight=in_flight, stop=stop)
                asyncio.get_running_loop().call_later(5.0, stop.set)
                completions = await all_of(many)
                assert len(completions) == len(kie.submits) == min(in_flight, 2)
                assert all(completion.ok for completion in completions)
                await at_rest(client)
                await paid_is_known(kie, kept)
            async with client_of(kie, store()) as client:
                assert all([done.ok async for done in client.generate_many(LETTERS)])
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("before", [True, False])
def test_a_stop_does_not_wait_for_the_source(before: bool) -> None:
    """Also if it is set before the loop begins, or while nothing is in flight."""

    async def run() -> None:
        closed, stop = [], asyncio.Event()

        async def source() -> AsyncIterator[str]:
            try:
                await asyncio.sleep(36_000)
                yield "a"
            finally:
                closed.append(True)

        async with kie_of() as kie, client_of(kie) as client:
            if before:
                stop.set()
            asyncio.get_running_loop().call_later(1.0, stop.set)
            async with asyncio.timeout(100):
                assert await all_of(client.generate_many(source(), stop=stop)) == []
            assert before or closed
            assert len(kie.submits) == 0
            await at_rest(client)

    run_scaled(run(), SPEED)


def test_a_stop_replays_what_is_finished(store: MakeStore) -> None:
    """What costs nothing is still handed out."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store()) as client:
            await all_of(client.generate_many(LETTERS[:4]))
            stop = asyncio.Event()
            stop.set()
            completions = await all_of(client.generate_many(LETTERS, stop=stop))
            assert [completion.replayed for completion in completions] == [True] * 4
            assert len(kie.submits) == 4

    run_scaled(run(), SPEED)


def test_an_event_that_is_never_set_changes_nothing() -> None:
    """The batch ends by itself, and nothing of it is left."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            assert len(await all_of(client.generate_many(LETTERS, stop=asyncio.Event()))) == len(LETTERS)
            await at_rest(client)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("lazy", [True, False])
def test_tuples_have_ids(store: MakeStore, lazy: bool) -> None:
    """An iterable of tuples is as good as a mapping, and shares its keys."""

    async def run() -> None:
        pairs = [(f"id-{letter}", letter) for letter in LETTERS]

        async def source() -> AsyncIterator[tuple[str, str]]:
            for pair in pairs:
                yield pair

        async with kie_of() as kie, client_of(kie, store()) as client:
            await all_of(client.generate_many(dict(pairs[:3])))
            completions = await all_of(client.generate_many(source() if lazy else pairs))
            assert {completion.key for completion in completions} == {key for key, _ in pairs}
            assert sum(completion.replayed for completion in completions) == 3
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


def test_a_tuple_that_is_no_pair_is_a_failed_item() -> None:
    """It harms no other."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            completions = await all_of(client.generate_many([("a", "b", "c"), (5, "b"), "c"]))  # type: ignore[list-item]  # no pairs
            errors = [type(completion.error) for completion in completions if not completion.ok]
            assert errors == [InvalidRequestError] * 2
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


async def test_find_returns_what_the_store_has(store: MakeStore) -> None:
    """An entry by its key, without a network call; None if there is none."""
    async with kie_of() as kie, client_of(kie, store()) as client:
        assert await client.find("k") is None
        result = await client.generate("a", key="k")
        requests = kie.requests.copy()
        entry = await client.find("k")
        assert entry is not None
        assert (entry.state, entry.task_id, entry.price) == (EntryState.SUCCEEDED, result.task_id, 6)
        assert kie.requests == requests
        with pytest.raises(InvalidRequestError):
            await client.find("")


@pytest.mark.parametrize("stop", [threading.Event(), True, "stop"], ids=["threads", "bool", "text"])
def test_what_is_no_event_of_asyncio_is_refused(stop: Any) -> None:
    """Before anything is paid for. Waiting for an event of threads would stop the whole event loop."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            with pytest.raises(InvalidRequestError, match=r"invalid stop=.*: expected an asyncio.Event"):
                await all_of(client.generate_many(LETTERS, stop=stop))
            assert kie.paid == 0

    run_scaled(run(), SPEED)
