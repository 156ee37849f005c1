"""What a client logs of a whole run: why a batch stops, each end once, and never a prompt, URL or key."""

from __future__ import annotations

import asyncio
import logging

import pytest
from canary import CANARY_KEY
from clients import LOST, client_of
from clocks import run_scaled

import kie4o
from kie4o import RateLimit
from kie4o.emulator import Emulator, Fault

SECRET = "A dragon over the harbour of a town that has no name"
LIMIT = RateLimit(20, per=1.0)


@pytest.fixture(autouse=True)
def at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "kie4o")


def lines(caplog: pytest.LogCaptureFixture, level: str = "INFO") -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "kie4o" and record.levelname == level
    ]


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (Fault("submit", code=402, message="no"), "402 no"),
        (Fault("submit", code=500, message="Insufficient credits"), "500 Insufficient credits"),
        (Fault("submit", code=401, message="who?"), "401 who?"),
        (Fault("submit", code=433, message="spent"), "433 spent"),
        (
            Fault("submit", cut=0, charged=False),
            "the batch stopped: 5 submits in a row have an unknown outcome",
        ),
    ],
)
async def test_a_batch_that_stops_says_why_once(answer: Fault, cause: str, caplog) -> None:
    """Though every item in flight meets the same."""
    async with Emulator(limit=1000) as kie, client_of(kie.url) as client:
        for number in range(10):
            kie.plan(f"{number}", answer=answer)
        with pytest.raises(kie4o.KieError):
            async for _ in client.generate_many([f"{number}" for number in range(10)]):
                pass
    [line] = [line for line in lines(caplog) if "batch" in line]
    assert line.startswith(f"a batch submits nothing more: {cause}")


async def test_what_was_settled_is_named_without_its_prompt(caplog) -> None:
    """The task, or the ref; an unknown outcome that is met again does not claim to be of an earlier run."""
    async with Emulator(limit=1000, duration=0.0) as kie, client_of(kie.url) as client:
        for answer in ("dropped", Fault("submit", code=500)):
            kie.next(answer=answer)
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.generate(SECRET)
            assert not caught.value.retryable
        [task_id] = kie.tasks
        first, second = [done async for done in client.resume()]
        assert "earlier run" not in str(first.error)
        await client.settle(first.key, task_id=task_id)
        await client.settle(second.key, charged=False)
    settled = [line for line in lines(caplog) if line.startswith("settled: ")]
    assert settled == [
        f"settled: task {task_id} was found",
        f"settled: a submit with ref {second.key} was not charged",
    ]
    verdicts = [line for line in lines(caplog, "DEBUG") if " has an unknown outcome: " in line]
    assert [done.key in verdict for done, verdict in zip((first, second), verdicts, strict=True)] == [
        True,
        True,
    ]


def test_a_run_with_everything_names_no_prompt_url_or_key(caplog) -> None:
    """Refusals, lost answers, failed tasks. Each task has one end."""
    prompts = [f"{SECRET} {number}" for number in range(8)]
    page = f"<p>{SECRET} https://me.example/</p>"

    async def run() -> tuple[list[str], int]:
        async with Emulator(duration=5.0, limit=1000) as kie:
            kie.plan(prompts[0], answer=429)
            kie.plan(prompts[0])
            kie.plan(prompts[1], answer=Fault("submit", body=page, http_status=429))
            kie.plan(prompts[1])
            kie.plan(prompts[2], outcome="policy")
            kie.plan(prompts[3], outcome="input")
            kie.plan(prompts[4], answer=Fault("submit", cut=0, charged=False))
            async with client_of(kie.url, rate_limit=LIMIT) as client:
                for completion in [done async for done in client.generate_many(prompts)]:
                    if completion.ok:
                        await client.details(completion.unwrap().task_id)
            return list(kie.tasks), len(kie.submits)

    ids, posts = run_scaled(run(), 40)
    assert posts > len(prompts)
    everything = "\n".join(record.getMessage() for record in caplog.records if record.name == "kie4o")
    assert SECRET[:20] not in "\n".join(lines(caplog) + lines(caplog, "DEBUG"))
    assert "://" not in everything
    assert CANARY_KEY not in everything
    ends = [line for line in lines(caplog) if ", found by " in line]
    assert len(ends) == len(ids) == 7
    assert all(sum(task_id in line for line in ends) == 1 for task_id in ids)


@pytest.mark.parametrize("timeout", [30.0, None])
def test_a_lost_answer_says_for_how_long_its_callback_is_awaited(timeout: float | None, caplog) -> None:
    """That is a pause of the caller, and the longest there is."""

    async def run() -> float:
        loop = asyncio.get_running_loop()
        async with Emulator() as kie, client_of(kie.url, callback_url="https://me.example/kie") as client:
            kie.plan("x", answer=LOST, callback="never")
            start = loop.time()
            call = asyncio.create_task(client.generate("x", timeout=timeout))
            await asyncio.wait([call], timeout=60.0)
            took = loop.time() - start
        await asyncio.wait([call])
        assert isinstance(call.exception(), kie4o.SubmissionUnknownError)
        return took

    took = run_scaled(run(), 200)
    [line] = [line for line in lines(caplog) if "callback" in line]
    limit = "without limit" if timeout is None else f"for up to {timeout:.1f} s"
    assert line == f"the answer to a submit was lost; its callback is awaited {limit}"
    assert (took >= 59.9) if timeout is None else (timeout - 0.1 <= took < timeout + 10)
