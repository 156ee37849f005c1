"""Batches and listings that are left without being closed: asyncio logs nothing, and nothing paid is lost.

A loop closes every async generator that it collects, or that is left when it ends. It logs what goes wrong
there, and pytest cannot see that; so these tests listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from batches import FEW, LETTERS, SPEED, all_of, at_rest, batch_tasks, client_of, kie_of, paid_is_known
from clients import MakeStore, until
from clocks import run_scaled

from kie4o import AsyncKieClient
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import Entry, EntryState


@contextlib.contextmanager
def noise() -> Iterator[list[str]]:
    """All that asyncio logs, all warnings, and all errors that nothing catches.

    Meanwhile garbage is collected only when a test says so, and then all at once. What is alive before is
    left out from then on: going through it takes most of the time of these tests.
    """
    seen: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]  # no subclass
    logger, hook = logging.getLogger("asyncio"), sys.unraisablehook
    logger.addHandler(handler)
    sys.unraisablehook = lambda error: seen.append(f"{error.err_msg}: {error.exc_value!r}")
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield seen
            gc.collect()
        seen += [str(each.message) for each in warned]
    finally:
        gc.enable()
        logger.removeHandler(handler)
        sys.unraisablehook = hook


class Cycle:
    """Refers to itself, so that it and what it holds stay until the garbage collector finds them."""

    def __init__(self, *held: object) -> None:
        self.held = (self, *held)


async def collect() -> None:
    for _ in range(2):
        gc.collect()
        for _ in range(20):
            await asyncio.sleep(0)


# -- leaving the loop ------------------------------------------------------------------------------

CLOSED: list[str] = []  # the sources that were closed


async def arriving(count: int = len(FEW)) -> AsyncGenerator[str]:
    """Requests, and then a wait that nothing ends and nothing else knows of. Closing takes two turns."""
    never = asyncio.Event()
    try:
        for letter in FEW[:count]:
            yield letter
        await never.wait()
    finally:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        CLOSED.append("source")


class Listing(MemoryStore):
    """A store whose listing takes a turn to close."""

    async def unfinished(self) -> AsyncIterator[Entry]:
        try:
            async for entry in super().unfinished():
                yield entry
        finally:
            await asyncio.sleep(0)
            CLOSED.append("listing")


Verb = Callable[[AsyncKieClient], AsyncGenerator[Any]]
VERBS: dict[str, Verb] = {
    "a list": lambda client: client.generate_many(LETTERS, max_in_flight=3),
    "finished items": lambda client: client.generate_many({letter: letter for letter in FEW}),
    "a generator": lambda client: client.generate_many(iter(LETTERS)),
    "an async generator": lambda client: client.generate_many(arriving(), max_in_flight=2),
    "an async generator that waits": lambda client: client.generate_many(arriving()),
    "an async generator and no task": lambda client: client.generate_many(arriving(1)),
    "resume": AsyncKieClient.resume,
    "unfinished": AsyncKieClient.unfinished,
}
HELD: list[object] = []  # beyond the end of the loop


async def leave(how: str, many: AsyncGenerator[Any]) -> None:
    """Take one completion, and leave the loop in one of several ways."""
    if how == "in a cycle":
        Cycle(many)
    elif how == "held":
        HELD.append(many)
    async for _ in many:
        if how == "raising":
            raise LookupError("its traceback holds the batch")
        break


async def prepare(client: AsyncKieClient, verb: str) -> None:
    """Tasks to list and to resume, or finished items to replay."""
    for letter in FEW:
        if verb == "finished items":
            await client.generate(letter, key=letter)
        elif verb in ("resume", "unfinished"):
            await client.submit(letter, key=letter)


@pytest.mark.parametrize("when", ["in the loop", "after the client", "with the loop"])
@pytest.mark.parametrize("how", ["dropped", "in a cycle", "held", "raising"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_loop_that_is_left_is_quiet(verb: str, how: str, when: str) -> None:
    """However it is left and whenever it is collected. An async source, and a store's listing, are closed."""

    async def run() -> None:
        async with kie_of(latency=0.2, duration=1.0) as kie:
            async with client_of(kie, Listing()) as client:
                await prepare(client, verb)
                CLOSED.clear()
                try:
                    await leave(how, VERBS[verb](client))
                finally:
                    if when == "in the loop":
                        await collect()
            if when == "after the client":
                await collect()

    with noise() as seen:
        with contextlib.suppress(LookupError):
            run_scaled(run(), SPEED)
        HELD.clear()
    assert "\n".join(seen) == ""
    expected = {"unfinished": ["listing"], "resume": ["listing"]}.get(verb, [])
    assert (["source"] if "async" in verb else expected) == CLOSED


def test_the_noise_is_heard() -> None:
    """Control: an async generator that closes another one, as a batch once did, fails in a cycle."""

    async def outer() -> AsyncIterator[str]:
        async with contextlib.aclosing(arriving()) as inner:
            async for letter in inner:
                yield letter

    async def run() -> None:
        await leave("in a cycle", outer())
        await collect()

    with noise() as seen:
        asyncio.run(run())
    assert "already running" in "\n".join(seen) or "never retrieved" in "\n".join(seen)


def test_what_was_in_flight_is_cancelled_as_callers_are(store: MakeStore) -> None:
    """Nothing is left of a batch that was collected in a cycle, and every task that was paid is stored."""

    async def run() -> None:
        async with kie_of(latency=0.5, duration=30.0) as kie, client_of(kie, kept := store()) as client:
            kie.plan("a", duration=0.0)
            await leave("in a cycle", client.generate_many(arriving()))
            await collect()
            assert [name for name in batch_tasks() if "submit" not in name] == []
            await at_rest(client)
            await paid_is_known(kie, kept)
            assert [entry.state async for entry in kept.unfinished()] == [EntryState.SUBMITTED] * 4
            assert len(await all_of(client.generate_many(FEW))) == len(FEW)
            assert len(kie.submits) == len(FEW)

    with noise() as seen:
        run_scaled(run(), SPEED)
    assert "\n".join(seen) == ""


async def test_closing_closes_the_source() -> None:
    """At once, though its owner still refers to it. The listing of a store is closed soon after."""
    async with kie_of() as kie, client_of(kie, Listing()) as client:
        CLOSED.clear()
        source = arriving()
        async with contextlib.aclosing(client.generate_many(source, max_in_flight=1)) as many:
            await anext(many)
        assert CLOSED == ["source"]
        await client.submit("x")
        async with contextlib.aclosing(client.unfinished()) as entries:
            await anext(entries)
        await until(lambda: CLOSED == ["source", "listing"])


# -- cancelling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [lambda: LETTERS, arriving], ids=["list", "async generator"])
@pytest.mark.parametrize("cancels", [1, 2, 5, 50])
def test_repeated_cancels_leave_no_task_behind(cancels: int, source: Callable[[], Any]) -> None:
    """A cancel in each turn, as anyio's cancel scopes deliver it: once the consumer has gone, all has."""

    async def run() -> None:
        async with kie_of(latency=0.5, duration=5.0) as kie, client_of(kie) as client:
            consumer = asyncio.create_task(all_of(client.generate_many(source())))
            await until(lambda: kie.paid >= 3)
            for _ in range(cancels):
                consumer.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await consumer
            assert [name for name in batch_tasks() if "submit" not in name] == []
            await at_rest(client)

    with noise() as seen:
        run_scaled(run(), SPEED)
    assert "\n".join(seen) == ""


async def test_a_source_that_cannot_be_closed() -> None:
    """An async iterator without `aclose` is as good."""

    class Source:
        def __init__(self) -> None:
            self.left = list(FEW)

        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    async with kie_of() as kie, client_of(kie) as client:
        async with contextlib.aclosing(client.generate_many(Source(), max_in_flight=1)) as many:
            await anext(many)
        assert len(await all_of(client.generate_many(Source()))) == len(FEW)


@pytest.mark.parametrize("cancelled", [False, True])
def test_a_source_that_fails_while_nothing_reads_it(cancelled: bool) -> None:
    """Whether it fails by itself or when it is cancelled: its error has no reader, and is not logged."""
    failing: list[bool] = []

    async def source() -> AsyncIterator[str]:
        yield "a"
        try:
            await asyncio.sleep(3600.0 if cancelled else 5.0)
        finally:
            failing.append(True)
            raise LookupError("nothing waits for this")

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            many = client.generate_many(source(), max_in_flight=2)
            await anext(many)
            assert not failing
            await until(lambda: failing or cancelled)
            await many.aclose()
            assert failing

    with noise() as seen:
        run_scaled(run(), SPEED)
    assert "\n".join(seen) == ""
