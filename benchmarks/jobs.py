"""The measures that run a child once and take its answer as the result.

Each is a function from a plan to its jobs. What is compared in one takes turns within its child.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from .clients import CLIENTS
from .plan import Plan, Step
from .processes import PATIENCE, ask

IN_BATCH = (1_000, 4_000, 10_000)


@attrs.frozen
class Job:
    """A child, by its module and words; its answer is the result `key` of the measure."""

    key: str
    name: str
    seconds: float
    words: tuple[object, ...]


class Jobs:
    """Runs each job once; what takes turns does so within its child."""

    def __init__(self, jobs: Callable[[Plan], Iterator[Job]], plan: Plan) -> None:
        self._plan = plan
        self._jobs = jobs
        self._found: dict[str, Any] = {}

    def steps(self) -> Iterator[Step]:
        for job in self._jobs(self._plan):
            yield Step(job.name, "", job.seconds, partial(self._ask, job))

    def _ask(self, job: Job) -> None:
        module, *words = job.words
        settings, patience = self._plan.server.trusting, max(PATIENCE, 10 * job.seconds)
        self._found[job.key] = ask(str(module), *words, patience=patience, settings=settings)

    def results(self) -> dict[str, Any]:
        return self._found


def pair(key: str, name: str, seconds: float, function: str, base: str, *words: object, rounds: int) -> Job:
    """Two slices of `pairs` that take turns, for about so many seconds."""
    return Job(key, name, seconds, ("pairs", function, base, *words, "--rounds", rounds))


def makespan(plan: Plan) -> Iterator[Job]:
    """Time for tasks under the account's limit, relative to the ideal."""
    tasks = 100 if plan.quick else 200
    for name in plan.ours()[: 1 if plan.quick else None]:
        words = ("makespan", name, plan.base, "--tasks", tasks)
        label = f"makespan: {CLIENTS[name].label}, {tasks} tasks, the clock 5 times faster"
        yield Job(name, label, tasks / 10 + 1.0, words)


def batch(plan: Plan) -> Iterator[Job]:
    """CPU of an item among many in flight against one among 100; the stores; memory; a fast emulator."""
    few, items = 100, 500 if plan.quick else 2000
    for store, many in (
        ("memory", few),
        *(
            (store, many)
            for store in ("memory", "sqlite")
            for many in (IN_BATCH[:1] if plan.quick else IN_BATCH)
        ),
    ):
        rounds = 2 if plan.quick or many > 1000 else 4
        key = "control" if many == few else f"{store} {many}"
        yield pair(
            key,
            f"batch: {many:,} in flight against {few}, {store} store",
            rounds * (max(2 * many, items) + items) / 800,
            "batches.growth",
            plan.base,
            store,
            f"{many}:{max(2 * many, items)}",
            f"{few}:{items}",
            rounds=rounds,
        )
    items, rounds = (500, 2) if plan.quick else (5000, 3)
    seconds = rounds * items / 1000
    yield pair(
        "stores", "batch: SQLite against memory", seconds, "batches.stores", plan.base, items, rounds=rounds
    )
    yield Job(
        "emulator", "batch: 1,000 tasks of a fast emulator", 5.0, ("batches", "emulator", "--items", 1000)
    )
    if not plan.quick and Path("/proc/self/status").exists():
        yield Job(
            "million", "batch: a million prompts", 600.0, ("batches", "memory", plan.base, "--items", 10**6)
        )


def stores(plan: Plan) -> Iterator[Job]:
    """Replaying a finished batch, and opening a store, against rows read by hand."""
    replayed, opened = (2_000, 5_000) if plan.quick else (100_000, 1_000_000)
    words = f"stores: replaying {replayed:,} items"
    yield pair("replay", words, replayed / 2000, "stores.replay", plan.base, replayed, rounds=3)
    words, rounds = f"stores: opening {opened:,} entries", 2
    yield pair("open", words, opened / 4000, "stores.opening", plan.base, opened, rounds=rounds)


def latency(plan: Plan) -> Iterator[Job]:
    """Submits at a round trip of 50 ms."""
    if not plan.server.far:
        plan.skipped["latency"] = "no certificate can be made: trustme is not installed"
        return
    submits, bursts = (2, 2) if plan.quick else (8, 4)
    words = ("latency", plan.server.far, plan.base, "--submits", submits, "--bursts", bursts)
    yield Job("submit", "latency: submits over TLS at 50 ms", 8.0 * submits + 3.0 * bursts, words)


def transfers(plan: Plan) -> Iterator[Job]:
    """Receiving callbacks and saving images, against a handler and a loop by hand."""
    rounds = 4 if plan.quick else 10
    yield pair("receive", "transfers: receiving callbacks", 3.0, "receivers.pair", plan.base, rounds=rounds)
    yield pair("download", "transfers: saving images", 4.0, "downloads.pair", plan.base, rounds=rounds)
