"""A trace over several processes: what one has submitted, and another has found."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import postgres
import pytest
from canary import CANARY_KEY
from clients import LOST
from pages import section
from paths import IMPORT_ROOT
from portable import PATIENCE, environment
from spans import Recorder, Seen, tree

from kie4o import AsyncKieClient, PollPolicy
from kie4o.emulator import Emulator

SUPPORT = Path(__file__).parent.parent / "support"
WEBHOOK_KEY = "a webhook key"
SHOWN = ("kie4o.answer_awaited", "kie4o.recalled")


class Receiver:
    """A process that receives callbacks."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.port = 0

    async def _line(self) -> str:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            return (await self._process.stdout.readline()).decode()

    async def start(self) -> None:
        self.port = int(await self._line())

    async def spans(self) -> list[Seen]:
        """Those of the process, which ends."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        found = [Seen(**fields) for fields in json.loads(await self._line())]
        assert await self._process.wait() == 0
        return found


@asynccontextmanager
async def receiver(store: str, kie: Emulator) -> AsyncIterator[Receiver]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(SUPPORT / "otel_child.py"),
        *(store, kie.url, WEBHOOK_KEY),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment(PYTHONPATH=f"{IMPORT_ROOT}{os.pathsep}{SUPPORT}"),
    )
    try:
        one = Receiver(process)
        await one.start()
        yield one
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.once
async def test_a_lost_answer_that_a_callback_elsewhere_finds_is_one_tree(tmp_path: Path) -> None:
    """Two processes on one database. The page shows exactly this tree."""
    store, recorder = postgres.shared_url(), Recorder("process 1")
    async with (
        Emulator(clock="real", duration=0.5, webhook_key=WEBHOOK_KEY) as kie,
        receiver(store, kie) as other,
    ):
        kie.next(answer=LOST)
        callback_url = f"http://127.0.0.1:{other.port}/kie/callback"
        async with AsyncKieClient(
            CANARY_KEY, base_url=kie.url, store=store, callback_url=callback_url, poll=PollPolicy()
        ) as client:
            recorder.instrument(client)
            result = await client.generate("a harbour")
            await client.download(result, tmp_path)
        spans = [*recorder.spans(), *await other.spans()]
    assert recorder.open == 0
    [block] = [block for block in section("Traces and metrics").blocks if block.language == "text"]
    drawn = tree(spans, SHOWN)
    assert drawn == block.code, drawn
    own = [span for span in spans if span.name.startswith("kie4o.")]
    assert len({span.trace for span in own}) == 1
    assert len({span.process for span in own}) == 2
