"""`max_credits`: a batch submits nothing that could pass its limit, whatever runs at once and goes wrong.

The judge is the emulator's own book, `paid`, not what the client believes.
"""

from __future__ import annotations

import asyncio
import contextlib
import decimal
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator
from decimal import Decimal
from typing import Any

import attrs
import pytest
from batches import AMPLE, FEW, LETTERS, SPEED, all_of, at_rest, client_of, kie_of, paid_is_known, paid_once
from clients import LOST, MakeStore, until
from clocks import run_scaled
from proving import DEEP

import kie4o
from kie4o import (
    AsyncKieClient,
    Completion,
    CreditLimitError,
    Entry,
    EntryState,
    ImageRequest,
    PollPolicy,
    RateLimit,
)
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore

BALANCE = 1e6  # of `kie_of`
LIMIT = 600
FOUR = 24  # credits of four variants


def paid(kie: Emulator) -> int:
    """The credits that Kie has charged."""
    return round(BALANCE - kie.credits)


async def run_of(completions: AsyncIterator[Completion]) -> tuple[list[Completion], Exception | None]:
    """The completions, and the error that ended them."""
    found: list[Completion] = []
    try:
        async for completion in completions:
            found.append(completion)
    except kie4o.KieError as error:
        return found, error
    return found, None


async def limited(completions: AsyncIterator[Completion]) -> tuple[list[Completion], CreditLimitError]:
    """The completions of a batch that its limit has ended."""
    found, error = await run_of(completions)
    assert isinstance(error, CreditLimitError), error
    return found, error


# -- twenty seeds of faults ------------------------------------------------------------------------

# One is drawn for three of ten requests. What is not refused has an unknown outcome.
FAULTS: list[dict[str, Any]] = [
    *({"code": code} for code in (429, 455, 550, 400, 422, 451)),
    *({"code": 500, "charged": charged} for charged in (True, False)),
    {"reset": "after"},
    {"page": "bad_gateway", "charged": True},
    {"cut": 40, "charged": True},
]


def requests() -> Iterator[ImageRequest]:
    """Without end."""
    return (ImageRequest(f"{number}", n_variants=4) for number in itertools.count())


Spend = Callable[[AsyncKieClient], AsyncIterator[Completion]]


def within_the_limit(client: AsyncKieClient) -> AsyncIterator[Completion]:
    return client.generate_many(requests(), max_credits=LIMIT, max_in_flight=100)


async def counting_completions(client: AsyncKieClient) -> AsyncIterator[Completion]:
    """The control: a budget that counts what has finished."""
    spent = 0

    def affordable() -> Iterator[ImageRequest]:
        return itertools.takewhile(lambda _: spent + FOUR <= LIMIT, requests())

    async for completion in client.generate_many(affordable(), max_in_flight=100):
        spent += 0 if completion.task_id is None else FOUR
        yield completion


async def faulty_run(seed: int, spend: Spend) -> tuple[int, list[Completion], Exception | None]:
    """What Kie has charged for a batch of four variants a request, a hundred in flight, and how it ended."""
    chance = random.Random(seed)
    unlucky = {f"{number}": chance.choice(FAULTS) for number in range(200) if chance.random() < 0.3}
    async with kie_of(duration=lambda: chance.uniform(1, 40), latency=lambda: chance.uniform(0, 2)) as kie:
        for prompt, fault in unlucky.items():
            kie.fault("submit", prompt=prompt, **fault)
        for after in chance.sample(range(40), 2):
            kie.fault("submit", reset="before", after=after)
        for prompt in chance.sample(range(50), 5):
            kie.plan(f"{prompt}", outcome=chance.choice(["failed", "policy", "no_images"]))
        async with client_of(kie, poll=PollPolicy(), rate_limit=RateLimit(AMPLE, per=1.0)) as client:
            completions, error = await run_of(spend(client))
            await at_rest(client)
            spent = await client.spent()
        assert spent.credits >= paid(kie)
        return paid(kie), completions, error


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(20) if DEEP else range(5))
def test_a_batch_never_spends_more_than_its_limit(seed: int) -> None:
    """Nor does it leave unused what another request would have fitted into. The source has no end."""
    charged, completions, error = run_scaled(faulty_run(seed, within_the_limit), SPEED)
    assert charged <= LIMIT
    named = sum(done.task_id is not None for done in completions)
    unknown = sum(isinstance(done.error, kie4o.SubmissionUnknownError) for done in completions)
    assert FOUR * named <= charged <= FOUR * (named + unknown)
    if not isinstance(error, kie4o.SubmissionUnknownError):  # five in a row, which stop the batch first
        assert isinstance(error, CreditLimitError)
        assert FOUR * (named + unknown) == error.spent == LIMIT


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(5) if DEEP else range(1))
def test_control_a_budget_that_counts_completions_spends_more(seed: int) -> None:
    """The same faults and the same book."""
    charged, _, _ = run_scaled(faulty_run(seed, counting_completions), SPEED)
    assert charged > LIMIT


# -- what is given back, and what is not -----------------------------------------------------------


def test_what_was_refused_is_given_back(store: MakeStore) -> None:
    """With room for two, of which one is refused: the third goes, and then the limit is reached."""

    async def run() -> None:
        async with kie_of(latency=0.5) as kie, client_of(kie, store()) as client:
            kie.plan("b", answer=400)
            done, error = await limited(client.generate_many(LETTERS, max_credits=12))
            assert {each.request.prompt: each.ok for each in done if each.request} == {
                "a": True,
                "b": False,
                "c": True,
            }
            paid_once(kie, ["a", "c"])
            assert (error.spent, error.limit, error.price, paid(kie)) == (12, 12, 6, 12)
            await at_rest(client)

    run_scaled(run(), SPEED)


def test_what_was_not_sent_is_given_back() -> None:
    """No connection for the first: what it reserved is there for the next."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            kie.fault("submit", refuse=30.0)
            first = await all_of(client.generate_many(["a"], max_credits=6))
            assert [type(each.error) for each in first] == [kie4o.APIConnectionError]
            await asyncio.sleep(60)
            both = await all_of(client.generate_many(["a"], max_credits=6))
            assert [each.ok for each in both] == [True]
            assert paid(kie) == 6

    run_scaled(run(), SPEED)


def test_a_request_that_is_sent_again_keeps_its_reservation() -> None:
    """Under maintenance nothing takes its place for minutes. Refused for good, it makes room for the next."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            kie.fault("submit", code=455, prompt="a", times="always")
            many = client.generate_many(FEW, max_credits=6)
            first = asyncio.ensure_future(anext(many))
            await asyncio.sleep(100)
            assert kie.tasks == {}
            assert isinstance((await first).error, kie4o.MaintenanceError)
            done, error = await limited(many)
            assert [each.ok for each in done] == [True]
            assert error.spent == paid(kie) == 6

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("answer", [LOST, 500, "dropped"], ids=["charged", "not charged", "dropped"])
def test_an_unknown_outcome_counts_as_charged(store: MakeStore, answer: Any) -> None:
    """Whether Kie has charged it or not. In the next run under the same keys it costs nothing more."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store()) as client:
            kie.plan("a", answer=answer)
            done, error = await limited(client.generate_many(LETTERS, max_credits=18))
            assert len(done) == 3
            assert error.spent == 18
            assert paid(kie) == (12 if answer == 500 else 18)
            rest, _ = await limited(client.generate_many(LETTERS, max_credits=12))
            assert sum(each.replayed for each in rest) == 3
            assert paid(kie) == (24 if answer == 500 else 30)

    run_scaled(run(), SPEED)


def test_a_failed_task_counts_as_charged() -> None:
    """Kie may or may not give the credits back."""

    async def run() -> None:
        async with kie_of(outcome="failed") as kie, client_of(kie) as client:
            done, error = await limited(client.generate_many(LETTERS, max_credits=30))
            assert [type(each.error) for each in done] == [kie4o.TaskFailedError] * 5
            assert error.spent == paid(kie) == 30

    run_scaled(run(), SPEED)


def test_a_task_that_cannot_be_saved_counts_as_charged() -> None:
    """Its id arrived, and the store is full: the batch stops with the error of the store."""

    class Full(MemoryStore):
        async def save(self, entry: Any) -> None:
            if entry.task_id is not None:
                raise kie4o.StoreError("the disk is full")
            await super().save(entry)

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, Full()) as client:
            done, error = await run_of(client.generate_many(LETTERS, max_credits=6))
            assert isinstance(error, kie4o.StoreError)
            assert [each.task_id for each in done] == [*kie.tasks]
            assert paid(kie) == 6

    run_scaled(run(), SPEED)


# -- the limit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 5, 5.99, Decimal("5.999")], ids=repr)
def test_a_limit_below_the_first_request_sends_nothing(limit: Any) -> None:
    """The error says what was spent, the limit and the price."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            done, error = await limited(client.generate_many(LETTERS, max_credits=limit))
            assert (done, len(kie.submits)) == ([], 0)
            assert (error.spent, error.price) == (0, 6)
            assert f"max_credits={limit:g} is reached"[:20] in str(error)
            assert "for 0 credits, and the next one costs 6. Run the same batch again" in str(error)
            await at_rest(client)

    run_scaled(run(), SPEED)


def test_a_batch_that_fits_ends_without_an_error() -> None:
    """To the credit."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            done = await all_of(client.generate_many(LETTERS, max_credits=60))
            assert [each.ok for each in done] == [True] * 10
            assert paid(kie) == 60

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("limit", [0, 600], ids=repr)
def test_what_costs_nothing_is_never_too_much(limit: int) -> None:
    """A price of 0: everything is submitted."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, prices=0) as client:
            done = await all_of(client.generate_many([f"{n}" for n in range(150)], max_credits=limit))
            assert sum(each.ok for each in done) == len(kie.tasks) == 150

    run_scaled(run(), SPEED)


def test_a_small_request_does_not_overtake_a_large_one() -> None:
    """What fits behind one that does not is left for the next run, in the order of the input."""

    async def run() -> None:
        items = [ImageRequest("a"), ImageRequest("b", n_variants=4), ImageRequest("c")]
        async with kie_of() as kie, client_of(kie) as client:
            done, error = await limited(client.generate_many(items, max_credits=24))
            assert [each.index for each in done] == [0]
            assert (error.spent, error.price) == (6, 24)
            rest = await all_of(client.generate_many(items, max_credits=30))
            assert sorted(each.index for each in rest if not each.replayed) == [1, 2]
            paid_once(kie, ["a", "b", "c"])

    run_scaled(run(), SPEED)


def test_the_prices_of_the_client_count() -> None:
    """By variants, and as they are written: three tenths are three times a tenth, in any decimal context."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, prices=0.1) as client:
            with decimal.localcontext(decimal.Context(prec=1)):
                done, _ = await limited(client.generate_many(LETTERS, max_credits=0.3))
            assert len(done) == 3
        async with kie_of() as kie, client_of(kie, prices={1: 100, 2: 7, 4: 9}) as client:
            two = [ImageRequest(letter, n_variants=2) for letter in LETTERS]
            done, error = await limited(client.generate_many(two, max_credits=20))
            assert (len(done), error.spent) == (2, 14)

    run_scaled(run(), SPEED)


def test_a_request_without_a_price_is_not_submitted() -> None:
    """It is an item with an error; without a limit it is submitted all the same."""

    async def run() -> None:
        items = [ImageRequest("a"), ImageRequest("b", extra={"nVariants": 8}), ImageRequest("c")]
        async with kie_of() as kie, client_of(kie, prices={1: 6, 2: 12, 4: 24}) as client:
            done = await all_of(client.generate_many(items, max_credits=600))
            errors = {each.index: type(each.error) for each in done}
            assert errors == {0: type(None), 1: kie4o.InvalidRequestError, 2: type(None)}
            assert next(each for each in done if not each.ok).request == items[1]
            paid_once(kie, ["a", "c"])
            await all_of(client.generate_many(items))
            assert kie.requests["/api/v1/gpt4o-image/generate"] == 3

    run_scaled(run(), SPEED)


# -- sources without an end, and other ways out ------------------------------------------------------


async def arriving(*, waits: bool) -> AsyncIterator[str]:
    for number in itertools.count():
        if waits and number == 12:
            await asyncio.Event().wait()
        yield f"{number}"


SOURCES: dict[str, Callable[[], Any]] = {
    "generator": lambda: (f"{number}" for number in itertools.count()),
    "async generator": lambda: arriving(waits=False),
    "async generator that stalls": lambda: arriving(waits=True),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_without_an_end_ends_at_the_limit(source: str) -> None:
    """Also one that never yields again once the limit is reached."""

    async def run() -> None:
        async with kie_of(duration=5.0) as kie, client_of(kie) as client:
            many = client.generate_many(SOURCES[source](), max_credits=60, max_in_flight=50)
            async with asyncio.timeout(100):
                done, error = await limited(many)
            assert sorted(each.index for each in done) == list(range(10))
            assert error.spent == paid(kie) == 60
            await at_rest(client)

    run_scaled(run(), SPEED)


def test_little_more_is_taken_than_fits() -> None:
    """While the first ten have no answer yet, the eleventh waits, and the source is left alone."""
    taken = itertools.count()

    async def run() -> None:
        async with kie_of(latency=5.0) as kie, client_of(kie) as client:
            await limited(client.generate_many((f"{n}" for n in taken), max_credits=60, max_in_flight=90))
            assert next(taken) <= 15
            assert paid(kie) == 60

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("after", [0.0, 0.3, 1.0, 5.0], ids=repr)
@pytest.mark.parametrize("how", ["break", "cancel"])
def test_leaving_a_batch_whose_items_wait_leaves_nothing(store: MakeStore, how: str, after: float) -> None:
    """With items in flight and others that wait for what may be given back; the next run does the rest."""

    async def run() -> None:
        async with kie_of(latency=0.5, duration=3.0) as kie:
            kie.fault("submit", code=455, prompt="a", times="always")
            async with client_of(kie, kept := store()) as client:
                many = client.generate_many(LETTERS, max_credits=18)
                taking = asyncio.ensure_future(run_of(many))
                await asyncio.sleep(after)
                if how == "break":
                    await client.aclose()
                    await taking
                else:
                    taking.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await taking
                    await at_rest(client)
                assert paid(kie) <= 12
            async with client_of(kie, store()) as client:
                await paid_is_known(kie, kept if isinstance(kept, MemoryStore) else client._runtime.store)
                before = paid(kie)
                done, error = await run_of(client.generate_many(LETTERS[1:], max_credits=60))
                assert error is None
                assert [each.ok for each in done] == [True] * 9
                assert paid(kie) == 54 >= before
                paid_once(kie, LETTERS[1:])

    run_scaled(run(), SPEED)


def test_another_stop_ends_what_waits() -> None:
    """An empty balance stops the batch at once, although what waits might still fit."""

    async def run() -> None:
        async with kie_of(credits=6, latency=1.0) as kie, client_of(kie) as client:
            done, error = await run_of(client.generate_many(LETTERS, max_credits=12))
            assert isinstance(error, kie4o.InsufficientCreditsError)
            assert sorted(each.index for each in done) == [0, 1]
            await at_rest(client)

    run_scaled(run(), SPEED)


def test_reaching_the_limit_calls_nothing_off() -> None:
    """What fits and still waits for the rate limit is submitted, and handed out before the error."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, rate_limit=RateLimit(1, per=10.0)) as client:
            items = [*FEW, ImageRequest("large", n_variants=4)]
            done, error = await limited(client.generate_many(items, max_credits=40))
            assert sorted(each.index for each in done) == [0, 1, 2, 3, 4]
            assert error.spent == paid(kie) == 30

    run_scaled(run(), SPEED)


# -- several runs, several batches ---------------------------------------------------------------------


def test_each_run_has_the_whole_limit(store: MakeStore) -> None:
    """What an earlier run has paid for is free, so that the same batch goes on until it is done."""

    async def run() -> None:
        async with kie_of() as kie:
            for replayed, new in ((0, 4), (4, 4), (8, 2)):
                async with client_of(kie, store()) as client:
                    done, error = await run_of(client.generate_many(LETTERS, max_credits=24))
                    assert sum(each.replayed for each in done) == replayed
                    assert sum(not each.replayed for each in done) == new
                    assert (error is None) is (replayed + new == 10)
            paid_once(kie, LETTERS)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("lazy", [False, True])
def test_what_is_paid_is_waited_for_without_credits(store: MakeStore, lazy: bool) -> None:
    """With a limit of 0 a run hands out what is finished and what still runs, and submits nothing."""

    async def run() -> None:
        async with kie_of(duration=20.0) as kie:
            kie.plan("a", duration=0.0)
            async with client_of(kie, store()) as client:
                await client.generate("a", key="a")
                for letter in "bc":
                    await client.submit(letter, key=letter)
            async with client_of(kie, store()) as client:
                items = {letter: letter for letter in "abc"}
                done = await all_of(client.generate_many(items, max_credits=0))
                assert {each.key: each.ok for each in done} == dict.fromkeys("abc", True)
                assert paid(kie) == 18

    run_scaled(run(), SPEED)


def test_paying_again_for_what_failed_counts() -> None:
    """With `retry_failed` as with `on_unknown="resubmit"`; without them the outcome is free."""

    async def run() -> None:
        async with kie_of(outcome="failed") as kie, client_of(kie) as client:
            await all_of(client.generate_many(LETTERS))
            again, _ = await limited(client.generate_many(LETTERS, max_credits=30, retry_failed=True))
            assert len(again) == 5
            assert paid(kie) == 90
            assert len(await all_of(client.generate_many(LETTERS, max_credits=0))) == 10
        async with kie_of() as kie, client_of(kie) as client:
            kie.plan("a", answer=LOST)
            await all_of(client.generate_many(["a"]))
            _, error = await limited(client.generate_many(["a"], max_credits=5, on_unknown="resubmit"))
            assert (error.spent, paid(kie)) == (0, 6)
            await all_of(client.generate_many(["a"], max_credits=6, on_unknown="resubmit"))
            assert paid(kie) == 12

    run_scaled(run(), SPEED)


def test_a_task_that_fails_while_it_is_looked_up_is_not_paid_again() -> None:
    """It was running when the batch looked, so that nothing was reserved for it."""

    class Stale(MemoryStore):
        stale = False

        async def find(self, **by: Any) -> Entry | None:
            entry = await super().find(**by)
            running = self.stale and entry is not None and entry.state is EntryState.FAILED
            if running and entry is not None:
                return attrs.evolve(entry, state=EntryState.SUBMITTED, details=None)
            return entry

    async def run() -> None:
        async with kie_of(outcome="failed") as kie, client_of(kie, store := Stale()) as client:
            await all_of(client.generate_many({"a": "a"}))
            store.stale = True
            done = await all_of(client.generate_many({"a": "a"}, max_credits=0, retry_failed=True))
            assert [type(each.error) for each in done] == [kie4o.TaskFailedError]
            assert len(kie.tasks) == 1

    run_scaled(run(), SPEED)


def test_two_batches_have_a_limit_each() -> None:
    """On one client at the same time."""

    async def run() -> None:
        async with kie_of(duration=2.0) as kie, client_of(kie) as client:
            batches = [client.generate_many(LETTERS, max_credits=18, batch=name) for name in ("one", "two")]
            for _, error in await asyncio.gather(*map(limited, batches)):
                assert error.spent == 18
            assert paid(kie) == 36

    run_scaled(run(), SPEED)


def test_the_items_of_a_slow_consumer_are_limited_too() -> None:
    """The limit holds while nothing is taken from the batch."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            many = client.generate_many(LETTERS, max_credits=18)
            await anext(many)
            await until(lambda: paid(kie) == 18)
            await asyncio.sleep(100)
            done, _ = await limited(many)
            assert (len(done), paid(kie)) == (2, 18)

    run_scaled(run(), SPEED)
