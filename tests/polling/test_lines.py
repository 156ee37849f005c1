"""What the log says of polls: each pause after a failed one with its true length, and each end once."""

from __future__ import annotations

import asyncio
import datetime
import logging
import re

import pytest
from clocks import run_virtual

import kie4o
from kie4o import PollPolicy, TaskDetails, TaskPoller, TaskState
from kie4o.polling.schedule import AT_ONCE

URL = "https://x.example/a.png"
SECRET = "A dragon over the harbour"
AGAIN = re.compile(r"task (\w+) is polled again in ([\d.]+) s: (.*)")
ENDED = re.compile(r"task (\w+) (succeeded|failed)(?: after ([\d.]+) s)?, found by (poll|callback)")
PLAIN = PollPolicy(jitter=False)
CREATED = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kie4o")


def lines(pattern: re.Pattern[str], caplog: pytest.LogCaptureFixture) -> list[tuple[str | None, ...]]:
    found = (pattern.fullmatch(record.getMessage()) for record in caplog.records if record.name == "kie4o")
    return [match.groups() for match in found if match]


def details_of(task_id: str, state: TaskState, **more) -> TaskDetails:
    urls = (URL,) if state is TaskState.SUCCEEDED else ()
    return TaskDetails(task_id, state=state, urls=urls, **more)


class Kie:
    """A `look` that raises these errors, then finds each task running until `ends` seconds have passed."""

    def __init__(self, *errors: Exception, ends: float = 0.0, state: TaskState = TaskState.SUCCEEDED) -> None:
        self.errors = [*errors]
        self.times: list[float] = []
        self.ends = ends
        self.state = state
        self.start: float | None = None

    async def __call__(self, task_id: str) -> TaskDetails:
        now = asyncio.get_running_loop().time()
        self.start = now if self.start is None else self.start
        self.times.append(now)
        if self.errors:
            raise self.errors.pop(0)
        return details_of(task_id, self.state if now >= self.start + self.ends else TaskState.RUNNING)


# -- pauses ----------------------------------------------------------------------------------------

CAUSES = {
    kie4o.RateLimitError("too fast", code=429): "429 too fast",
    kie4o.InternalServerError("oops", code=500): "500 oops",
    kie4o.AuthenticationError("no", code=401): "401 no",
    kie4o.APITimeoutError("no response in 30 s"): "no response in 30 s",
    kie4o.APIConnectionError(""): "APIConnectionError",
    kie4o.UnexpectedResponseError(f"cannot read {SECRET} {URL}", http_status=200): (
        "unreadable answer with HTTP status 200"
    ),
    kie4o.InternalServerError(f'{{"prompt": "{SECRET}"}}', code=502): "502",
    kie4o.InternalServerError(f"<p>{SECRET} {URL}</p>", code=502): "502",
    kie4o.InternalServerError(f"not {URL}", code=502): "502 not ...",
}


@pytest.mark.parametrize("error", CAUSES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("times", [1, 2, 6])
def test_the_figure_of_a_pause_is_the_time_until_the_next_poll(error, times, caplog) -> None:
    """And it names the cause, without what an answer may quote."""
    errors = [kie4o.MaintenanceError("x", code=455)] * (times - 1) + [error]
    kie = Kie(*errors)

    async def run() -> None:
        poller = TaskPoller(kie, policy=PLAIN)
        await poller.wait("t", since=asyncio.get_running_loop().time())
        await poller.aclose()

    run_virtual(run())
    said = lines(AGAIN, caplog)
    waits = [after - before for before, after in zip(kie.times, kie.times[1:], strict=False)]
    assert [float(seconds or 0) for _, seconds, _ in said] == pytest.approx(waits, abs=0.051)
    assert said[-1][2] == CAUSES[error]
    assert SECRET not in caplog.text


def test_an_outage_is_a_line_per_second_and_not_one_per_task(caplog) -> None:
    """4,000 tasks whose polls all fail for twenty seconds: what was not logged is counted."""
    kie = Kie(*[kie4o.APIConnectionError("no route to host")] * 2_000)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        poller = TaskPoller(kie, policy=PLAIN)
        start = loop.time()
        await asyncio.gather(*(poller.wait(f"t{number}", since=start) for number in range(4_000)))
        await poller.aclose()
        return kie.times[1_999] - start

    lasted = run_virtual(run())
    said = lines(AGAIN, caplog)
    assert lasted / 2 < len(said) <= lasted + 1
    counted = sum(
        int(others[1]) for *_, cause in said if (others := re.search(r"and (\d+) fail", cause or ""))
    )
    assert 2_000 - 2 * 100 - AT_ONCE < counted + len(said) <= 2_000


@pytest.mark.parametrize("timeout", [2.5, None])
def test_a_poll_that_is_not_repeated_is_no_pause(timeout: float | None, caplog) -> None:
    """A status check raises its error, and a wait may end before the next poll."""
    kie = Kie(*[kie4o.MaintenanceError("x", code=455)] * 5)

    async def run() -> None:
        poller = TaskPoller(kie, policy=PLAIN)
        if timeout is None:
            with pytest.raises(kie4o.MaintenanceError):
                await poller.look("t")
        else:
            with pytest.raises(kie4o.TaskTimeoutError):
                await poller.wait("t", timeout=timeout, since=asyncio.get_running_loop().time())
        await poller.aclose()

    run_virtual(run())
    assert len(lines(AGAIN, caplog)) == len(kie.times) - 1


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [TaskState.SUCCEEDED, TaskState.FAILED])
@pytest.mark.parametrize("waiters", [1, 3])
@pytest.mark.parametrize("by", ["poll", "callback", "trusted callback"])
def test_an_end_is_one_line(by: str, waiters: int, state: TaskState, caplog) -> None:
    """However many wait: the id, the state, the seconds since the submit, and what found it."""
    kie = Kie(ends=30.0 if by == "poll" else 3.5, state=state)

    async def run() -> float:
        loop = asyncio.get_running_loop()
        poller = TaskPoller(kie, policy=PLAIN)
        start = loop.time()
        waits = [asyncio.create_task(poller.wait("t", since=start)) for _ in range(waiters)]
        if by != "poll":
            await asyncio.sleep(6.0)
            poller.notify("t", details_of("t", state) if by == "trusted callback" else None)
        await asyncio.wait(waits)
        for wait in waits:
            wait.exception()
        took = loop.time() - start
        await poller.aclose()
        return took

    took = run_virtual(run())
    [(task_id, said, seconds, source)] = lines(ENDED, caplog)
    assert (task_id, said, source) == ("t", state.value, by.split()[-1])
    assert float(seconds or 0) == pytest.approx(took, abs=0.051)
    assert URL not in caplog.text


@pytest.mark.parametrize("known", [True, False])
def test_the_end_of_an_earlier_task_has_the_seconds_that_kie_says(known: bool, caplog) -> None:
    """The time of its submit is not known here."""
    times = {"created_at": CREATED, "completed_at": CREATED + datetime.timedelta(seconds=63)} if known else {}

    async def look(task_id: str) -> TaskDetails:
        return details_of(task_id, TaskState.SUCCEEDED, **times)

    async def run() -> None:
        poller = TaskPoller(look)
        await poller.wait("t")
        await poller.aclose()

    run_virtual(run())
    assert lines(ENDED, caplog) == [("t", "succeeded", "63.0" if known else None, "poll")]


def test_a_status_check_is_no_end_unless_a_callback_asked_for_it(caplog) -> None:
    """The task may have finished long ago. A callback of a task that is not waited for is its end."""

    async def run() -> None:
        poller = TaskPoller(Kie())
        await poller.look("old")
        poller.notify("new")
        await poller.look("new")
        poller.notify("trusted", details_of("trusted", TaskState.FAILED))
        await poller.aclose()

    run_virtual(run())
    assert lines(ENDED, caplog) == [
        ("new", "succeeded", None, "callback"),
        ("trusted", "failed", None, "callback"),
    ]


def test_a_wait_that_ends_before_the_task_is_no_end(caplog) -> None:
    """Neither a timeout nor closing says anything about the task."""

    async def run() -> None:
        poller = TaskPoller(Kie(ends=1e9))
        with pytest.raises(kie4o.TaskTimeoutError):
            await poller.wait("t", timeout=5.0)
        wait = asyncio.create_task(poller.wait("t"))
        await asyncio.sleep(1.0)
        await poller.aclose()
        await asyncio.wait([wait])
        assert isinstance(wait.exception(), kie4o.KieError)

    run_virtual(run())
    assert lines(ENDED, caplog) == []
