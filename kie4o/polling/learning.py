"""When to look, learned from how long the tasks of one account have taken.

Pure arithmetic without clock, randomness or network: the same history always gives the same looks.
`planning` finds the cheapest looks for a distribution of durations. This module estimates that
distribution from finished tasks and notices when it changes. A look is explained in the package's docstring;
ages are seconds since its submit, and delays are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .planning import Plan, Span
from .policy import GAP, PollPolicy

KEPT = 100  # finished tasks remembered; more would cost more at each plan and hardly improve it
_REFRESH = 6  # a new plan is made when a sixth more tasks are known
_USUAL = 5  # finished tasks from which on there is a usual duration
_LONGEST = 1e5  # about a day, longer than any task

# Kie's record-info page gives times that are cut to whole seconds, so a duration is off by 0.4 s (root
# mean square) and at most by 1 s.
_ROUNDED = 0.6

# Imagined durations: lognormal, four of five between 18 and 97 s. Together they are worth eight real
# tasks at first, a quarter of that after eight, and never less than 0.4.
_MEDIAN, _SIGMA = 42.0, 0.65
_WORTH, _FADING, _LEAST_WORTH = 8.0, 8, 0.4

_LOG_TWICE = math.log(2.0)  # the change to notice: tasks finish at twice the rate, or at half
_ALARM = 5.0  # log-likelihood ratio from which on a change is believed

_PROVEN = 8  # finished tasks whose progress has been compared before forecasts may be used
_BETTER = 0.8  # share of the plan's cost that forecasts must stay below
FORECASTS = 8  # kept of each task, the last ones


class Sighting(NamedTuple):
    """What one look shows about the age of a task.

    A tuple, since one is made for each look: that takes half the time of an attrs class.

    Attributes:
        age: At this look; None if it is unknown when the task was submitted.
        last_running_age: At the look before this one that found the task running, or 0 if there was
            none. Equal to `age` if this look showed nothing, for example because it failed.
        looks: How many looks there have been, this one included.
        progress: What Kie reports, from 0 to 1.
    """

    age: float | None = None
    last_running_age: float = 0.0
    looks: int = 0
    progress: float | None = None


# -- the distribution of durations -------------------------------------------------------------


def _imagined() -> list[Span]:
    shares = [(number + 0.5) / 16 for number in range(16)]
    # Tukey's lambda distribution, which is nearly the normal one: `statistics.NormalDist` would add 3 ms
    # to the import (python -X importtime).
    normal = [4.91 * (share**0.14 - (1 - share) ** 0.14) for share in shares]
    return [_around(_MEDIAN * math.exp(_SIGMA * z)) for z in normal]


def _around(age: float) -> Span:
    return age / 1.2, age * 1.2, 1 / 16


def _widened(spans: Iterable[tuple[float, float]]) -> list[Span]:
    """A density estimate from spans in which tasks have finished.

    Each span is widened by the distance to its k-th neighbour, k being the square root of their number,
    on the side where that is nearer. This is the nearest-neighbour estimate (Loftsgaarden and
    Quesenberry, Annals of Mathematical Statistics 36, 1965): narrow where durations are dense, and
    a gap between two kinds of task stays a gap.
    """
    ordered = sorted(spans, key=sum)
    middles = [(low + high) / 2 for low, high in ordered]
    offset = max(1, round(math.sqrt(len(ordered))))
    distances = [after - before for before, after in zip(middles, middles[offset:], strict=False)]
    missing = [math.inf] * (len(ordered) - len(distances))
    widened = []
    for (low, high), before, after in zip(ordered, missing + distances, distances + missing, strict=True):
        reach = max(0.01, min(before, after, 0.15 * (low + high)) - (high - low) / 2)
        widened.append((max(0.0, low - reach), high + reach, 1.0))
    return widened


# -- what may change a plan --------------------------------------------------------------------


class _ChangeDetector:
    """Detects that tasks have become about twice as fast or twice as slow.

    This is Page's cumulative sum test ("Continuous inspection schemes", Biometrika 41, 1954). One sum
    collects evidence for "faster", another for "slower": the logarithm of how much likelier each look
    is if tasks finish at twice, or half, the expected rate. A sum that falls below 0 begins again at 0,
    and one that passes `_ALARM` reports a change, which began when the sum last was 0.

    Looks that find a task still running count too. Finished tasks alone would mislead: of many tasks
    submitted together the short ones finish first and the long ones last, although nothing changes.
    """

    __slots__ = ("_faster", "_faster_finished", "_slower", "_slower_finished")

    def __init__(self) -> None:
        self._faster = self._slower = 0.0  # the two sums
        self._faster_finished = self._slower_finished = 0  # tasks finished since the sum last was 0

    def add(self, finished: int, expected: float) -> None:
        """Count a look that found `finished` tasks finished, where `expected` were to be expected."""
        self._faster += finished * _LOG_TWICE - expected
        self._faster_finished += finished
        if self._faster <= 0:
            self._faster, self._faster_finished = 0.0, 0
        self._slower += expected / 2 - finished * _LOG_TWICE
        self._slower_finished += finished
        if self._slower <= 0:
            self._slower, self._slower_finished = 0.0, 0

    def finished_since_change(self) -> int:
        """How many tasks have finished since a change began; 0 if there is no change, or none has."""
        if self._faster > _ALARM:
            return self._faster_finished
        return self._slower_finished if self._slower > _ALARM else 0


class _Forecasts:
    """Decides whether the progress that Kie reports predicts when a task finishes.

    At age a and progress p, the time left would be a * (1 - p) / p if progress were even. A forecast is
    that times a scale: the 60 % quantile of actual over predicted time left, from earlier tasks. For
    each finished task the forecasts are replayed: what would looks have cost if they had followed the
    forecasts, and what if the plan? Forecasts are used once `_PROVEN` tasks have been compared, while
    their cost stays below `_BETTER` of the plan's. A task weighs a tenth less with each one after it.

    In the recorded tasks of this service progress stayed at 0.00 to the end, which predicts nothing.
    """

    __slots__ = ("_forecast_costs", "_plan_costs", "_ratios", "_scale", "_tasks")

    def __init__(self) -> None:
        self._ratios: list[float] = []  # actual time left over predicted time left
        self._scale = 1.0
        self._forecast_costs = self._plan_costs = 0.0
        self._tasks = 0

    def delay(self, age: float, progress: float | None) -> float | None:
        """Until the task should finish; None if there is no forecast to rely on."""
        if progress is None or not _is_partial(progress):
            return None
        if self._tasks < _PROVEN or self._forecast_costs >= _BETTER * self._plan_costs:
            return None
        return self._predicted(age, progress)

    def learn(
        self, duration: float, forecasts: Sequence[tuple[float, float]], plan: Plan, price: float
    ) -> None:
        """Compare the forecasts of a finished task, as ages and the progress then, with the plan."""
        usable = [
            (age, progress)
            for age, progress in forecasts[-FORECASTS:]
            if _is_partial(progress) and GAP <= age < duration
        ]
        if not usable:
            return
        self._tasks += 1
        self._forecast_costs *= 0.9
        self._plan_costs *= 0.9
        for age, progress in usable:
            left = duration - age
            self._forecast_costs += _cost_of_forecasts(self._predicted(age, progress), left, price)
            self._plan_costs += plan.cost(age, duration, price)
            self._ratios.append(left * progress / (age * (1 - progress)))
        del self._ratios[:-KEPT]
        self._scale = sorted(self._ratios)[len(self._ratios) * 3 // 5]

    def _predicted(self, age: float, progress: float) -> float:
        left = self._scale * age * (1 - progress) / progress
        return max(GAP, min(left, max(15.0, age)))


def _is_partial(progress: float) -> bool:
    """Whether progress says anything: at 0 and at 1 it does not."""
    return 0.001 <= progress <= 0.999


def _cost_of_forecasts(delay: float, left: float, price: float) -> float:
    """The cost of looks that follow forecasts as good as this one.

    A forecast that is too long costs one look and its lateness. One that is too short is followed by
    others that each leave the same share of the time, until only `GAP` is left.
    """
    if delay >= left:
        return price + delay - left
    return price * (1 + math.log(GAP / left) / math.log1p(-delay / left))


# -- the pace ----------------------------------------------------------------------------------


class Pace:
    """When to look at the tasks of one poller, which reports each finished task with `learn`.

    Without a price the pace is the policy's back-off. With a price it is a plan for the durations of
    the last `KEPT` tasks. At first these are imagined ones, because plain back-off costs up to twice
    the least possible (benchmarks/pacing.py); they fade as tasks finish. For a task older than all
    before it, delays grow by the policy's `factor` from its `maximum` to three times that, or to
    a tenth of the age. No first look comes before the policy's `first`.
    """

    __slots__ = ("_believed", "_changes", "_finished", "_forecasts", "_plan", "_policy", "_unplanned")

    def __init__(self, policy: PollPolicy) -> None:
        self._policy = policy
        # When each task was submitted, and the ages between which it finished, in the order of finishing.
        self._finished: list[tuple[float, float, float]] = []
        self._believed = _imagined()
        self._plan: Plan | None = None
        self._unplanned = 0  # finished tasks that the plan does not know
        self._changes = _ChangeDetector()
        self._forecasts = _Forecasts()

    @property
    def usual(self) -> float | None:
        """The median duration, once a few are known."""
        if len(self._finished) < _USUAL:
            return None
        middles = sorted((low + high) / 2 for _, low, high in self._finished)
        return middles[len(middles) // 2]

    def delay(self, sighting: Sighting, chance: float, *, safety_net: bool = False) -> float:
        """Seconds from this look at a running task, or from its submit, to the next look.

        Args:
            sighting: What the look showed.
            chance: A random number from 0 to 1 that picks the jitter.
            safety_net: A callback is expected, and looks are only needed if it does not arrive.
        """
        policy, age = self._policy, sighting.age
        if policy.price is None or age is None:
            return policy.delay(sighting.looks, chance, safety_net=safety_net)
        last, looks = sighting.last_running_age, sighting.looks
        if not 0 <= last <= age <= _LONGEST:
            age = last = _plausible(age)
        plan = self._current_plan(policy.price)
        if looks and last < age:
            self._changes.add(0, plan.hazard(age) - plan.hazard(last))
        if safety_net:
            usual = None if looks else self.usual
            delay = policy.delay(looks, chance, safety_net=True) if usual is None else 2 * usual - age
        else:
            forecast = self._forecasts.delay(age, sighting.progress)
            delay = plan.delay(age, chance) if forecast is None else forecast
            if not looks:
                delay = max(delay, policy.first - age)
        return max(delay, GAP)

    def learn(
        self,
        sighting: Sighting,
        *,
        submitted_at: float,
        duration: float | None = None,
        forecasts: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Remember a task that has finished.

        Args:
            sighting: The look that found it finished.
            submitted_at: On any clock that all tasks of the poller share.
            duration: What Kie's record says, in whole seconds.
            forecasts: Ages at earlier looks, and the progress then.
        """
        price = self._policy.price
        if price is None:
            return
        last = _plausible(sighting.last_running_age)
        span = _finish_span(last, sighting.age, duration)
        if span is None:
            return
        plan, finish = self._current_plan(price), sum(span) / 2
        self._finished.append((submitted_at, *span))
        del self._finished[:-KEPT]
        self._unplanned += 1
        self._forecasts.learn(finish, forecasts, plan, price)
        self._changes.add(1, max(0.0, plan.hazard(finish) - plan.hazard(last)))
        if count := self._changes.finished_since_change():
            self._restart(plan, count)

    def _restart(self, plan: Plan, count: int) -> None:
        """Tasks have changed: those older than the last `count` become what is imagined.

        Older by their submit: a task that was submitted with these and finished before them is kept.
        """
        since = min(submitted_at for submitted_at, _, _ in self._finished[-max(3, count) :])
        newer = [task for task in self._finished if task[0] >= since]
        if len(newer) < 0.8 * len(self._finished):
            self._finished = newer
            self._believed = [_around(age) for age in plan.typical(12)] + _imagined()[2::4]
        self._changes = _ChangeDetector()
        self._plan = None

    def _current_plan(self, price: float) -> Plan:
        known = len(self._finished)
        if self._plan is None or self._unplanned >= max(1, known // _REFRESH):
            worth = max(_LEAST_WORTH, _WORTH / (1 + known / _FADING) ** 2)
            faded = [(low, high, worth * weight) for low, high, weight in self._believed]
            real = _widened((low, high) for _, low, high in self._finished)
            self._plan = Plan(real + faded, self._policy, price)
            self._unplanned = 0
        return self._plan


def _plausible(age: float) -> float:
    """The age, or 0 if no task can have it."""
    return age if 0 <= age <= _LONGEST else 0.0


def _finish_span(last: float, age: float | None, duration: float | None) -> tuple[float, float] | None:
    """The ages between which a task finished, from looks and its record; None if neither tells.

    If a record contradicts the looks, the looks are right.
    """
    low, high = last, math.inf
    if age is not None and low <= age <= _LONGEST:
        high = age
    if duration is not None and 0 <= duration <= _LONGEST:
        if duration + _ROUNDED < low:
            duration = low + _ROUNDED
        elif duration - _ROUNDED > high:
            duration = high - _ROUNDED
        low, high = max(low, duration - _ROUNDED), max(low, min(high, duration + _ROUNDED))
    return (low, high) if math.isfinite(high) else None
