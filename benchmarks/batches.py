"""Batches: CPU per item by what is in flight and by the store, peak memory, and a fast emulator.

    python -m benchmarks.batches memory BASE [--items 1000000]
    python -m benchmarks.batches emulator [--items 1000]

`memory` runs a batch from a generator with the SQLite store, 100 in flight, and prints by how many MB the
process grew at most. `emulator` runs tasks against an emulator in another process, whose time runs 1000 times
as fast, and prints the seconds. `growth` and `stores` are for `pairs`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from kie4o import AsyncKieClient, RateLimit

from .clients import PROMPT
from .clients.kie4o import ENOUGH, unpaced
from .pairs import Slice, sliced
from .processes import ROOT, environment, pin, set_server

# New tasks per second, a few at a time. Fewer than a process can submit, so that they end one by one: of
# those that end together a batch can make one piece of work, which would hide that a completion costs more
# among many.
RATE, BURST = 1000, 5
# The part of `max_in_flight` that is in use. If it were all, tasks would begin when others end, in groups
# that share the turns of the event loop; with few in flight these groups are larger, at 100 three times.
FILLED = 0.8
SPEED = 1000.0


def prompts(items: int) -> Iterator[str]:
    return (f"{PROMPT}, number {number}" for number in range(items))


async def run(base: str, store: Path | None, in_flight: int, items: int, *, paced: bool) -> None:
    """A batch of tasks that end at their first look; at `RATE`, or as fast as they can."""
    async with AsyncKieClient(
        "key",
        base_url=base,
        rate_limit=RateLimit(BURST, per=BURST / RATE) if paced else RateLimit(ENOUGH, per=0.001),
        poll=unpaced(FILLED * in_flight / RATE if paced else 0.01),
        max_in_flight=in_flight,
        store=store,
    ) as client:
        async for completion in client.generate_many(prompts(items)):
            completion.unwrap()


@asynccontextmanager
async def growth(base: str, store: str, *configurations: str) -> AsyncIterator[tuple[Slice, Slice]]:
    """Two batches, each as `in flight:items`, with a store that is `memory` or `sqlite`."""
    one, other = (_batch(base, store, *map(int, each.split(":")), paced=True) for each in configurations)
    await _warmed(base)
    yield one, other


@asynccontextmanager
async def stores(base: str, items: str) -> AsyncIterator[tuple[Slice, Slice]]:
    """A batch with the SQLite store and one with the memory store, 100 in flight."""
    await _warmed(base)
    yield (
        _batch(base, "sqlite", 100, int(items), paced=False),
        _batch(base, "memory", 100, int(items), paced=False),
    )


async def _warmed(base: str) -> None:
    set_server(base, looks=1)
    await run(base, None, 100, 100, paced=False)  # imports late modules


def _batch(base: str, store: str, in_flight: int, items: int, *, paced: bool) -> Slice:
    async def once() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run.db" if store == "sqlite" else None
            await run(base, path, in_flight, items, paced=paced)

    return sliced(once, items)


def _resident(which: str) -> float:
    """`VmRSS` or its peak `VmHWM`, in MB. getrusage includes the size of the parent at the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


async def memory(base: str, items: int) -> dict[str, float]:
    set_server(base, looks=1)
    with tempfile.TemporaryDirectory() as folder:
        await run(base, Path(folder) / "warm.db", 100, min(items, 1000), paced=False)
        before, began = _resident("VmRSS"), time.perf_counter()
        await run(base, Path(folder) / "run.db", 100, items, paced=False)
        seconds = time.perf_counter() - began
    return {"items": items, "mb": _resident("VmHWM") - before, "per_second": items / seconds}


@contextmanager
def emulator() -> Iterator[str]:
    """An emulator in a process of its own."""
    options = ["--port", "0", "--quiet", "--speed", str(SPEED), "--credits", "1000000"]
    command = [sys.executable, "-m", "kie4o.emulator", *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            [url] = re.findall(r"http://[\w.:]+", process.stdout.readline())
            yield url
        finally:
            process.terminate()


async def emulated(base: str, items: int) -> dict[str, float]:
    async with AsyncKieClient("key", base_url=base, speed=SPEED, max_in_flight=items) as client:
        began = time.perf_counter()
        async for completion in client.generate_many(prompts(items)):
            completion.unwrap()
        return {"items": items, "seconds": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["memory", "emulator"])
    parser.add_argument("base", nargs="?", default="")
    parser.add_argument("--items", type=int, default=1000)
    words = parser.parse_args()
    pin()
    if words.what == "memory":
        print(json.dumps(asyncio.run(memory(words.base, words.items))))
        return
    with emulator() as base:
        print(json.dumps(asyncio.run(emulated(base, words.items))))


if __name__ == "__main__":
    main()
