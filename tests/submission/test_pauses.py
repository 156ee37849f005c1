"""The log names every pause of submits with its true length and its reason, and never the request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from clients import client_of
from clocks import run_scaled, run_virtual
from faults import Connection, FaultServer, http, unused_port

import kie4o
from kie4o import RateLimit
from kie4o.submission.rate_limit import RateLimiter

SPEED = 40  # loop seconds per second; a delay of 50 ms is two of them
LATE = 2.0
RESENT = re.compile(r"a submit is sent again in ([\d.]+) s \((\d) of (\d)\): (.*)")
PAUSED = re.compile(r"submits pause for ([\d.]+) s: (.*)")
AMPLE = RateLimit(100, per=10.0)


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kie4o")


def matches(pattern: re.Pattern[str], caplog: pytest.LogCaptureFixture) -> list[tuple[str, ...]]:
    found = (pattern.fullmatch(record.getMessage()) for record in caplog.records if record.name == "kie4o")
    return [match.groups() for match in found if match]


class Refusing(FaultServer):
    """Answers with these bodies and headers, then accepts; notes when each submit arrived."""

    def __init__(self, *answers: tuple[bytes, str, str]) -> None:
        super().__init__(self._answer)
        self._answers = [*answers]
        self.times: list[float] = []

    async def _answer(self, connection: Connection) -> None:
        await connection.request()
        self.times.append(asyncio.get_running_loop().time())
        if len(self.times) > len(self._answers):
            data = {"taskId": f"{len(self.times):032x}"}
            await connection.send(http(json.dumps({"code": 200, "data": data}).encode()))
        else:
            await connection.send(http(*self._answers[len(self.times) - 1]))


def refusal(code: int, words: str = "later", *, status: str = "200 OK", header: str = "X-Other: 1"):
    return json.dumps({"code": code, "msg": words, "data": None}).encode(), status, header


# -- a resend --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "figures"),
    [
        ([refusal(429)] * 2, [10.0, 10.0]),
        ([refusal(429, header="Retry-After: 25")], [25.0]),
        ([refusal(429, header="Retry-After: 4")], [10.0]),
        ([refusal(429, header="Retry-After: 7200")], [30.0]),
        ([(b"<html>slow</html>", "429 Slow", "X-Other: 1")], [10.0]),
        ([refusal(550), refusal(429)], [30.0, 10.0]),
        ([refusal(455)], [60.0]),
        ([refusal(455, header="Retry-After: 7200")], [90.0]),
    ],
)
def test_the_figure_of_a_resend_is_the_time_until_it(answers, figures, caplog) -> None:
    """The hold of the limiter and a Retry-After are in it."""

    async def run() -> list[float]:
        async with Refusing(*answers) as kie, client_of(kie.url, rate_limit=AMPLE, timeout=1000) as client:
            await client.submit("x")
            return [after - before for before, after in zip(kie.times, kie.times[1:], strict=False)]

    waits = run_scaled(run(), SPEED if max(figures) < 30 else 10 * SPEED)
    late = LATE if max(figures) < 30 else 10 * LATE
    said = [float(seconds) for seconds, *_ in matches(RESENT, caplog)]
    for expected, figure, waited in zip(figures, said, waits, strict=True):
        assert expected - late <= figure <= expected + 0.1  # the pause begins before it is named
        assert figure - 0.1 <= waited <= figure + late


def test_a_connection_that_fails_is_named(caplog) -> None:
    """Each resend is counted, with the delay that it really has."""

    async def run() -> float:
        loop = asyncio.get_running_loop()
        async with client_of(f"http://127.0.0.1:{unused_port()}", timeout=1000) as client:
            start = loop.time()
            with pytest.raises(kie4o.APIConnectionError):
                await client.submit("x")
            return loop.time() - start

    waited = run_scaled(run(), SPEED)
    said = matches(RESENT, caplog)
    assert [line[1:3] for line in said] == [("1", "2"), ("2", "2")]
    total = sum(float(line[0]) for line in said)
    assert total - 0.2 <= waited <= total + 2 * LATE
    assert "connect" in said[0][3]


SECRET = "A dragon over the harbour of a town that has no name"
QUOTING = [
    refusal(429, f"slow down: {SECRET}"),
    refusal(429, f"slow down, {SECRET[:30]}..."),
    refusal(429, "see https://me.example/private.png"),
    (json.dumps({"prompt": SECRET}).encode(), "429 Slow", "X-Other: 1"),
    (f"<p>{SECRET}</p> at https://me.example/".encode(), "429 Slow", "X-Other: 1"),
    (f'Error: ["{SECRET}"]'.encode(), "429 Slow", "X-Other: 1"),
]


@pytest.mark.parametrize("quoting", QUOTING)
def test_what_kie_quotes_is_not_repeated(quoting, caplog) -> None:
    """The code remains, without the prompt and without URLs."""

    async def run() -> None:
        limit = RateLimit(100, per=1.0)
        async with Refusing(quoting) as kie, client_of(kie.url, rate_limit=limit, timeout=1000) as client:
            await client.submit(SECRET)

    run_scaled(run(), SPEED)
    [(*_, cause)] = matches(RESENT, caplog)
    assert cause.startswith("429")
    lines = " ".join(record.getMessage() for record in caplog.records if record.levelname == "INFO")
    assert SECRET[:20] not in lines
    assert "://" not in lines


@pytest.mark.parametrize(("length", "kept"), [(19, True), (20, False)])
async def test_as_much_of_the_prompt_as_may_be_quoted_by_chance_is_repeated(length: int, kept: bool) -> None:
    """19 characters, as in "unknown size: 3:2"; a longer quotation takes the words with it."""
    heard: list[Any] = []
    words = f"no {SECRET[:length]}"
    async with Refusing(refusal(422, words)) as kie, client_of(kie.url, on_event=heard.append) as client:
        with pytest.raises(kie4o.UnprocessableEntityError):
            await client.submit(SECRET)
    [refused] = [event for event in heard if isinstance(event, kie4o.events.Refused)]
    assert refused.cause == (f"422 {words}" if kept else "422")


async def test_a_refusal_of_a_request_without_a_prompt_is_repeated() -> None:
    """It quotes none. The time is that from the sending to the answer."""
    heard: list[Any] = []
    refusing = Refusing(refusal(422, "None given"))
    async with refusing as kie, client_of(kie.url, on_event=heard.append) as client:
        with pytest.raises(kie4o.UnprocessableEntityError):
            await client.submit(kie4o.ImageRequest(files_url=["https://a.example/1.png"]))
    [refused] = [event for event in heard if isinstance(event, kie4o.events.Refused)]
    assert refused.cause == "422 None given"
    assert 0 <= refused.seconds < 60


async def test_a_cause_whose_words_are_those_of_the_prompt_is_the_verdict() -> None:
    heard: list[Any] = []

    async def lose(connection: Connection) -> None:
        await connection.request()

    async with FaultServer(lose) as kie, client_of(kie.url, on_event=heard.append) as client:
        with pytest.raises(kie4o.SubmissionUnknownError):
            await client.submit("disconnected")
    [unknown] = [event for event in heard if isinstance(event, kie4o.events.Unknown)]
    assert unknown.cause == "unknown"


# -- the limit -------------------------------------------------------------------------------------


def test_a_pause_of_everybody_is_one_line(caplog) -> None:
    """However many wait, and however often they ask: 10,000 in 500 windows. Each figure is the time until
    the next submit."""

    async def run() -> tuple[list[float], list[float]]:
        limiter, loop = RateLimiter(RateLimit(20, per=10.0)), asyncio.get_running_loop()
        times: list[float] = []

        async def one() -> None:
            await limiter.acquire()
            times.append(loop.time())
            await asyncio.sleep(0.3)
            limiter.release(counted=True)

        said: list[float] = []
        handler = logging.Handler()
        handler.emit = lambda record: said.append(loop.time())  # type: ignore[method-assign]  # a test's
        logging.getLogger("kie4o").addHandler(handler)
        try:
            await asyncio.gather(*(one() for _ in range(10_000)))
        finally:
            logging.getLogger("kie4o").removeHandler(handler)
        return times, said

    times, said = run_virtual(run())
    lines = matches(PAUSED, caplog)
    assert len(lines) == len(said) == 499
    assert lines[0][1] == "the limit of 20 in 10 s is used up"
    for (figure, *_), at in zip(lines, said, strict=True):
        following = next(time for time in times if time > at)
        assert following - at == pytest.approx(float(figure), abs=0.06)


def test_a_refusal_that_holds_everybody_is_one_line(caplog) -> None:
    """20 that are refused within a tenth of a second hold those that wait once; a later one holds them
    longer, which has its own line."""

    async def run() -> float:
        limiter, loop = RateLimiter(RateLimit(20, per=10.0)), asyncio.get_running_loop()
        for _ in range(20):
            await limiter.acquire()
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(100)]
        for pause in [*[0.004] * 19, 4.0]:
            limiter.hold_all()
            limiter.release(counted=True)
            await asyncio.sleep(pause)
        assert limiter.hold_all() == pytest.approx(10.0, abs=0.1)
        limiter.release(counted=True)
        start = loop.time()
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        return loop.time() - start

    waited = run_virtual(run())
    said = matches(PAUSED, caplog)
    assert [line[1] for line in said] == ["Kie refused one for too many calls"] * 2
    assert waited == pytest.approx(float(said[-1][0]), abs=0.1)


def test_a_hold_is_told_when_it_begins(caplog) -> None:
    """Not when the next slot would have been free."""

    async def run() -> None:
        limiter = RateLimiter(RateLimit(1, per=10.0))
        await limiter.acquire()
        limiter.release(counted=True)
        waiting = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(3.0)
        limiter.hold_all()
        assert len(matches(PAUSED, caplog)) == 2
        waiting.cancel()

    run_virtual(run())
    assert matches(PAUSED, caplog)[1] == ("10.0", "Kie refused one for too many calls")


@pytest.mark.parametrize("seconds", [0.5, 0.9])
def test_a_short_pause_is_no_line(seconds: float, caplog) -> None:
    """Less than a second is not worth one."""

    async def run() -> None:
        limiter = RateLimiter(RateLimit(1, per=seconds))
        for _ in range(5):
            await limiter.acquire()
            limiter.release(counted=True)

    run_virtual(run())
    assert matches(PAUSED, caplog) == []
