"""How long a submit takes at a round trip of 50 ms over TLS, in round trips.

    python -m benchmarks.latency BASE CONTROL [--submits 6] [--bursts 4]

BASE is the relay of the server, CONTROL the server itself, which is set there. Three cases, from outside:

1. One submit every few seconds while 40 other tasks are polled once a second. The hand-written loop does the
   same: one session, whose connections are kept for 15 s.
2. The first burst of 20 of a new client, when the rate limit has room. Nobody could know of it, so each
   submit opens its own connection, which takes two round trips before that of the request.
3. The later bursts of 20, which waited for the rate limit. A submit takes from when its slot is due, which is
   one period after the answer to the one that had the slot before, to its own answer.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp

from kie4o import AsyncKieClient, PollPolicy, RateLimit

from .clients import PROMPT, SIZE
from .processes import pin, set_server
from .server import ROUND_TRIP

WAITING, EVERY = 40, 1.0  # tasks that are polled, and seconds between two polls of one
BURST, PER = 20, 3.0
_NO_LIMIT = RateLimit(10**6, per=0.001)


def figures(seconds: Sequence[float]) -> dict[str, float]:
    trips = sorted(each / ROUND_TRIP for each in seconds)
    return {"median": statistics.median(trips), "low": trips[0], "high": trips[-1], "n": len(trips)}


async def spaced(submit: Callable[[], Awaitable[object]], submits: int) -> list[float]:
    """Seconds of submits at random moments, so far apart that no connection is kept for the next one."""
    rng, found = random.Random(1), []
    for _ in range(submits):
        await asyncio.sleep(rng.uniform(2.2, 3.2))
        began = time.perf_counter()
        await submit()
        found.append(time.perf_counter() - began)
    return found


async def among_polls(base: str, submits: int) -> list[float]:
    every = PollPolicy(first=EVERY, factor=1.0, maximum=EVERY, jitter=False)
    async with AsyncKieClient("key", base_url=base, rate_limit=_NO_LIMIT, poll=every) as client:
        waiting = []
        for _ in range(WAITING):
            waiting.append(asyncio.ensure_future((await client.submit(PROMPT, size=SIZE)).wait()))
            await asyncio.sleep(EVERY / WAITING)
        found = await spaced(lambda: client.submit(PROMPT, size=SIZE), submits)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return found


async def among_polls_by_hand(base: str, submits: int) -> list[float]:
    generate, record = f"{base}/api/v1/gpt4o-image/generate", f"{base}/api/v1/gpt4o-image/record-info"
    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as session:

        async def submit() -> str:
            async with session.post(generate, json={"prompt": PROMPT, "size": SIZE}) as response:
                task_id: str = (await response.json())["data"]["taskId"]
                return task_id

        async def poll(task_id: str) -> None:
            while True:
                await asyncio.sleep(EVERY)
                async with session.get(record, params={"taskId": task_id}) as response:
                    await response.json()

        waiting = []
        for _ in range(WAITING):
            waiting.append(asyncio.ensure_future(poll(await submit())))
            await asyncio.sleep(EVERY / WAITING)
        found = await spaced(submit, submits)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    return found


async def bursts(base: str, count: int) -> tuple[list[float], list[float]]:
    """Seconds of the submits of the first burst, and the slowest of each later one."""
    async with AsyncKieClient(
        "key", base_url=base, rate_limit=RateLimit(BURST, per=PER), max_in_flight=count * BURST
    ) as client:
        answered: list[float] = []

        async def submit() -> None:
            await client.submit(PROMPT, size=SIZE)
            answered.append(time.perf_counter())

        began = time.perf_counter()
        await asyncio.gather(*(submit() for _ in range(count * BURST)))
    rounds = [answered[start : start + BURST] for start in range(0, len(answered), BURST)]
    later = [
        max(at - (before + PER) for at, before in zip(now, earlier, strict=True))
        for earlier, now in itertools.pairwise(rounds)
    ]
    return [at - began for at in rounds[0]], later


async def measure(base: str, control: str, submits: int, count: int) -> dict[str, Any]:
    set_server(control, looks=0)
    found = {}
    if submits:
        found["by hand"] = await among_polls_by_hand(base, submits)
        found["among polls"] = await among_polls(base, submits)
    found["first burst"], found["waited"] = await bursts(base, count)
    return {"round_trip": ROUND_TRIP} | {name: figures(each) for name, each in found.items() if each}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("control")
    parser.add_argument("--submits", type=int, default=6)
    parser.add_argument("--bursts", type=int, default=4)
    words = parser.parse_args()
    pin()
    print(json.dumps(asyncio.run(measure(words.base, words.control, words.submits, words.bursts))))


if __name__ == "__main__":
    main()
