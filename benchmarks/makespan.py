"""How long 200 tasks take under the account's limit, with a server that enforces it exactly.

    python -m benchmarks.makespan NAME BASE [--tasks 200] [--speed 5]

The server admits 20 new tasks in any 10 s, counted on arrival, and answers after 50 ms. The ideal is 90 s
until the tenth window opens, one answer, a sleep of 1 s and the answer to the look. The client's clock and
the server's window run `speed` times faster. This favours no client: the time that this machine itself
needs for a burst counts `speed` times, so the true ratio is closer to 1.

`kie4o` is the client with its default limits. `bare` is the usual hand-written solution: a semaphore of 20,
each permit held for 10 s after its answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import selectors
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp

from kie4o import AsyncKieClient, PollPolicy

from .clients import PROMPT, SIZE
from .processes import counts, pin, set_server

LIMIT, WINDOW, ANSWER, PAUSE = 20, 10.0, 0.05, 1.0


def ideal(tasks: int) -> float:
    return (-(-tasks // LIMIT) - 1) * WINDOW + ANSWER + PAUSE + ANSWER


Generate = Callable[[], Awaitable[object]]


class _Hurried(selectors.DefaultSelector):
    def __init__(self, speed: float) -> None:
        super().__init__()
        self._speed = speed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(None if timeout is None else timeout / self._speed)


class HurriedLoop(asyncio.SelectorEventLoop):
    """A loop whose clock and timers run `speed` times faster than real time."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        super().__init__(_Hurried(speed))

    def time(self) -> float:
        return time.monotonic() * self._speed


@asynccontextmanager
async def _kie4o(base: str) -> AsyncIterator[Generate]:
    every = PollPolicy(first=PAUSE, factor=1.0, maximum=PAUSE, jitter=False)
    async with AsyncKieClient("key", base_url=base, poll=every, max_in_flight=10**6) as kie:
        yield lambda: kie.generate(PROMPT, size=SIZE)


@asynccontextmanager
async def _bare(base: str) -> AsyncIterator[Generate]:
    generate, record = f"{base}/api/v1/gpt4o-image/generate", f"{base}/api/v1/gpt4o-image/record-info"
    places = asyncio.Semaphore(LIMIT)
    held: set[asyncio.Task[None]] = set()

    async def give_back() -> None:
        await asyncio.sleep(WINDOW)
        places.release()

    async with aiohttp.ClientSession(headers={"Authorization": "Bearer key"}) as session:

        async def run() -> None:
            await places.acquire()
            async with session.post(generate, json={"prompt": PROMPT, "size": SIZE}) as response:
                response.raise_for_status()
                answer = await response.json()
            back = asyncio.create_task(give_back())
            held.add(back)
            back.add_done_callback(held.discard)
            await asyncio.sleep(PAUSE)
            async with session.get(record, params={"taskId": answer["data"]["taskId"]}) as response:
                assert (await response.json())["data"]["successFlag"] == 1

        yield run
        for back in held:
            back.cancel()


HOW = {"kie4o": _kie4o, "bare": _bare}


async def makespan(name: str, base: str, tasks: int) -> float:
    loop = asyncio.get_running_loop()
    async with HOW[name](base) as generate:
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(_one(generate))
        return loop.time() - began


async def _one(generate: Generate) -> None:
    await generate()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=HOW)
    parser.add_argument("base")
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--speed", type=float, default=5.0)
    words = parser.parse_args()
    pin()
    speed = words.speed
    set_server(words.base, looks=1, limit=LIMIT, window=WINDOW / speed, latency=ANSWER / speed)
    with asyncio.Runner(loop_factory=lambda: HurriedLoop(speed)) as runner:
        took = runner.run(makespan(words.name, words.base, words.tasks))
    refused = counts(words.base)["refused"]
    answer = {"seconds": took, "ratio": took / ideal(words.tasks), "refused": refused}
    print(json.dumps(answer | {"tasks": words.tasks, "speed": speed}))


if __name__ == "__main__":
    main()
