"""`spent()`: what the submits of a store have cost, by state, whatever became of them."""

from __future__ import annotations

import contextlib
from decimal import Decimal
from pathlib import Path

import pytest
from batches import LETTERS, SPEED, all_of, client_of, kie_of
from clients import LOST, MakeStore
from clocks import run_scaled

import kie4o
from kie4o import Entry, EntryState, ImageRequest, Spent
from kie4o.pricing import Subtotal
from kie4o.stores import memory
from kie4o.stores.sqlite import SQLiteStore


def of(credits: float, tasks: int) -> Subtotal:  # Kie's word
    return Subtotal(credits=Decimal(str(credits)), tasks=tasks)


def test_every_state_has_its_sum(store: MakeStore) -> None:
    """By the number of variants. What was refused is not in it, and neither is what was never sent."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store(), timeout=5.0) as client:
            assert await client.spent() == Spent()
            kie.plan("runs", outcome="stuck")
            kie.plan("fails", outcome="failed")
            kie.plan("is lost", answer=LOST)
            kie.plan("is refused", answer=400)
            await client.submit("runs", n_variants=4)
            for prompt in ("fails", "is lost", "is refused"):
                with contextlib.suppress(kie4o.KieError):
                    await client.generate(prompt, n_variants=2)
            await client.generate("works", key="a")
            await client.generate("works", key="a")  # the stored result
            spent = await client.spent()
            assert spent == Spent(
                submitted=of(24, 1), succeeded=of(6, 1), failed=of(12, 1), unknown=of(12, 1)
            )
            assert (spent.credits, spent.tasks) == (54, 4)
            assert spent.credits == 1e6 - kie.credits

    run_scaled(run(), SPEED)


def test_a_task_that_was_given_up_still_counts(store: MakeStore) -> None:
    """Nobody waits for it, and Kie has charged it."""

    async def run() -> None:
        async with kie_of(outcome="stuck") as kie:
            async with client_of(kie, store()) as client:
                with pytest.raises(kie4o.TaskTimeoutError):
                    await client.generate("x", timeout=3.0)
                assert (await client.spent()).submitted == of(6, 1)
            async with client_of(kie, store()) as client:
                assert (await client.spent()).submitted == of(6, 1)

    run_scaled(run(), SPEED)


def test_what_a_person_finds_out_changes_the_sum(store: MakeStore) -> None:
    """An unknown outcome counts until it is settled as not charged; with a task it stays."""

    async def run() -> None:
        async with kie_of(outcome="stuck") as kie, client_of(kie, store()) as client:
            kie.plan("paid", answer=LOST)
            kie.plan("free", answer=500)
            for prompt in ("paid", "free"):
                with pytest.raises(kie4o.SubmissionUnknownError):
                    await client.submit(prompt, key=prompt)
            assert await client.spent() == Spent(unknown=of(12, 2))
            await client.settle("free", charged=False)
            assert await client.spent() == Spent(unknown=of(6, 1))
            await client.settle("paid", task_id=next(iter(kie.tasks)))
            assert await client.spent() == Spent(submitted=of(6, 1))

    run_scaled(run(), SPEED)


def test_every_submit_of_a_key_counts(store: MakeStore) -> None:
    """A failed task that was paid for again, and an unknown outcome that was."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store()) as client:
            kie.plan("x", outcome="failed")
            kie.plan("x", answer=LOST)
            with pytest.raises(kie4o.TaskFailedError):
                await client.generate("x", key="a")
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.generate("x", key="a", retry_failed=True)
            await client.generate("x", key="a", on_unknown="resubmit")
            spent = await client.spent()
            assert spent == Spent(succeeded=of(6, 1), failed=of(6, 1), unknown=of(6, 1))
            assert spent.credits == 1e6 - kie.credits == 18

    run_scaled(run(), SPEED)


def test_a_task_keeps_the_price_it_was_submitted_at(store: MakeStore) -> None:
    """Other prices in the next run change nothing; a price in fractions adds up."""

    async def run() -> None:
        async with kie_of() as kie:
            for prices in (0.1, 0.2, {1: 5, 2: 7, 4: 9}):
                async with client_of(kie, store(), prices=prices) as client:
                    await client.generate("x", n_variants=2)
            async with client_of(kie, store(), prices=100) as client:
                assert (await client.spent()).succeeded == of(7.6, 3)

    run_scaled(run(), SPEED)


def test_equal_prices_are_added_however_they_are_written(store: MakeStore) -> None:
    """6, 6.0 and 6.00 are one price."""

    async def run() -> None:
        kept = store()
        async with kie_of() as kie:
            for prices in (6, 6.0, Decimal("6.00")):
                async with client_of(kie, kept, prices=prices) as client:
                    await client.generate("x")
                    spent = await client.spent()
            assert spent.succeeded == of(18, 3)

    run_scaled(run(), SPEED)


def test_what_has_no_price_is_counted_apart(store: MakeStore) -> None:
    """A number of variants that the mapping does not have: the task counts, and its credits are not known."""

    async def run() -> None:
        async with kie_of() as kie, client_of(kie, store(), prices={1: 6, 2: 12, 4: 24}) as client:
            await client.submit("x")
            with contextlib.suppress(kie4o.KieError):
                await client.submit(ImageRequest("y", extra={"nVariants": 8}))
            spent = await client.spent()
            assert (spent.credits, spent.tasks, spent.unpriced) == (6, len(kie.tasks), len(kie.tasks) - 1)

    run_scaled(run(), SPEED)


def test_a_backup_has_the_prices(tmp_path: Path) -> None:
    """Also of what was submitted after another start; what is submitted after the copy is not in it."""

    async def run() -> None:
        async with kie_of() as kie:
            for letter in LETTERS[:3]:
                async with client_of(kie, SQLiteStore(tmp_path / "run.db")) as client:
                    await client.generate(letter, n_variants=4)
                    await client.backup(tmp_path / "copy.db")
            async with client_of(kie, SQLiteStore(tmp_path / "run.db")) as client:
                await client.generate("later")
                assert (await client.spent()).succeeded == of(78, 4)
            async with client_of(kie, SQLiteStore(tmp_path / "copy.db")) as client:
                assert (await client.spent()).succeeded == of(72, 3)

    run_scaled(run(), SPEED)


def test_what_a_killed_process_was_sending_is_unknown(tmp_path: Path) -> None:
    """It may have been charged, at the price that it had."""

    async def run() -> None:
        store = SQLiteStore(tmp_path / "run.db")
        await store.open()
        entry = Entry("a", request=ImageRequest("x"), ref="r", state=EntryState.INTENT, price=Decimal("7.5"))
        await store.save(entry)
        assert await store.spent() == Spent(unknown=of(7.5, 1))
        await store.aclose()  # as a crash would, this leaves the intent
        async with kie_of() as kie, client_of(kie, SQLiteStore(tmp_path / "run.db")) as client:
            assert await client.spent() == Spent(unknown=of(7.5, 1))

    run_scaled(run(), SPEED)


def test_memory_remembers_what_it_no_longer_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries that it drops for want of room were paid for all the same."""
    monkeypatch.setattr(memory, "KEPT", 4)
    monkeypatch.setattr(memory, "KEPT_UNKEYED", 2)

    async def run() -> None:
        async with kie_of() as kie, client_of(kie) as client:
            kie.plan("a", outcome="failed")
            await all_of(client.generate_many(LETTERS))
            for _ in range(5):
                await client.generate("x", n_variants=4)
            assert await client.spent() == Spent(succeeded=of(174, 14), failed=of(6, 1))

    run_scaled(run(), SPEED)
