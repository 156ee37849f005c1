"""Repeating free calls: which failures are repeated, and after which delays."""

import pytest

from kie4o.errors import APIConnectionError, AuthenticationError, KieError, RateLimitError
from kie4o.transport.retrying import repeated


class Calls:
    """Fails with each of these errors in turn, then returns how many calls were made."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.made = 0
        self.slept: list[float] = []

    async def __call__(self) -> int:
        self.made += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.made

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


async def test_delays_double() -> None:
    """Half a second before the first repetition, twice as long before each further one."""
    calls = Calls(*(APIConnectionError("no answer") for _ in range(4)))
    assert await repeated(calls, tries=5, sleep=calls.sleep, jitter=float) == 5
    assert calls.slept == [0.5, 1.0, 2.0, 4.0]


async def test_delays_have_full_jitter() -> None:
    """By default a delay is anything from zero to its full length."""
    slept = []
    for _ in range(200):
        calls = Calls(APIConnectionError("no answer"))
        assert await repeated(calls, sleep=calls.sleep) == 2
        slept += calls.slept
    assert 0 <= min(slept) < 0.1
    assert 0.4 < max(slept) <= 0.5


async def test_the_last_failure_is_raised_unchanged() -> None:
    """Three tries by default; the error is the very one that the last call raised."""
    last = APIConnectionError("third")
    calls = Calls(APIConnectionError("first"), APIConnectionError("second"), last, APIConnectionError("x"))
    with pytest.raises(APIConnectionError) as caught:
        await repeated(calls, sleep=calls.sleep, jitter=float)
    assert caught.value is last
    assert (calls.made, calls.slept) == (3, [0.5, 1.0])


@pytest.mark.parametrize("failure", [AuthenticationError("no", code=401), KieError("closed"), OSError("x")])
async def test_other_failures_are_not_repeated(failure: Exception) -> None:
    """A refusal stays a refusal, and a foreign error is not ours to repeat."""
    calls = Calls(failure)
    with pytest.raises(type(failure)):
        await repeated(calls, sleep=calls.sleep)
    assert (calls.made, calls.slept) == (1, [])


@pytest.mark.parametrize(("retry_after", "delay"), [(None, 0.5), (7.0, 7.5), (3600.0, 30.5)])
async def test_a_retry_after_is_waited_in_addition(retry_after: float | None, delay: float) -> None:
    """Half a minute at most, whatever the server asks for."""
    calls = Calls(RateLimitError("slow", code=429, retry_after=retry_after))
    assert await repeated(calls, sleep=calls.sleep, jitter=float) == 2
    assert calls.slept == [delay]


async def test_each_pause_is_logged_with_its_length_and_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Without URLs, which may be private."""
    caplog.set_level("INFO", "kie4o")
    refusal = RateLimitError("too fast", code=429, retry_after=7.0)
    calls = Calls(APIConnectionError("no answer from GET https://a.example/x?y=1: timed out"), refusal)
    await repeated(calls, sleep=calls.sleep, jitter=float)
    assert calls.slept == [0.5, 8.0]
    assert [record.getMessage() for record in caplog.records] == [
        "a free call is made again in 0.5 s: no answer from GET ...: timed out",
        "a free call is made again in 8.0 s: 429 too fast",
    ]
