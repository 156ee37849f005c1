"""`unfinished` and `resume`: tasks that are paid, or may be, and have not finished."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from batches import FEW, SPEED, all_of, at_rest, client_of, kie_of
from clients import LOST, MakeStore, until
from clocks import run_scaled

import kie4o
from kie4o.stores.memory import MemoryStore


def test_resume_waits_for_all_unfinished_tasks(store: MakeStore) -> None:
    """`unfinished` lists exactly what is submitted or unknown; `resume` waits for all of it without a POST.

    An unknown one completes with its error and is the only one left.
    """

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
            posts = len(kie.submits)
            async with client_of(kie, store()) as client:
                unfinished = {entry.request.prompt: entry async for entry in client.unfinished()}
                assert {prompt: entry.task_id for prompt, entry in unfinished.items()} == {
                    **ids,
                    "lost": None,
                }
                completions = {each.request.prompt: each async for each in client.resume()}
                assert completions.keys() == unfinished.keys()
                assert {completions[prompt].task_id for prompt in ids} == set(ids.values())
                assert all(completions[prompt].ok for prompt in ("one", "two", "no key"))
                assert len(completions["no key"].unwrap()) == 2
                assert not completions["no key"].unwrap().partial
                assert isinstance(completions["fails"].error, kie4o.ContentPolicyError)
                unknown = completions["lost"].error
                assert isinstance(unknown, kie4o.SubmissionUnknownError)
                assert (unknown.key, unknown.ref) == ("lost", unfinished["lost"].ref)
                assert [name for name, each in completions.items() if each.replayed] == ["lost"]
                assert [entry.key async for entry in client.unfinished()] == ["lost"]
                again = await client.generate("one", key="one")
                assert (again, again.source) == (completions["one"].result, "store")
                await at_rest(client)
            assert len(kie.submits) == posts

    run_scaled(run(), SPEED)


async def test_nothing_to_resume(store: MakeStore) -> None:
    """An empty store has nothing to resume."""
    async with kie_of() as kie, client_of(kie, store()) as client:
        assert await all_of(client.resume()) == []
        assert [entry async for entry in client.unfinished()] == []


async def test_unknown_outcomes_need_no_permit() -> None:
    """`resume` yields an unknown outcome while all permits are taken: it only reads the store."""
    async with kie_of(duration=3600.0) as kie:
        kie.plan("lost", answer=LOST)
        async with client_of(kie, MemoryStore(), max_in_flight=1) as client:
            with pytest.raises(kie4o.SubmissionUnknownError):
                await client.submit("lost", key="lost")
            running = asyncio.create_task(client.generate("long"))
            await until(lambda: len(kie.tasks) == 2)
            async with contextlib.aclosing(client.resume()) as completions:
                first = await asyncio.wait_for(anext(completions), 5.0)
            assert isinstance(first.error, kie4o.SubmissionUnknownError)
            running.cancel()


def test_resume_respects_max_in_flight_and_can_be_left() -> None:
    """Leaving after the first completion leaves nothing behind, and the rest can be resumed later."""

    async def run() -> None:
        async with kie_of(duration=3.0) as kie:
            async with client_of(kie, kept := MemoryStore()) as client:
                for letter in FEW:
                    await client.submit(letter, key=letter)
            async with client_of(kie, kept, max_in_flight=2) as later:
                async for completion in later.resume():
                    assert completion.ok
                    assert later._runtime.poller.waiting <= 2
                    break
                await at_rest(later)
                assert 1 <= len([entry async for entry in later.unfinished()]) < len(FEW)
                assert all(each.ok for each in await all_of(later.resume()))
                assert [entry async for entry in later.unfinished()] == []
            assert len(kie.submits) == len(FEW)

    run_scaled(run(), SPEED)
