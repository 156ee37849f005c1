"""When to look, simulated: common policies and the learned pace, compared with the optimum.

    python benchmarks/pacing.py [--quick]

A task ends after a time drawn from a distribution, and the first look after that finds it ended. The cost
is the lateness in seconds plus half a second per look. The optimum knows the distribution but not the task,
and keeps looks 0.34 s apart. The learned pace knows what a client knows: which looks found a task running
or ended, and records with times in whole seconds.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import attrs

from kie4o import PollPolicy
from kie4o.polling.learning import Pace, Sighting
from kie4o.polling.policy import GAP

PRICE = 0.5  # of a look, in seconds of lateness
LEARNED = (0, 20, 50, 200)  # finished tasks
AFTER = (0, 5, 10, 20, 30, 50)  # finished tasks after all times have doubled
BEFORE = 100  # finished tasks before they double


# -- distributions of durations ----------------------------------------------------------------


class Distribution(Protocol):
    def share(self, age: float) -> float:
        """The share of tasks that have ended by this age."""

    def area(self, age: float) -> float:
        """The integral of the share, which is the mean lateness of a first look at this age."""

    def draw(self, rng: random.Random) -> float: ...

    def slower(self, factor: float) -> Distribution: ...


def _normal(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


@attrs.frozen
class Lognormal:
    median: float
    sigma: float

    def share(self, age: float) -> float:
        return _normal(math.log(age / self.median) / self.sigma) if age > 0 else 0.0

    def area(self, age: float) -> float:
        if age <= 0:
            return 0.0
        mean, z = self.median * math.exp(self.sigma**2 / 2), math.log(age / self.median) / self.sigma
        return age * _normal(z) - mean * _normal(z - self.sigma)

    def draw(self, rng: random.Random) -> float:
        return self.median * math.exp(self.sigma * rng.gauss(0, 1))

    def slower(self, factor: float) -> Distribution:
        return Lognormal(self.median * factor, self.sigma)


@attrs.frozen
class Uniform:
    low: float
    high: float

    def share(self, age: float) -> float:
        return min(1.0, max(0.0, (age - self.low) / (self.high - self.low)))

    def area(self, age: float) -> float:
        within = min(max(age, self.low), self.high) - self.low
        return within**2 / 2 / (self.high - self.low) + max(0.0, age - self.high)

    def draw(self, rng: random.Random) -> float:
        return rng.uniform(self.low, self.high)

    def slower(self, factor: float) -> Distribution:
        return Uniform(self.low * factor, self.high * factor)


@attrs.frozen
class Either:
    chance: float
    one: Distribution
    other: Distribution

    def share(self, age: float) -> float:
        return self.chance * self.one.share(age) + (1 - self.chance) * self.other.share(age)

    def area(self, age: float) -> float:
        return self.chance * self.one.area(age) + (1 - self.chance) * self.other.area(age)

    def draw(self, rng: random.Random) -> float:
        return (self.one if rng.random() < self.chance else self.other).draw(rng)

    def slower(self, factor: float) -> Distribution:
        return Either(self.chance, self.one.slower(factor), self.other.slower(factor))


DISTRIBUTIONS: dict[str, Distribution] = {
    "lognormal 40 s, sigma 0.5": Lognormal(40.0, 0.5),
    "lognormal 40 s, sigma 0.25": Lognormal(40.0, 0.25),
    "constant 30 s, +-0.5 s": Uniform(29.5, 30.5),
    "25 s (3 of 5) or 90 s, sigma 0.1": Either(0.6, Lognormal(25.0, 0.1), Lognormal(90.0, 0.1)),
}


# -- what looks cost ---------------------------------------------------------------------------


@attrs.frozen
class Cost:
    looks: float
    lateness: float

    @property
    def total(self) -> float:
        return self.lateness + PRICE * self.looks


def cost(tasks: Distribution, looks: Iterable[float]) -> Cost:
    """The exact expected cost of looks at these ages, without drawing tasks."""
    count = lateness = last = share = area = 0.0
    for age in looks:
        if share > 1 - 1e-9:
            break
        count += 1 - share
        now = tasks.area(age)
        lateness += now - area - share * (age - last)
        last, share, area = age, tasks.share(age), now
    return Cost(count, lateness)


def mean(costs: Iterable[Cost]) -> Cost:
    of = list(costs)
    return Cost(sum(one.looks for one in of) / len(of), sum(one.lateness for one in of) / len(of))


def optimum(tasks: Distribution, grid: float | None = None) -> list[float]:
    """The ages of the looks with the least cost, by backward dynamic programming over a grid."""
    end = 1.0
    while tasks.share(end) < 1 - 1e-7:
        end *= 1.02
    begin = end
    while tasks.share(begin) > 1e-9:
        begin *= 0.98
    grid = grid or (end - begin) / 4000
    ages = [begin + index * grid for index in range(int((end - begin) / grid) + 2)]
    shares, areas = [tasks.share(age) for age in ages], [tasks.area(age) for age in ages]
    last = best = len(ages) - 1
    apart, nexts, costs = math.ceil(GAP / grid - 1e-9), [last] * len(ages), [0.0] * len(ages)
    for index in range(last - 1, -1, -1):
        age, share = ages[index], shares[index]
        stops = range(min(index + apart, last), max(min(index + apart, last), best) + 1)
        later = [areas[stop] - share * ages[stop] + costs[stop] for stop in stops]
        best = stops[later.index(min(later))]
        nexts[index] = best
        costs[index] = PRICE * (1 - share) - areas[index] + share * age + min(later)
    looks, place = [], 0
    while place < last:
        place = nexts[place]
        looks.append(ages[place])
    return looks


# -- policies that learn nothing ---------------------------------------------------------------


def exponential(policy: PollPolicy, rng: random.Random) -> Iterator[float]:
    delays = (policy.delay(looks, rng.random()) for looks in itertools.count())
    return itertools.accumulate(delays)


def every(low: float, high: float | None = None) -> Callable[[random.Random], Iterator[float]]:
    def looks(rng: random.Random) -> Iterator[float]:
        return itertools.accumulate(rng.uniform(low, high or low) for _ in itertools.count())

    return looks


def _exponential(first: float, factor: float, maximum: float) -> Callable[[random.Random], Iterator[float]]:
    return lambda rng: exponential(PollPolicy(first=first, factor=factor, maximum=maximum), rng)


POLICIES: dict[str, Callable[[random.Random], Iterator[float]]] = {
    "every 0.1 s (fal)": every(0.1),
    "every 0.5 s (replicate)": every(0.5),
    "every 1 s": every(1.0),
    "every 3 s": every(3.0),
    "every 6 +-1.5 s (runway)": every(4.5, 7.5),
    "every 10 s": every(10.0),
    "every 20 s (google-genai)": every(20.0),
    "exponential 1 s x1.5 to 10 s": _exponential(1.0, 1.5, 10.0),
    "exponential 1 s x2 to 30 s": _exponential(1.0, 2.0, 30.0),
    "kie4o exponential, 2 s x1.5 to 5 s": _exponential(2.0, 1.5, 5.0),
}


# -- the learned pace --------------------------------------------------------------------------

Progress = Callable[[float, float], float | None]  # of age and duration


@attrs.define
class Task:
    """One task of a client that has a pace, and what its looks have shown so far."""

    pace: Pace
    duration: float
    submitted_at: float
    rng: random.Random
    exact: bool = False
    progress: Progress | None = None
    age: float = 0.0
    last_running_age: float = 0.0
    looks: int = 0
    forecasts: list[tuple[float, float]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.age = self.pace.delay(Sighting(age=0.0), self.rng.random())

    def look(self) -> bool:
        """Look at the task, and return whether it has ended. If not, `age` becomes that of the next look."""
        self.looks += 1
        if self.age >= self.duration:
            second = self.submitted_at % 1
            cut = math.floor(second + self.duration) - math.floor(second)
            self.pace.learn(
                Sighting(self.age, self.last_running_age, self.looks),
                submitted_at=self.submitted_at,
                duration=self.duration if self.exact else float(cut),
                forecasts=self.forecasts,
            )
            return True
        progress = self.progress(self.age, self.duration) if self.progress else None
        if progress:
            self.forecasts.append((self.age, progress))
        sighting = Sighting(self.age, self.last_running_age, self.looks, progress)
        delay = self.pace.delay(sighting, self.rng.random())
        self.last_running_age, self.age = self.age, self.age + delay
        return False

    def finish(self) -> Cost:
        while not self.look():
            pass
        return Cost(self.looks, self.age - self.duration)


def finished(
    pace: Pace, tasks: Distribution, count: int, rng: random.Random, *, first: int = 0, **more: Any
) -> list[Cost]:
    """The costs of `count` tasks, one after another."""
    costs = []
    for number in range(first, first + count):
        submitted_at = 1000.0 * number + rng.random()
        costs.append(Task(pace, tasks.draw(rng), submitted_at, rng, **more).finish())
    return costs


def planned(pace: Pace, rng: random.Random) -> Iterator[float]:
    """The ages of the looks at a task that never ends, from which the pace learns nothing."""
    age = 0.0
    for looks in itertools.count():
        age += pace.delay(Sighting(age, age, looks), rng.random())
        yield age


def adaptive() -> Pace:
    return Pace(PollPolicy.adaptive(price=PRICE))


def learned(
    tasks: Distribution,
    counts: Sequence[int],
    seeds: int,
    *,
    before: Distribution | None = None,
    make: Callable[[], Pace] = adaptive,
    **more: Any,
) -> list[Cost]:
    """What looks cost after `counts` finished tasks, optionally preceded by a hundred of another kind."""
    costs: list[list[Cost]] = [[] for _ in counts]
    for seed in range(seeds):
        rng, pace, done = random.Random(seed), make(), 0
        first = BEFORE if before else 0
        if before is not None:
            finished(pace, before, BEFORE, rng, **more)
        for count, of in zip(counts, costs, strict=True):
            finished(pace, tasks, count - done, rng, first=first + done, **more)
            done = count
            of.append(mean(cost(tasks, planned(pace, rng)) for _ in range(5)))
    return [mean(of) for of in costs]


def batch(pace: Pace, tasks: Distribution, size: int, rng: random.Random, start: float = 0.0) -> Cost:
    """The mean cost of `size` tasks, submitted at two per second, with looks in order of time."""
    waiting: list[tuple[float, int, Task]] = []
    submits = [start + number / 2 for number in range(size)]
    costs = []
    while submits or waiting:
        if submits and (not waiting or submits[0] <= waiting[0][0]):
            submitted_at = submits.pop(0)
            task = Task(pace, tasks.draw(rng), submitted_at + rng.random(), rng)
        else:
            task = heapq.heappop(waiting)[2]
            if task.look():
                costs.append(Cost(task.looks, task.age - task.duration))
                continue
        heapq.heappush(waiting, (task.submitted_at + task.age, id(task), task))
    return mean(costs)


# -- progress ----------------------------------------------------------------------------------


class Bent:
    """(age / duration) ** bend in steps of 0.01, with a random bend around 1 for each task."""

    def __init__(self, sigma: float) -> None:
        self._sigma, self._rng = sigma, random.Random(1)
        self._task, self._bend = 0.0, 1.0

    def __call__(self, age: float, duration: float) -> float:
        if duration != self._task:
            self._task, self._bend = duration, math.exp(self._sigma * self._rng.gauss(0, 1))
        return math.floor((age / duration) ** self._bend * 100) / 100


def _noise() -> Progress:
    rng = random.Random(1)
    return lambda age, duration: rng.random()


PROGRESS: dict[str, Callable[[], Progress]] = {
    "none": lambda: lambda age, duration: None,
    "even": lambda: Bent(0.0),
    "bent, 0.3": lambda: Bent(0.3),
    "noise": _noise,
    "stuck at 0.5": lambda: lambda age, duration: 0.5,
}


def with_progress(tasks: Distribution, kind: str, count: int, seeds: int) -> Cost:
    """The mean cost of tasks after the first twenty."""
    costs = []
    for seed in range(seeds):
        costs += finished(adaptive(), tasks, count, random.Random(seed), progress=PROGRESS[kind]())[20:]
    return mean(costs)


# -- the table ---------------------------------------------------------------------------------


def results(quick: bool) -> dict[str, Any]:
    """Mean looks, mean lateness and the ratio of their cost to the optimum: by distribution and policy,
    and under "following", "batches" and "progress"."""
    found: dict[str, Any] = {}
    following, batches, progress = [], [], []
    seeds = 5 if quick else 30
    for name, tasks in DISTRIBUTIONS.items():
        least = cost(tasks, optimum(tasks))

        def row(of: Cost, least: Cost = least) -> dict[str, float]:
            return {"looks": of.looks, "lateness": of.lateness, "ratio": of.total / least.total}

        found[name] = {"optimum": row(least)}
        for policy, looks in POLICIES.items():
            rng, rounds = random.Random(1), 3 if quick else 20
            found[name][policy] = row(mean(cost(tasks, looks(rng)) for _ in range(rounds)))
        for count, of in zip(LEARNED, learned(tasks, LEARNED, seeds), strict=True):
            found[name][f"kie4o learned, after {count}"] = row(of)
        [exact] = learned(tasks, [50], seeds, exact=True)
        found[name]["kie4o learned, after 50 with exact times"] = row(exact)

        slow = tasks.slower(2.0)
        slow_least = cost(slow, optimum(slow)).total
        for count, of in zip(AFTER, learned(slow, AFTER, seeds, before=tasks), strict=True):
            following.append({"distribution": name, "after": count, "ratio": of.total / slow_least})
        rounds: list[list[Cost]] = [[] for _ in range(4)]
        for seed in range(max(3, seeds // 2)):
            rng, pace = random.Random(seed), adaptive()
            for number, costs in enumerate(rounds):
                costs.append(batch(pace, tasks, 100, rng, 1000.0 * number))
        for number, costs in enumerate(rounds):
            batches.append({"distribution": name, "batch": number + 1, **row(mean(costs))})
        for kind in PROGRESS:
            of = with_progress(tasks, kind, 120, max(3, seeds // 2))
            progress.append({"distribution": name, "progress": kind, **row(of)})
    return found | {"following": following, "batches": batches, "progress": progress}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    found = results(parser.parse_args().quick)
    for name in DISTRIBUTIONS:
        print(f"{name:38} {'looks':>8} {'lateness':>9} {'cost / least':>13}")
        for policy, row in found[name].items():
            print(f"  {policy:36} {row['looks']:8.2f} {row['lateness']:9.2f} {row['ratio']:13.3f}")
        print()
    for title, column in (("following", "after"), ("batches", "batch"), ("progress", "progress")):
        heads = list(dict.fromkeys(str(row[column]) for row in found[title]))
        what = {
            "following": f"all times doubled after {BEFORE} tasks: cost / least, by tasks since then",
            "batches": "batches of 100, one after another: cost / least of each",
            "progress": "progress, tasks 21 to 120: cost / least (the least uses no progress)",
        }[title]
        width = max(map(len, heads)) + 2
        print(f"{what}\n  {'':36}", *(f"{head:>{width}}" for head in heads))
        for name in DISTRIBUTIONS:
            ratios = [row["ratio"] for row in found[title] if row["distribution"] == name]
            print(f"  {name:36}", *(f"{ratio:{width}.3f}" for ratio in ratios))
        print()


if __name__ == "__main__":
    main()
