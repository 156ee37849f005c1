"""The looks that cost least for a given distribution of durations, found by dynamic programming.

The cost is the seconds by which a finished task is seen late, plus a price for each look. The
distribution is a list of spans of ages: tasks have finished in each with some weight, all ages in it
being equally likely; `learning` provides them. With a hundred spans it takes half a millisecond to
make a plan and a microsecond to ask it. Ages and delays are seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from .policy import GAP, PollPolicy

_FINE, _COARSE = 0.025, 0.05  # step between two ages of a plan: share of the tasks, share of the age
_RARE = 0.05  # share of tasks so slow that no delay is planned for them
_LONGEST_DELAY = 120.0  # or the age, if that is more
_HIGHEST_HAZARD = 3.0  # a hundred durations say nothing about what is beyond it

Span = tuple[float, float, float]  # from, to, weight


def distribution(spans: Sequence[Span]) -> tuple[list[float], list[float], list[float]]:
    """Ages, the share of tasks that have finished by each, and the integral of that share."""
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
    """For each age the age of the cheapest next look, given that the best looks follow it.

    The list is filled from the last age backwards. A look costs `price` if the task is still running
    now, plus the lateness of tasks that finish before it: the area between the share finished by now
    and the share as it grows. The best look moves later as the age does, so each search stops where
    the one before it ended.
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
    """A table of the best next look at any age."""

    __slots__ = ("_ages", "_hazards", "_jitters", "_looks", "_policy", "_shares")

    def __init__(self, spans: Sequence[Span], policy: PollPolicy, price: float) -> None:
        self._policy = policy
        self._ages, self._shares, areas = distribution(spans)
        looks = best_looks(self._ages, self._shares, areas, price)
        self._looks = [
            min(look, age + (max(_LONGEST_DELAY, age) if share < 1 - _RARE else self._longest_if_slow(age)))
            for age, share, look in zip(self._ages, self._shares, looks, strict=True)
        ]
        self._hazards = [min(_HIGHEST_HAZARD, -math.log(max(1e-9, 1 - share))) for share in self._shares]
        delays = [look - age for age, look in zip(self._ages, self._looks, strict=True)]
        next_delays = [delays[bisect_right(self._ages, look) - 1] for look in self._looks]
        self._jitters = [delay / 10 for delay in [*next_delays[:-1], math.inf]]

    def delay(self, age: float, chance: float) -> float:
        """Seconds to the next look.

        Jitter is a tenth of the delay, or of the delay after it if that is shorter: where tasks finish
        within a second of each other, a wide jitter would miss that second.
        """
        index, part = self._locate(age)
        if index + 1 == len(self._ages):  # older than everything seen so far
            growing = self._policy.maximum + (self._policy.factor - 1) * (age - self._ages[-1])
            delay = min(growing, self._longest_if_slow(age))
        else:
            delay = self._looks[index] + part * (self._looks[index + 1] - self._looks[index]) - age
        if self._policy.jitter:
            delay += min(delay / 10, self._jitters[index]) * (2 * chance - 1)
        return delay

    def cost(self, age: float, duration: float, price: float) -> float:
        """What looks and lateness cost from this age on, for a task of this duration."""
        looks = 0
        while age < duration:
            age += max(GAP, self.delay(age, 0.5))
            looks += 1
        return looks * price + age - duration

    def hazard(self, age: float) -> float:
        """The cumulative hazard: how many tasks are expected to finish up to this age if each one that
        finishes is replaced by another of its age."""
        index, part = self._locate(age)
        if index + 1 == len(self._ages):
            return self._hazards[-1]
        return self._hazards[index] + part * (self._hazards[index + 1] - self._hazards[index])

    def typical(self, count: int) -> list[float]:
        """Durations spread evenly over the distribution: its quantiles."""
        return [self._ages[bisect_left(self._shares, (number + 0.5) / count)] for number in range(count)]

    def _locate(self, age: float) -> tuple[int, float]:
        """The index of the age before this one, and the part of the way to the next."""
        ages = self._ages
        index = bisect_right(ages, age) - 1
        if index + 1 == len(ages):
            return index, 0.0
        return index, (age - ages[index]) / (ages[index + 1] - ages[index])

    def _longest_if_slow(self, age: float) -> float:
        """The longest delay for a task slower than nearly all."""
        return max(3 * self._policy.maximum, age / 10)
