"""The rate limiter against a strict server, in virtual time, compared with two common alternatives.

    python benchmarks/limiter.py [--submits 20000]

The server admits 20 submits in any 10 s, counted on arrival. The output is the number that it refused, and
the long-term rate as a share of the ideal 2 per second.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import selectors
from collections import deque
from collections.abc import Awaitable, Callable

from kie4o import RateLimit
from kie4o.submission.rate_limit import RateLimiter

LIMIT = RateLimit(20, per=10.0)
Latency = Callable[[random.Random], float]
NETWORKS: dict[str, Latency] = {
    "80 ms": lambda rng: 0.08,
    "80 ms, 5 % up to 1.5 s": lambda rng: rng.uniform(0, 1.5) if rng.random() < 0.05 else 0.08,
    "0 to 1.5 s": lambda rng: rng.uniform(0, 1.5),
}


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer, so that hours pass in moments."""

    def __init__(self) -> None:
        selector = selectors.SelectSelector()
        super().__init__(selector)
        self._now = 0.0
        wait = selector.select

        def select(timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self._now += max(timeout or 0.0, 1e-8)
            return wait(0)

        selector.select = select  # type: ignore[method-assign]  # of this selector only

    def time(self) -> float:
        return self._now


class Bucket:
    """The usual leaky bucket: a burst of 20, then one every half second."""

    def __init__(self) -> None:
        self._next = 0.0

    async def acquire(self) -> None:
        now = asyncio.get_running_loop().time()
        self._next = max(self._next, now - LIMIT.per) + LIMIT.per / LIMIT.limit
        await asyncio.sleep(max(0.0, self._next - now))


async def run(submits: int, latency: Latency, how: str) -> tuple[int, float]:
    """How many submits the server refused, and the share of the ideal rate."""
    rng, loop, accepted, refused = random.Random(1), asyncio.get_running_loop(), deque[float](), 0
    limiter, bucket = RateLimiter(LIMIT), Bucket()
    start = loop.time()

    async def one() -> None:
        nonlocal refused
        gate: Awaitable[None] = bucket.acquire() if how == "leaky bucket" else limiter.acquire()
        await gate
        if how == "counted when sent":
            limiter.release(counted=True)
        there_and_back = latency(rng)
        there = there_and_back * rng.random()
        await asyncio.sleep(there)
        now = loop.time()
        while accepted and accepted[0] <= now - LIMIT.per:
            accepted.popleft()
        if len(accepted) >= LIMIT.limit:
            refused += 1
        else:
            accepted.append(now)
        await asyncio.sleep(there_and_back - there)
        if how == "kie4o":
            limiter.release(counted=True)

    await asyncio.gather(*(one() for _ in range(submits)))
    return refused, (submits - LIMIT.limit) / (loop.time() - start) / (LIMIT.limit / LIMIT.per)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--submits", type=int, default=20_000)
    arguments = parser.parse_args()
    print(f"{'network':24} {'limiter':18} {'refused':>8} {'share of ideal':>15}")
    for network, latency in NETWORKS.items():
        for how in ("kie4o", "counted when sent", "leaky bucket"):
            with asyncio.Runner(loop_factory=VirtualLoop) as runner:
                refused, share = runner.run(run(arguments.submits, latency, how))
            print(f"{network:24} {how:18} {refused:8} {share:15.3f}")


if __name__ == "__main__":
    main()
