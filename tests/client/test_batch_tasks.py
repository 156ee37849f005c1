"""The tasks of a run: none is lost or handed out twice, however a wait for them is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from clocks import run_virtual

from kie4o.batch.tasks import _ALIVE, Tasks


async def work(rng: random.Random) -> None:
    for _ in range(rng.randrange(4)):
        await asyncio.sleep(0)
    if rng.random() < 0.5:
        await asyncio.sleep(rng.choice((1.0, 1.0, 2.0, rng.random())))


@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_every_task_is_handed_out_once(first: int) -> None:
    """Also if the caller that waits is cancelled again and again, in the very turn in which one is done.

    A wake-up that is lost would show as a loop in which nothing is ready and no timer is set.
    """

    async def run(seed: int) -> None:
        rng, tasks = random.Random(seed), Tasks()
        started = {tasks.start(work(rng), "kie4o batch item") for _ in range(rng.randrange(20))}
        seen: list[asyncio.Task[object]] = []
        while True:
            waiting = asyncio.ensure_future(tasks.next())
            if rng.random() < 0.5:
                await asyncio.sleep(rng.choice((0, 0, 1.0, 2.0)))
                waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                task = await waiting
                if task is None:
                    break
                seen.append(task)
            if rng.random() < 0.2:
                started.add(tasks.start(work(rng), "kie4o batch item"))
        assert len(seen) == len(set(seen))
        assert set(seen) == started
        assert not _ALIVE & started

    for seed in range(first, first + 100):
        run_virtual(run(seed))


def test_those_that_are_cancelled_are_not_handed_out() -> None:
    """Neither one that is done already; and a caller that waits for them is told that there is none."""

    async def run() -> None:
        tasks, rng = Tasks(), random.Random(1)
        done, ready = tasks.start(asyncio.sleep(0), "a"), tasks.start(asyncio.sleep(0), "b")
        endless = tasks.start(asyncio.sleep(1e6), "c")
        await asyncio.sleep(1)
        await tasks.cancel(done)
        assert await tasks.next() is ready
        waiting = asyncio.ensure_future(tasks.next())
        await asyncio.sleep(0)
        await tasks.cancel()
        assert await waiting is None
        assert endless.cancelled()
        assert await tasks.next() is None
        later = tasks.start(work(rng), "d")
        assert await tasks.next() is later

    run_virtual(run())
