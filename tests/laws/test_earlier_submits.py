"""Law 2 for a key that is submitted again, and for a task id that two answers name: no paid task is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from clients import LOST, MakeStore, client_of, until
from faults import TASK_ID, Connection, FaultServer, accepting, answer, good_body, http, raw

import kie4o
from kie4o import AsyncKieClient, parse_callback
from kie4o.emulator import Emulator
from kie4o.stores.store import Entry, EntryState, Store

CALLBACK = "https://me.example/kie/{ref}"


async def unfinished(client: AsyncKieClient) -> list[Entry]:
    return [entry async for entry in client.unfinished()]


async def test_the_first_task_of_a_resubmitted_key_is_found_by_its_callback(
    store: MakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    """`on_unknown="resubmit"`, then the callback of the first task, which was paid after all.

    Its id is stored, logged, shown by `unfinished()`, and waited for by `resume()`, in this run and the next.
    """
    async with Emulator(duration=0.0, credits=600) as kie:
        kie.plan("a boat", answer=LOST)
        async with client_of(kie.url, store(), callback_url=CALLBACK) as client:
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("a boat", key="order-1")
            second = await client.submit("a boat", key="order-1", on_unknown="resubmit")
            [first_id] = set(kie.tasks) - {second.id}
            [unknown] = [each for each in await unfinished(client) if each.task_id is None]
            assert (unknown.ref, unknown.callers_key) == (caught.value.ref, "order-1")
            callback = parse_callback({"code": 200, "data": {"taskId": first_id}}, ref=caught.value.ref)
            with caplog.at_level("INFO", "kie4o"):
                await client.deliver(callback)
            assert first_id in caplog.text
            assert "order-1" in caplog.text
            assert (await client.generate("a boat", key="order-1")).task_id == second.id
        async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
            entry = await kept.find(key="order-1")
            assert entry is not None
            assert (entry.task_id, entry.earlier) == (second.id, (caught.value.ref,))
            earlier = await kept.find(ref=entry.earlier[0])
            assert earlier is not None
            assert (earlier.task_id, earlier.state) == (first_id, EntryState.SUCCEEDED)
        assert len(kie.submits) == 2


async def test_both_tasks_of_a_key_are_resumed(store: MakeStore) -> None:
    """A later run waits for the task that the key has, and for the earlier one once it is named."""
    async with Emulator(duration=0.0, credits=600) as kie:
        kie.plan("a boat", answer=LOST)
        async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("a boat", key="order-1")
            second = await client.submit("a boat", key="order-1", on_unknown="resubmit")
            [first_id] = set(kie.tasks) - {second.id}
            await kept.keep_callback(caught.value.ref or "", first_id)
        async with client_of(kie.url, store(), callback_url=CALLBACK) as client:
            completions = [each async for each in client.resume()]
            assert {each.task_id for each in completions} == {first_id, second.id}
            assert {each.key for each in completions} == {"order-1"}
            assert await unfinished(client) == []


async def test_a_task_that_failed_is_kept_when_its_key_is_submitted_again(store: MakeStore) -> None:
    """`retry_failed=True`: the failed, paid task is found under its id and its ref, in every later run."""
    async with Emulator(duration=0.0, credits=600) as kie:
        kie.plan("a boat", outcome="failed")
        async with client_of(kie.url, store()) as client:
            with pytest.raises(kie4o.TaskFailedError) as caught:
                await client.generate("a boat", key="order-1")
            result = await client.generate("a boat", key="order-1", retry_failed=True)
        async with client_of(kie.url, kept := store()) as client:
            with pytest.raises(kie4o.TaskFailedError):
                await client.wait(caught.value.task_id or "")
            failed = await kept.find(task_id=caught.value.task_id)
            assert failed is not None
            assert (failed.state, failed.callers_key) == (EntryState.FAILED, "order-1")
            entry = await kept.find(key="order-1")
            assert entry is not None
            assert (entry.task_id, entry.earlier) == (result.task_id, (failed.ref,))
            assert await unfinished(client) == []


async def test_a_refused_resubmit_restores_what_a_callback_has_named_meanwhile(store: MakeStore) -> None:
    """The first task is named while the second request is under way, which is then refused: the key has the
    first task, without a second payment."""
    go = asyncio.Event()

    async def refuse_late(connection: Connection) -> None:
        await connection.request()
        await go.wait()
        await connection.send(http(b'{"code":402,"msg":"no credits"}'))

    async def details(connection: Connection) -> None:
        await connection.request()
        body = b'{"code":200,"data":{"taskId":"%s","status":"GENERATING","successFlag":0}}' % TASK_ID.encode()
        await connection.send(http(body))

    async with FaultServer(raw(b""), refuse_late, details) as kie:
        async with client_of(kie.url, kept := store(), callback_url=CALLBACK) as client:
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("a boat", key="order-1")
            again = asyncio.create_task(client.submit("a boat", key="order-1", on_unknown="resubmit"))
            await until(lambda: kie.posts == 2)
            await client.deliver(parse_callback({"data": {"taskId": TASK_ID}}, ref=caught.value.ref))
            go.set()
            with pytest.raises(kie4o.InsufficientCreditsError):
                await again
            assert (await client.submit("a boat", key="order-1")).id == TASK_ID
            entry = await kept.find(ref=caught.value.ref)
            assert entry == await kept.find(key="order-1")
            assert len(await unfinished(client)) == 1
        assert kie.posts == 2


# -- one task id, two answers ----------------------------------------------------------------------


@pytest.mark.parametrize("keys", [("a", "b"), (None, None)])
async def test_an_id_that_another_submit_has_is_no_acceptance(store: MakeStore, keys: Any) -> None:
    """The outcome of the second is unknown; the error names the task and whose it is."""
    async with (
        FaultServer(answer(), answer()) as kie,
        client_of(kie.url, kept := store()) as client,
    ):
        first = await client.submit("a boat", key=keys[0])
        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
            await client.submit("a house", key=keys[1])
        assert first.id in str(caught.value)
        assert (caught.value.key, caught.value.task_id) == (keys[1], None)
        if keys[0] is not None:
            assert f"key {keys[0]!r}" in str(caught.value)
        entry = await kept.find(task_id=first.id)
        assert entry is not None
        assert entry.request.prompt == "a boat"
        lost = await kept.find(ref=caught.value.ref)
        assert lost is not None
        assert (lost.state, lost.task_id) == (EntryState.UNKNOWN, None)
        assert kie.posts == 2


async def test_a_late_answer_on_a_kept_connection_is_not_taken_for_ours(store: MakeStore) -> None:
    """A second answer to the first POST arrives after the second was written: 12 times of 12."""
    wrong = 0

    async def answers_late(connection: Connection) -> None:
        await connection.request()
        first = http(good_body(connection.server.posts)).replace(b"Connection: close\r\n", b"")
        await connection.send(first)
        await connection.request()
        await connection.send(first)  # the answer to the second never comes

    for _ in range(12):
        async with FaultServer(answers_late) as kie, client_of(kie.url) as client:
            first = await client.submit("a boat")
            outcome = (await asyncio.gather(client.submit("a house"), return_exceptions=True))[0]
            assert isinstance(outcome, kie4o.SubmissionUnknownError), outcome
            wrong += getattr(outcome, "id", None) == first.id
    assert wrong == 0


async def test_the_same_answer_again_for_the_same_submit_is_fine(store: MakeStore) -> None:
    """The control: an id that the submit itself has is saved as often as need be."""
    kept: Store = store()
    async with FaultServer(accepting) as kie, client_of(kie.url, kept) as client:
        await client.submit("a boat", key="a")
        entry = await kept.find(key="a")
        assert entry is not None
        await kept.save(entry)
        assert await kept.find(key="a") == entry
