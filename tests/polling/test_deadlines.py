"""Deadlines: slow callers of `on_update`, and deadlines that pass while the process sleeps."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from canary import CANARY_KEY
from clients import client_of
from clocks import VirtualLoop, run_scaled, run_virtual
from paths import IMPORT_ROOT
from portable import PATIENCE

import kie4o
from kie4o import PollPolicy, TaskDetails, TaskPoller, TaskState
from kie4o.emulator import Emulator

RUNNING = TaskDetails("t", state=TaskState.RUNNING)
DONE = TaskDetails("t", state=TaskState.SUCCEEDED, urls=("https://x.example/a.png",))
LOST = kie4o.APIConnectionError("the connection was reset")
EVERY_SECOND = PollPolicy(first=1.0, factor=1.0, maximum=1.0, jitter=False)


def looks(*script: TaskDetails | Exception, takes: float = 0.0) -> Callable[[str], Awaitable[TaskDetails]]:
    """A `look` that plays a script, and repeats its last item. Each look takes some time."""
    steps = itertools.chain(script, itertools.repeat(script[-1]))

    async def look(task_id: str) -> TaskDetails:
        step = next(steps)
        await asyncio.sleep(takes)
        if isinstance(step, Exception):
            raise step
        return step

    return look


# -- on_update -------------------------------------------------------------------------------------------


class Slow:
    """An `on_update` that takes some time, and records how each of its calls ended."""

    def __init__(self, seconds: float, *, stubborn: bool = False) -> None:
        self.seconds = seconds
        self.stubborn = stubborn
        self.ends: list[str] = []

    async def __call__(self, details: TaskDetails) -> None:
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.ends.append("cancelled")
            if not self.stubborn:
                raise
        else:
            self.ends.append("returned")


async def waited(look: Callable[[str], Awaitable[TaskDetails]], **more: Any) -> tuple[Any, float]:
    """The outcome of a wait, and the seconds that it took."""
    poller = TaskPoller(look, policy=EVERY_SECOND)
    loop = asyncio.get_running_loop()
    start = loop.time()
    try:
        outcome: Any = await poller.wait("t", **more)
    except Exception as error:
        outcome = error
    assert poller.waiting == 0
    await poller.aclose()
    return outcome, round(loop.time() - start, 3)


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_slow_on_update_does_not_delay_the_deadline(stubborn: bool) -> None:
    """At the deadline it is cancelled, and the wait times out with the id of the task, although it would
    take 8 s for each look; also if it returns instead of raising `CancelledError`."""
    slow = Slow(8.0, stubborn=stubborn)
    outcome, took = run_virtual(waited(looks(RUNNING), timeout=1.5, on_update=slow))
    assert type(outcome) is kie4o.TaskTimeoutError
    assert (outcome.task_id, took, slow.ends) == ("t", 1.5, ["cancelled"])


def test_on_update_may_take_long_without_a_timeout() -> None:
    """`timeout=None` waits for it."""
    slow = Slow(1e5)
    outcome, took = run_virtual(waited(looks(DONE), timeout=None, on_update=slow))
    assert (outcome.urls, took, slow.ends) == (DONE.urls, 1e5, ["returned"])


def test_after_the_end_of_the_task_the_deadline_holds_too() -> None:
    """The last details are there, and `on_update` is slow: at the deadline the wait returns the images."""
    slow = Slow(8.0)
    outcome, took = run_virtual(waited(looks(DONE), timeout=1.5, on_update=slow))
    assert (outcome.urls, took, slow.ends) == (DONE.urls, 1.5, ["cancelled"])


def test_a_task_that_ends_during_an_update_is_no_timeout() -> None:
    """It ended before the deadline, while `on_update` was busy with a look from before."""
    slow = Slow(8.0)
    outcome, took = run_virtual(waited(looks(RUNNING, DONE), timeout=4.0, on_update=slow))
    assert (outcome.urls, took, slow.ends) == (DONE.urls, 4.0, ["cancelled"])


def test_a_timeout_error_of_on_update_itself_is_raised() -> None:
    """What the caller's function raises ends the wait as it is, also a `TimeoutError`."""

    async def impatient(details: TaskDetails) -> None:
        async with asyncio.timeout(0.1):
            await asyncio.sleep(8.0)

    outcome, took = run_virtual(waited(looks(RUNNING), timeout=4.0, on_update=impatient))
    assert (type(outcome), took) == (TimeoutError, 0.1)


def test_a_cancel_reaches_on_update() -> None:
    """Cancelling the wait cancels the function that it waits for, and nothing is left."""
    slow = Slow(8.0)

    async def run() -> None:
        poller = TaskPoller(looks(RUNNING), policy=EVERY_SECOND)
        wait = asyncio.create_task(poller.wait("t", timeout=4.0, on_update=slow))
        await asyncio.sleep(1.0)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        assert poller.waiting == 0

    run_virtual(run())
    assert slow.ends == ["cancelled"]


def test_generate_with_a_slow_on_update_keeps_its_timeout() -> None:
    """Through the client: 1 s after the submit `generate` raises, and the paid task can be waited for."""

    async def run() -> None:
        async with Emulator(duration=20.0) as kie, client_of(kie.url) as client:
            loop = asyncio.get_running_loop()
            start = loop.time()
            with pytest.raises(kie4o.TaskTimeoutError) as caught:
                await client.generate("x", timeout=1.0, on_update=Slow(8.0))
            assert 1.0 <= loop.time() - start < 4.0
            assert caught.value.task_id in kie.tasks
            assert (await client.wait(caught.value.task_id)).urls

    run_scaled(run(), 10)


# -- a process that slept --------------------------------------------------------------------------------


class SleepingLoop(VirtualLoop):
    """A loop whose process can be stopped: then time passes and nothing runs."""

    def sleep(self, seconds: float) -> None:
        self._clock.now += seconds


def slept(seconds: float, look: Any, *, at: float = 1.5, **more: Any) -> tuple[Any, float]:
    """The outcome of a wait of 10 s, during which the process sleeps from `at` on; and how long after the
    wake-up the wait ended."""

    async def run() -> tuple[Any, float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SleepingLoop)
        loop.call_at(loop.time() + at, loop.sleep, seconds)
        outcome, took = await waited(look, timeout=10.0, **more)
        return outcome, round(took - at - seconds, 3)

    with asyncio.Runner(loop_factory=SleepingLoop) as runner:
        return runner.run(run())


@pytest.mark.parametrize("at", [0.0, 0.05, 1.05, 1.15, 1.3])
@pytest.mark.parametrize("seconds", [11.0, 29.0, 3600.0])
def test_a_task_that_ended_during_the_sleep_is_seen(seconds: float, at: float) -> None:
    """The deadline passed during the sleep. After it there is a look, also if one was under way when the
    sleep began: what that says is from before."""
    start = 1000.0  # of the clock

    async def look(task_id: str) -> TaskDetails:
        details = RUNNING if asyncio.get_running_loop().time() < start + 5.0 else DONE
        await asyncio.sleep(0.1)
        return details

    outcome, after = slept(seconds, look, at=at)
    assert isinstance(outcome, kie4o.ImageResult), outcome
    assert after < 1.0


def test_a_look_from_before_the_sleep_that_is_answered_after_it_does_not_decide() -> None:
    """It began before the task ended and shows it running: the look that follows it decides."""

    async def look(task_id: str) -> TaskDetails:
        details = RUNNING if asyncio.get_running_loop().time() < 1005.0 else DONE
        await asyncio.sleep(15.0)
        return details

    outcome, after = slept(11.0, look, at=2.0)
    assert isinstance(outcome, kie4o.ImageResult), outcome
    assert after == pytest.approx(2.0 + 0.34 + 15.0)


def test_a_reader_of_updates_that_is_slow_causes_no_looks() -> None:
    """Its wait has timed out, and it has not noticed yet: that is not a deadline noticed late."""

    async def run() -> int:
        seen = 0

        async def look(task_id: str) -> TaskDetails:
            nonlocal seen
            seen += 1
            return RUNNING

        poller = TaskPoller(look, policy=PollPolicy(first=60.0, maximum=60.0, jitter=False))

        async def read() -> None:
            async for _ in poller.watch("t", timeout=5.0):
                await asyncio.sleep(20.0)

        reader = asyncio.create_task(read())
        with pytest.raises(kie4o.TaskTimeoutError):
            await poller.wait("t", timeout=10.0)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        return seen

    assert run_virtual(run()) == 3  # at 0 s, and 1 s before each deadline


def test_a_task_that_still_runs_after_the_sleep_times_out_after_one_look() -> None:
    """The look shows it running: that ends the wait, without another one."""
    seen: list[TaskDetails] = []
    outcome, after = slept(3600.0, looks(RUNNING, takes=0.1), on_update=seen.append)
    assert type(outcome) is kie4o.TaskTimeoutError
    assert (after, len(seen)) == (0.1, 3)  # at 0 s and 1.1 s, and after the sleep


def test_a_failed_look_after_the_sleep_is_repeated() -> None:
    """The first look after a sleep often meets a connection that has died: the next one decides."""
    outcome, after = slept(3600.0, looks(RUNNING, RUNNING, LOST, LOST, DONE))
    assert isinstance(outcome, kie4o.ImageResult), outcome
    assert after < 5.0


@pytest.mark.parametrize(("step", "takes"), [(LOST, 0.0), (DONE, 1e4)])
def test_without_an_answer_the_wait_ends_after_the_timeout_of_a_look(step: Any, takes: float) -> None:
    """Looks that fail, or do not answer, hold up a deadline that has passed for 30 s at most."""
    outcome, after = slept(3600.0, looks(step, takes=takes))
    assert type(outcome) is kie4o.TaskTimeoutError
    assert after == 30.0


def test_other_waiters_keep_their_deadlines() -> None:
    """While a deadline that passed during the sleep is held up, a new waiter times out on time, and one of
    a longer timeout goes on."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SleepingLoop)
        poller = TaskPoller(looks(RUNNING, RUNNING, DONE, takes=8.0), policy=EVERY_SECOND)
        late = asyncio.create_task(poller.wait("t", timeout=20.0))
        long = asyncio.create_task(poller.wait("t", timeout=1e4))
        await asyncio.sleep(17.5)
        loop.sleep(100.0)
        await asyncio.sleep(0.1)
        assert not late.done()
        start = loop.time()
        with pytest.raises(kie4o.TaskTimeoutError):
            await poller.wait("t", timeout=2.0)
        assert loop.time() - start == pytest.approx(2.0)
        assert not late.done()
        assert (await late).urls == (await long).urls == DONE.urls

    with asyncio.Runner(loop_factory=SleepingLoop) as runner:
        runner.run(run())


def test_a_blocked_loop_that_is_hardly_late_changes_nothing() -> None:
    """Up to half a second late, a wait times out at once, without another look."""
    seen: list[TaskDetails] = []
    outcome, after = slept(0.4, looks(RUNNING), at=9.95, on_update=seen.append)
    assert type(outcome) is kie4o.TaskTimeoutError
    assert after == 0.0


CHILD = """
import asyncio, json, sys
from kie4o import AsyncKieClient, PollPolicy

async def main():
    url, count, timeout = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    policy = PollPolicy(first=0.4, maximum=0.4)
    async with AsyncKieClient(sys.argv[4], base_url=url, wait_timeout=timeout, poll=policy) as client:
        waits = (client.generate(f"{number}") for number in range(count))
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
    print(json.dumps([type(outcome).__name__ for outcome in outcomes]))

asyncio.run(main())
"""


@pytest.mark.paced
@pytest.mark.posix("SIGSTOP")
async def test_a_process_that_was_stopped_looks_before_it_times_out() -> None:
    """Fifteen waits of 1.5 s in a process that is stopped for 2.5 s, during which the tasks end: each returns
    its images. SIGSTOP is what a debugger does, and much like closing a laptop."""
    count = 15
    async with Emulator(clock="real", duration=1.2) as kie:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", CHILD, kie.url, str(count), "1.5", CANARY_KEY),
            stdout=subprocess.PIPE,
            cwd=IMPORT_ROOT,
        )
        try:
            async with asyncio.timeout(PATIENCE):
                while len(kie.tasks) < count:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.2)
                os.kill(child.pid, signal.SIGSTOP)
                await asyncio.sleep(2.5)
                os.kill(child.pid, signal.SIGCONT)
                output, _ = await child.communicate()
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    assert Counter(json.loads(output)) == {"ImageResult": count}
