"""The learned pace: its cost against the least possible, what it forgets, and what it ignores."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import math
import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import BENCHMARKS

import kie4o
from kie4o import PollPolicy
from kie4o.polling import learning
from kie4o.polling.learning import KEPT, Pace, Sighting
from kie4o.polling.policy import GAP, SAFETY_NET

_spec = importlib.util.spec_from_file_location("benchmarks_pacing", BENCHMARKS / "pacing.py")
simulated = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulated)

WIDE, NARROW, CONSTANT, BIMODAL = KINDS = tuple(simulated.DISTRIBUTIONS.values())
SEEDS = 12
QUIET = PollPolicy.adaptive(jitter=False)


@functools.cache
def least_of(tasks) -> float:
    """The least possible cost."""
    return simulated.cost(tasks, simulated.optimum(tasks)).total


def ratios(tasks, counts, **more):
    """Cost over the least possible after these numbers of finished tasks."""
    least = least_of(tasks)
    return [cost.total / least for cost in simulated.learned(tasks, counts, SEEDS, **more)]


def known(*durations: float, policy: PollPolicy = QUIET) -> Pace:
    """A pace that knows these durations, each found by a look a second late."""
    pace = Pace(policy)
    for number, duration in enumerate(durations):
        pace.learn(Sighting(duration + 1), submitted_at=float(number), duration=duration)
    return pace


def delay(
    pace: Pace,
    age: float,
    looks: int,
    chance: float = 0.5,
    *,
    last: float | None = None,
    progress: float | None = None,
    safety_net: bool = False,
) -> float:
    """The delay after a look at this age; without `last`, one from which the pace learns nothing."""
    sighting = Sighting(age, age if last is None else last, looks, progress)
    return pace.delay(sighting, chance, safety_net=safety_net)


def looks(pace: Pace, until: float) -> list[float]:
    """The ages of the looks at a task that does not finish."""
    ages = [0.0]
    while ages[-1] < until:
        ages.append(ages[-1] + delay(pace, ages[-1], len(ages) - 1))
    return ages[1:]


# -- the policy --------------------------------------------------------------------------------


def test_a_policy_learns_only_with_a_price() -> None:
    """The default has no price; `adaptive` sets one and passes its other arguments on."""
    assert PollPolicy().price is None
    assert PollPolicy.adaptive() == PollPolicy(price=0.5)
    given = PollPolicy.adaptive(price=2, first=1.0, factor=2.0, maximum=9.0, jitter=False)
    assert given == PollPolicy(first=1.0, factor=2.0, maximum=9.0, jitter=False, price=2)


@pytest.mark.parametrize("bad", [0, -1, True, "0.5", float("nan"), float("inf"), 4000])
def test_impossible_prices_are_refused(bad) -> None:
    """A price is a number of seconds above 0 and at most an hour."""
    with pytest.raises(kie4o.ConfigurationError, match="price"):
        PollPolicy(price=bad)
    with pytest.raises(kie4o.ConfigurationError, match="price"):
        PollPolicy.adaptive(price=bad)


@given(st.floats(0, 1e4), st.integers(0, 50), st.floats(0, 1), st.booleans())
def test_without_a_price_the_pace_is_the_policy(age, looks, chance, safety_net) -> None:
    """Finished tasks and progress change nothing."""
    policy = PollPolicy()
    pace = known(30.0, 31.0, 32.0, policy=policy)
    learned = delay(pace, age, looks, chance, last=0.0, progress=0.5, safety_net=safety_net)
    assert learned == policy.delay(looks, chance, safety_net=safety_net)
    assert pace.usual is None


@given(st.integers(0, 50), st.floats(0, 1), st.booleans())
def test_for_a_task_of_unknown_age_the_pace_is_the_policy(looks, chance, safety_net) -> None:
    """A learned delay needs an age; without one the back-off of the policy is used."""
    policy = PollPolicy.adaptive()
    pace = known(*[30.0] * 20, policy=policy)
    learned = pace.delay(Sighting(looks=looks), chance, safety_net=safety_net)
    assert learned == policy.delay(looks, chance, safety_net=safety_net)


# -- any history -------------------------------------------------------------------------------

anything = st.floats(0, 400) | st.floats()
histories = st.lists(
    st.tuples(
        anything,
        anything,
        st.none() | anything,
        st.lists(st.tuples(anything, st.floats(0, 1) | st.floats()), max_size=3),
        st.integers(0, 100) | st.floats(),
    ),
    max_size=40,
)


def after(history, policy: PollPolicy = QUIET) -> Pace:
    """A pace that has learned this history."""
    pace = Pace(policy)
    for last, age, duration, forecasts, submitted_at in history:
        delay(pace, age, 1, last=last)
        sighting = Sighting(age, last, 1)
        pace.learn(sighting, submitted_at=submitted_at, duration=duration, forecasts=forecasts)
    return pace


@given(histories, anything, st.integers(0, 50), st.floats(0, 1), st.booleans(), st.none() | st.floats())
def test_delays_stay_in_bounds(history, age, looks, chance, safety_net, progress) -> None:
    """After any history, nonsense too, looks are never closer than Kie allows. A delay is longer than
    two minutes only for a task of that age, or while a callback is expected."""
    pace = after(history, PollPolicy.adaptive())
    found = delay(pace, age, looks, chance, last=0.0, safety_net=safety_net, progress=progress)
    longest = max(120.0, age if 0 <= age <= 1e5 else 0.0) * 1.2  # jitter, and the table is coarse
    if safety_net:
        longest = max(SAFETY_NET[0] * 1.1, 2 * (pace.usual or 0.0))
    assert GAP <= found <= longest + 1e-6


@given(histories, anything, st.floats(0, 1))
def test_the_same_history_gives_the_same_looks(history, age, chance) -> None:
    """The pace has no clock and no randomness of its own."""
    one, other = after(history), after(history)
    assert delay(one, age, 1, chance, last=0.0) == delay(other, age, 1, chance, last=0.0)
    assert one.usual == other.usual


@given(histories, st.floats(0, 300), st.floats(0, 1), st.floats(0, 1))
def test_jitter_grows_with_chance_and_stays_within_a_tenth(history, age, one, other) -> None:
    """A chance of 0.5 gives the plan itself."""
    pace = after(history, PollPolicy.adaptive())
    less, plan, more = (delay(pace, age, 1, chance) for chance in (min(one, other), 0.5, max(one, other)))
    assert less <= more
    assert abs(more - plan) <= 0.1 * plan + 1e-9


def test_memory_is_bounded() -> None:
    """After ten thousand tasks no more is kept than after a hundred, and the table is small."""
    pace, rng = Pace(QUIET), random.Random(1)
    for number in range(10_000):
        duration = WIDE.draw(rng)
        forecasts = [(duration * share, share) for share in (0.2, 0.4, 0.6, 0.8)]
        pace.learn(Sighting(duration), submitted_at=number, duration=duration, forecasts=forecasts)
    delay(pace, 0.0, 0)
    assert len(pace._finished) <= KEPT
    assert len(pace._forecasts._ratios) <= KEPT
    assert len(pace._plan._ages) <= 200


def test_plans_are_rare(monkeypatch) -> None:
    """A plan is made when a sixth more tasks are known: with a hundred known, after every sixteenth."""
    plans = 0

    class Counted(learning.Plan):
        def __init__(self, *arguments) -> None:
            nonlocal plans
            plans += 1
            super().__init__(*arguments)

    monkeypatch.setattr(learning, "Plan", Counted)
    pace, rng = Pace(QUIET), random.Random(1)
    simulated.finished(pace, WIDE, 100, rng)
    early, plans = plans, 0
    simulated.finished(pace, WIDE, 1000, rng, first=100)
    assert early <= 45
    assert plans <= 1000 / 16 + 30


def test_nonsense_is_not_learned() -> None:
    """Finished tasks without a plausible time change nothing."""
    pace, fresh = Pace(QUIET), Pace(QUIET)
    for last, age, duration in [
        (0.0, math.inf, None),
        (0.0, math.nan, -1.0),
        (-5.0, -1.0, math.nan),
        (0.0, 1e9, 1e9),
    ]:
        pace.learn(Sighting(age, last), submitted_at=0.0, duration=duration)
    assert looks(pace, 300) == looks(fresh, 300)


def test_looks_are_believed_before_records() -> None:
    """A record that contradicts the looks is moved to where they saw the task finish."""
    pace = Pace(QUIET)
    for number in range(20):
        pace.learn(Sighting(31.0, 29.0), submitted_at=number, duration=20.0)
    assert 29 <= pace.usual <= 31
    for number in range(20):
        pace.learn(Sighting(11.0, 9.0), submitted_at=20 + number, duration=200.0)
    assert min(looks(pace, 60)) < 12


def test_without_a_record_the_looks_are_used() -> None:
    """A task finished between the look that found it running and the one that found it finished."""
    pace = Pace(QUIET)
    for number in range(20):
        pace.learn(Sighting(24.0, 20.0), submitted_at=number)
    assert pace.usual == 22.0
    assert 20 < looks(pace, 60)[0] <= 26


# -- the shape of a plan -----------------------------------------------------------------------


def test_usual_is_the_median_of_a_few_at_least() -> None:
    """One task is not enough for a usual duration; five are."""
    assert known(30.0).usual is None
    assert known(30.0, 31.0, 90.0, 32.0, 29.0).usual == pytest.approx(31.0)


def test_the_safety_net_waits_for_twice_the_usual() -> None:
    """While a callback is expected, the first look is after a minute, or after twice the usual duration
    once that is known; later looks are every half minute."""
    fresh, pace = Pace(QUIET), known(*[20.0] * 9)
    assert delay(fresh, 0.0, 0, safety_net=True) == 60.0
    assert delay(pace, 0.0, 0, safety_net=True) == pytest.approx(40.0)
    assert delay(pace, 10.0, 0, safety_net=True) == pytest.approx(30.0)
    assert delay(pace, 40.0, 1, last=0.0, safety_net=True) == 30.0


def test_a_higher_price_means_fewer_looks() -> None:
    """Looks become rarer as their price goes up."""
    rng = random.Random(1)
    durations = [WIDE.draw(rng) for _ in range(50)]
    paces = (
        known(*durations, policy=PollPolicy.adaptive(price=price, jitter=False))
        for price in (0.05, 0.5, 5.0, 50.0)
    )
    counts = [simulated.cost(WIDE, looks(pace, 600)).looks for pace in paces]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[1] > 4 * counts[2]


def test_first_look_waits_for_the_first_to_finish_but_never_less_than_first() -> None:
    """The first look at tasks of half a minute comes when they finish; at quick ones, after `first`."""
    assert 28 < looks(known(*[30.0, 30.5, 31.0] * 10), 60)[0] <= 32
    assert looks(known(*[0.5] * 30), 60)[0] == 2.0


def test_between_two_kinds_of_task_there_is_no_look() -> None:
    """If tasks take 25 or 90 s, the longest delay spans most of the gap."""
    rng = random.Random(2)
    ages = looks(known(*(BIMODAL.draw(rng) for _ in range(100))), 120)
    longest, begins = max((b - a, a) for a, b in itertools.pairwise(ages))
    assert longest > 25
    assert 28 < begins < 60


def test_an_outlier_is_polled_neither_often_nor_hardly_ever() -> None:
    """Beyond all usual durations delays grow to a quarter of a minute, or to a tenth of the age. One
    earlier task that took a day does not change that."""
    for pace in (known(*[30.0] * 60), known(*[30.0] * 30, 8e4, *[30.0] * 30)):
        ages = looks(pace, 3600)
        late = [(a, b - a) for a, b in itertools.pairwise(ages) if a > 45]
        assert all(gap <= 1.1 * max(15.0, age / 10) for age, gap in late)
        assert len([age for age, _ in late if age < 600]) <= 40
        assert len(ages) <= 80


def test_any_age_has_an_answer() -> None:
    """After a look at an age that was not planned, the next ones are the planned ones again."""
    rng = random.Random(1)
    pace = known(*(WIDE.draw(rng) for _ in range(60)))
    first = looks(pace, 60)[0]
    assert 5.0 + delay(pace, 5.0, 1) == pytest.approx(first)
    for tenths in range(3000):
        assert GAP <= delay(pace, tenths / 10, 1) <= 120


# -- what it costs -----------------------------------------------------------------------------


def test_the_default_pace_is_not_excessive() -> None:
    """On tasks of 40 s the default back-off needs at most 12 looks and is at most 2.6 s late, on average."""
    rng = random.Random(1)
    of = [simulated.cost(WIDE, simulated.exponential(PollPolicy(), rng)) for _ in range(40)]
    assert simulated.mean(of).looks <= 12
    assert simulated.mean(of).lateness <= 2.6


@pytest.mark.parametrize(
    ("tasks", "bound"), [(WIDE, 1.10), (NARROW, 1.10), (CONSTANT, 1.10), (BIMODAL, 1.15)]
)
@pytest.mark.parametrize("exact", [False, True], ids=["whole seconds", "exact"])
def test_after_fifty_tasks_it_costs_little_more_than_the_least(tasks, bound, exact) -> None:
    """Learned from what a client sees, against a plan that knows the distribution."""
    [ratio] = ratios(tasks, [50], exact=exact)
    assert ratio <= bound


@pytest.mark.parametrize("tasks", [WIDE, NARROW, BIMODAL])
def test_without_history_it_costs_at_most_two_thirds_more(tasks) -> None:
    """The imagined durations are good enough until the first task has finished."""
    [ratio] = ratios(tasks, [0])
    assert ratio <= 1.65


def test_control_the_plain_exponential_misses_these_bounds() -> None:
    """Control: delays that do not learn cost a third to several times more than the least."""
    rng = random.Random(1)
    for tasks, bound in ((WIDE, 1.10), (NARROW, 1.65), (BIMODAL, 1.65), (CONSTANT, 5.0)):
        of = [simulated.cost(tasks, simulated.exponential(PollPolicy(), rng)) for _ in range(20)]
        assert simulated.mean(of).total / least_of(tasks) > bound


def test_control_the_yardstick_is_the_least() -> None:
    """Control: no nearby schedule costs less than the optimum, and tasks drawn at random cost the same."""
    rng = random.Random(1)
    for tasks in KINDS:
        best = simulated.optimum(tasks)
        for _ in range(20):
            moved = sorted(age * math.exp(rng.gauss(0, 0.02)) for age in best)
            assert simulated.cost(tasks, moved).total >= least_of(tasks) * 0.999
        drawn = []
        for _ in range(20_000):
            duration = tasks.draw(rng)
            count = next(number for number, age in enumerate([*best, math.inf]) if age >= duration)
            drawn.append(0.5 * (count + 1) + best[min(count, len(best) - 1)] - duration)
        assert sum(drawn) / len(drawn) == pytest.approx(least_of(tasks), rel=0.03)


# -- changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [WIDE, NARROW])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_after_a_change_it_is_back_within_thirty_tasks(tasks, factor) -> None:
    """After a hundred tasks all take twice, or half, as long."""
    before, after = ratios(tasks.slower(factor), [0, 30], before=tasks)
    assert after <= 1.15 < before


def test_control_without_forgetting_it_does_not_follow(monkeypatch) -> None:
    """Control: if nothing counts as a change, the old durations keep the cost high."""
    monkeypatch.setattr(learning, "_ALARM", math.inf)
    [ratio] = ratios(NARROW.slower(2.0), [30], before=NARROW)
    assert ratio > 1.3


@pytest.mark.parametrize("tasks", [CONSTANT, BIMODAL])
def test_it_follows_sharp_changes_too(tasks) -> None:
    """Where the old plan costs several times the least, fifty tasks bring it near the least."""
    before, after = ratios(tasks.slower(2.0), [0, 50], before=tasks)
    assert after <= 1.4 < 3 < before


def batches(tasks, count: int) -> list[float]:
    """The costs of batches of a hundred, one after the other, over the least."""
    costs = [[] for _ in range(count)]
    for seed in range(6):
        rng, pace = random.Random(seed), simulated.adaptive()
        for number, of in enumerate(costs):
            of.append(simulated.batch(pace, tasks, 100, rng, 1000.0 * number))
    return [simulated.mean(of).total / least_of(tasks) for of in costs]


@pytest.mark.parametrize(("tasks", "bound"), [(WIDE, 1.15), (NARROW, 1.15), (BIMODAL, 1.4)])
def test_a_batch_is_no_change(tasks, bound) -> None:
    """The short tasks of a batch finish first, which is not taken for a change."""
    assert batches(tasks, 2)[1] <= bound


def test_control_without_the_time_of_the_submit_a_batch_is_a_change(monkeypatch) -> None:
    """Control: if tasks are ordered by when they finish, the long ones of a batch replace all others."""
    count = itertools.count()
    learn = Pace.learn

    def in_order_of_finishing(self, sighting, *, submitted_at, **more) -> None:
        learn(self, sighting, submitted_at=float(next(count)), **more)

    monkeypatch.setattr(Pace, "learn", in_order_of_finishing)
    assert batches(BIMODAL, 2)[1] > 1.6


# -- progress ----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(5, 100), max_size=30), st.floats(0, 200), st.sampled_from([0.0, 1.0, None, math.nan])
)
def test_progress_that_says_nothing_changes_nothing(durations, age, progress) -> None:
    """Progress that stays at 0.00, as in the recorded tasks, or at 1.00 leaves the pace as it is."""
    plain, pace = known(*durations), Pace(QUIET)
    for number, duration in enumerate(durations):
        forecasts = [(duration / 2, progress)] if progress is not None else []
        sighting = Sighting(duration + 1)
        pace.learn(sighting, submitted_at=float(number), duration=duration, forecasts=forecasts)
    assert delay(pace, age, 1, last=0.0, progress=progress) == delay(plain, age, 1, last=0.0)


@pytest.mark.parametrize(("kind", "least", "most"), [("even", 0, 0.5), ("bent, 0.3", 0, 0.9)])
def test_progress_that_predicts_the_finish_is_used(kind, least, most) -> None:
    """Once eight tasks have proved it, even progress halves the least cost that is possible without."""
    ratio = simulated.with_progress(WIDE, kind, 80, 6).total / least_of(WIDE)
    assert least < ratio < most


@pytest.mark.parametrize("kind", ["noise", "stuck at 0.5"])
@pytest.mark.parametrize("tasks", KINDS)
def test_misleading_progress_costs_nothing(tasks, kind) -> None:
    """Progress that predicts nothing is recognised and ignored."""
    plain, cost = (simulated.with_progress(tasks, what, 80, 6).total for what in ("none", kind))
    assert cost <= 1.03 * plain


def test_control_misleading_progress_costs_if_it_is_trusted(monkeypatch) -> None:
    """Control: without the proof, noise and stuck progress cost a tenth or more."""
    monkeypatch.setattr(learning, "_BETTER", math.inf)
    plain = simulated.with_progress(NARROW, "none", 80, 6).total
    for kind in ("noise", "stuck at 0.5"):
        assert simulated.with_progress(NARROW, kind, 80, 6).total > 1.1 * plain


def test_progress_that_stops_being_true_is_dropped() -> None:
    """If progress is even for fifty tasks and then stuck, the plan is soon used again."""
    rng, pace = random.Random(1), simulated.adaptive()
    even, stuck = (simulated.PROGRESS[kind]() for kind in ("even", "stuck at 0.5"))
    trusted = simulated.finished(pace, WIDE, 50, rng, progress=even)
    assert simulated.mean(trusted[20:]).total < 0.6 * least_of(WIDE)
    simulated.finished(pace, WIDE, 30, rng, first=50, progress=stuck)
    after = simulated.finished(pace, WIDE, 150, rng, first=80, progress=stuck)
    assert simulated.mean(after).total < 1.2 * least_of(WIDE)
