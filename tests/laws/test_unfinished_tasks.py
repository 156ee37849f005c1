"""A client without a store of the caller's forgets its tasks: it says which, once, when it closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import pytest
from canary import CANARY_KEY
from clients import LOST, client_of, until
from portable import interruptible

import kie4o
from kie4o.emulator import Emulator
from kie4o.stores.memory import MemoryStore

SCRIPT = """
import asyncio
from kie4o import AsyncKieClient

async def main():
    async with AsyncKieClient({key!r}, base_url={url!r}) as client:
        await asyncio.gather(*(client.generate(f"Lake {{number}} by night") for number in range(5)))

asyncio.run(main())
"""


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.posix("SIGINT for a child process")
async def test_ctrl_c_shows_every_paid_id() -> None:
    """A script as in the README, without logging set up, interrupted while its five tasks run."""
    async with Emulator(clock="real", duration=600.0) as kie:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            SCRIPT.format(key=CANARY_KEY, url=kie.url),
            stderr=asyncio.subprocess.PIPE,
            **interruptible(),
        )
        try:
            await until(lambda: kie.paid == 5)
            await asyncio.sleep(0.2)  # until the responses have been read
            child.send_signal(signal.SIGINT)
            _, shown = await asyncio.wait_for(child.communicate(), 20)
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        lines = [line for line in shown.decode().splitlines() if "is paid and not finished" in line]
        assert len(lines) == 5
        for task_id, task in kie.tasks.items():
            [line] = [line for line in lines if task_id in line]
            assert f"prompt '{task.request['prompt']}'" in line
            assert f"client.wait('{task_id}')" in line


async def test_what_is_said_of_each(caplog: pytest.LogCaptureFixture) -> None:
    """Its id or ref, its key, the start of its prompt; nothing of a task that has finished."""
    async with Emulator(clock="real", duration=0.0) as kie:
        client = client_of(kie.url)
        await client.generate("a finished one", key="order-1")
        task = await client.submit("a long prompt " * 10, key="order-2")
        kie.plan("a lost one", answer=LOST)
        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
            await client.submit("a lost one")
        await client.aclose()
        await client.aclose()
        paid, unknown = warnings_in(caplog)
        assert task.id in paid
        assert "key 'order-2'" in paid
        assert "a long prompt a long prompt" in paid
        assert len(paid) < 250
        assert caught.value.ref is not None
        assert caught.value.ref in unknown
        assert "kie.ai/logs" in unknown


@pytest.mark.parametrize("kind", ["object", "file"])
async def test_a_store_of_the_callers_is_left_alone(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It remembers the tasks: there is nothing to say."""
    store = MemoryStore() if kind == "object" else tmp_path / "run.db"
    async with Emulator(clock="real", duration=0.0) as kie:
        async with client_of(kie.url, store=store) as client:
            await client.submit("a boat")
        assert warnings_in(caplog) == []
