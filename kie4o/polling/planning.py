"""The looks that cost least under a distribution of ends: a dynamic programme, and its table.

Cost is seconds of lateness plus a price for each look. The distribution comes as spans of ages in
which tasks have ended, each with a weight and all ages in it alike; `learning` says which. One plan
takes about half a millisecond, and a look-up in its table two microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from .policy import GAP, PollPolicy

_FINE, _COARSE = 0.025, 0.05  # between two ages of a plan: share of the ends, share of the age
_RARE = 0.05  # share of tasks so slow that no pause is planned for them
_WAIT = 120.0  # seconds; no pause is longer than this, or than the age
_SURE = 3.0  # ends expected of one task, at most: a hundred ends tell nothing beyond

Span = tuple[float, float, float]  # from, to, weight


def distribution(spans: Sequence[Span]) -> tuple[list[float], list[float], list[float]]:
    """Ages, the share of tasks that have ended by each, and the integral of that share."""
    total = sum(weight for _, _, weight in spans)
    edges = []
    for low, high, weight in spans:
        density = weight / total / (high - low)
        edges += [(low, density), (high, -density)]
    edges.sort()
    ages, shares, areas = [0.0], [0.0], [0.0]
    age = share = area = density = 0.0
    for edge, change in edges:
        while age < edge:
            step = edge - age
            if density > 1e-9:
                step = min(step, _FINE / density, max(0.1, _COARSE * age))
            area += (share + density * step / 2) * step
            share += density * step
            age += step
            if share - shares[-1] >= _FINE / 2 or age - ages[-1] >= max(0.1, _COARSE * ages[-1]):
                ages.append(age)
                shares.append(min(share, 1.0))
                areas.append(area)
        density += change
    return [*ages, age + 0.01], [*shares, 1.0], [*areas, area + 0.01]


def best_looks(ages: list[float], shares: list[float], areas: list[float], price: float) -> list[float]:
    """For each age the next look that costs least, if the best looks follow.

    From the last age backwards: a look costs `price` if the task runs until now, and the lateness of
    what ends meanwhile, which is the area between the share ended by now and the share as it grows.
    The best look moves on with the age, so that each search stops where the one before it found.
    """
    last = best = len(ages) - 1
    looks, costs = [ages[-1] + GAP] * len(ages), [0.0] * len(ages)
    for index in range(last - 1, -1, -1):
        age, share = ages[index], shares[index]
        first = min(bisect_left(ages, age + GAP, index + 1), last)
        stop = max(first, best) + 1
        later = [
            area - share * look + cost
            for look, area, cost in zip(ages[first:stop], areas[first:stop], costs[first:stop], strict=True)
        ]
        least = min(later)
        best = first + later.index(least)
        costs[index] = price * (1 - share) - areas[index] + share * age + least
        looks[index] = max(ages[best], age + GAP)
    return looks


class Plan:
    """The best next look at any age, from a table."""

    __slots__ = ("_ages", "_jitters", "_looks", "_policy", "_risks", "_shares")

    def __init__(self, spans: Sequence[Span], policy: PollPolicy, price: float) -> None:
        self._policy = policy
        self._ages, self._shares, areas = distribution(spans)
        looks = best_looks(self._ages, self._shares, areas, price)
        self._looks = [
            min(look, age + (max(_WAIT, age) if share < 1 - _RARE else self._slow(age)))
            for age, share, look in zip(self._ages, self._shares, looks, strict=True)
        ]
        self._risks = [min(_SURE, -math.log(max(1e-9, 1 - share))) for share in self._shares]
        pauses = [look - age for age, look in zip(self._ages, self._looks, strict=True)]
        after = [pauses[bisect_right(self._ages, look) - 1] for look in self._looks]
        self._jitters = [pause / 10 for pause in [*after[:-1], math.inf]]

    def pause(self, age: float, chance: float) -> float:
        """To the next look. Jitter is a tenth of the pause, or of the one to follow if that is
        shorter: where ends are known to the second, so are the looks."""
        index, part = self._place(age)
        if index + 1 == len(self._ages):  # beyond everything seen
            growing = self._policy.maximum + (self._policy.factor - 1) * (age - self._ages[-1])
            pause = min(growing, self._slow(age))
        else:
            pause = self._looks[index] + part * (self._looks[index + 1] - self._looks[index]) - age
        if self._policy.jitter:
            pause += min(pause / 10, self._jitters[index]) * (2 * chance - 1)
        return pause

    def cost(self, age: float, end: float, price: float) -> float:
        """What looks and lateness cost from this age on, for a task that ends at `end`."""
        looks = 0
        while age < end:
            age += max(GAP, self.pause(age, 0.5))
            looks += 1
        return looks * price + age - end

    def risk(self, age: float) -> float:
        """The integral of the hazard: how many ends were to be expected up to this age if each task
        that ends were replaced by one of its age."""
        index, part = self._place(age)
        if index + 1 == len(self._ages):
            return self._risks[-1]
        return self._risks[index] + part * (self._risks[index + 1] - self._risks[index])

    def typical(self, count: int) -> list[float]:
        """So many ends, evenly over the distribution."""
        return [self._ages[bisect_left(self._shares, (number + 0.5) / count)] for number in range(count)]

    def _place(self, age: float) -> tuple[int, float]:
        ages = self._ages
        index = bisect_right(ages, age) - 1
        if index + 1 == len(ages):
            return index, 0.0
        return index, (age - ages[index]) / (ages[index + 1] - ages[index])

    def _slow(self, age: float) -> float:
        """The longest pause for a task slower than nearly all."""
        return max(3 * self._policy.maximum, age / 10)
