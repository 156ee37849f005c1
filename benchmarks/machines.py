"""What one database does for several processes: whole requests, and slots of the window.

    python benchmarks/machines.py postgresql://user@host/database [--processes 8] [--seconds 5] [--server PID]

Each process has a store of its own, as a client has it, and eight requests at a time. A request is what a
submit with a key and its end write: claim, slot, intent, answer, who polls the task, result. Nothing is sent
to Kie. The tables are in the schema `kie4o_benchmark`, which is dropped before and after. With the process id
of a server on this Linux machine its CPU time is told too, which a busy machine changes less than the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import attrs
import psycopg

from kie4o import Entry, EntryState, ImageRequest, RateLimit, TaskDetails, TaskState
from kie4o.settings import Secret
from kie4o.stores.postgres import PostgresStore
from kie4o.stores.shared import Limiter

SCHEMA = "kie4o_benchmark"
LIMIT = RateLimit(20, per=0.005)  # never reached, with as many rows in a window as Kie's limit has
AT_ONCE = 8
Work = Callable[[PostgresStore, Limiter], Awaitable[None]]


async def slot(_: PostgresStore, limiter: Limiter) -> None:
    (await limiter.acquire()).release(counted=True)


async def request(store: PostgresStore, limiter: Limiter) -> None:
    key, task_id = uuid4().hex, uuid4().hex
    entry = Entry(key, request=ImageRequest("A calm lake, an hour before the sun rises"), ref=uuid4().hex)
    await store.claim(entry)
    granted = await limiter.acquire()
    await store.begin(entry := attrs.evolve(entry, state=EntryState.INTENT, sent_at=time.time()))
    granted.release(counted=True)
    submitted = EntryState.SUBMITTED
    entry = attrs.evolve(entry, state=submitted, task_id=task_id, submitted_at=time.time())
    await store.save(entry)
    await store.release(key)
    assert store.shared is not None
    await store.shared.lead([task_id])
    urls = (f"https://files.example.com/s/{task_id}_0_1774788517_4321.png",)
    details = TaskDetails(task_id, state=TaskState.SUCCEEDED, urls=urls, raw={"taskId": task_id})
    await store.save(attrs.evolve(entry, state=EntryState.SUCCEEDED, details=details))
    await store.shared.leave({task_id: details})


WORK: dict[str, Work] = {"slots": slot, "requests": request}


async def child(url: str, work: Work, account: str, seconds: float) -> tuple[int, float]:
    """How often the work was done in that time by one process, and the seconds of CPU that it took."""
    store = PostgresStore(url, Secret(account))
    await store.open()
    assert store.shared is not None
    limiter = store.shared.limiter(LIMIT, announce=lambda count: None, lead=float)
    done = 0

    async def repeat() -> None:
        nonlocal done
        while time.monotonic() < until:
            await work(store, limiter)
            done += 1

    print(flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    until, cpu = time.monotonic() + seconds, time.process_time()
    await asyncio.gather(*(repeat() for _ in range(AT_ONCE)))
    cpu = time.process_time() - cpu
    await store.aclose()
    return done, cpu


def cpu_of(server: int) -> float:
    """Seconds of CPU of a PostgreSQL server: of its first process, the others, and those that have ended."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if file.parent.name == str(server) or fields[1] == str(server):
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


async def run(url: str, work: str, accounts: int, processes: int, words: argparse.Namespace) -> str:
    """How often the work was done per second, and the milliseconds of CPU for each time."""
    children = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, __file__, url, "--seconds", str(words.seconds)),
            *("--child", work, str(number % accounts)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(processes)
    ]
    for process in children:
        assert process.stdout is not None
        await process.stdout.readline()
    server = cpu_of(words.server) if words.server else 0.0
    outputs = await asyncio.gather(*(process.communicate(b"\n") for process in children))
    done, cpu = map(sum, zip(*(json.loads(printed) for printed, _ in outputs), strict=True))
    told = f"{done / words.seconds:.0f} per second, CPU for one: clients {1000 * cpu / done:.2f} ms"
    return (
        told if not words.server else f"{told}, server {1000 * (cpu_of(words.server) - server) / done:.2f} ms"
    )


async def measure(words: argparse.Namespace) -> None:
    url, processes = words.url, words.processes
    here = f"{url}{'&' if '?' in url else '?'}schema={SCHEMA}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        print(f"{processes} processes, {AT_ONCE} requests at a time in each; {os.cpu_count()} cores here")
        for work in WORK:
            for accounts in (1, processes):
                plural = "s" if accounts > 1 else ""
                print(
                    f"{work}, {accounts} account{plural}: {await run(here, work, accounts, processes, words)}"
                )
        size = f"SELECT pg_total_relation_size('{SCHEMA}.entry'), count(*) FROM {SCHEMA}.entry"
        total, count = connection.execute(size).fetchone() or (0, 1)
        print(f"bytes per entry: {total / count:.0f}")
        connection.execute(f"DROP SCHEMA {SCHEMA} CASCADE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--server", type=int)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.child:
        work, account = words.child
        print(json.dumps(asyncio.run(child(words.url, WORK[work], account, words.seconds))))
    else:
        asyncio.run(measure(words))


if __name__ == "__main__":
    main()
