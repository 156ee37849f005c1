"""What a waiting task costs while nothing happens: resident memory, and looks among many.

    python -m benchmarks.memory hold NAME BASE [--marks 100,1000,10000]
    python -m benchmarks.memory look NAME BASE --waiting 10000 --per-second 400 --seconds 10

`hold`: tasks that never end are submitted and left alone, in one fresh process; at each mark the
resident size is read after a garbage collection. A waiting task costs what was added since the
first mark, so that code and connections do not count.

`look`: so many tasks are looked at in turn, with pauses such that there are `per-second` looks a
second whatever their number. The CPU of each second is printed; two such processes side by side,
one with many tasks and one with few, show whether a look gets dearer among many. Nothing is frozen
here: what the garbage collector does with waiting tasks belongs to their cost.
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

_AT_ONCE = 4  # submits under way while tasks are piled up
_LONG = 100_000.0  # seconds: no second look while we measure


def resident() -> int:
    """KiB, exactly; what statm and getrusage say is counted in batches."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))


class Pile:
    """Tasks that wait."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._told = self._submitted  # one for all, since what each task holds counts as its client's
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._waiting: list[asyncio.Future[str]] = []
        self._known = 0

    def _submitted(self) -> None:
        self._known += 1
        self._gate.release()

    async def grow(self, size: int, per_second: float = 0.0) -> None:
        """Up to `size` tasks. If a rate is given they come by chance, as tasks that have waited long
        stand: were they even, many would never look in the same moment, and few often would."""
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
    """Everything that is loaded late is there before anything is measured."""
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
    """The lines on standard output: `ready`, then after a line on standard input the answer."""
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
    """Until first looks that come at once have been answered."""
    seen = -1
    while (now := counts(base)["looks"]) != seen:
        seen = now
        await asyncio.sleep(0.3)


def _answer(value: object) -> None:
    print(json.dumps(value), flush=True)
    os._exit(0)  # to cancel ten thousand tasks is no part of this


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
