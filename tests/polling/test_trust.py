"""When callbacks are relied on, so that looks are rare: which arrive, which are missed, which stray."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from clocks import run_virtual
from hypothesis import given
from hypothesis import strategies as st

from kie4o import PollPolicy, TaskDetails, TaskPoller, TaskState
from kie4o.polling.trust import CallbackTrust

PLAIN = PollPolicy(jitter=False)
POLICIES = pytest.mark.parametrize("policy", [PLAIN, PollPolicy.adaptive()])
LENGTH = 10.0  # seconds of each task
SOON = 20.0  # seconds within which a task that is polled at its usual pace is seen finished
RARE = [60.0]  # ages at the looks, if callbacks are relied on and none arrives


class Kie:
    """Tasks that finish `LENGTH` after their submit, of which some have a callback then."""

    def __init__(self, policy: PollPolicy = PLAIN) -> None:
        self.poller = TaskPoller(self._look, policy=policy)
        self.submitted: dict[str, float] = {}
        self.looks: Counter[str] = Counter()

    async def _look(self, task_id: str) -> TaskDetails:
        self.looks[task_id] += 1
        if asyncio.get_running_loop().time() < self.submitted[task_id] + LENGTH:
            return TaskDetails(task_id, state=TaskState.RUNNING)
        return TaskDetails(task_id, state=TaskState.SUCCEEDED, urls=("https://x.example/a.png",))

    async def finish(self, task_id: str, *, called: bool = False, late: float = 0.0) -> float:
        """Submit a task and wait for it: how many seconds that takes."""
        loop = asyncio.get_running_loop()
        since = self.submitted[task_id] = loop.time()
        if called:
            loop.call_later(LENGTH + late, self.poller.notify, task_id)
        await self.poller.wait(task_id, since=since, expecting=True)
        return loop.time() - since


def run(main: Callable[[Kie], Coroutine[Any, Any, None]], policy: PollPolicy = PLAIN) -> None:
    async def closing() -> None:
        kie = Kie(policy)
        await main(kie)
        await kie.poller.aclose()

    run_virtual(closing())


@POLICIES
def test_one_missed_callback_is_enough_if_none_has_ever_arrived(policy: PollPolicy) -> None:
    """The first task is seen finished after a minute, all later ones at the usual pace."""

    async def main(kie: Kie) -> None:
        took = [await kie.finish(f"{number}") for number in range(5)]
        assert took[0] == pytest.approx(60, abs=7)
        assert max(took[1:]) < SOON

    run(main, policy)


@POLICIES
def test_a_missed_callback_moves_the_looks_of_all_that_wait(policy: PollPolicy) -> None:
    """Of four tasks the first is looked at after a minute, and that moment also the others."""

    async def main(kie: Kie) -> None:
        loop = asyncio.get_running_loop()
        start, ends = loop.time(), []

        async def one(number: int) -> None:
            await asyncio.sleep(10 * number)
            await kie.finish(f"{number}")
            ends.append(loop.time() - start)

        await asyncio.gather(*(one(number) for number in range(4)))
        assert ends[0] == pytest.approx(60, abs=7)
        assert ends[-1] - ends[0] < 1.0
        assert kie.looks.total() == 4

    run(main, policy)


def test_a_task_that_was_just_submitted_keeps_its_usual_pace() -> None:
    """Its looks after a missed callback are those of a client without callbacks, not all at once."""

    async def main(kie: Kie) -> None:
        first = asyncio.create_task(kie.finish("first"))
        await asyncio.sleep(59.0)
        assert await kie.finish("second") == pytest.approx(14.5)  # 2, 5, 9.5, 14.5
        assert kie.looks["second"] == 4
        await first

    run(main)


@pytest.mark.parametrize("late", [0.0, 6.0])
@pytest.mark.parametrize("every", [2, 3])
def test_partial_loss_does_not_keep_looks_rare(every: int, late: float) -> None:
    """Of two or three tasks one has a callback, as with that many workers behind one port, perhaps only
    after a look has found the end: no more than one task waits for the safety net."""

    async def main(kie: Kie) -> None:
        took = [await kie.finish(f"{number}", called=number % every == 0, late=late) for number in range(60)]
        assert sum(seconds > SOON for seconds in took) <= 1

    run(main)


def test_callbacks_that_arrive_keep_looks_rare() -> None:
    """One miss in a long record is forgiven; the next one soon after it is not."""

    async def main(kie: Kie) -> None:
        for number in range(20):
            assert await kie.finish(f"{number}", called=True) == LENGTH
        assert set(kie.looks.values()) == {1}
        took = [await kie.finish(f"missed {number}") for number in range(4)]
        assert took[:2] == RARE * 2
        assert max(took[2:]) < SOON

    run(main)


def test_five_callbacks_in_a_row_restore_trust() -> None:
    """After that a task without a callback waits for the safety net again."""

    async def main(kie: Kie) -> None:
        await kie.finish("missed")
        for number in range(5):
            assert kie.poller._trust.relied_on is False
            await kie.finish(f"{number}", called=True)
        assert await kie.finish("missed again") == 60

    run(main)


def test_a_callback_that_is_only_late_was_not_missed() -> None:
    """Delivery reports the callback of a task that has ended, and it counts."""

    async def main(kie: Kie) -> None:
        await kie.finish("missed")
        kie.poller.notify_late("missed")
        for number in range(10):
            assert kie.poller._trust.relied_on
            assert await kie.finish(f"{number}", called=True) == LENGTH

    run(main)


def test_at_the_usual_pace_callbacks_that_come_after_a_look_restore_trust() -> None:
    """The look before each of them does not keep it away."""

    async def main(kie: Kie) -> None:
        await kie.finish("missed")
        for number in range(5):
            assert await kie.finish(f"{number}", called=True, late=4.6) == pytest.approx(14.5)
        await asyncio.sleep(1.0)
        assert await kie.finish("called", called=True) == LENGTH
        assert kie.looks["called"] == 1

    run(main)


def test_a_stray_callback_ends_rare_looks_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Those of the tasks that wait, too, and however many have arrived before; a warning says so once."""

    async def main(kie: Kie) -> None:
        for number in range(5):
            await kie.finish(f"{number}", called=True)
        waiting = asyncio.create_task(kie.finish("waiting"))
        await asyncio.sleep(LENGTH)
        for task_id in ("of another worker", "of a third one"):
            kie.poller.notify_stray(task_id)
        assert await waiting == pytest.approx(LENGTH, abs=1.0)
        assert await kie.finish("later") < SOON

    run(main)
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "task of another worker, submitted elsewhere" in warning.getMessage()


def test_what_finished_before_the_wait_was_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    """The tasks of an earlier run, whose callbacks may have reached that run; one that finishes later was."""

    async def main(kie: Kie) -> None:
        for task_id in ("a", "b", "c"):
            kie.submitted[task_id] = -LENGTH
            await kie.poller.wait(task_id, expecting=True)
        assert kie.poller._trust.relied_on
        kie.submitted["d"] = asyncio.get_running_loop().time()
        await kie.poller.wait("d", expecting=True)
        assert not kie.poller._trust.relied_on

    run(main)
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


EVENTS = st.tuples(st.sampled_from(["arrived", "missed", "strayed"]), st.integers(0, 4))


@given(st.lists(EVENTS))
def test_the_score_stays_in_bounds(events: list[tuple[str, int]]) -> None:
    """Five new callbacks always restore trust, two new misses always end it, and a repetition is nothing."""
    trust = CallbackTrust()
    for name, task in events:
        getattr(trust, name)(*([] if name == "strayed" else [f"{task}"]))
        assert -5 <= trust._score <= 5
    before = trust._score
    for name, task in events:
        if name != "strayed":
            trust.missed(f"{task}")
    assert trust._score == before
    for number in range(5):
        trust.arrived(f"new {number}")
    assert trust.relied_on
    for number in range(2):
        trust.missed(f"missed {number}")
    assert not trust.relied_on


def test_what_is_remembered_is_bounded() -> None:
    """A thousand tasks."""
    trust = CallbackTrust()
    for number in range(3000):
        trust.arrived(f"{number}")
    assert len(trust._lost) == 1000
