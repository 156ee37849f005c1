"""Idempotency keys: one payment per key, across callers, clients and restarts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import clients
import pytest
from canary import CANARY_KEY
from cancelling import cancelled_at
from clients import LOST, MakeStore, state_of, until
from clocks import run_scaled
from faults import unused_port

import kie4o
from kie4o import AsyncKieClient, ImageRequest, RateLimit
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import EntryState, Store

SPEED = 20  # loop seconds per second


def client_of(url: str, store: Store | None = None, **more: Any) -> AsyncKieClient:
    """A client with a key that is long enough to be hidden."""
    return clients.client_of(url, store, api_key=CANARY_KEY, **more)


# -- the same key, the same request ----------------------------------------------------------------


def test_a_key_is_paid_once(store: MakeStore) -> None:
    """Submitted, waited for or finished, in this client and in later ones: one POST, one task, one result."""

    async def run() -> None:
        async with Emulator(duration=1.0) as kie:
            async with client_of(kie.url, store()) as client:
                task = await client.submit("x", key="a", n_variants=2)
                assert (await client.submit("x", key="a", n_variants=2)).id == task.id
                result = await client.generate("x", key="a", n_variants=2)
                assert (result.task_id, result.source, len(result)) == (task.id, "poll", 2)
                again = await client.generate("x", key="a", n_variants=2)
                assert (again, again.source, again.details) == (result, "store", result.details)
                assert again.details.raw == result.details.raw
            for _ in range(2):
                async with client_of(kie.url, store()) as later:
                    request = ImageRequest("x", n_variants=2)
                    again = await later.generate(request, key="a")
                    assert (again, again.source, again.n_variants) == (result, "store", 2)
                    assert await (await later.submit(request, key="a")) == result
            assert (len(kie.submits), kie.paid) == (1, 1)

    run_scaled(run(), SPEED)


def test_a_later_client_waits_for_what_an_earlier_one_submitted(store: MakeStore) -> None:
    """A key that an earlier process submitted is waited for, not submitted."""

    async def run() -> None:
        async with Emulator(duration=5.0) as kie:
            async with client_of(kie.url, store()) as client:
                task = await client.submit("x", key="a")
            async with client_of(kie.url, store()) as later:
                result = await later.generate("x", key="a")
            assert (result.task_id, result.source) == (task.id, "poll")
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("verbs", [["generate"] * 5, ["submit"] * 5, ["submit", "generate", "submit"]])
def test_callers_at_the_same_moment_share_one_post(store: MakeStore, verbs: list[str]) -> None:
    """Any number of concurrent calls with one key, by either verb, share one POST and one task."""

    async def run() -> None:
        async with Emulator(duration=1.0, latency=1.0) as kie, client_of(kie.url, store()) as client:
            outcomes = await asyncio.gather(*(getattr(client, verb)("x", key="a") for verb in verbs))
            ids = {
                outcome.id if verb == "submit" else outcome.task_id
                for verb, outcome in zip(verbs, outcomes, strict=True)
            }
            assert ids == set(kie.tasks)
            assert (len(kie.submits), len(ids)) == (1, 1)

    run_scaled(run(), SPEED)


def test_each_caller_gets_its_own_error() -> None:
    """Callers that share a POST each get its refusal as an error object of their own."""

    async def run() -> None:
        async with Emulator(latency=1.0) as kie, client_of(kie.url) as client:
            kie.plan("x", answer=402)
            calls = [client.generate("x", key="a"), client.submit("x", key="a")]
            first, second = await asyncio.gather(*calls, return_exceptions=True)
            assert isinstance(first, kie4o.InsufficientCreditsError)
            assert isinstance(second, kie4o.InsufficientCreditsError)
            assert first is not second
            assert (first.key, second.key, len(kie.submits)) == ("a", "a", 1)

    run_scaled(run(), SPEED)


def test_without_a_key_every_call_is_paid(store: MakeStore) -> None:
    """Equal requests without a key are submitted each."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie, client_of(kie.url, store()) as client:
            first, second = await asyncio.gather(client.generate("x"), client.generate("x"))
            assert first.task_id != second.task_id
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


def test_a_call_after_a_cancelled_one_submits_again(store: MakeStore) -> None:
    """A call that arrives while the submit of its key is being called off is not called off with it.

    A timeout followed by a second try is the most common case.
    """

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            async with client_of(kie.url, store(), rate_limit=RateLimit(1, per=3.0)) as client:
                await client.submit("takes the slot")
                first = asyncio.create_task(client.generate("x", key="a"))
                await asyncio.sleep(1.0)
                first.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await first
                result = await client.generate("x", key="a")
                assert result.task_id in kie.tasks
                assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


def test_a_first_call_that_is_cancelled_leaves_a_working_client(tmp_path: Path) -> None:
    """After a cancel while the store is being opened, the next call opens it and works."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            for at in range(4):
                async with contextlib.AsyncExitStack() as stack:
                    client = client_of(kie.url, SQLiteStore(tmp_path / f"{at}.db"))
                    stack.push_async_callback(client.aclose)
                    await cancelled_at(client.credits(), at, "pending")
                    assert (await client.generate("x", key="a")).urls

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("make", [lambda path: MemoryStore(), SQLiteStore], ids=["memory", "sqlite"])
def test_callers_cancelled_in_one_tick_leave_every_slot_free(
    make: Callable[[Path], Store], tmp_path: Path
) -> None:
    """One submit under way and three waiting for slots, all cancelled in the same turn of the loop.

    Each ends as cancelled or submitted, no slot is lost, and nothing unsent becomes unknown.
    """

    async def run() -> None:
        for ticks in range(0, 60, 3):
            async with Emulator(duration=0.0, limit=1000) as kie:
                kept = make(tmp_path / f"{ticks}.db")
                async with client_of(kie.url, kept, rate_limit=RateLimit(1, per=1.0)) as client:
                    await client.credits()  # opened
                    calls = [
                        asyncio.create_task(client.submit("x", key=f"{ticks}.{caller}"))
                        for caller in range(4)
                    ]
                    for _ in range(ticks):
                        await asyncio.sleep(0)
                    for call in calls:
                        call.cancel()
                    ends = await asyncio.gather(*calls, return_exceptions=True)
                    kinds = {type(end) for end in ends}
                    assert kinds <= {asyncio.CancelledError, kie4o.ImageTask}, ends
                    await until(lambda client=client: client._runtime.submissions.live == 0)
                    assert (client._runtime.limiter.open, client._runtime.limiter.waiting) == (0, 0)
                    unfinished = [entry async for entry in kept.unfinished()]
                    assert {entry.task_id for entry in unfinished} >= set(kie.tasks)
                    assert {entry.state for entry in unfinished} <= {EntryState.SUBMITTED}
                    for caller in range(4):
                        assert await state_of(kept, f"{ticks}.{caller}") is not EntryState.INTENT
                    await asyncio.wait_for(client.submit("after"), 50.0)

    run_scaled(run(), SPEED)


# -- the same key, another request -----------------------------------------------------------------


def test_another_request_under_a_key_is_a_conflict(store: MakeStore) -> None:
    """`KeyConflictError` before anything is sent, whatever the state of the first request.

    The first request goes on undisturbed.
    """

    async def run() -> None:
        async def conflicts(client: AsyncKieClient) -> None:
            for verb in (client.submit, client.generate):
                for other in (ImageRequest("y"), ImageRequest("x", size="3:2")):
                    with pytest.raises(kie4o.KeyConflictError, match="another request") as caught:
                        await verb(other, key="a", retry_failed=True, on_unknown="resubmit")
                    assert caught.value.key == "a"

        async with Emulator(duration=1.0, latency=1.0) as kie:
            async with client_of(kie.url, store()) as client:
                call = asyncio.create_task(client.submit("x", key="a"))
                await until(lambda: len(kie.submits) == 1)
                await conflicts(client)
                task = await call
                await conflicts(client)
                await task
                await conflicts(client)
            async with client_of(kie.url, store()) as later:
                await conflicts(later)
                assert (await later.generate("x", key="a")).task_id == task.id
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


BAD_KEYS = [
    *("", " ", "\t", "a\nb", "a\0b", "a\x7f", "\x85", "\u2028", "\ud800", "a\udfff", "k" * 513),
    *(5, 1.5, True, b"a", ["a"], object),
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: ascii(key)[:12])
async def test_an_unusable_key_is_refused(key: object, tmp_path: Path) -> None:
    """A key that is blank, too long, unprintable, not UTF-8 or not text is refused.

    That happens before the store is opened or anything is sent.
    """
    async with Emulator() as kie:
        client = client_of(kie.url, SQLiteStore(tmp_path / "run.db"))
        for verb in (client.submit, client.generate):
            with pytest.raises(kie4o.InvalidRequestError, match="key="):
                await verb("x", key=key)
        await client.aclose()
        assert not kie.requests
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["k" * 512, "Auftrag № 5 / süß", "🎨", "a'b\"c\\d%_", "INF", "0"])
async def test_any_printable_text_is_a_key(key: str, store: MakeStore) -> None:
    """Up to 512 printable characters of any script are a key, and differ from any other."""
    async with Emulator() as kie, client_of(kie.url, store()) as client:
        task = await client.submit("x", key=key)
        assert (await client.submit("x", key=key)).id == task.id
        assert (await client.submit("x", key=key[:-1] + "~")).id != task.id
        assert len(kie.submits) == 2


# -- failed tasks ----------------------------------------------------------------------------------


def test_a_failed_task_is_final_for_its_key(store: MakeStore) -> None:
    """The failure is raised again from the store, without a POST, until `retry_failed` is passed.

    After that the new result is final, in later clients too.
    """

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("x", outcome="policy")
            async with client_of(kie.url, store()) as client:
                with pytest.raises(kie4o.ContentPolicyError) as first:
                    await client.generate("x", key="a")
                with pytest.raises(kie4o.ContentPolicyError) as second:
                    await client.generate("x", key="a")
                assert (await client.submit("x", key="a")).id == first.value.task_id
            async with client_of(kie.url, store()) as client:
                with pytest.raises(kie4o.ContentPolicyError) as third:
                    await client.generate("x", key="a")
                for again in (second.value, third.value):
                    assert (again.task_id, str(again)) == (first.value.task_id, str(first.value))
                    assert (again.error_code, again.details) == (400, first.value.details)
                assert len(kie.submits) == 1
                result = await client.generate("x", key="a", retry_failed=True)
                assert result.task_id != first.value.task_id
                assert len(kie.submits) == 2
                for retry_failed in (True, False):
                    again = await client.generate("x", key="a", retry_failed=retry_failed)
                    assert (again, again.source) == (result, "store")
            async with client_of(kie.url, store()) as client:
                assert await client.generate("x", key="a", retry_failed=True) == result
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


def test_waiting_for_the_failed_task_does_not_change_the_new_one(store: MakeStore) -> None:
    """A wait for the failed task by its id raises its failure; the key keeps the task of the resubmit."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("x", outcome="failed")
            kept = store()
            async with client_of(kie.url, kept) as client:
                with pytest.raises(kie4o.TaskFailedError) as failed:
                    await client.generate("x", key="a")
                kie.plan("x", duration=5.0)
                task = await client.submit("x", key="a", retry_failed=True)
                with pytest.raises(kie4o.TaskFailedError):
                    await client.wait(failed.value.task_id)
                entry = await kept.find(key="a")
                assert (entry.state, entry.task_id, entry.details) == (EntryState.SUBMITTED, task.id, None)
                assert (await client.generate("x", key="a")).task_id == task.id
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)


def test_a_retry_that_was_refused_leaves_the_failure_final(store: MakeStore) -> None:
    """If Kie refuses the resubmit, a call without `retry_failed` still raises the failure and pays
    nothing."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("x", outcome="failed")
            async with client_of(kie.url, store()) as client:
                with pytest.raises(kie4o.TaskFailedError) as failed:
                    await client.generate("x", key="a")
                kie.plan("x", answer=402)
                with pytest.raises(kie4o.InsufficientCreditsError):
                    await client.generate("x", key="a", retry_failed=True)
            async with client_of(kie.url, store()) as client:
                with pytest.raises(kie4o.TaskFailedError) as again:
                    await client.generate("x", key="a")
                assert again.value.task_id == failed.value.task_id
                assert (len(kie.submits), kie.paid) == (2, 1)

    run_scaled(run(), SPEED)


# -- unknown outcomes ------------------------------------------------------------------------------


def test_an_unknown_outcome_is_held_with_its_ref(store: MakeStore) -> None:
    """By default the key is not sent again, before or after a restart.

    Every error carries the key and the ref of the one submit.
    """

    async def run() -> None:
        async with Emulator() as kie:
            kie.plan("x", answer=LOST)
            refs = set()
            for _ in range(2):
                async with client_of(kie.url, store()) as client:
                    for verb in (client.submit, client.generate):
                        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                            await verb("x", key="a")
                        assert caught.value.key == "a"
                        refs.add(caught.value.ref)
            assert len(refs) == 1
            assert refs.pop()
            assert (len(kie.submits), kie.paid) == (1, 1)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("later", [False, True])
def test_resubmit_pays_again(store: MakeStore, later: bool) -> None:
    """`on_unknown="resubmit"` sends the request again and here pays twice, as documented.

    The new result is final: a further call does not send it.
    """

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("x", answer=LOST)
            kept = store()
            client = client_of(kie.url, kept)
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.generate("x", key="a", on_unknown="resubmit")  # not unknown yet
            assert len(kie.submits) == 1
            if later:
                await client.aclose()
                client = client_of(kie.url, kept := store())
            result = await client.generate("x", key="a", on_unknown="resubmit")
            assert (len(kie.submits), kie.paid) == (2, 2)
            assert await state_of(kept, "a") is EntryState.SUCCEEDED
            for on_unknown in ("resubmit", "hold"):
                assert await client.generate("x", key="a", on_unknown=on_unknown) == result
            assert len(kie.submits) == 2
            await client.aclose()

    run_scaled(run(), SPEED)


def test_a_resubmit_that_was_refused_leaves_the_outcome_unknown(store: MakeStore) -> None:
    """If Kie refuses the resubmit, the first may still be paid: a call that does not opt in sends nothing."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            kie.plan("x", answer=LOST)
            async with client_of(kie.url, store()) as client:
                with pytest.raises(kie4o.SubmissionUnknownError):
                    await client.generate("x", key="a")
                kie.plan("x", answer=402)
                with pytest.raises(kie4o.InsufficientCreditsError):
                    await client.generate("x", key="a", on_unknown="resubmit")
            async with client_of(kie.url, store()) as client:
                with pytest.raises(kie4o.SubmissionUnknownError):
                    await client.generate("x", key="a")
                assert (len(kie.submits), kie.paid) == (2, 1)

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("on_unknown", ["Hold", "", None, True, "resend"])
async def test_other_words_for_on_unknown_are_refused(on_unknown: object) -> None:
    """An option that may pay twice is spelled exactly or refused."""
    async with Emulator() as kie, client_of(kie.url) as client:
        for verb in (client.submit, client.generate):
            with pytest.raises(kie4o.InvalidRequestError, match="'hold' or 'resubmit'"):
                await verb("x", key="a", on_unknown=on_unknown)
        assert len(kie.submits) == 0


# -- refused and not sent --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 401, 402, 403, 404, 422, 433, 451, 505])
def test_a_refused_key_may_be_used_again(store: MakeStore, code: int) -> None:
    """A refusal costs nothing: the next call with the key sends the request, here and after a restart."""

    async def run() -> None:
        async with Emulator(duration=0.0) as kie:
            for _ in range(2):
                async with client_of(kie.url, store()) as client:
                    kie.plan("x", answer=code)
                    with pytest.raises(kie4o.APIStatusError) as caught:
                        await client.generate("x", key="a")
                    assert caught.value.key == "a"
                    assert [entry async for entry in client.unfinished()] == []
            async with client_of(kie.url, store()) as client:
                assert (await client.generate("x", key="a")).urls
            assert (len(kie.submits), kie.paid) == (3, 1)

    run_scaled(run(), SPEED)


def test_a_key_that_was_not_sent_may_be_used_again(store: MakeStore) -> None:
    """A call that could not connect paid nothing: the next call with its key sends the request once."""

    async def run() -> None:
        async with client_of(f"http://127.0.0.1:{unused_port()}", kept := store()) as client:
            with pytest.raises(kie4o.APIConnectionError) as caught:
                await client.generate("x", key="a")
            assert caught.value.key == "a"
            assert await state_of(kept, "a") is None
        async with Emulator(duration=0.0) as kie, client_of(kie.url, store()) as client:
            assert (await client.generate("x", key="a")).urls
            assert len(kie.submits) == 1

    run_scaled(run(), SPEED)


@pytest.mark.parametrize("key", ["a", None])
def test_nothing_is_claimed_during_the_delay_before_a_resend(store: MakeStore, key: str | None) -> None:
    """Between a 429 and the next attempt the key is PLANNED and counts as not submitted.

    So a crash in that long delay leaves no UNKNOWN behind. Without a key nothing is saved at all.
    """

    async def run() -> None:
        async with Emulator(duration=0.0) as kie, client_of(kie.url, kept := store()) as client:
            kie.plan("x", answer=429)
            call = asyncio.create_task(client.submit("x", key=key))
            await until(lambda: len(kie.submits) == 1)
            await asyncio.sleep(4.0)  # of a delay of ten
            assert not call.done()
            if key is not None:
                entry = await kept.find(key=key)
                assert (entry.state, entry.task_id, entry.submitted_at) == (EntryState.PLANNED, None, None)
            assert [entry async for entry in kept.unfinished()] == []
            assert await kept.recent(3600.0) == []
            task = await call
            assert [entry.task_id async for entry in kept.unfinished()] == [task.id]
            assert len(kie.submits) == 2

    run_scaled(run(), SPEED)
