"""Tests of a program that uses kie4o, as someone else writes them: with nothing but the plugin."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from shop import credits_left, picture

from kie4o import (
    AsyncKieClient,
    InsufficientCreditsError,
    SubmissionUnknownError,
    TaskTimeoutError,
)
from kie4o.emulator import Emulator, ThreadedEmulator
from kie4o.webhooks import routes


@pytest.mark.asyncio
async def test_a_picture_is_paid_once(kie: Emulator) -> None:
    assert (await picture("A lake")).startswith(kie.url)
    assert kie.paid == 1


@pytest.mark.asyncio
async def test_what_was_asked(kie: Emulator) -> None:
    await picture("A lake")
    [task] = kie.tasks.values()
    assert task.request["size"] == "3:2"


@pytest.mark.asyncio
async def test_a_refused_prompt(kie: Emulator) -> None:
    kie.plan("A forbidden lake", outcome="policy")
    assert await picture("A forbidden lake") == "we cannot draw that"


@pytest.mark.asyncio
async def test_maintenance(kie: Emulator) -> None:
    kie.next(answer=455)
    start = asyncio.get_running_loop().time()
    await picture("A lake")
    assert asyncio.get_running_loop().time() - start > 60
    assert (len(kie.submits), kie.paid) == (2, 1)


@pytest.mark.asyncio
@pytest.mark.kie(duration=300)
async def test_a_task_of_five_minutes(kie_client: AsyncKieClient) -> None:
    task = await kie_client.submit("A slow lake")
    with pytest.raises(TaskTimeoutError):
        await task.wait(timeout=290)
    await asyncio.sleep(10)
    assert (await task.details()).urls


@pytest.mark.asyncio
async def test_a_crash_and_resume(kie: Emulator, tmp_path: Path) -> None:
    async def run() -> str:
        async with AsyncKieClient(store=tmp_path / "run.db") as client:
            return (await client.generate("A lake", key="order-1"))[0]

    crashed = asyncio.create_task(run())
    await asyncio.sleep(5)
    crashed.cancel()
    await asyncio.wait([crashed])
    assert (await run()).startswith(kie.url)
    assert kie.paid == 1


@pytest.mark.asyncio
@pytest.mark.kie(webhook_key="w")
async def test_a_callback(kie: Emulator, kie_client: AsyncKieClient) -> None:
    app = web.Application()
    app.add_routes(routes(kie_client, "/kie/{ref}"))
    async with TestServer(app) as server:
        url = f"http://127.0.0.1:{server.port}/kie/{{ref}}"
        result = await kie_client.generate("A bell", callback_url=url)
    assert result.source == "callback"
    assert [call.status for call in kie.callbacks] == [200]


@pytest.mark.asyncio
async def test_a_lost_answer(kie: Emulator, kie_client: AsyncKieClient) -> None:
    kie.next(answer="dropped")
    with pytest.raises(SubmissionUnknownError):
        await kie_client.generate("A lake", key="order-1")
    with pytest.raises(SubmissionUnknownError):
        await kie_client.generate("A lake", key="order-1")
    assert kie.paid == 1


@pytest.mark.asyncio
@pytest.mark.kie(credits=6)
async def test_an_empty_account(kie: Emulator, kie_client: AsyncKieClient) -> None:
    await kie_client.generate("A lake")
    with pytest.raises(InsufficientCreditsError):
        await kie_client.generate("A sea")
    assert kie.credits == 0


@pytest.mark.asyncio
@pytest.mark.kie(credits=600)
async def test_a_batch_of_a_hundred(kie: Emulator, kie_client: AsyncKieClient) -> None:
    done = [each async for each in kie_client.generate_many(f"Lake {number}" for number in range(100))]
    assert all(each.ok for each in done)
    assert kie.windows() == 20


def test_a_page_that_is_not_asynchronous(kie: ThreadedEmulator, kie_client: AsyncKieClient) -> None:
    kie.run(kie_client.submit("A lake"))
    assert credits_left() == 994


def test_another_client(kie_session: ThreadedEmulator) -> None:
    body = json.dumps({"prompt": "A lake", "size": "1:1"}).encode()
    headers = {"Authorization": "Bearer any", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{kie_session.url}/api/v1/gpt4o-image/generate", body, headers)
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["data"]["taskId"] in kie_session.tasks
