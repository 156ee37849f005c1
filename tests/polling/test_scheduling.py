"""Turns among many waiting tasks: rate, fairness, deadlines, slow looks and other event loops."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import pytest
from clocks import VirtualLoop, run_virtual

import kie4o
from kie4o import PollPolicy, TaskDetails, TaskPoller, TaskState
from kie4o.polling.schedule import AT_ONCE, Schedule
from kie4o.polling.watches import NEVER, Waiter, Watch

EVERY_SECOND = {"first": 1, "factor": 1, "maximum": 1, "jitter": False}


class Looks:
    """A `look` at any number of tasks: those in `done` have succeeded, looks at those in `hang` never
    return, and the others are running. It records when it was created and when each look began."""

    def __init__(self, *, done: Iterable[str] = (), hang: Iterable[str] = ()) -> None:
        self.done = set(done)
        self.hang = set(hang)
        self.created = asyncio.get_running_loop().time()
        self.begun: list[tuple[float, str]] = []
        self.at_once = self.most = 0

    async def __call__(self, task_id: str) -> TaskDetails:
        self.begun.append((asyncio.get_running_loop().time(), task_id))
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        try:
            if task_id in self.hang:
                await asyncio.Event().wait()
        finally:
            self.at_once -= 1
        if task_id in self.done:
            return TaskDetails(task_id, state=TaskState.SUCCEEDED, urls=("https://x.example/a",))
        return TaskDetails(task_id, state=TaskState.RUNNING)

    def times(self, task_id: str) -> list[float]:
        return [at for at, whose in self.begun if whose == task_id]


def names(count: int, letter: str = "t") -> list[str]:
    return [f"{letter}{number}" for number in range(count)]


@asynccontextmanager
async def waiting_for(poller: TaskPoller, tasks: Iterable[str], **more) -> AsyncIterator[list[Waiter]]:
    """Waiters of these tasks, which leave at the end; then nothing may be left."""
    waiters = [poller.join(task_id, **more) for task_id in tasks]
    try:
        yield waiters
    finally:
        for waiter in waiters:
            poller.leave(waiter)
        await poller.aclose()
        await asyncio.sleep(0)
        assert poller.waiting == 0
        assert look_tasks() == []


def look_tasks() -> list[asyncio.Task]:
    return [task for task in asyncio.all_tasks() if task.get_name() == "kie4o look"]


def crowd(count: int, seconds: float, per_second: float | None) -> Looks:
    """Let this many tasks, each due every second, wait for this long in virtual time."""

    async def run() -> Looks:
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=per_second))
        async with waiting_for(poller, names(count), since=asyncio.get_running_loop().time()):
            await asyncio.sleep(seconds)
        return looks

    return run_virtual(run())


def most_in_a_second(looks: Looks) -> int:
    times = [at for at, _ in looks.begun]
    return max(bisect.bisect_left(times, at + 1.0, index) - index for index, at in enumerate(times))


# -- the rate ----------------------------------------------------------------------------------------


def test_looks_per_second_are_bounded_over_all_tasks() -> None:
    """600 tasks that are each due every second get 50 looks in any second, and 50 a second on average."""
    looks = crowd(600, 61.0, per_second=50)
    assert most_in_a_second(looks) <= 50 * 1.2 + 1
    assert 49 <= len(looks.begun) / 60 <= 51


@pytest.mark.parametrize("per_second", [1e6, None], ids=["out of reach", "none"])
def test_control_without_the_bound_there_are_more(per_second: float | None) -> None:
    """Control: with a rate that is out of reach, or none, the same tasks get 600 looks a second, each its
    one."""
    looks = crowd(600, 10.0, per_second=per_second)
    assert most_in_a_second(looks) >= 600
    assert max(Counter(whose for _, whose in looks.begun).values()) <= 10


def test_the_rate_is_not_saved_up() -> None:
    """After a minute without waiters, a crowd gets no more looks than at any other time."""

    async def run() -> Looks:
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=50))
        await poller.look("first")
        await asyncio.sleep(60)
        async with waiting_for(poller, names(300)):
            await asyncio.sleep(10)
        return looks

    assert most_in_a_second(run_virtual(run())) <= 50 * 1.2 + 1


@pytest.mark.parametrize("seconds", [7.3, 31.0, 60.5])
def test_turns_are_shared_fairly(seconds: float) -> None:
    """However long 300 tasks share 50 looks a second, no task is more than one look ahead of another."""
    looks = crowd(300, 1.0 + seconds, per_second=50)
    counts = Counter(whose for _, whose in looks.begun)
    shares = [counts[task_id] for task_id in names(300)]
    assert max(shares) - min(shares) <= 1
    assert sum(shares) >= 49 * seconds


def test_few_tasks_do_not_feel_the_rate() -> None:
    """Tasks that need fewer looks than the rate allows get each look on time."""
    looks = crowd(5, 10.5, per_second=50)
    due = [looks.created + number for number in range(1, 11)]
    for task_id in names(5):
        assert looks.times(task_id) == pytest.approx(due, abs=0.001)


# -- who goes first ----------------------------------------------------------------------------------


def test_a_nudged_task_goes_before_those_that_queue() -> None:
    """A callback gets the next turn, although hundreds of tasks were due before it."""

    async def run() -> list[str]:
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=5))
        async with waiting_for(poller, names(300)):
            await asyncio.sleep(2.05)
            before = len(looks.begun)
            assert poller.notify("t299")
            await asyncio.sleep(0.5)
            return [whose for _, whose in looks.begun[before:]]

    next_ones = run_virtual(run())
    assert next_ones[0] == "t299"
    assert next_ones.count("t299") == 1
    assert len(next_ones) in (2, 3)


@pytest.mark.parametrize("unwatched", [False, True])
def test_a_single_look_goes_before_those_that_queue(unwatched: bool) -> None:
    """`look` gets the next turn, also for a task that queues already."""

    async def run() -> tuple[float, list[str]]:
        loop = asyncio.get_running_loop()
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=5))
        async with waiting_for(poller, names(300)):
            await asyncio.sleep(2.05)
            before, asked = len(looks.begun), loop.time()
            await poller.look("unwatched" if unwatched else "t299")
            took = loop.time() - asked
            return took, [whose for _, whose in looks.begun[before:]]

    took, next_ones = run_virtual(run())
    assert took <= 0.21
    assert next_ones == ["unwatched" if unwatched else "t299"]


@pytest.mark.parametrize("nudged", ["notify", "look"])
def test_a_nudge_is_one_turn_and_no_lasting_privilege(nudged: str) -> None:
    """A task that was nudged while it queued gives up its old turn and queues like the others after that."""

    async def run() -> Counter[str]:
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=50))
        async with waiting_for(poller, names(300)):
            await asyncio.sleep(3.05)
            if nudged == "notify":
                poller.notify("t299")
            else:
                await poller.look("t299")
            await asyncio.sleep(0.5)
            before = len(looks.begun)
            await asyncio.sleep(60)
            return Counter(whose for _, whose in looks.begun[before:])

    counts = run_virtual(run())
    assert counts["t0"] == 10
    assert counts["t299"] <= 11


# -- deadlines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("submitted", [False, True])
def test_a_deadline_holds_while_its_task_queues(submitted: bool) -> None:
    """In a queue of minutes a wait of two seconds ends after two, without a look."""

    async def run() -> tuple[float, Looks]:
        loop = asyncio.get_running_loop()
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=2))
        async with waiting_for(poller, names(400)):
            await asyncio.sleep(1)
            start = loop.time()
            with pytest.raises(kie4o.TaskTimeoutError) as caught:
                await poller.wait("late", timeout=2, since=start if submitted else None)
            assert caught.value.task_id == "late"
            return loop.time() - start, looks

    took, looks = run_virtual(run())
    assert 2 - 1e-6 <= took <= 2.3
    assert looks.times("late") == []


def test_each_waiter_of_a_task_has_its_own_deadline() -> None:
    """Waiters of one task with different time-outs each get theirs on time, also while it queues."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        poller = TaskPoller(Looks(), policy=PollPolicy(**EVERY_SECOND, looks_per_second=2))
        start = loop.time()

        async def patience(seconds: float) -> float:
            with pytest.raises(kie4o.TaskTimeoutError):
                await poller.wait("late", timeout=seconds)
            return loop.time() - start

        async with waiting_for(poller, names(400)):
            return list(await asyncio.gather(patience(5), patience(2), patience(9)))

    assert run_virtual(run()) == pytest.approx([5, 2, 9], abs=0.3)


# -- looks that go wrong -----------------------------------------------------------------------------


def test_a_look_that_hangs_is_cancelled_and_repeated() -> None:
    """After `look_timeout` a look that hangs is cancelled; the next one finds that the task succeeded."""

    async def run() -> tuple[float, list[float]]:
        loop = asyncio.get_running_loop()
        looks = Looks(done=["t"], hang=["t"])
        poller = TaskPoller(looks, policy=PollPolicy(jitter=False), look_timeout=5.0)
        start = loop.time()
        wait = asyncio.create_task(poller.wait("t"))
        await asyncio.sleep(4.9)
        assert looks.at_once == 1
        await asyncio.sleep(0.2)
        assert looks.at_once == 0
        looks.hang.clear()
        assert (await wait).urls
        assert look_tasks() == []
        return loop.time() - start, [at - start for at in looks.times("t")]

    took, starts = run_virtual(run())
    assert starts == pytest.approx([0, 5 + 3.0])  # the delay after the first look
    assert took == pytest.approx(8)


def test_a_look_that_hangs_is_cancelled_although_nothing_else_is_due_for_long() -> None:
    """The timer is set to the time-out of a look even if it was set to something much later."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        looks = Looks(hang=["slow"])
        poller = TaskPoller(looks, policy=PollPolicy(first=600, maximum=600, jitter=False), look_timeout=5.0)
        start = loop.time()
        async with waiting_for(poller, ["other"], since=start):
            await asyncio.sleep(1)
            with pytest.raises(kie4o.APITimeoutError):
                await poller.look("slow")
            return loop.time() - start

    assert run_virtual(run()) == pytest.approx(6.0, abs=0.1)


def test_a_look_that_is_slow_to_be_cancelled_does_not_disturb_the_next() -> None:
    """No look at the task begins while a cancelled one cleans up, and the end of that one is not taken
    for the end of the next, which would then never time out."""

    async def run() -> tuple[int, int]:
        at_once = most = 0

        async def look(task_id: str) -> TaskDetails:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(2)
                at_once -= 1
            raise AssertionError

        poller = TaskPoller(look, policy=PollPolicy(**EVERY_SECOND), look_timeout=5.0)
        waiter = poller.join("t")
        await asyncio.sleep(5.5)
        poller.notify("t")
        await asyncio.sleep(20)
        poller.leave(waiter)
        await poller.aclose()
        await asyncio.sleep(3)
        return most, len(look_tasks())

    assert run_virtual(run()) == (1, 0)


def test_looks_that_hang_do_not_stop_others() -> None:
    """As many looks as may run at a time hang, again and again: other tasks get their looks in between."""

    async def run() -> tuple[float, Looks]:
        loop = asyncio.get_running_loop()
        stuck, good = names(AT_ONCE, "stuck"), names(500, "good")
        looks = Looks(done=good, hang=stuck)
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=1e6), look_timeout=5.0)
        async with waiting_for(poller, stuck):
            await asyncio.sleep(0.1)
            assert looks.at_once == AT_ONCE
            start = loop.time()
            await asyncio.gather(*(poller.wait(task_id) for task_id in good))
            took = loop.time() - start
            await asyncio.sleep(30)
        return took, looks

    took, looks = run_virtual(run())
    assert 4.8 <= took <= 5.2
    assert looks.most == AT_ONCE
    assert len(looks.times("stuck0")) >= 4  # they are tried again and again


def test_a_look_cancelled_from_outside_before_it_began_is_repeated() -> None:
    """Looks that are cancelled before their first step block neither other looks nor their tasks."""

    async def run() -> tuple[float, Looks]:
        loop = asyncio.get_running_loop()
        tasks = names(AT_ONCE + 6)
        looks = Looks(done=tasks)
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND, looks_per_second=1e6), look_timeout=5.0)
        start = loop.time()
        async with waiting_for(poller, tasks) as waiters:
            running = look_tasks()
            assert len(running) == AT_ONCE
            for look in running:
                look.cancel()
            await asyncio.wait(waiters, timeout=60)
            assert all(waiter.done() and not waiter.exception() for waiter in waiters)
            return loop.time() - start, looks

    took, looks = run_virtual(run())
    assert took <= 6.5
    assert len(looks.begun) == AT_ONCE + 6


def test_a_look_cancelled_from_outside_while_it_runs_is_retried() -> None:
    """A look that is cancelled midway counts as a failed look."""

    async def run() -> Looks:
        looks = Looks(done=["t"], hang=["t"])
        poller = TaskPoller(looks, policy=PollPolicy(**EVERY_SECOND))
        wait = asyncio.create_task(poller.wait("t"))
        await asyncio.sleep(0.5)
        looks.hang.clear()
        for look in look_tasks():
            look.cancel()
        assert (await wait).urls
        return looks

    assert len(run_virtual(run()).begun) == 2


# -- a crowd -----------------------------------------------------------------------------------------


def planned_and_begun(count: int) -> tuple[int, list[tuple[float, float, float]]]:
    """Run a schedule of this many watches with delays of 2 to 60 s for two minutes: the most different
    times it held, and for each turn its planned time, its delay and when it was granted."""
    chance = random.Random(count)
    turns: list[tuple[float, float, float]] = []
    plans: dict[Watch, tuple[float, float]] = {}

    async def run() -> int:
        loop = asyncio.get_running_loop()

        def plan(watch: Watch) -> None:
            now = loop.time()
            delay = chance.choice((2.0, 8.0, 30.0, 55.0)) * chance.uniform(0.9, 1.1)
            plans[watch] = now + delay, delay
            schedule.plan(watch, now + delay, now)

        def end(watch: Watch) -> None:
            schedule.look_ended(watch, loop.time())
            plan(watch)

        def start(watch: Watch) -> None:
            turns.append((*plans[watch], loop.time()))
            loop.call_soon(end, watch)

        schedule = Schedule(start, lambda watch, now: None, per_second=1e6, look_timeout=30.0)
        schedule.loop = loop
        for number in range(count):
            plan(Watch(f"t{number}", loop.time()))
        most = 0
        for _ in range(60):
            await asyncio.sleep(2.01)
            most = max(most, len(schedule._times))
        assert all(watch.due != NEVER for watch in plans)
        schedule.close()
        return most

    return run_virtual(run()), turns


def test_a_crowd_is_grouped() -> None:
    """3,000 tasks share some hundred times. No turn is early, and none is later than a 64th of its delay
    or a quarter of a second."""
    most, turns = planned_and_begun(3000)
    assert len(turns) > 10_000
    assert most <= 3000 / 5
    for planned, delay, begun in turns:
        assert -1e-6 <= begun - planned <= min(delay / 64, 0.25) + 1e-6


def test_few_are_not_grouped() -> None:
    """With 50 tasks every turn is granted exactly on time."""
    most, turns = planned_and_begun(50)
    assert most == 50
    assert len(turns) > 200
    assert all(abs(begun - planned) < 1e-6 for planned, _, begun in turns)


def test_a_crowd_that_leaves_does_not_stay_in_the_heap() -> None:
    """A thousand waits begin and end, ten times over, and the schedule holds few entries after each."""

    async def run() -> list[int]:
        poller = TaskPoller(Looks(), policy=PollPolicy(first=50, maximum=50))
        held = []
        for part in range(10):
            since = asyncio.get_running_loop().time()
            waiters = [poller.join(task_id, since=since) for task_id in names(1000, f"r{part}-")]
            await asyncio.sleep(0.1)
            for waiter in waiters:
                poller.leave(waiter)
            held.append(sum(len(watches) for watches in poller._schedule._watches_at.values()))
        await poller.aclose()
        return held

    assert max(run_virtual(run())) <= 200


def test_turns_come_on_time_while_others_leave() -> None:
    """Of 2,000 tasks most leave early; those that stay get their looks as if they were alone."""

    async def run() -> Looks:
        loop = asyncio.get_running_loop()
        chance = random.Random(5)
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(first=5, factor=1, maximum=5, jitter=False))
        async with waiting_for(poller, names(10, "stay"), since=loop.time()):
            for _ in range(40):
                leaving = [poller.join(task_id, since=loop.time()) for task_id in names(50, "go")]
                await asyncio.sleep(chance.uniform(0.5, 1.5))
                for waiter in leaving:
                    poller.leave(waiter)
        return looks

    looks = run_virtual(run())
    for task_id in names(10, "stay"):
        times = looks.times(task_id)
        assert len(times) >= 6
        assert all(after - before == pytest.approx(5, abs=0.1) for before, after in itertools.pairwise(times))


def test_waiting_costs_no_asyncio_task() -> None:
    """Between their looks a thousand waiting tasks are a thousand futures and no asyncio task."""

    async def run() -> list[int]:
        looks = Looks()
        poller = TaskPoller(looks, policy=PollPolicy(first=5, factor=1, maximum=5, looks_per_second=1e6))
        alive = []
        async with waiting_for(poller, names(1000), since=asyncio.get_running_loop().time()):
            for _ in range(10):
                await asyncio.sleep(2.03)  # never when a look is due
                alive.append(len(look_tasks()))
                assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(looks.begun) >= 3000
        return alive

    assert run_virtual(run()) == [0] * 10


def test_closing_waits_for_looks_that_are_slow_to_be_cancelled() -> None:
    """A look that was cancelled by closing or leaving is not left behind, and no other begins after it."""

    async def run() -> tuple[list[str], list[str]]:
        begun: list[str] = []
        ended: list[str] = []

        async def look(task_id: str) -> TaskDetails:
            begun.append(task_id)
            try:
                await asyncio.sleep(50)
            finally:
                await asyncio.sleep(0.1)
                ended.append(task_id)
            raise AssertionError("it is cancelled before")

        poller = TaskPoller(look, policy=PollPolicy(jitter=False, looks_per_second=1e6))
        waits = [asyncio.create_task(poller.wait(f"t{number}")) for number in range(100)]
        await asyncio.sleep(1)
        waits[0].cancel()
        await asyncio.sleep(0)
        await poller.aclose()
        await asyncio.gather(*waits, return_exceptions=True)
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "kie4o look"]
        return begun, ended

    begun, ended = run_virtual(run())
    assert sorted(begun) == sorted(ended)
    assert len(begun) <= 65  # as many as may run at a time, and one in place of the one that left


# -- other event loops -------------------------------------------------------------------------------


class Handle:
    """What `call_at` has to return: something that can be cancelled."""

    _source_traceback = None  # asyncio's own `call_later` asks for it

    def __init__(self, handle: asyncio.TimerHandle) -> None:
        self.cancel = handle.cancel


class PlainLoop(VirtualLoop):
    """A loop whose handles have no `when`, and whose timers are rounded to milliseconds, as uvloop's."""

    def call_at(self, when: float, *arguments, **more) -> Handle:
        return Handle(super().call_at(max(round(when, 3), self.time()), *arguments, **more))


def uvloop_or_skip() -> asyncio.AbstractEventLoop:
    if sys.platform == "win32":
        pytest.skip("uvloop does not run on Windows")
    return pytest.importorskip("uvloop").new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "plain": PlainLoop,
    "uvloop": uvloop_or_skip,
}


@pytest.mark.parametrize("make_loop", LOOPS.values(), ids=LOOPS)
def test_the_schedule_works_on_every_loop(monkeypatch, make_loop) -> None:
    """Of 300 tasks a third succeeds and a third gets a callback; the others are stuck and time out, also
    one whose look hangs. The timer fires at most twice per look."""
    ticks = 0
    tick = Schedule._tick

    def counted(self) -> None:
        nonlocal ticks
        ticks += 1
        assert ticks < 10_000
        tick(self)

    monkeypatch.setattr(Schedule, "_tick", counted)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        done, called, stuck = names(100, "done"), names(100, "called"), names(100, "stuck")
        looks = Looks(hang=stuck[:1])
        policy = PollPolicy(first=0.34, maximum=0.4, looks_per_second=1e4)
        poller = TaskPoller(looks, policy=policy, timeout=2.0, look_timeout=5.0)

        async def outcome(task_id: str) -> tuple[str, float]:
            start = loop.time()
            try:
                result = await poller.wait(task_id, since=start, expecting=task_id in called)
            except kie4o.TaskTimeoutError:
                return "timeout", loop.time() - start
            return result.source, loop.time() - start

        waits = asyncio.gather(*map(outcome, done + called + stuck))
        await asyncio.sleep(0.3)
        looks.done.update(done + called)
        for task_id in called:
            assert poller.notify(task_id)
        outcomes = await asyncio.wait_for(waits, 20)
        assert Counter(how for how, _ in outcomes) == {"poll": 100, "callback": 100, "timeout": 100}
        assert all(took >= 1.98 for how, took in outcomes if how == "timeout")
        assert poller.waiting == 0
        await poller.aclose()
        await asyncio.sleep(0)
        assert look_tasks() == []
        assert ticks <= 2 * len(looks.begun) + len(outcomes)

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(run())


def test_a_timer_that_is_early_is_not_set_again() -> None:
    """A loop may call up to half a millisecond early: the look that the timer was set for begins then,
    and the timer does not fire over and over until its time has come."""
    ticks = 0

    class Ticking(Schedule):
        def _tick(self) -> None:
            nonlocal ticks
            ticks += 1
            assert ticks < 10
            super()._tick()

    async def run() -> float:
        loop = asyncio.get_running_loop()
        started: list[float] = []
        schedule = Ticking(
            lambda watch: started.append(loop.time()),
            lambda watch, now: None,
            per_second=1e6,
            look_timeout=30.0,
        )
        schedule.loop = loop
        now = loop.time()
        schedule.plan(Watch("t", now), now + 1.0004, now)
        await asyncio.sleep(1.5)
        schedule.close()
        return started[0] - now

    with asyncio.Runner(loop_factory=PlainLoop) as runner:
        assert runner.run(run()) == pytest.approx(1.0, abs=1e-6)
    assert ticks == 1
