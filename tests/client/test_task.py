"""The handle of a task: each look that sees the end saves it, and a forgotten await is warned of by name."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from canary import CANARY_KEY
from clients import QUICK, MakeStore, client_of, state_of
from clocks import run_scaled

import kie4o
from kie4o import AsyncKieClient, ImageTask, TaskPoller, TaskState
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import EntryState


class StopHere(Exception):
    """Raised by an `on_update`."""


async def by_updates(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    async for details in task.updates():
        if details.state is not TaskState.RUNNING:  # it is saved before it is shown
            assert await state_of(client._runtime.store, "k") is EntryState(details.state.value)


async def by_leaving_updates(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    async for details in task.updates():
        if details.state is not TaskState.RUNNING:
            break


async def by_task_details(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    while (await task.details()).state is TaskState.RUNNING:
        pass


async def by_client_details(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    while (await client.details(task.id)).state is TaskState.RUNNING:
        pass


async def by_download(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    await asyncio.sleep(3.0)
    try:
        assert len(await client.download(task.id, folder)) == 1
    except kie4o.DownloadError as error:
        assert "it failed" in str(error)


async def by_on_update_that_raises(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    def on_update(details: kie4o.TaskDetails) -> None:
        if details.state is not TaskState.RUNNING:
            raise StopHere

    with pytest.raises(StopHere):
        await task.wait(on_update=on_update)


async def by_cancelled_on_update(client: AsyncKieClient, task: ImageTask, folder: Path) -> None:
    ended = asyncio.Event()

    async def on_update(details: kie4o.TaskDetails) -> None:
        if details.state is not TaskState.RUNNING:
            ended.set()
            await asyncio.sleep(1000.0)

    wait = asyncio.create_task(task.wait(on_update=on_update))
    await ended.wait()
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait


WAYS = [by_updates, by_leaving_updates, by_task_details, by_client_details, by_download]
WAYS += [by_on_update_that_raises, by_cancelled_on_update]


@pytest.mark.parametrize("outcome", ["success", "policy"])
@pytest.mark.parametrize("see_end", WAYS)
def test_whatever_sees_the_end_saves_it(
    see_end: Callable[..., Any], outcome: str, store: MakeStore, tmp_path: Path
) -> None:
    """The next run finds the outcome under the key and neither polls nor pays, also of a failed task."""

    async def run() -> None:
        async with Emulator(duration=2.0, outcome=outcome) as kie:
            async with client_of(kie.url, store()) as client:
                task = await client.submit("x", key="k")
                await see_end(client, task, tmp_path)
                saved = EntryState.SUCCEEDED if outcome == "success" else EntryState.FAILED
                assert await state_of(client._runtime.store, "k") is saved
            looks = len(kie.looks(task.id))
            async with client_of(kie.url, store()) as later:
                assert [entry async for entry in later.unfinished()] == []
                if outcome == "success":
                    assert (await later.generate("x", key="k")).source == "store"
            assert (len(kie.looks(task.id)), len(kie.submits)) == (looks, 1)

    run_scaled(run(), 10)


def test_updates_of_a_task_that_kie_has_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """After 14 days the task has failed, as for a wait, and is not unfinished for ever."""

    async def run() -> None:
        store = MemoryStore()
        async with Emulator(outcome="missing") as kie, client_of(kie.url, store, poll=QUICK) as client:
            task = await client.submit("x", key="k")
            now = kie4o.clock.unix_time()
            monkeypatch.setattr("kie4o.clock.unix_time", lambda: now + 15 * 86400.0)
            with pytest.raises(kie4o.TaskNotFoundError):
                async for details in client.task(task.id).updates():
                    assert details.state is TaskState.MISSING
            assert await state_of(store, "k") is EntryState.FAILED
            assert [entry async for entry in client.unfinished()] == []

    run_scaled(run(), 40)


async def test_updates_open_the_client(store: MakeStore) -> None:
    """As every other call does, so that the end they see is saved."""
    async with Emulator(duration=0.0) as kie:
        async with client_of(kie.url, store()) as client:
            task = await client.submit("x", key="k")
        later = client_of(kie.url, kept := store())
        try:
            assert [each.state async for each in later.task(task.id).updates()] == [TaskState.SUCCEEDED]
            assert await state_of(kept, "k") is EntryState.SUCCEEDED
        finally:
            await later.aclose()


async def test_updates_of_a_closed_client() -> None:
    """They are refused like every other call."""
    async with Emulator() as kie:
        async with client_of(kie.url) as client:
            task = await client.submit("x")
        with pytest.raises(kie4o.KieError, match="closed"):
            async for _ in task.updates():
                pass
        assert kie.looks(task.id) == []


FORGOTTEN: dict[str, Callable[[AsyncKieClient, ImageTask], object]] = {
    "AsyncKieClient.submit": lambda client, task: client.submit("x"),
    "AsyncKieClient.generate": lambda client, task: client.generate("x"),
    "AsyncKieClient.wait": lambda client, task: client.wait(task.id),
    "AsyncKieClient.details": lambda client, task: client.details(task.id),
    "AsyncKieClient.download": lambda client, task: client.download(task.id, "."),
    "AsyncKieClient.download_url": lambda client, task: client.download_url(task.id, "https://x.example/a"),
    "AsyncKieClient.upload": lambda client, task: client.upload(b"x"),
    "AsyncKieClient.upload_from_url": lambda client, task: client.upload_from_url("https://x.example/a"),
    "AsyncKieClient.credits": lambda client, task: client.credits(),
    "AsyncKieClient.aclose": lambda client, task: client.aclose(),
    "ImageTask.wait": lambda client, task: task.wait(),
    "ImageTask.details": lambda client, task: task.details(),
    "ImageTask.__await__": lambda client, task: task.__await__(),
    "TaskPoller.wait": lambda client, task: TaskPoller(client.details).wait(task.id),
    "TaskPoller.look": lambda client, task: TaskPoller(client.details).look(task.id),
    "CallbackReceiver.receive": lambda client, task: client.receiver(allow_unsigned=True).receive([], b""),
}


@pytest.mark.parametrize("name", FORGOTTEN)
def test_a_forgotten_await_is_warned_of_by_the_name_of_the_call(name: str) -> None:
    """Python's warning names what the caller wrote, not a part of the client."""
    client = AsyncKieClient(CANARY_KEY)
    sentence = re.escape(f"coroutine '{name}' was never awaited")
    with pytest.warns(RuntimeWarning, match=sentence):
        FORGOTTEN[name](client, client.task("a" * 32))
        gc.collect()
