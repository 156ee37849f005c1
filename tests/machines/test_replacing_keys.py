"""The recipe of docs/operating.md that replaces the API key of a running service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import postgres
import pytest
from clients import until
from machines import PATIENCE, adapted
from pages import section

import kie4o
from kie4o import AsyncKieClient
from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

NAMED = "?account=shop"


def service(code: str, monkeypatch: pytest.MonkeyPatch, kie: Emulator) -> Any:
    """What the recipe makes, with the old key in its environment."""
    monkeypatch.setenv("KIE_API_KEY", "old")
    monkeypatch.setenv("KIE_BASE_URL", kie.url)
    namespace: dict[str, Any] = {"__name__": "recipe"}
    exec(compile(adapted(code, postgres.shared_url()), "recipe", "exec"), namespace)
    return namespace["Kie"]()


@pytest.mark.parametrize("named", [True, False], ids=["a name", "no name"])
async def test_a_key_is_replaced_while_a_task_is_in_flight(
    named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its waiter gets its images, and the same order with the new key is not paid again. The control: without
    a name for the account it is."""
    [block] = section("Replacing keys").blocks
    code = block.code if named else block.code.replace(NAMED, "")
    assert (code == block.code) is named
    async with (
        asyncio.timeout(PATIENCE),
        Emulator(clock="real", duration=3.0, api_key="old", caps={"new": 1e6}) as kie,
    ):
        here = service(code, monkeypatch, kie)
        waiting = asyncio.create_task(here.client.generate("x", key="order-1"))
        await until(lambda: len(kie.tasks) == 1)
        old, replacing = here.client, asyncio.create_task(here.replace("new"))
        await until(lambda: here.client is not old)
        async with here.client as new:
            again, other = await asyncio.gather(
                new.generate("x", key="order-1"), new.generate("y", key="order-2")
            )
            result = await waiting
            await replacing
            assert (again == result) is named
            assert other.task_id != result.task_id
            assert kie.paid == (2 if named else 3)
            with pytest.raises(kie4o.KieError, match="closed"):
                await old.credits()


async def test_a_file_goes_from_one_key_to_the_next(tmp_path: Path) -> None:
    """The old client is closed first. Its wait ends with the task, and the new one goes on with it."""
    async with Emulator(duration=20.0, api_key="old", caps={"new": 1e6}) as kie:
        store = tmp_path / "run.db"
        async with AsyncKieClient("old", base_url=kie.url, store=store) as old:
            waiting = asyncio.create_task(old.generate("x", key="order-1"))
            await until(lambda: old._runtime.poller.waiting)
        with pytest.raises(kie4o.KieError) as caught:
            await waiting
        [task_id] = kie.tasks
        assert caught.value.task_id == task_id
        async with AsyncKieClient("new", base_url=kie.url, store=store) as new:
            assert (await new.generate("x", key="order-1")).task_id == task_id
        assert kie.paid == 1
