"""Waiting for tasks: delays, outcomes, errors that are retried; on a virtual clock with a fake look."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import re

import pytest
from canary import WATCH
from clocks import VirtualLoop, run_virtual
from hypothesis import given
from hypothesis import strategies as st

import kie4o
from kie4o import PollPolicy, TaskDetails, TaskPoller, TaskState
from kie4o.polling import schedule

RUNNING = TaskDetails("t", state=TaskState.RUNNING, status="GENERATING")
DONE = TaskDetails("t", state=TaskState.SUCCEEDED, status="SUCCESS", urls=("https://x.example/a.png",))
EMPTY = TaskDetails("t", state=TaskState.SUCCEEDED, status="SUCCESS")
FAILED = TaskDetails("t", state=TaskState.FAILED, error_code=500, error_message="internal error")
MISSING = TaskDetails("t", state=TaskState.MISSING, error_code=422)
PLAIN = PollPolicy(jitter=False)


class Looks:
    """A `look` that plays a list, repeats its last item, takes some time, and records when."""

    def __init__(self, *script: TaskDetails | Exception, takes: float = 0.0) -> None:
        self.script = script
        self.takes = takes
        self.starts: list[float] = []
        self.ends: list[float] = []

    async def __call__(self, task_id: str) -> TaskDetails:
        loop = asyncio.get_running_loop()
        step = self.script[min(len(self.starts), len(self.script) - 1)]
        self.starts.append(loop.time())
        if self.takes:
            await asyncio.sleep(self.takes)
        self.ends.append(loop.time())
        if isinstance(step, Exception):
            raise step
        return step


def waited(looks: Looks, *, policy: PollPolicy = PLAIN, **more):
    """Wait for one task in virtual time: its result or error, how long it took, and when the looks were."""

    async def run():
        loop = asyncio.get_running_loop()
        start = loop.time()
        looks.origin = start
        poller = TaskPoller(looks, policy=policy)
        more.setdefault("since", start)
        try:
            outcome = await poller.wait("t", **more)
        except kie4o.KieError as error:
            outcome = error
        assert poller.waiting == 0
        await asyncio.sleep(0)
        took = loop.time() - start
        await poller.aclose()
        return outcome, took

    outcome, took = run_virtual(run())
    return outcome, round(took, 2), [round(at - looks.origin, 2) for at in looks.starts]


def test_default_pace() -> None:
    """The first look is 2 s after the submit; the next delays are 3, 4.5, 5, 5 ... s."""
    outcome, _, starts = waited(Looks(*[RUNNING] * 5, DONE))
    assert outcome.urls == DONE.urls
    assert outcome.source == "poll"
    assert starts == [2.0, 5.0, 9.5, 14.5, 19.5, 24.5]


@given(
    st.floats(0.34, 60),
    st.floats(1, 10),
    st.floats(0.34, 60),
    st.booleans(),
    st.integers(0, 200),
    st.floats(0, 1),
)
def test_delays_stay_in_bounds(first, factor, maximum, jitter, looks, chance) -> None:
    """Looks are never closer than Kie allows, nor further apart than the maximum and its jitter."""
    delay = PollPolicy(first=first, factor=factor, maximum=maximum, jitter=jitter).delay(looks, chance)
    assert 0.34 <= delay <= maximum * 1.1 + 1e-9


@pytest.mark.parametrize(
    "bad",
    [
        {"first": 0.1},
        {"factor": 0.5},
        {"maximum": 0},
        {"first": float("nan")},
        {"first": "2"},
        {"factor": 1e200, "maximum": 1e300},
    ],
)
def test_impossible_policies_are_refused(bad) -> None:
    """A setting that is out of range is refused, with its name and value and what is allowed."""
    name, value = next(iter(bad.items()))
    with pytest.raises(
        kie4o.ConfigurationError, match=re.escape(f"invalid PollPolicy.{name}={value!r}: expected ")
    ):
        PollPolicy(**bad)


def test_failure_is_typed_and_carries_everything() -> None:
    """A failed task raises `TaskFailedError` with its id, code and details."""
    outcome, _, starts = waited(Looks(RUNNING, FAILED))
    assert type(outcome) is kie4o.TaskFailedError
    assert (outcome.task_id, outcome.error_code, outcome.details) == ("t", 500, FAILED)
    assert len(starts) == 2


@pytest.mark.parametrize(
    ("code", "words", "kind"),
    [
        (400, "Your content was flagged by OpenAI as violating content policies", kie4o.ContentPolicyError),
        (None, "rejected by the content policy", kie4o.ContentPolicyError),
        (400, "The image exceeds 26,214,400 bytes", kie4o.InputImageError),
        (400, "invalid_image_format", kie4o.InputImageError),
        (451, "", kie4o.InputImageError),
        (400, "", kie4o.TaskFailedError),
        (400, "Creating a build task failed", kie4o.TaskFailedError),
        (500, "the image could not be downloaded", kie4o.TaskFailedError),
    ],
)
def test_failures_that_kie_explains_have_classes(code, words, kind) -> None:
    """Where Kie names the reason, the error has a class for it; code 400 has several."""
    details = TaskDetails("t", state=TaskState.FAILED, error_code=code, error_message=words)
    outcome, _, _ = waited(Looks(details))
    assert type(outcome) is kind


def test_success_without_images_is_polled_again_and_then_an_error() -> None:
    """The record lags: images that appear late are returned; if none appear it is `NoImagesError`."""
    late, _, _ = waited(Looks(RUNNING, EMPTY, EMPTY, DONE))
    assert late.urls == DONE.urls
    never, _, starts = waited(Looks(EMPTY))
    assert type(never) is kie4o.NoImagesError
    assert (never.task_id, never.details) == ("t", EMPTY)
    assert 3 <= len(starts) <= 6


def test_unknown_task_is_waited_for_and_then_not_found() -> None:
    """A new task may be unknown for 90 s; after that it is `TaskNotFoundError`."""
    found, _, _ = waited(Looks(*[MISSING] * 10, DONE))
    assert found.urls == DONE.urls
    lost, took, _ = waited(Looks(MISSING))
    assert type(lost) is kie4o.TaskNotFoundError
    assert 90 <= took <= 97


def test_one_look_that_does_not_find_the_task_is_not_its_end() -> None:
    """However long ago it was seen, as after an outage: three in a row over at least 10 s are."""
    outage = [RUNNING, *[kie4o.InternalServerError("busy", code=500)] * 12]
    found, took, _ = waited(Looks(*outage, MISSING, MISSING, DONE))
    assert found.urls == DONE.urls
    assert took > 100
    lost, _, starts = waited(Looks(*outage, MISSING))
    assert type(lost) is kie4o.TaskNotFoundError
    missed = starts[len(outage) :]
    assert len(missed) >= 3
    assert missed[-1] - missed[0] >= 10


def test_stuck_task_times_out_with_its_id_and_can_be_waited_for_again() -> None:
    """A task that never finishes ends the wait at the deadline, not earlier and not later."""
    stuck, took, _ = waited(Looks(RUNNING), timeout=60.0)
    assert type(stuck) is kie4o.TaskTimeoutError
    assert isinstance(stuck, TimeoutError)
    assert (stuck.task_id, took) == ("t", 60.0)
    default, took, _ = waited(Looks(RUNNING))
    assert (type(default), took) == (kie4o.TaskTimeoutError, 900.0)
    again, _, _ = waited(Looks(DONE), since=None)
    assert again.urls == DONE.urls


def test_a_look_that_hangs_does_not_delay_the_deadline() -> None:
    """The deadline holds while a look is running, and that look is cancelled."""
    outcome, took, _ = waited(Looks(RUNNING, takes=500.0), timeout=30.0)
    assert (type(outcome), took) == (kie4o.TaskTimeoutError, 30.0)


RETRIED = [
    kie4o.RateLimitError("slow", code=429),
    kie4o.MaintenanceError("later", code=455),
    kie4o.InternalServerError("oops", code=500),
    kie4o.APIConnectionError("reset"),
    kie4o.APITimeoutError("slow"),
    kie4o.UnexpectedResponseError("html"),
]
UNTRUSTED = kie4o.APIConnectionError("the certificate has expired")
UNTRUSTED.retryable = False
REFUSED = [
    UNTRUSTED,
    kie4o.AuthenticationError("no", code=401),
    kie4o.InsufficientCreditsError("no", code=402),
    kie4o.PermissionDeniedError("no", code=403),
    kie4o.NotFoundError("no", code=404),
    kie4o.FeatureDisabledError("no", code=505),
]


@pytest.mark.parametrize("error", RETRIED, ids=lambda error: type(error).__name__)
def test_temporary_errors_of_a_look_are_retried(error) -> None:
    """A failed look says nothing about the task: it is retried with growing delays."""
    outcome, _, starts = waited(Looks(*[error] * 12, DONE))
    assert outcome.urls == DONE.urls
    assert len(starts) == 13
    delays = [b - a for a, b in itertools.pairwise(starts)]
    assert max(delays) > 20  # it backs off while looks keep failing
    lasting, took, _ = waited(Looks(error), timeout=600.0)
    assert (type(lasting), lasting.task_id, took) == (kie4o.TaskTimeoutError, "t", 600.0)


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_refusals_of_looks_end_the_wait_after_a_while(error) -> None:
    """Three in a row over at least 10 s. The error names the paid task, and does not say to submit."""
    outcome, _, starts = waited(Looks(RUNNING, error))
    assert type(outcome) is type(error)
    assert outcome is not error
    assert outcome.task_id == "t"
    refused = starts[1:]
    assert len(refused) >= 3
    assert refused[-1] - refused[0] >= 10 > refused[-2] - refused[0]
    assert "the task is still running: wait for it again with client.wait('t')" in str(outcome)
    assert "submit" not in str(outcome)
    assert ("KIE_API_KEY" in str(outcome)) is isinstance(error, kie4o.AuthenticationError)


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_an_error_that_looks_share_is_told_of_each_task(error) -> None:
    """`look` may raise the same error for several tasks: it stays as it is, and each wait names its task."""
    before = str(error)

    async def run() -> list[BaseException]:
        poller = TaskPoller(Looks(error), policy=PLAIN)
        return await asyncio.gather(*(poller.wait(each) for each in ("t1", "t2")), return_exceptions=True)

    outcomes = run_virtual(run())
    for task_id, outcome in zip(("t1", "t2"), outcomes, strict=True):
        assert outcome.task_id == task_id
        assert re.findall(r"client\.wait\('(\w+)'\)", str(outcome)) == [task_id]
    assert (str(error), error.task_id) == (before, None)


@pytest.mark.parametrize("error", REFUSED, ids=lambda error: type(error).__name__)
def test_a_paid_task_outlives_a_refused_look(error) -> None:
    """One or two refusals, or any number with another answer in between, are not the end of a task."""
    two = [RUNNING, error, error]
    for looks in (two, two * 20, [RUNNING, error, error, kie4o.APITimeoutError("slow")] * 20):
        outcome, _, starts = waited(Looks(*looks, DONE))
        assert outcome.urls == DONE.urls
        assert len(starts) == len(looks) + 1
    often = PollPolicy(first=0.5, factor=1.0, maximum=0.5, jitter=False)
    outcome, _, starts = waited(Looks(*[error] * 4, DONE), policy=often)  # within 10 s
    assert outcome.urls == DONE.urls


def test_an_error_of_ours_may_have_a_constructor_of_the_callers() -> None:
    """Each waiter gets a copy of what `look` raises, with all that it has."""

    class NoRecordError(kie4o.KieError):
        def __init__(self, table: str, row: int) -> None:
            super().__init__(f"no row {row} in {table}")
            self.row = row

    outcome, took, _ = waited(Looks(NoRecordError("tasks", 7)))
    assert (type(outcome), str(outcome)) == (NoRecordError, "no row 7 in tasks")
    assert outcome.row == 7
    assert outcome.task_id == "t"
    assert took == 2.0
    WATCH.errors.clear()  # it would pickle them, which such a class does not support


def test_foreign_errors_of_a_look_are_raised_unchanged() -> None:
    """An exception from the user's own `look` is raised by `wait`."""

    async def run() -> None:
        poller = TaskPoller(Looks(ZeroDivisionError("mine")), policy=PLAIN)
        with pytest.raises(ZeroDivisionError, match="mine"):
            await poller.wait("t")

    run_virtual(run())


@pytest.mark.parametrize("slow", [False, True])
def test_on_update_gets_every_look(slow: bool) -> None:
    """`on_update`, plain or awaitable, gets the details of each look in order, the last one too."""
    updates: list[TaskDetails] = []

    async def later(details: TaskDetails) -> None:
        await asyncio.sleep(0.1)
        updates.append(details)

    outcome, _, _ = waited(Looks(RUNNING, RUNNING, DONE), on_update=later if slow else updates.append)
    assert outcome.urls == DONE.urls
    assert updates == [RUNNING, RUNNING, DONE]


def test_watch_yields_every_look_and_raises_a_timeout() -> None:
    """A failed task is the last item of `watch`; a time-out is raised."""

    async def run() -> tuple[list[TaskDetails], list[TaskDetails]]:
        poller = TaskPoller(Looks(RUNNING, FAILED), policy=PLAIN)
        failed = [details async for details in poller.watch("t")]
        poller = TaskPoller(Looks(RUNNING), policy=PLAIN)
        stuck = []
        with pytest.raises(kie4o.TaskTimeoutError):
            async for details in poller.watch("t", timeout=10):
                stuck.append(details)
        return failed, stuck

    failed, stuck = run_virtual(run())
    assert failed == [RUNNING, FAILED]
    assert len(stuck) == 4  # at once, after 3 and 4.5 s more, and 1 s before the deadline


def test_ten_waiters_cause_the_looks_of_one() -> None:
    """Waiters of one task share its looks, and each gets an equal result."""

    async def run():
        looks = Looks(RUNNING, RUNNING, DONE)
        poller = TaskPoller(looks, policy=PLAIN)
        results = await asyncio.gather(*(poller.wait("t") for _ in range(10)))
        return looks, results

    looks, results = run_virtual(run())
    assert len(looks.starts) == 3
    assert all(result == results[0] for result in results)


def test_each_waiter_gets_an_exception_of_its_own() -> None:
    """Waiters of one failed look do not share one exception object, whose traceback would grow."""

    async def run():
        poller = TaskPoller(Looks(kie4o.AuthenticationError("no", code=401)), policy=PLAIN)
        return await asyncio.gather(*(poller.wait("t") for _ in range(3)), return_exceptions=True)

    errors = run_virtual(run())
    assert len({id(error) for error in errors}) == 3


@given(
    st.lists(st.tuples(st.sampled_from(["look", "notify", "wait"]), st.floats(0, 0.5)), max_size=40),
    st.floats(0, 0.4),
)
def test_no_task_is_looked_at_more_than_three_times_in_any_second(steps, takes) -> None:
    """Whatever callers and callbacks do, 0.34 s pass between the end of a look and the next look."""

    async def run() -> Looks:
        looks = Looks(RUNNING, takes=takes)
        poller = TaskPoller(looks, policy=PLAIN)
        waits: list[asyncio.Task] = []
        for what, delay in steps:
            if what == "notify":
                poller.notify("t")
            else:
                coroutine = poller.look("t") if what == "look" else poller.wait("t", timeout=5)
                waits.append(asyncio.ensure_future(coroutine))
            await asyncio.sleep(delay)
        await asyncio.gather(*waits, return_exceptions=True)
        await poller.aclose()
        return looks

    looks = run_virtual(run())
    assert all(start - end >= 0.34 - 1e-6 for end, start in zip(looks.ends, looks.starts[1:], strict=False))


def test_a_coarse_clock_brings_no_look_forward(monkeypatch) -> None:
    """asyncio calls a timer early by the resolution of its clock: 15.6 ms on Windows before Python 3.13."""

    async def run() -> Looks:
        looks = Looks(RUNNING, takes=0.1484375)
        poller = TaskPoller(looks, policy=PLAIN)
        waits = []
        for delay in (0.390625, 0.359375, 0.21875):
            waits.append(asyncio.ensure_future(poller.look("t")))
            await asyncio.sleep(delay)
        await asyncio.gather(*waits)
        await poller.aclose()
        return looks

    monkeypatch.setattr(schedule, "_EARLY", 1 / 64, raising=False)
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(resolution=1 / 64)) as runner:
        looks = runner.run(run())
    gaps = [start - end for end, start in zip(looks.ends, looks.starts[1:], strict=False)]
    assert len(gaps) == 2
    assert min(gaps) >= 0.34 - 1e-6


def test_control_looks_without_pacing_are_seen() -> None:
    """Control: looks without a poller break the limit, and the same check notices it."""

    async def run() -> Looks:
        looks = Looks(RUNNING)
        for _ in range(5):
            await looks("t")
            await asyncio.sleep(0.1)
        return looks

    looks = run_virtual(run())
    assert any(start - end < 0.34 for end, start in zip(looks.ends, looks.starts[1:], strict=False))


def test_a_callback_is_a_nudge() -> None:
    """`notify` causes a look at once, and the result says so; without a waiter it is no error."""

    async def run():
        looks = Looks(RUNNING, DONE)
        poller = TaskPoller(looks, policy=PollPolicy(first=30, maximum=30, jitter=False))
        assert poller.notify("other") is False
        loop = asyncio.get_running_loop()
        start = loop.time()
        wait = asyncio.create_task(poller.wait("t", since=start))
        await asyncio.sleep(1)
        assert poller.notify("t") is True
        await asyncio.sleep(1)
        poller.notify("t")
        result = await wait
        return result, round(loop.time() - start, 2), [round(at - start, 2) for at in looks.starts]

    result, took, starts = run_virtual(run())
    assert (result.source, took, starts) == ("callback", 2.0, [1.0, 2.0])


def test_a_callback_during_a_look_is_followed_by_another_look() -> None:
    """The look that is running may have begun too early: the next one does not wait for its turn."""

    async def run() -> list[float]:
        looks = Looks(RUNNING, DONE, takes=1.0)
        poller = TaskPoller(looks, policy=PollPolicy(first=30, maximum=30, jitter=False))
        start = asyncio.get_running_loop().time()
        wait = asyncio.create_task(poller.wait("t"))
        await asyncio.sleep(0.5)
        assert poller.notify("t") is True
        assert (await wait).source == "callback"
        return [round(at - start, 2) for at in looks.starts]

    assert run_virtual(run()) == [0.0, 1.34]


@pytest.mark.parametrize(("since", "starts"), [(0.0, [0.0]), (0.5, [0.0, 1.34])])
def test_a_look_may_have_to_begin_later(since: float, starts: list[float]) -> None:
    """`look(since=)` shares a look that is running only if that began at that time or later."""

    async def run() -> list[float]:
        looks = Looks(RUNNING, takes=1.0)
        poller = TaskPoller(looks)
        start = asyncio.get_running_loop().time()
        first = asyncio.create_task(poller.look("t"))
        await asyncio.sleep(0.5)
        assert await poller.look("t", since=start + since) == await first == RUNNING
        assert poller.waiting == 0
        return [round(at - start, 2) for at in looks.starts]

    assert run_virtual(run()) == starts


def test_early_callbacks_are_remembered_within_bounds(monkeypatch) -> None:
    """Callbacks of tasks that are not waited for yet: the oldest are forgotten."""
    monkeypatch.setattr("kie4o.polling.poller._EARLY_CALLBACKS", 2)

    async def run() -> list[str]:
        poller = TaskPoller(Looks(DONE), policy=PLAIN)
        for name in "abc":
            assert poller.notify(name) is False
            assert not poller.waits_for(name)
        since = asyncio.get_running_loop().time()
        return [(await poller.wait(name, since=since)).source for name in "abc"]

    assert run_virtual(run()) == ["poll", "callback", "callback"]


def test_a_look_that_ignores_its_cancel_is_not_used() -> None:
    """The last waiter has left when it ends: its outcome is dropped, and does not disturb a new wait."""
    ends: list[TaskDetails] = []

    async def look(task_id: str) -> TaskDetails:
        details = DONE
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)
            details = FAILED
        ends.append(details)
        return details

    async def run() -> None:
        poller = TaskPoller(look, policy=PLAIN)
        wait = asyncio.create_task(poller.wait("t"))
        await asyncio.sleep(0.5)
        wait.cancel()
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            assert (await poller.wait("t")).urls == DONE.urls
        assert ends == [FAILED, DONE]

    run_virtual(run())


def test_trusted_details_end_the_wait_without_a_look() -> None:
    """A callback whose details are passed on ends the wait with an equal result."""

    async def run():
        looks = Looks(RUNNING)
        poller = TaskPoller(looks, policy=PLAIN)
        wait = asyncio.create_task(poller.wait("t", since=asyncio.get_running_loop().time()))
        await asyncio.sleep(0.1)
        poller.notify("t", DONE)
        return await wait, looks

    result, looks = run_virtual(run())
    assert (result.urls, result.source, looks.starts) == (DONE.urls, "callback", [])


def test_one_look_is_shared_and_raises_its_error() -> None:
    """`look` shares a look that is running and raises its error; a `wait` for the task goes on."""

    async def run():
        looks = Looks(kie4o.InternalServerError("oops", code=500), DONE, takes=1.0)
        poller = TaskPoller(looks, policy=PLAIN)
        first, second = asyncio.create_task(poller.look("t")), asyncio.create_task(poller.look("t"))
        wait = asyncio.create_task(poller.wait("t"))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        return outcomes, await wait, looks

    outcomes, result, looks = run_virtual(run())
    assert [type(outcome) for outcome in outcomes] == [kie4o.InternalServerError] * 2
    assert result.urls == DONE.urls
    assert len(looks.starts) == 2


def test_a_thousand_waiters_and_bounded_looks() -> None:
    """However many tasks wait, only 64 looks run at a time, and each task gets its look."""
    at_once = most = 0

    async def look(task_id: str) -> TaskDetails:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.2)
        at_once -= 1
        return TaskDetails(task_id, state=TaskState.SUCCEEDED, urls=("https://x.example/a",))

    async def run() -> int:
        poller = TaskPoller(look, policy=PollPolicy(jitter=False, looks_per_second=1e6))
        results = await asyncio.gather(*(poller.wait(f"t{number}") for number in range(1000)))
        assert not asyncio.all_tasks() - {asyncio.current_task()}
        return len({result.task_id for result in results})

    assert run_virtual(run()) == 1000
    assert most == 64


def test_leaving_early_leaves_nothing() -> None:
    """Cancelled waits, abandoned watches and closed pollers leave no look and no asyncio task."""

    async def run() -> None:
        looks = Looks(RUNNING, takes=1.0)
        poller = TaskPoller(looks, policy=PLAIN)
        waits = [asyncio.create_task(poller.wait(f"t{number % 5}")) for number in range(10)]
        watch = poller.watch("w")
        await anext(watch)
        await watch.aclose()
        await asyncio.sleep(0.5)
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.sleep(0)
        assert poller.waiting == 0
        assert asyncio.all_tasks() == {asyncio.current_task()}
        last = asyncio.create_task(poller.wait("x"))
        await asyncio.sleep(0.5)
        await poller.aclose()
        with pytest.raises(kie4o.KieError, match="closed") as caught:
            await last
        assert caught.value.task_id == "x"
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with pytest.raises(kie4o.KieError, match="closed"):
            await poller.wait("y")

    run_virtual(run())


# -- what the learned pace learns ---------------------------------------------------------------------

EPOCH = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


class Service:
    """Tasks that finish at a set age; their records have the times, in whole seconds, if `recording`."""

    def __init__(self, *, recording: bool = True) -> None:
        self.recording = recording
        self.ends: dict[str, float] = {}
        self.durations: dict[str, float] = {}
        self.looks: dict[str, list[float]] = {}

    def submit(self, duration: float) -> str:
        task_id = f"t{len(self.ends)}"
        self.ends[task_id] = asyncio.get_running_loop().time() + duration
        self.durations[task_id] = duration
        self.looks[task_id] = []
        return task_id

    async def __call__(self, task_id: str) -> TaskDetails:
        now = asyncio.get_running_loop().time()
        self.looks[task_id].append(now)
        if now < self.ends[task_id]:
            return TaskDetails(task_id, state=TaskState.RUNNING, progress=0.0)
        took = datetime.timedelta(seconds=int(self.durations[task_id]))
        return TaskDetails(
            task_id,
            state=TaskState.SUCCEEDED,
            urls=DONE.urls,
            progress=1.0,
            created_at=EPOCH if self.recording else None,
            completed_at=EPOCH + took if self.recording else None,
        )


def durations(count: int, about: float) -> list[float]:
    """This many durations within a second of `about`, always the same."""
    return [about - 1 + 2 * (number * 0.618 % 1) for number in range(count)]


async def finish(
    poller: TaskPoller, service: Service, duration: float, *, expecting: bool = False
) -> tuple[list[float], float]:
    """Submit a task and wait for it: its ages at the looks, and how late the last look was."""
    since = asyncio.get_running_loop().time()
    task_id = service.submit(duration)
    await poller.wait(task_id, since=since, expecting=expecting)
    ages = [round(at - since, 3) for at in service.looks[task_id]]
    return ages, ages[-1] - duration


@pytest.mark.parametrize("recording", [True, False])
def test_finished_tasks_are_learned_from(recording: bool) -> None:
    """After 25 tasks of about 30 s, the next ones need far fewer looks than with back-off and are seen
    sooner, also if records have no times."""

    async def run(policy: PollPolicy) -> tuple[float, float]:
        service = Service(recording=recording)
        poller = TaskPoller(service, policy=policy)
        for duration in durations(25, 30):
            await finish(poller, service, duration)
        seen = [await finish(poller, service, duration) for duration in durations(10, 30)]
        await poller.aclose()
        return sum(len(ages) for ages, _ in seen) / 10, sum(late for _, late in seen) / 10

    looks, late = run_virtual(run(PollPolicy.adaptive(jitter=False)))
    looks_before, late_before = run_virtual(run(PLAIN))
    assert looks_before >= 7
    assert looks <= 0.5 * looks_before
    assert late <= 0.6 * late_before


def test_many_tasks_at_once_are_learned_from() -> None:
    """Tasks that ran at the same time are learned from as well as tasks that ran one by one."""

    async def run() -> int:
        service = Service()
        poller = TaskPoller(service, policy=PollPolicy.adaptive(jitter=False))
        await asyncio.gather(*(finish(poller, service, duration) for duration in durations(30, 30)))
        ages, late = await finish(poller, service, 30)
        assert late <= 1.5
        await poller.aclose()
        return len(ages)

    assert run_virtual(run()) <= 4


@pytest.mark.parametrize("fate", ["failed", "fatal", "empty", "timed out", "left"])
def test_a_wait_without_final_details_teaches_nothing(fate: str) -> None:
    """A wait that ends by a time-out, by an error of a look, without images or by leaving does not
    change the pace. A failed task has finished, and counts."""

    async def run() -> tuple[list[float], list[float]]:
        service = Service()
        ending: TaskDetails | Exception | None = None

        async def look(task_id: str) -> TaskDetails:
            details = await service(task_id)
            if ending is None or details.state is TaskState.RUNNING:
                return details
            if isinstance(ending, Exception):
                raise ending
            return ending

        poller = TaskPoller(look, policy=PollPolicy.adaptive(jitter=False))
        for duration in durations(25, 30):
            await finish(poller, service, duration)
        before, _ = await finish(poller, service, 30)
        ending = {"failed": FAILED, "fatal": REFUSED[0], "empty": EMPTY}.get(fate)
        for _ in range(25):
            since = asyncio.get_running_loop().time()
            task_id = service.submit(8.0 if ending else 1e6)
            if fate == "left":
                waiter = poller.join(task_id, since=since)
                await asyncio.sleep(5)
                poller.leave(waiter)
                continue
            with pytest.raises(kie4o.KieError):
                await poller.wait(task_id, since=since, timeout=20.0 if fate == "timed out" else None)
        ending = None
        after, _ = await finish(poller, service, 30)
        await poller.aclose()
        return before, after

    before, after = run_virtual(run())
    if fate == "failed":
        assert after[0] < 12 < before[0]
    else:
        assert after == before


@pytest.mark.parametrize("recording", [True, False])
def test_a_task_of_unknown_age_is_polled_by_back_off_and_spoils_nothing(recording: bool) -> None:
    """A task that is only known by its id is polled at once, then after 3, 4.5 and 5 s. How long it
    was waited for does not change what was learned."""

    async def run() -> tuple[list[float], list[float]]:
        loop = asyncio.get_running_loop()
        service = Service()
        poller = TaskPoller(service, policy=PollPolicy.adaptive(jitter=False))
        for duration in durations(25, 30):
            await finish(poller, service, duration)
        before, _ = await finish(poller, service, 30)
        service.recording = recording
        for duration in durations(25, 30):
            task_id = service.submit(duration)
            await asyncio.sleep(duration - 15)
            began = loop.time()
            await poller.wait(task_id)
            times = [at - began for at in service.looks[task_id]]
            assert times == pytest.approx([0.0, 3.0, 7.5, 12.5, 17.5], abs=0.01)
        service.recording = True
        after, late = await finish(poller, service, 30)
        assert late <= 1.5
        await poller.aclose()
        return before, after

    before, after = run_virtual(run())
    assert len(after) <= len(before) + 1
    assert after[0] == pytest.approx(before[0], abs=1.5)


def test_the_first_look_of_the_safety_net_depends_on_the_usual_duration() -> None:
    """While a callback is expected the first look is after 60 s, or after twice the usual duration once
    a few tasks have finished."""

    async def run(known: int, policy: PollPolicy) -> float:
        service = Service()
        poller = TaskPoller(service, policy=policy)
        for duration in durations(known, 12):
            await finish(poller, service, duration)
        ages, _ = await finish(poller, service, 10, expecting=True)
        await poller.aclose()
        return ages[0]

    adaptive = PollPolicy.adaptive(jitter=False)
    assert run_virtual(run(0, adaptive)) == pytest.approx(60)
    assert run_virtual(run(20, adaptive)) == pytest.approx(24, abs=2)
    assert run_virtual(run(20, PLAIN)) == pytest.approx(60)


# -- near the deadline, and at odd moments ---------------------------------------------------------------


@pytest.mark.parametrize("policy", [PLAIN, PollPolicy.adaptive()])
def test_a_last_look_comes_before_the_deadline(policy: PollPolicy) -> None:
    """A callback is expected and does not arrive, and the safety net's first look would be after the
    deadline: there is a look shortly before it, so no wait times out without one."""
    outcome, took, starts = waited(Looks(DONE), policy=policy, timeout=45.0, expecting=True)
    assert outcome.urls == DONE.urls
    assert took == 44.0
    assert starts == [44.0]


def test_a_task_that_was_seen_running_may_be_missing_once() -> None:
    """A task that runs at 94 s, is unknown to Kie in the next look and then succeeds is no error."""
    outcome, _, _ = waited(Looks(*[RUNNING] * 20, MISSING, RUNNING, DONE))
    assert outcome.urls == DONE.urls


def test_a_timeout_says_how_to_resume_and_why_the_last_look_failed() -> None:
    """The message has the task's id, what is unusual about the last look, and the call to resume."""
    outcome, _, _ = waited(Looks(kie4o.APIConnectionError("no answer from here")), timeout=20.0)
    assert isinstance(outcome, kie4o.TaskTimeoutError)
    assert str(outcome) == (
        "timed out waiting for task t; the last status check failed (no answer from here): "
        "call client.wait('t') to resume"
    )
    outcome, _, _ = waited(Looks(kie4o.APIConnectionError("no answer from here"), RUNNING), timeout=20.0)
    assert str(outcome).startswith("timed out waiting for task t; it is still running: ")
    outcome, _, _ = waited(Looks(MISSING), timeout=20.0)
    assert "Kie does not know it yet" in str(outcome)
    outcome, _, _ = waited(Looks(EMPTY), timeout=5.0)
    assert "its images are not listed yet" in str(outcome)


def test_a_look_that_is_slow_to_be_cancelled_hides_no_deadline() -> None:
    """The wait times out although its look has not ended."""

    async def look(task_id: str) -> TaskDetails:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(600)
        return DONE

    async def run() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        poller = TaskPoller(look, policy=PLAIN)
        with pytest.raises(kie4o.TaskTimeoutError):
            await poller.wait("t", timeout=60.0)
        return loop.time() - start

    assert round(run_virtual(run()), 2) == 60.0


def test_a_trusted_callback_during_a_look_leaves_no_look_behind() -> None:
    """The look that is running is cancelled, and none follows it."""
    looks = Looks(RUNNING, takes=0.1)

    async def run() -> None:
        poller = TaskPoller(looks, policy=PollPolicy(first=0.34, maximum=0.34, jitter=False))
        waiting = asyncio.create_task(poller.wait("t", since=asyncio.get_running_loop().time()))
        await asyncio.sleep(0.4)
        assert (len(looks.starts), len(looks.ends)) == (1, 0)
        poller.notify("t", DONE)
        assert (await waiting).source == "callback"
        await asyncio.sleep(10)
        assert len(looks.starts) == 1

    run_virtual(run())


def test_one_look_leaves_an_early_callback_for_a_later_wait() -> None:
    """A callback arrives before any wait, and one look is made: a wait that begins after that looks at
    once, not at the pace of the safety net."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        poller = TaskPoller(Looks(DONE), policy=PLAIN)
        poller.notify("t")
        await poller.look("t")
        await asyncio.sleep(5)
        start = loop.time()
        result = await poller.wait("t", since=start, expecting=True)
        assert result.source == "callback"
        assert loop.time() - start < 1

    run_virtual(run())


def test_an_unusable_timeout_spoils_nothing() -> None:
    """A wait that fails with `TypeError` leaves no watch behind."""

    async def run() -> None:
        poller = TaskPoller(Looks(DONE), policy=PLAIN)
        with pytest.raises(TypeError):
            await poller.wait("t", timeout="soon")
        assert poller.waiting == 0
        assert (await poller.wait("t")).urls == DONE.urls

    run_virtual(run())


def test_a_waiter_that_joins_later_gets_a_last_look_too() -> None:
    """The next look is planned for the first waiter; a second one has an earlier deadline."""
    looks = Looks(DONE)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        poller = TaskPoller(looks, policy=PollPolicy(first=60.0, maximum=60.0, jitter=False))
        first = asyncio.create_task(poller.wait("t", since=start, timeout=100.0))
        await asyncio.sleep(1)
        assert (await poller.wait("t", timeout=10.0)).urls == DONE.urls
        await first
        return loop.time() - start

    assert round(run_virtual(run()), 2) == 10.0


def test_a_look_that_raises_cancelled_error_is_repeated() -> None:
    """A `look` of the user may end in `CancelledError`; the waiter is still served."""

    async def run():
        looks = 0

        async def look(task_id: str) -> TaskDetails:
            nonlocal looks
            looks += 1
            if looks == 1:
                raise asyncio.CancelledError
            return DONE

        return await TaskPoller(look).wait("t", timeout=60)

    assert run_virtual(run()).urls == DONE.urls


def test_looks_may_fail_without_end() -> None:
    """A thousand failures in a row do not overflow the delay and end the wait."""

    async def run() -> int:
        looks = 0

        async def look(task_id: str) -> TaskDetails:
            nonlocal looks
            looks += 1
            if looks > 1500:
                return DONE
            raise kie4o.APIConnectionError("no")

        await TaskPoller(look).wait("t", timeout=None)
        return looks

    assert run_virtual(run()) == 1501


@pytest.mark.parametrize("closing", [False, True])
def test_lost_callbacks_are_warned_of_once(closing: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Once a task has finished by poll alone; waits that closing ends do not count."""

    async def run() -> None:
        poller = TaskPoller(Looks(RUNNING if closing else DONE), policy=PLAIN)
        since = asyncio.get_running_loop().time()
        waits = [asyncio.create_task(poller.wait(f"t{n}", since=since, expecting=True)) for n in range(5)]
        await asyncio.sleep(200.0)
        await poller.aclose()
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert all(isinstance(each, kie4o.KieError) is closing for each in outcomes)

    run_virtual(run())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (0 if closing else 1)
    assert all("task t0 finished without a callback; polling at" in warning for warning in warnings)
