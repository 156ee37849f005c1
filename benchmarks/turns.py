"""CPU of two clients that take turns in one process, in short slices.

    python -m benchmarks.turns NAME FLOOR BASE --in-flight 20 [--seconds 8] [--no-looks]

On a shared machine, separate processes differ by 20 % and more, because the machine is faster at some times
than at others. Here such changes affect both clients: slices alternate A B B A A B ..., each neighbouring
pair gives one ratio, and the result is their median with a bootstrap interval. The control is a client
against itself, which gives 1.00 within 0.02.

A slice runs some tasks as fast as possible, in process time (all threads, no sleep). Tasks of 1 submit and
4 looks give the cost of a task; the difference to tasks of 24 looks gives the cost of a look.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import attrs

from .clients import Run, load
from .processes import pin, set_server

FEW, MANY = 4, 24  # looks per task
INTERVALS = {4: 0.0, 20: 0.002, 100: 0.002}  # in flight: seconds between looks
_TASKS = {4: 24, 20: 40}  # with few looks, per slice; otherwise as many as are in flight
_LEAST = 4  # blocks, whatever their duration
Took = dict[int, list[tuple[float, float]]]  # by looks per task: seconds per task, of A and of B


@attrs.frozen
class Spread:
    """A median and its 90 % bootstrap interval, from `low` to `high`."""

    median: float
    low: float
    high: float
    n: int


def spread(values: Sequence[float], draws: int = 1000) -> Spread:
    rng = random.Random(1)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(draws))
    low, high = medians[round(0.05 * draws)], medians[round(0.95 * draws) - 1]
    return Spread(statistics.median(values), low, high, len(values))


async def run_tasks(run: Run, tasks: int, in_flight: int) -> None:
    numbers = iter(range(tasks))

    async def worker() -> None:
        for _ in numbers:
            await run(lambda: None)

    async with asyncio.TaskGroup() as group:
        for _ in range(in_flight):
            group.create_task(worker())


class Turns:
    """Two clients in one process, the second of which is the baseline."""

    def __init__(self, runs: tuple[Run, Run], base: str, in_flight: int) -> None:
        self._runs = runs
        self._base = base
        self._in_flight = in_flight
        self._tasks = {FEW: _TASKS.get(in_flight, in_flight), MANY: max(12, in_flight)}  # in a slice
        self.took: Took = {FEW: [], MANY: []}

    async def block(self, kinds: Sequence[int], *, turned: bool, keep: bool = True) -> None:
        """Run a slice of each kind for each client; `turned` reverses their order."""
        for kind in kinds:
            set_server(self._base, looks=kind)
            took = {}
            for which in (1, 0) if turned else (0, 1):
                began = time.process_time()
                await run_tasks(self._runs[which], self._tasks[kind], self._in_flight)
                took[which] = (time.process_time() - began) / self._tasks[kind]
            if keep:
                self.took[kind].append((took[0], took[1]))

    async def go_on(self, kinds: Sequence[int], seconds: float, least: int = _LEAST) -> None:
        await self.block([FEW], turned=False, keep=False)  # opens connections and imports late modules
        gc.collect()
        gc.freeze()
        until, turned = time.perf_counter() + seconds, False
        while time.perf_counter() < until or len(self.took[FEW]) < least:
            await self.block(kinds, turned=turned)
            turned = not turned


def figures(took: Took) -> dict[str, Any]:
    """The ratios, and the times that they are computed from, in microseconds."""
    few, many = took[FEW], took[MANY]
    found: dict[str, Any] = {
        "task": attrs.asdict(spread([a / b for a, b in few])),
        "task_us": [1e6 * statistics.median(side) for side in zip(*few, strict=True)],
    }
    if many:
        both = zip(few, many, strict=True)
        looks = [(more_a - a, more_b - b) for (a, b), (more_a, more_b) in both]
        found["look"] = attrs.asdict(spread([a / b for a, b in looks]))
        found["look_us"] = [1e6 * statistics.median(side) / (MANY - FEW) for side in zip(*looks, strict=True)]
    return found


async def compare(
    name: str,
    floor: str,
    base: str,
    *,
    in_flight: int,
    seconds: float,
    looks: bool = True,
    least: int = _LEAST,
) -> Took:
    interval = INTERVALS[in_flight]
    async with load(name)(base, interval) as run, load(floor)(base, interval) as other:
        turns = Turns((run, other), base, in_flight)
        await turns.go_on([FEW, MANY] if looks else [FEW], seconds, least)
    return turns.took


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("floor")
    parser.add_argument("base")
    parser.add_argument("--in-flight", type=int, default=20, choices=INTERVALS)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--least", type=int, default=_LEAST, help="least number of blocks")
    parser.add_argument("--no-looks", action="store_true", help="tasks of 4 looks only")
    words = parser.parse_args()
    pin()
    found = compare(
        words.name,
        words.floor,
        words.base,
        in_flight=words.in_flight,
        seconds=words.seconds,
        looks=not words.no_looks,
        least=words.least,
    )
    print(json.dumps(asyncio.run(found)))


if __name__ == "__main__":
    main()
