"""What a waiting task costs: resident memory, and CPU of looks among many tasks.

    python -m benchmarks.memory hold NAME BASE [--marks 100,1000,10000]
    python -m benchmarks.memory look NAME BASE --waiting 10000 --per-second 400 --seconds 10

`hold` submits tasks that never end in a fresh process, and reads the resident size at each mark after a
garbage collection. The cost of a task is computed from the growth since the first mark, which excludes code
and connections.

`look` polls that many waiting tasks, at an interval that gives `per-second` looks per second whatever their
number, and prints the CPU time of each second. Two such processes at the same time, one with many tasks and
one with few, show whether a look costs more among many. The garbage collector is not frozen, since its work
on waiting tasks is part of their cost.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

from .clients import Run, load
from .processes import counts, pin, set_server
from .turns import run_tasks

_AT_ONCE = 4  # concurrent submits
_LONG = 100_000.0  # seconds between looks: no second look during the measurement


def resident() -> int:
    """The resident size in KiB. It is exact, unlike the values of statm and getrusage."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


class Pile:
    """A growing number of waiting tasks."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told = self._submitted  # one for all tasks: what each holds counts as memory of its client
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._waiting: list[asyncio.Future[str]] = []
        self._known = 0

    def _submitted(self) -> None:
        self._known += 1
        self._gate.release()

    async def grow(self, size: int, per_second: float = 0.0) -> None:
        """Grow to `size` tasks. If a rate is given they start at random times, as if they had waited for
        long; with even intervals, looks of many tasks would never coincide and those of few often would."""
        loop, rng = asyncio.get_running_loop(), random.Random(1)
        began, within = loop.time(), size / (per_second or 1.0)
        for due in sorted(rng.uniform(0.0, within) for _ in range(size - len(self._waiting))):
            if per_second:
                await asyncio.sleep(max(0.0, began + due - loop.time()))
            await self._gate.acquire()
            self._waiting.append(asyncio.ensure_future(self._run(self._told)))
        while self._known < size:
            await asyncio.sleep(0.05)
            self.check()

    def check(self) -> None:
        for task in self._waiting:
            if task.done():
                raise RuntimeError(f"a task that never ends did: {task.exception() or task.result()}")


@contextlib.asynccontextmanager
async def _warm(name: str, base: str, interval: float) -> AsyncIterator[Pile]:
    """A pile in a process that has already run tasks, so that late imports are not measured."""
    set_server(base, looks=1)
    async with load(name)(base, 0.001) as run:
        await run_tasks(run, 40, _AT_ONCE)
    set_server(base, looks=0)
    async with load(name)(base, interval) as run:
        yield Pile(run)


async def hold(name: str, base: str, marks: list[int]) -> None:
    async with _warm(name, base, _LONG) as pile:
        sizes = {}
        for mark in marks:
            await pile.grow(mark)
            await _quiet(base)
            pile.check()
            gc.collect()
            sizes[mark] = resident()
        first = marks[0]
        over = {mark: (sizes[mark] - sizes[first]) / (mark - first) for mark in marks[1:]}
        _answer({"kib": over, "resident": sizes})


async def look(name: str, base: str, waiting: int, per_second: float, seconds: int) -> None:
    """Print `ready`; after a line on standard input, measure and print the answer."""
    async with _warm(name, base, waiting / per_second) as pile:
        await pile.grow(waiting, per_second)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        took, looks = [], []
        for _ in range(seconds):
            before, since = counts(base)["looks"], time.process_time()
            await asyncio.sleep(1.0)
            took.append(time.process_time() - since)
            looks.append(counts(base)["looks"] - before)
        pile.check()
        _answer({"took": took, "looks": looks})


async def _quiet(base: str) -> None:
    """Wait until the first looks of clients that look at once are answered."""
    seen = -1
    while (now := counts(base)["looks"]) != seen:
        seen = now
        await asyncio.sleep(0.3)


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)
    os._exit(0)  # without cancelling ten thousand tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["hold", "look"])
    parser.add_argument("name")
    parser.add_argument("base")
    parser.add_argument("--marks", default="100,1000,10000")
    parser.add_argument("--waiting", type=int, default=10_000)
    parser.add_argument("--per-second", type=float, default=400.0)
    parser.add_argument("--seconds", type=int, default=10)
    words = parser.parse_args()
    pin()
    if words.what == "hold":
        asyncio.run(hold(words.name, words.base, [int(mark) for mark in words.marks.split(",")]))
    else:
        asyncio.run(look(words.name, words.base, words.waiting, words.per_second, words.seconds))


if __name__ == "__main__":
    main()
