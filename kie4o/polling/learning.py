"""When to look, learned from when this account's tasks have ended: arithmetic, and the memory of it.

No clock, no chance, no network: ages and chances are handed in, so that the same history always gives
the same looks. `pacing` says what a pace may be, `polling` looks.

What ended is remembered as a span of ages, widened towards its neighbours. The spans together, with a
few imagined ones that fade, are the distribution of ends. Which looks cost least under it, where a
second of lateness costs one and a look its price, is a dynamic programme over some hundred ages. It is
worked out anew when a sixth more is known, or when tasks end much faster or slower than expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .planning import Plan, Span
from .policy import GAP, PollPolicy

KEPT = 100  # ends remembered; more would cost more at each plan and hardly improve it
_REFRESH = 6  # a new plan when a sixth more is known
_USUAL = 5  # ends from which on there is a usual duration
_LONGEST = 1e5  # seconds; about a day, longer than any task

_ROUNDED = 0.6  # seconds either way; times cut to whole seconds are 0.4 s off (root of mean square)
_MEDIAN, _SIGMA = 42.0, 0.65  # of imagined ends, lognormal: four of five between 18 and 97 s
_WORTH, _FADING, _LEAST = 8.0, 8, 0.4  # imagined ends: worth so many, a quarter after 8, never less

_TWICE = math.log(2.0)  # the change to be noticed: ends twice as often, or half as often
_ALARM = 5.0  # log of the evidence for it

_PROVEN = 8  # tasks whose progress must have forecast their end before it counts
_BETTER = 0.8  # of the cost without it


# -- what is known of ends ---------------------------------------------------------------------


def _imagined() -> list[Span]:
    shares = [(number + 0.5) / 16 for number in range(16)]
    normal = [4.91 * (share**0.14 - (1 - share) ** 0.14) for share in shares]  # quantiles, by Tukey's lambda
    return [_around(_MEDIAN * math.exp(_SIGMA * z)) for z in normal]


def _around(age: float) -> Span:
    return age / 1.2, age * 1.2, 1 / 16


def _widened(spans: Iterable[tuple[float, float]]) -> list[Span]:
    """Each as wide as the way to a neighbour some places off, on the nearer side: narrow where ends
    are dense, and a gap between two kinds of task stays a gap."""
    ordered = sorted(spans, key=sum)
    middles = [(low + high) / 2 for low, high in ordered]
    places = max(1, round(math.sqrt(len(ordered))))
    ways = [after - before for before, after in zip(middles, middles[places:], strict=False)]
    none = [math.inf] * (len(ordered) - len(ways))
    widened = []
    for (low, high), before, after in zip(ordered, none + ways, ways + none, strict=True):
        reach = max(0.01, min(before, after, 0.15 * (low + high)) - (high - low) / 2)
        widened.append((max(0.0, low - reach), high + reach, 1.0))
    return widened


# -- what may change a plan --------------------------------------------------------------------


class _Surprise:
    """Whether tasks end much faster or slower than expected by now: Page's test (1954) on how much
    likelier the looks are if ends come twice as often, or half as often.

    It counts what runs as well as what ends. Ends alone deceive: of many tasks submitted together the
    short ones end first and the long ones last, although nothing changes.
    """

    __slots__ = ("_faster", "_faster_ends", "_slower", "_slower_ends")

    def __init__(self) -> None:
        self._faster = self._slower = 0.0  # evidence, since it last was none
        self._faster_ends = self._slower_ends = 0  # ends since then

    def note(self, ends: int, risk: float) -> None:
        """So many ends where `risk` were to be expected."""
        faster = self._faster + ends * _TWICE - risk
        slower = self._slower - ends * _TWICE + risk / 2
        self._faster, self._faster_ends = (faster, self._faster_ends + ends) if faster > 0 else (0.0, 0)
        self._slower, self._slower_ends = (slower, self._slower_ends + ends) if slower > 0 else (0.0, 0)

    def ends(self) -> int:
        """How many have ended since the change began; 0 if there is none, or none has."""
        if self._faster > _ALARM:
            return self._faster_ends
        return self._slower_ends if self._slower > _ALARM else 0


class _Forecasts:
    """Whether progress foretells the end. Each forecast of a task that has ended is tried out beside
    the plan: what looks would have cost by one and by the other.

    The recorded tasks of this service stayed at 0.00 until they ended, which is no forecast.
    """

    __slots__ = ("_costs", "_planned", "_ratios", "_scale", "_tasks")

    def __init__(self) -> None:
        self._ratios: list[float] = []  # what was left, over what progress said was left
        self._scale = 1.0
        self._costs = self._planned = 0.0
        self._tasks = 0

    def pause(self, age: float, progress: float | None) -> float | None:
        """To the end, as progress foretells it, if it has proved itself."""
        proven = self._tasks >= _PROVEN and self._costs < _BETTER * self._planned
        return self._guess(age, progress) if proven and progress and _tells(progress) else None

    def learn(self, end: float, forecasts: Sequence[tuple[float, float]], plan: Plan, price: float) -> None:
        fair = [(age, part) for age, part in forecasts[-8:] if _tells(part) and GAP <= age < end]
        if not fair:
            return
        self._tasks += 1
        self._costs *= 0.9
        self._planned *= 0.9
        for age, part in fair:
            self._costs += _cost(self._guess(age, part), end - age, price)
            self._planned += plan.cost(age, end, price)
            self._ratios.append((end - age) * part / (age * (1 - part)))
        del self._ratios[:-KEPT]
        self._scale = sorted(self._ratios)[len(self._ratios) * 3 // 5]

    def _guess(self, age: float, progress: float) -> float:
        left = self._scale * age * (1 - progress) / progress
        return max(GAP, min(left, max(15.0, age)))


def _tells(progress: float) -> bool:
    return 0.001 <= progress <= 0.999


def _cost(pause: float, left: float, price: float) -> float:
    """Of looks at forecasts as good as this one: a look too soon leaves the same share each time."""
    if pause >= left:
        return price + pause - left
    return price * (1 + math.log(GAP / left) / math.log1p(-pause / left))


# -- the pace ----------------------------------------------------------------------------------


class Pace:
    """When to look at the tasks of one poller, which tells it how each of them ended.

    With a policy without a price it is that policy. Otherwise it begins with imagined ends (median
    42 s, worth eight real ones), since exponential pauses cost up to twice the least possible; they
    fade as real ends come. Past everything seen, pauses grow by the policy's `factor` from its
    `maximum` to three times that, or a tenth of the age. No first look comes before `first`.
    """

    __slots__ = ("_believed", "_forecasts", "_new", "_plan", "_policy", "_spans", "_surprise", "_usual")

    def __init__(self, policy: PollPolicy) -> None:
        self._policy = policy
        self._spans: list[tuple[float, float, float]] = []  # born, from, to; as they ended
        self._believed = _imagined()
        self._plan: Plan | None = None
        self._new = 0  # ends that the plan does not know
        self._surprise = _Surprise()
        self._forecasts = _Forecasts()
        self._usual: float | None = None

    @property
    def usual(self) -> float | None:
        """The median duration, once a few are known."""
        if self._usual is None and len(self._spans) >= _USUAL:
            middles = sorted((low + high) / 2 for _, low, high in self._spans)
            self._usual = middles[len(middles) // 2]
        return self._usual

    def pause(
        self,
        age: float,
        looks: int,
        chance: float,
        *,
        low: float,
        net: bool = False,
        progress: float | None = None,
    ) -> float:
        """Seconds until the next look at a task that runs at this age, after so many looks.

        `low` is its age at the last look before this one that found it running (0 if none did), or
        `age` itself if this one told nothing. `chance` from 0 to 1 picks the jitter. `net`: a callback
        is expected, and looks are only the safety net under it.
        """
        policy = self._policy
        if policy.price is None:
            return policy.delay(looks, chance, net=net)
        if not 0 <= low <= age <= _LONGEST:
            age = low = _plain(age)
        plan = self._planned(policy.price)
        if looks and low < age:
            self._surprise.note(0, plan.risk(age) - plan.risk(low))
        if net:
            pause = policy.delay(looks, chance, net=True)
            if not looks and self.usual is not None:
                pause = 2 * self.usual - age
        else:
            told = self._forecasts.pause(age, progress)
            pause = plan.pause(age, chance) if told is None else told
            if not looks:
                pause = max(pause, policy.first - age)
        return max(pause, GAP)

    def ended(
        self,
        low: float,
        high: float,
        duration: float | None = None,
        forecasts: Sequence[tuple[float, float]] = (),
        *,
        born: float,
    ) -> None:
        """A task ended after the age `low`, when a look found it running (0 if none did), and by the
        age `high`. `duration` is what its record says, in whole seconds; `forecasts` are ages and the
        progress then. `born` is when it was submitted, on any clock that all tasks share."""
        span = _span(low, high, duration)
        if self._policy.price is None or span is None:
            return
        plan, end = self._planned(self._policy.price), sum(span) / 2
        self._spans.append((born, *span))
        del self._spans[:-KEPT]
        self._new += 1
        self._usual = None
        self._forecasts.learn(end, forecasts, plan, self._policy.price)
        self._surprise.note(1, max(0.0, plan.risk(end) - plan.risk(_plain(low))))
        if since := self._surprise.ends():
            self._begin_anew(plan, since)

    def _begin_anew(self, plan: Plan, since: int) -> None:
        """Tasks have changed: what is older than those that showed it becomes what is imagined.

        Older by birth: what was born with them and ended before them belongs to them.
        """
        born = min(born for born, _, _ in self._spans[-max(3, since) :])
        newer = [span for span in self._spans if span[0] >= born]
        if len(newer) < 0.8 * len(self._spans):
            self._spans = newer
            self._believed = [_around(age) for age in plan.typical(12)] + _imagined()[2::4]
        self._surprise = _Surprise()
        self._plan = None

    def _planned(self, price: float) -> Plan:
        known = len(self._spans)
        if self._plan is None or self._new >= max(1, known // _REFRESH):
            worth = max(_LEAST, _WORTH / (1 + known / _FADING) ** 2)
            faded = [(low, high, worth * weight) for low, high, weight in self._believed]
            real = _widened((low, high) for _, low, high in self._spans)
            self._plan = Plan(real + faded, self._policy, price)
            self._new = 0
        return self._plan


def _plain(age: float) -> float:
    return age if 0 <= age <= _LONGEST else 0.0


def _span(low: float, high: float, duration: float | None) -> tuple[float, float] | None:
    """The ages between which it ended; None if nothing is known. Looks are believed before records."""
    low = _plain(low)
    high = high if low <= high <= _LONGEST else math.inf
    if duration is not None and 0 <= duration <= _LONGEST:
        if duration + _ROUNDED < low:
            duration = low + _ROUNDED
        elif duration - _ROUNDED > high:
            duration = high - _ROUNDED
        low, high = max(low, duration - _ROUNDED), max(low, min(high, duration + _ROUNDED))
    return (low, high) if math.isfinite(high) else None
