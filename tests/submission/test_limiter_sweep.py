"""The rate limit over very many slots: a strict server refuses none, however the network delays, whichever
process dies or stands still, and whatever happens to a clock.

One process uses `RateLimiter`; eight use `SharedLimiter`, whose questions a server in memory answers. Time is
virtual. The whole sweep takes a million slots for each kind of network: `nox -s proof`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
import pytest
from clocks import VirtualLoop
from proving import tried
from window_server import ServerProcess, WindowServer

from kie4o import RateLimit, StoreError, clock
from kie4o.stores.postgres import window
from kie4o.stores.postgres.window import SharedLimiter
from kie4o.submission.rate_limit import RateLimiter

LIMIT = RateLimit(20, per=10.0)
WIDE = RateLimit(200, per=10.0)  # the same, with less waiting for each slot
PROCESSES = 8
WHOLE = (pytest.mark.proof, pytest.mark.timeout(3600))
Network = Callable[[random.Random], float]

NETWORKS: dict[str, Network] = {
    "local": lambda rng: rng.uniform(0.0002, 0.002),
    "steady": lambda rng: 0.08,
    "short tail": lambda rng: rng.uniform(0, 1.5) if rng.random() < 0.05 else 0.08,
    "anything": lambda rng: rng.uniform(0, 1.5),
    "long tail": lambda rng: min(25.0, 0.05 * rng.paretovariate(1.1)),
    "two ways": lambda rng: rng.choice((0.02, 4.0)),
}
# Of the slots of an ideal limiter one process gives so many: answers take time, and so do restarts.
RATES = {"local": 0.95, "steady": 0.95, "short tail": 0.9, "anything": 0.8, "long tail": 0.5, "two ways": 0.6}


@attrs.define
class Books:
    """Kie's own: what has arrived, and whether it was too much."""

    limit: RateLimit
    times: deque[float] = attrs.field(factory=deque)
    arrived: int = 0
    refused: int = 0
    first: float = math.inf
    last: float = 0.0

    def arrive(self, now: float) -> None:
        while self.times and self.times[0] <= now - self.limit.per:
            self.times.popleft()
        self.refused += len(self.times) >= self.limit.limit
        self.times.append(now)
        self.arrived += 1
        self.first, self.last = min(self.first, now), now


@attrs.define
class Sweep:
    """So many slots over one network. `misuse` is what a control does wrong."""

    network: Network
    slots: int
    limit: RateLimit = LIMIT
    misuse: str = ""
    rng: random.Random = attrs.field(init=False, factory=lambda: random.Random(1))
    books: Books = attrs.field(init=False)
    most_open: int = attrs.field(init=False, default=0)  # in one process
    answered: deque[float] = attrs.field(init=False)  # loop times

    def __attrs_post_init__(self) -> None:
        self.books = Books(self.limit)
        self.answered = deque(maxlen=self.limit.limit)

    def over(self) -> bool:
        """A control is over once it has shown its fault."""
        return self.books.arrived >= self.slots or bool(self.misuse and self.books.refused)

    def rate(self) -> float:
        """The share of the slots that an ideal limiter would have given in the same time."""
        took = self.books.last - self.books.first
        return (self.books.arrived - self.limit.limit) * self.limit.per / self.limit.limit / took

    async def use(
        self,
        limiter: RateLimiter | SharedLimiter,
        stop: Callable[[], bool],
        stands_still: Callable[[], float] = float,
    ) -> None:
        """One request after another, which a strict server counts when it arrives."""
        loop, rng = asyncio.get_running_loop(), self.rng
        while not stop():
            try:
                slot = await limiter.acquire()
            except StoreError:
                continue
            self.most_open = max(self.most_open, limiter.open)
            if (seconds := stands_still()) > 0:
                await asyncio.sleep(seconds)
            if clock.uptime() > slot.good_until and self.misuse != "clock":
                slot.release(counted=False)
                continue
            there_and_back = self.network(rng)
            there = rng.random() * there_and_back
            if slot.good_until < math.inf:
                there = min(there, window.GOOD)  # by then it has arrived, or it never does
            loop.call_later(there, self.arrive)
            if self.misuse == "sending":
                slot.release(counted=True)
            await asyncio.sleep(there_and_back)
            if self.misuse != "sending":
                slot.release(counted=True)
            self.answered.append(loop.time())

    def arrive(self) -> None:
        loop = asyncio.get_running_loop()
        self.books.arrive(loop.exact if isinstance(loop, TickingLoop) else loop.time())

    def check(self, least: float) -> None:
        """None was refused, and the rate is what it can be. `-s` shows both."""
        books = self.books
        share = f"{self.rate():.3f} of what is ideal"
        print(f"\n{books.arrived:,} slots, {books.refused} refused, {share}")
        tried(books.arrived)
        assert self.over()
        assert books.refused == 0
        assert self.most_open <= self.limit.limit
        assert self.rate() >= least


class TickingLoop(VirtualLoop):
    """Its clock shows the time of its last tick, every 1/64 s; `exact` is the time."""

    def time(self) -> float:
        return math.floor(self.exact * 64) / 64

    @property
    def exact(self) -> float:
        return super().time()


def run(main: Coroutine[Any, Any, None], loop: Callable[[], VirtualLoop] = VirtualLoop) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main)


# -- one process ---------------------------------------------------------------------------------------


async def alone(sweep: Sweep) -> None:
    """With restarts: the next process is told the ages of the last submits, as a store remembers them."""
    loop, ages = asyncio.get_running_loop(), list[float]()
    while not sweep.over():
        until, limiter = loop.time() + sweep.rng.uniform(50, 5000), RateLimiter(sweep.limit)
        limiter.remember(ages)

        def stop(until: float = until) -> bool:
            return sweep.over() or loop.time() > until

        users = [sweep.use(limiter, stop) for _ in range(2 * sweep.limit.limit)]
        await asyncio.gather(*users)
        assert limiter.open == limiter.waiting == 0
        await asyncio.sleep(sweep.rng.uniform(0, sweep.limit.per))
        ages = [loop.time() - at for at in sweep.answered]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("slots", [3_000, pytest.param(1_000_000, marks=WHOLE)])
def test_one_process(network: str, slots: int) -> None:
    sweep = Sweep(NETWORKS[network], slots)
    run(alone(sweep))
    sweep.check(RATES[network])


@pytest.mark.parametrize("slots", [1_000, pytest.param(1_000_000, marks=WHOLE)])
def test_a_clock_that_ticks(monkeypatch: pytest.MonkeyPatch, slots: int) -> None:
    monkeypatch.setattr(clock, "resolution", lambda: 1 / 64)
    sweep = Sweep(NETWORKS["local"], slots)
    run(alone(sweep), TickingLoop)
    sweep.check(0.9)


def test_control_slots_that_count_from_the_sending() -> None:
    sweep = Sweep(NETWORKS["short tail"], 3_000, misuse="sending")
    run(alone(sweep))
    assert sweep.books.refused > 0


# -- eight processes -----------------------------------------------------------------------------------


@pytest.fixture
def virtual_uptime(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks that a suspended machine does not stop are that of the loop too."""
    for name in ("uptime", "real_uptime"):
        monkeypatch.setattr(clock, name, lambda: asyncio.get_running_loop().time())


class Machine:
    """One process with a few users of its limiter."""

    def __init__(self, sweep: Sweep, server: WindowServer, users: int) -> None:
        self._rng = sweep.rng
        self._process = ServerProcess(server)
        self.limiter = self._process.start(sweep.limit)
        used: RateLimiter | SharedLimiter = self.limiter
        if sweep.misuse == "alone":
            used = RateLimiter(sweep.limit)
        self.stops_next = False
        self._users = [asyncio.create_task(sweep.use(used, sweep.over, self._pause)) for _ in range(users)]

    def _pause(self) -> float:
        """For how many seconds it stands still with a slot that it has just got: often enough for some only,
        as
        when the disk is slow; and once, when it is its turn, all of it, for longer than its lease."""
        loop = asyncio.get_running_loop()
        if self.stops_next:
            self.stops_next = False
            self._process.cut_until = loop.time() + self._rng.uniform(31, 60)
        if loop.time() < self._process.cut_until:
            return self._process.cut_until - loop.time()
        return self._rng.uniform(0, 8) if self._rng.random() < 0.01 else 0.0

    async def end(self) -> None:
        """Kill it: what was sent arrives, and nothing else is said to anybody."""
        self._process.kill()
        if self.limiter._pump is not None:
            self.limiter._pump.cancel()
        self.limiter._wake = lambda: None
        for user in self._users:
            user.cancel()
        await asyncio.gather(*self._users, return_exceptions=True)

    async def finish(self) -> None:
        await asyncio.gather(*self._users)
        await self.limiter.drain()
        await self.end()


async def together(sweep: Sweep, users: int) -> WindowServer:
    """Eight machines: now and then one dies and is replaced, one stands still, or the clock of the server is
    set."""
    rng = sweep.rng
    server = WindowServer(lambda: rng.uniform(0.0005, 0.01), lambda: rng.random() < 0.01)
    machines = [Machine(sweep, server, users) for _ in range(PROCESSES)]
    while not sweep.over():
        await asyncio.sleep(rng.uniform(100, 2000))
        event = rng.choice(("dies", "stops", "clock"))
        if event == "dies":
            await machines.pop(0).end()
            machines.append(Machine(sweep, server, users))
        elif event == "stops":
            machines[-1].stops_next = True
        else:
            server.offset += rng.choice((-1, 1)) * rng.choice((2.0, 20.0, 3600.0))
        assert len(server.slots) <= 3 * sweep.limit.limit + PROCESSES * users, "rows are left behind"
    for machine in machines:
        await machine.finish()
    assert all(slot.answered is not None for slot in server.slots.values() if server.alive(slot.process))
    return server


@pytest.mark.usefixtures("virtual_uptime")
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    ("slots", "limit"), [(500, LIMIT), pytest.param(1_000_000, WIDE, marks=WHOLE)], ids=["few", "whole"]
)
def test_eight_processes(network: str, slots: int, limit: RateLimit) -> None:
    sweep = Sweep(NETWORKS[network], slots, limit)
    run(together(sweep, users=5 if limit is LIMIT else 10))
    sweep.check(0.5)


@pytest.mark.sweep
@pytest.mark.usefixtures("virtual_uptime")
@pytest.mark.parametrize("misuse", ["alone", "clock", "sending"])
def test_control_eight_processes(misuse: str) -> None:
    """Each with a window of its own; or without a look at how long a slot is good; or without waiting for
    the answer."""
    sweep = Sweep(NETWORKS["short tail"], 3_000, misuse=misuse)
    run(together(sweep, users=5))
    assert sweep.books.refused > 0
