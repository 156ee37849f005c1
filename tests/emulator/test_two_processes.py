"""An ordinary client in one process and the emulator in another, in real time a hundred times as fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from paths import IMPORT_ROOT

from kie4o.emulator import Emulator

pytestmark = pytest.mark.once

TASKS = 1000
SPEED = 100

CLIENT = f"""
import asyncio, json, time
from kie4o import AsyncKieClient

async def main():
    async with AsyncKieClient(speed={SPEED}) as client:
        bad = [
            repr(done.error)
            async for done in client.generate_many(f"p{{number}}" for number in range({TASKS}))
            if not done.ok
        ]
    print(json.dumps([bad, time.process_time()]))

asyncio.run(main())
"""


@pytest.fixture
def hogs() -> Iterator[None]:
    """Two processes that use as much CPU as they get."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2)]
    yield
    for process in running:
        process.kill()
        process.wait()


def run_client(kie: Emulator) -> tuple[list[str], float]:
    """What went wrong, and the CPU time of the client."""
    settings = {"KIE_BASE_URL": kie.url, "KIE_API_KEY": "any", "PYTHONPATH": str(IMPORT_ROOT)}
    out = subprocess.run(
        [sys.executable, "-c", CLIENT], env=os.environ | settings, capture_output=True, text=True, check=True
    ).stdout
    bad, cpu = json.loads(out)
    return bad, cpu


@pytest.mark.sweep
def test_a_thousand_tasks_end(hogs: None) -> None:
    """Beside two CPU hogs, within the limits of the emulator, and nothing is paid twice."""
    with Emulator.in_thread(speed=SPEED, looks=3, credits=6 * TASKS, pictures=False) as kie:
        bad, _ = run_client(kie)
        assert bad == []
        assert (kie.paid, len(kie.submits), kie.answers("look")[429]) == (TASKS, TASKS, 0)
        assert {len(task.looks) for task in kie.tasks.values()} == {3}


@pytest.mark.paced
def test_the_emulator_takes_less_cpu_than_the_client() -> None:
    """Per task; its thread alone works in this process."""
    with Emulator.in_thread(speed=SPEED, looks=3, credits=6 * TASKS, pictures=False) as kie:
        before = time.process_time()
        bad, cpu = run_client(kie)
        assert bad == []
        assert time.process_time() - before < cpu
