"""Two pieces of work that take turns in one process, and the ratio of their CPU.

    python -m benchmarks.pairs MODULE.FUNCTION BASE [words] [--rounds 3]

The function is an async context manager that yields two slices; a slice does its work and returns what that
took, per unit. The second is the baseline. As in `turns`, slices alternate A B B A, and each neighbouring
pair gives one ratio.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import attrs

from .processes import pin
from .turns import spread


@attrs.frozen
class Took:
    """Seconds for one unit of a slice: of CPU in all threads, and of time."""

    cpu: float
    wall: float


Slice = Callable[[], Awaitable[Took]]
Pair = Callable[..., AbstractAsyncContextManager[tuple[Slice, Slice]]]


def sliced(work: Callable[[], Awaitable[object]], units: int) -> Slice:
    """The slice that does this work, which is of so many units."""

    async def once() -> Took:
        gc.collect()  # what an earlier slice has left
        cpu, wall = time.process_time(), time.perf_counter()
        await work()
        return Took((time.process_time() - cpu) / units, (time.perf_counter() - wall) / units)

    return once


async def alternate(slices: tuple[Slice, Slice], rounds: int) -> list[tuple[Took, Took]]:
    found = []
    for number in range(rounds):
        took = {which: await slices[which]() for which in ((1, 0) if number % 2 else (0, 1))}
        found.append((took[0], took[1]))
    return found


def figures(found: list[tuple[Took, Took]]) -> dict[str, Any]:
    """The ratio of CPU; microseconds of CPU and units per second of both sides."""
    sides = list(zip(*found, strict=True))
    return {
        "ratio": attrs.asdict(spread([a.cpu / b.cpu for a, b in found])),
        "us": [1e6 * statistics.median(each.cpu for each in side) for side in sides],
        "per_second": [1 / statistics.median(each.wall for each in side) for side in sides],
    }


async def measure(name: str, base: str, words: list[str], rounds: int) -> dict[str, Any]:
    module, _, function = name.partition(".")
    pair: Pair = getattr(importlib.import_module(f"{__package__}.{module}"), function)
    async with pair(base, *words) as slices:
        return figures(await alternate(slices, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("base")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    words = parser.parse_args()
    pin()
    print(json.dumps(asyncio.run(measure(words.name, words.base, words.words, words.rounds))))


if __name__ == "__main__":
    main()
