"""The learned pace: what it costs beside the least possible, what it forgets, what cannot upset it."""

from __future__ import annotations

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
from kie4o.polling.learning import KEPT, Pace
from kie4o.polling.policy import GAP, NET

_spec = importlib.util.spec_from_file_location("benchmarks_pacing", BENCHMARKS / "pacing.py")
simulated = sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulated)

WIDE, NARROW, CONSTANT, BIMODAL = KINDS = tuple(simulated.DISTRIBUTIONS.values())
LEAST = {tasks: simulated.cost(tasks, simulated.optimum(tasks)).total for tasks in KINDS}
SEEDS = 12
QUIET = PollPolicy.adaptive(jitter=False)


def ratios(tasks, counts, **more):
    """Cost over the least possible, after so many finished tasks."""
    least = LEAST.get(tasks) or simulated.cost(tasks, simulated.optimum(tasks)).total
    return [cost.total / least for cost in simulated.learned(tasks, counts, SEEDS, **more)]


def known(*durations: float, policy: PollPolicy = QUIET) -> Pace:
    """A pace that knows these, each found by a look a second late."""
    pace = Pace(policy)
    for born, duration in enumerate(durations):
        pace.ended(0.0, duration + 1, duration, born=float(born))
    return pace


def looks(pace: Pace, until: float) -> list[float]:
    """The ages of the looks at a task that does not end."""
    ages = [0.0]
    while ages[-1] < until:
        ages.append(ages[-1] + pace.pause(ages[-1], len(ages) - 1, 0.5, low=ages[-1]))
    return ages[1:]


# -- the policy --------------------------------------------------------------------------------


def test_a_policy_does_not_learn_unless_told() -> None:
    """The default has no price; `adaptive` has one, and the fields that it is given."""
    assert PollPolicy().price is None
    assert PollPolicy.adaptive() == PollPolicy(price=0.5)
    given = PollPolicy.adaptive(price=2, first=1.0, factor=2.0, maximum=9.0, jitter=False)
    assert given == PollPolicy(first=1.0, factor=2.0, maximum=9.0, jitter=False, price=2)


@pytest.mark.parametrize("bad", [0, -1, True, "0.5", float("nan"), float("inf"), 4000])
def test_impossible_prices_are_refused(bad) -> None:
    """A price is a number of seconds above 0, at most an hour."""
    with pytest.raises(kie4o.ConfigurationError, match="price"):
        PollPolicy(price=bad)
    with pytest.raises(kie4o.ConfigurationError, match="price"):
        PollPolicy.adaptive(price=bad)


@given(st.floats(0, 1e4), st.integers(0, 50), st.floats(0, 1), st.booleans())
def test_without_a_price_the_pace_is_the_policy(age, looks, chance, net) -> None:
    """Whatever has ended, and whatever progress says."""
    policy = PollPolicy()
    pace = known(30.0, 31.0, 32.0, policy=policy)
    assert pace.pause(age, looks, chance, low=0.0, net=net, progress=0.5) == policy.delay(
        looks, chance, net=net
    )
    assert pace.usual is None


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


def told(history, policy: PollPolicy = QUIET) -> Pace:
    pace = Pace(policy)
    for low, high, duration, forecasts, born in history:
        pace.pause(high, 1, 0.5, low=low)
        pace.ended(low, high, duration, forecasts, born=born)
    return pace


@given(histories, anything, st.integers(0, 50), st.floats(0, 1), st.booleans(), st.none() | st.floats())
def test_pauses_stay_in_bounds(history, age, looks, chance, net, progress) -> None:
    """Whatever was told, nonsense too: never closer than Kie allows, and longer than two minutes only
    for a task of that age, or for the net under a callback."""
    pace = told(history, PollPolicy.adaptive())
    pause = pace.pause(age, looks, chance, low=0.0, net=net, progress=progress)
    longest = max(120.0, age if 0 <= age <= 1e5 else 0.0) * 1.2  # jitter, and the table is coarse
    if net:
        longest = max(NET[0] * 1.1, 2 * (pace.usual or 0.0))
    assert GAP <= pause <= longest + 1e-6


@given(histories, anything, st.floats(0, 1))
def test_the_same_history_gives_the_same_looks(history, age, chance) -> None:
    """No clock and no chance of its own."""
    one, other = told(history), told(history)
    assert one.pause(age, 1, chance, low=0.0) == other.pause(age, 1, chance, low=0.0)
    assert one.usual == other.usual


@given(histories, st.floats(0, 300), st.floats(0, 1), st.floats(0, 1))
def test_jitter_grows_with_chance_and_stays_within_a_tenth(history, age, one, other) -> None:
    """Half a chance is the plan itself."""
    pace = told(history, PollPolicy.adaptive())
    less, plan, more = (
        pace.pause(age, 1, chance, low=age) for chance in (min(one, other), 0.5, max(one, other))
    )
    assert less <= more
    assert abs(more - plan) <= 0.1 * plan + 1e-9


def test_memory_is_bounded() -> None:
    """After ten thousand tasks no more is kept than after a hundred, and the table is small."""
    pace, rng = Pace(QUIET), random.Random(1)
    for born in range(10_000):
        duration = WIDE.draw(rng)
        forecasts = [(duration * share, share) for share in (0.2, 0.4, 0.6, 0.8)]
        pace.ended(0.0, duration, duration, forecasts, born=born)
    pace.pause(0.0, 0, 0.5, low=0.0)
    assert len(pace._spans) <= KEPT
    assert len(pace._forecasts._ratios) <= KEPT
    assert len(pace._plan._ages) <= 200


def test_plans_are_rare(monkeypatch) -> None:
    """One plan for every sixth of what is known: with a hundred ends known, one in sixteen tasks."""
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
    """Ends without any plausible time change nothing."""
    pace, fresh = Pace(QUIET), Pace(QUIET)
    for low, high, duration in [
        (0.0, math.inf, None),
        (0.0, math.nan, -1.0),
        (-5.0, -1.0, math.nan),
        (0.0, 1e9, 1e9),
    ]:
        pace.ended(low, high, duration, born=0.0)
    assert looks(pace, 300) == looks(fresh, 300)


def test_looks_are_believed_before_records() -> None:
    """A record that contradicts what looks saw is moved to where they saw the end."""
    pace = Pace(QUIET)
    for born in range(20):
        pace.ended(29.0, 31.0, 20.0, born=born)
    assert 29 <= pace.usual <= 31
    for born in range(20):
        pace.ended(9.0, 11.0, 200.0, born=20 + born)
    assert min(looks(pace, 60)) < 12


def test_without_a_record_the_looks_have_to_do() -> None:
    """An end is somewhere between the look that found it running and the one that found it ended."""
    pace = Pace(QUIET)
    for born in range(20):
        pace.ended(20.0, 24.0, born=born)
    assert pace.usual == 22.0
    assert 20 < looks(pace, 60)[0] <= 26


# -- the shape of a plan -----------------------------------------------------------------------


def test_usual_is_the_median_of_a_few_at_least() -> None:
    """Nobody has a usual duration after one task."""
    assert known(30.0).usual is None
    assert known(30.0, 31.0, 90.0, 32.0, 29.0).usual == pytest.approx(31.0)


def test_a_net_waits_for_twice_the_usual() -> None:
    """While a callback is expected: a minute, or twice the usual once known; then every half minute."""
    fresh, pace = Pace(QUIET), known(*[20.0] * 9)
    assert fresh.pause(0.0, 0, 0.5, low=0.0, net=True) == 60.0
    assert pace.pause(0.0, 0, 0.5, low=0.0, net=True) == pytest.approx(40.0)
    assert pace.pause(10.0, 0, 0.5, low=10.0, net=True) == pytest.approx(30.0)
    assert pace.pause(40.0, 1, 0.5, low=0.0, net=True) == 30.0


def test_one_price_more_looks_another_fewer() -> None:
    """The dearer a look, the fewer there are."""
    rng = random.Random(1)
    ends = [WIDE.draw(rng) for _ in range(50)]
    paces = (
        known(*ends, policy=PollPolicy.adaptive(price=price, jitter=False))
        for price in (0.05, 0.5, 5.0, 50.0)
    )
    counts = [simulated.cost(WIDE, looks(pace, 600)).looks for pace in paces]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > 2 * counts[1] > 4 * counts[2]


def test_first_look_waits_for_the_first_that_end_but_never_less_than_first() -> None:
    """Tasks of half a minute are not looked at after ten seconds; quick ones not before `first`."""
    assert 28 < looks(known(*[30.0, 30.5, 31.0] * 10), 60)[0] <= 32
    assert looks(known(*[0.5] * 30), 60)[0] == 2.0


def test_between_two_kinds_of_task_nobody_looks() -> None:
    """Tasks of 25 or 90 s: the longest pause spans most of the gap."""
    rng = random.Random(2)
    ages = looks(known(*(BIMODAL.draw(rng) for _ in range(100))), 120)
    pause, after = max((b - a, a) for a, b in itertools.pairwise(ages))
    assert pause > 25
    assert 28 < after < 60


def test_an_outlier_is_neither_hammered_nor_forgotten() -> None:
    """Past everything usual pauses grow, to a quarter of a minute or a tenth of the age; that one task
    once took a day changes nothing about it."""
    for pace in (known(*[30.0] * 60), known(*[30.0] * 30, 8e4, *[30.0] * 30)):
        ages = looks(pace, 3600)
        late = [(a, b - a) for a, b in itertools.pairwise(ages) if a > 45]
        assert all(pause <= 1.1 * max(15.0, age / 10) for age, pause in late)
        assert len([age for age, _ in late if age < 600]) <= 40
        assert len(ages) <= 80


def test_any_age_has_an_answer() -> None:
    """Looks may come at ages that nobody planned; what follows aims at the planned looks again."""
    rng = random.Random(1)
    pace = known(*(WIDE.draw(rng) for _ in range(60)))
    first = looks(pace, 60)[0]
    assert 5.0 + pace.pause(5.0, 1, 0.5, low=5.0) == pytest.approx(first)
    for tenths in range(3000):
        assert GAP <= pace.pause(tenths / 10, 1, 0.5, low=tenths / 10) <= 120


# -- what it costs -----------------------------------------------------------------------------


def test_the_default_pace_is_not_excessive() -> None:
    """The exponential default on tasks of 40 s: at most 12 looks, at most 2.6 s late on average."""
    rng = random.Random(1)
    of = [simulated.cost(WIDE, simulated.exponential(PollPolicy(), rng)) for _ in range(40)]
    assert simulated.mean(of).looks <= 12
    assert simulated.mean(of).lateness <= 2.6


@pytest.mark.parametrize(
    ("tasks", "bound"), [(WIDE, 1.10), (NARROW, 1.10), (CONSTANT, 1.10), (BIMODAL, 1.15)]
)
@pytest.mark.parametrize("exact", [False, True], ids=["whole seconds", "exact"])
def test_after_fifty_tasks_it_costs_little_more_than_the_least(tasks, bound, exact) -> None:
    """Beside a plan that knows the distribution, from what a client sees."""
    [ratio] = ratios(tasks, [50], exact=exact)
    assert ratio <= bound


@pytest.mark.parametrize("tasks", [WIDE, NARROW, BIMODAL])
def test_without_history_it_costs_at_most_two_thirds_more(tasks) -> None:
    """Before the first task has ended."""
    [ratio] = ratios(tasks, [0])
    assert ratio <= 1.65


def test_control_the_plain_exponential_misses_these_bounds() -> None:
    """Control: pauses that do not learn cost a third to several times more than the least."""
    rng = random.Random(1)
    for tasks, bound in ((WIDE, 1.10), (NARROW, 1.65), (BIMODAL, 1.65), (CONSTANT, 5.0)):
        of = [simulated.cost(tasks, simulated.exponential(PollPolicy(), rng)) for _ in range(20)]
        assert simulated.mean(of).total / LEAST[tasks] > bound


def test_control_the_yardstick_is_the_least() -> None:
    """Control: no nearby schedule costs less than the optimum, and its cost is what drawn tasks pay."""
    rng = random.Random(1)
    for tasks in LEAST:
        best = simulated.optimum(tasks)
        for _ in range(20):
            moved = sorted(age * math.exp(rng.gauss(0, 0.02)) for age in best)
            assert simulated.cost(tasks, moved).total >= LEAST[tasks] * 0.999
        drawn = []
        for _ in range(20_000):
            duration = tasks.draw(rng)
            count = next(number for number, age in enumerate([*best, math.inf]) if age >= duration)
            drawn.append(0.5 * (count + 1) + best[min(count, len(best) - 1)] - duration)
        assert sum(drawn) / len(drawn) == pytest.approx(LEAST[tasks], rel=0.03)


# -- changes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [WIDE, NARROW])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_after_a_change_it_is_back_within_thirty_tasks(tasks, factor) -> None:
    """A hundred tasks, then all take twice or half as long."""
    before, after = ratios(tasks.slower(factor), [0, 30], before=tasks)
    assert after <= 1.15 < before


def test_control_without_forgetting_it_does_not_follow(monkeypatch) -> None:
    """Control: if nothing counts as a change, the old ends go on costing."""
    monkeypatch.setattr(learning, "_ALARM", math.inf)
    [ratio] = ratios(NARROW.slower(2.0), [30], before=NARROW)
    assert ratio > 1.3


@pytest.mark.parametrize("tasks", [CONSTANT, BIMODAL])
def test_it_follows_sharp_changes_too(tasks) -> None:
    """Where the old plan is several times too dear, fifty tasks bring it near the least."""
    before, after = ratios(tasks.slower(2.0), [0, 50], before=tasks)
    assert after <= 1.4 < 3 < before


def batches(tasks, count: int) -> list[float]:
    """The costs of batches of a hundred, one after the other, beside the least."""
    costs = [[] for _ in range(count)]
    for seed in range(6):
        rng, pace = random.Random(seed), simulated.adaptive()
        for number, of in enumerate(costs):
            of.append(simulated.batch(pace, tasks, 100, rng, 1000.0 * number))
    return [simulated.mean(of).total / LEAST[tasks] for of in costs]


@pytest.mark.parametrize(("tasks", "bound"), [(WIDE, 1.15), (NARROW, 1.15), (BIMODAL, 1.4)])
def test_a_batch_is_no_change(tasks, bound) -> None:
    """Of tasks submitted together the short ones end first: that is not taken for a change."""
    assert batches(tasks, 2)[1] <= bound


def test_control_ends_alone_take_a_batch_for_a_change(monkeypatch) -> None:
    """Control: in the order of their ends, the long ones of a batch pass for all tasks there are."""
    count = itertools.count()
    ended = Pace.ended
    monkeypatch.setattr(Pace, "ended", lambda self, *what, born: ended(self, *what, born=float(next(count))))
    assert batches(BIMODAL, 2)[1] > 1.6


# -- progress ----------------------------------------------------------------------------------


@given(
    st.lists(st.floats(5, 100), max_size=30), st.floats(0, 200), st.sampled_from([0.0, 1.0, None, math.nan])
)
def test_progress_that_says_nothing_changes_nothing(durations, age, progress) -> None:
    """The recorded tasks stayed at 0.00 to their end: the pace is the one without progress."""
    plain, pace = known(*durations), Pace(QUIET)
    for born, duration in enumerate(durations):
        forecasts = [(duration / 2, progress)] if progress is not None else []
        pace.ended(0.0, duration + 1, duration, forecasts, born=float(born))
    assert pace.pause(age, 1, 0.5, low=0.0, progress=progress) == plain.pause(age, 1, 0.5, low=0.0)


@pytest.mark.parametrize(("kind", "least", "most"), [("even", 0, 0.5), ("bent, 0.3", 0, 0.9)])
def test_progress_that_foretells_the_end_is_used(kind, least, most) -> None:
    """Once eight tasks have shown it, even progress halves the least cost that there is without."""
    ratio = simulated.with_progress(WIDE, kind, 80, 6).total / LEAST[WIDE]
    assert least < ratio < most


@pytest.mark.parametrize("kind", ["noise", "stuck at 0.5"])
@pytest.mark.parametrize("tasks", KINDS)
def test_progress_that_deceives_costs_nothing(tasks, kind) -> None:
    """Progress that foretells nothing is told apart and left alone."""
    plain, cost = (simulated.with_progress(tasks, what, 80, 6).total for what in ("none", kind))
    assert cost <= 1.03 * plain


def test_control_deceiving_progress_would_cost_if_it_were_trusted(monkeypatch) -> None:
    """Control: without the proof, noise and a stuck progress cost a tenth or more."""
    monkeypatch.setattr(learning, "_BETTER", math.inf)
    plain = simulated.with_progress(NARROW, "none", 80, 6).total
    for kind in ("noise", "stuck at 0.5"):
        assert simulated.with_progress(NARROW, kind, 80, 6).total > 1.1 * plain


def test_progress_that_stops_being_true_is_dropped() -> None:
    """Even for fifty tasks, then stuck: soon the pace is the plan again."""
    rng, pace = random.Random(1), simulated.adaptive()
    even, stuck = (simulated.PROGRESS[kind]() for kind in ("even", "stuck at 0.5"))
    trusted = simulated.finished(pace, WIDE, 50, rng, progress=even)
    assert simulated.mean(trusted[20:]).total < 0.6 * LEAST[WIDE]
    simulated.finished(pace, WIDE, 30, rng, first=50, progress=stuck)
    after = simulated.finished(pace, WIDE, 150, rng, first=80, progress=stuck)
    assert simulated.mean(after).total < 1.2 * LEAST[WIDE]
