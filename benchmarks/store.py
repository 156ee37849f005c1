"""The SQLite store alone: durable submits per second, and the memory of 100,000 planned items.

    python -m benchmarks.store [--submits 6000] [--items 100000] [--directory .] [--json]

A submit is claim, save INTENT and save SUBMITTED, each awaited until it is on the disk, for 200 keys
concurrently. For comparison, in turns with it, 500 bytes are written to the disk and synced, again and
again. Memory is the peak of a fresh process minus that of one that only imports kie4o and opens a client.
The exit status is 1 if a figure misses its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import attrs

from kie4o import AsyncKieClient, ImageRequest, RateLimit
from kie4o.stores.sqlite import SQLiteStore
from kie4o.stores.store import Entry, EntryState

AT_ONCE = 200
IN_FLIGHT = 100
ROUNDS = 3
RECORD = b"x" * 500
LEAST_SUBMITS = 1500.0  # per second
MOST_MEMORY = 150.0  # MB over the bare process
MB = 2**20


# -- speed -------------------------------------------------------------------------------------


async def submits_per_second(directory: Path, submits: int, at_once: int) -> float:
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        store = SQLiteStore(Path(folder) / "run.db")
        await store.open()
        numbers = iter(range(submits))

        async def keys() -> None:
            for number in numbers:
                request = ImageRequest(f"A lighthouse in a storm, number {number}", size="3:2")
                planned = Entry(f"item-{number}", request=request, ref=f"{number:032}")
                stands = await store.claim(planned)
                intent = attrs.evolve(stands, state=EntryState.INTENT, submitted_at=time.time())
                await store.save(intent)
                await store.save(attrs.evolve(intent, state=EntryState.SUBMITTED, task_id=f"{number:032x}"))

        began = time.perf_counter()
        await asyncio.gather(*(keys() for _ in range(at_once)))
        took = time.perf_counter() - began
        await store.aclose()
    return submits / took


def syncs_per_second(directory: Path, syncs: int = 500) -> float:
    """The control: what the disk itself can do."""
    with tempfile.TemporaryFile(dir=directory) as file:
        began = time.perf_counter()
        for _ in range(syncs):
            os.write(file.fileno(), RECORD)
            os.fsync(file.fileno())
        return syncs / (time.perf_counter() - began)


# -- memory ------------------------------------------------------------------------------------


async def nothing(folder: Path, items: int) -> None:
    """The baseline: import kie4o and open a client."""
    async with AsyncKieClient("sk-test", base_url="http://127.0.0.1:9"):
        pass


async def claimed(folder: Path, items: int) -> None:
    """Claim every item, which is then PLANNED in the store."""
    store = SQLiteStore(folder / "run.db")
    await store.open()
    for start in range(0, items, 1000):
        numbers = range(start, min(start + 1000, items))
        await asyncio.gather(*(store.claim(_planned(number)) for number in numbers))
    await store.aclose()


def _planned(number: int) -> Entry:
    request = ImageRequest(f"A lighthouse in a storm, number {number}")
    return Entry(f"item-{number}", request=request, ref=f"{number:032}")


async def reopened(folder: Path, items: int) -> None:
    """Open a store with `items` entries that another process wrote; opening checks them."""
    await asyncio.to_thread(_in_a_process_of_its_own, "claimed", items, folder)
    store = SQLiteStore(folder / "run.db")
    await store.open()
    await store.aclose()


class _Counting(SQLiteStore):
    """A store that sets an event once as many items are claimed as the client has in flight."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._claims = 0
        self.full = asyncio.Event()

    async def claim(self, entry: Entry, **options: Any) -> Entry | None:
        self._claims += 1
        if self._claims == IN_FLIGHT:
            self.full.set()
        return await super().claim(entry, **options)


@contextlib.asynccontextmanager
async def _deaf() -> AsyncIterator[str]:
    """A server that never answers."""
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def batched(folder: Path, items: int) -> None:
    """Run a batch until it has searched the store for all prompts and reached `max_in_flight`; the rate
    limit admits one submit."""
    prompts = [f"A lighthouse in a storm, number {number}" for number in range(items)]
    store = _Counting(folder / "run.db")
    async with _deaf() as url:
        settings = {"rate_limit": RateLimit(1, per=3600.0), "max_in_flight": IN_FLIGHT, "timeout": 1.0}
        async with AsyncKieClient("sk-test", base_url=url, store=store, **settings) as client:
            batch = client.generate_many(prompts)
            first = asyncio.create_task(anext(batch))
            await store.full.wait()
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            await batch.aclose()


MEASURED = {"bare": nothing, "claimed": claimed, "reopened": reopened, "batched": batched}


def _in_a_process_of_its_own(name: str, items: int, folder: Path) -> float:
    words = ["--measure", name, "--items", str(items), "--directory", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return float(ran.stdout)


def peak(name: str, items: int, directory: Path) -> float:
    """The peak memory of a fresh process that does this, in MB."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        return _in_a_process_of_its_own(name, items, Path(folder))


def measure(name: str, items: int, folder: Path) -> float:
    asyncio.run(MEASURED[name](folder, items))
    status = Path("/proc/self/status")
    if status.exists():  # getrusage includes the size of the parent at the fork
        [line] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / MB
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


# -- the table ---------------------------------------------------------------------------------


@attrs.frozen
class Figure:
    name: str
    value: float
    unit: str
    goal: float | None = None
    met: Callable[[float, float], bool] = attrs.field(default=float.__ge__, repr=False)

    @property
    def missed(self) -> bool:
        return self.goal is not None and not self.met(self.value, self.goal)


def figures(submits: int, items: int, directory: Path) -> list[Figure]:
    syncs, many, single = [], [], []
    for _ in range(ROUNDS):
        syncs.append(syncs_per_second(directory))
        many.append(asyncio.run(submits_per_second(directory, submits, AT_ONCE)))
        single.append(asyncio.run(submits_per_second(directory, submits // 20, 1)))
    disk, speed, one = (statistics.median(rounds) for rounds in (syncs, many, single))
    bare = peak("bare", items, directory)
    over = {name: peak(name, items, directory) - bare for name in ("claimed", "reopened", "batched")}
    memory = [
        Figure(f"{items:,} items {name}: over bare", value, "MB", MOST_MEMORY, float.__lt__)
        for name, value in over.items()
    ]
    return [
        Figure("disk: 500 bytes written and synced", disk, "/s"),
        Figure(f"durable submits, {AT_ONCE} keys at once", speed, "/s", LEAST_SUBMITS),
        Figure("  of the disk's syncs", speed / disk, "x"),
        Figure("durable submits, one key at a time", one, "/s"),
        Figure("bare process: import and an empty client", bare, "MB"),
        *memory,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submits", type=int, default=6000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--directory", type=Path, default=Path(), help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.measure, arguments.items, arguments.directory))
        return
    found = figures(arguments.submits, arguments.items, arguments.directory)
    if arguments.json:
        print(
            json.dumps(
                [{"name": f.name.strip(), "value": f.value, "unit": f.unit, "goal": f.goal} for f in found]
            )
        )
    else:
        for figure in found:
            goal = "" if figure.goal is None else f"goal {figure.goal:,.0f}"
            print(f"{figure.name:44} {figure.value:10,.1f} {figure.unit:3} {goal}{' MISSED' * figure.missed}")
    sys.exit(any(figure.missed for figure in found))


if __name__ == "__main__":
    main()
