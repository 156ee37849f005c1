"""The metrics, as a reader of OpenTelemetry's SDK finds them, and their table in docs/operating.md."""

from __future__ import annotations

import asyncio
import contextlib
import re

import pytest
from clients import LOST, client_of, until
from pages import table
from spans import Recorder

from kie4o import KieError, RateLimit
from kie4o.emulator import Emulator


async def run_all_outcomes(kie: Emulator, recorder: Recorder) -> None:
    """A success, a failure, a refusal that is sent again, one that is not, a lost answer; one at a time."""
    kie.plan("b", outcome="policy")
    kie.plan("c", answer=429)
    kie.plan("d", answer=422)
    kie.plan("e", answer=LOST)
    limit = RateLimit(20, per=2.0)
    async with recorder.instrument(client_of(kie.url, rate_limit=limit, max_in_flight=1)) as client:
        calls = (client.generate(prompt) for prompt in "abcde")
        await asyncio.gather(*calls, return_exceptions=True)


async def test_metrics_count_what_has_happened(kie: Emulator) -> None:
    """Verdicts, ends, credits, durations, waits."""
    recorder = Recorder()
    await run_all_outcomes(kie, recorder)
    metrics = recorder.metrics()
    assert 0 < metrics.pop("kie4o.window.use") < 1
    assert {name: value for name, value in metrics.items() if isinstance(value, int | float)} == {
        "kie4o.tasks[succeeded]": 2,
        "kie4o.tasks[failed]": 1,
        "kie4o.submits[accepted]": 3,
        "kie4o.submits[429,refused]": 1,
        "kie4o.submits[422,refused]": 1,
        "kie4o.submits[unknown]": 1,
        "kie4o.credits": 18.0,
        "kie4o.calls[generate]": 0,
        "kie4o.places.use": 0.0,
        "kie4o.pauses": pytest.approx(2.0, abs=0.5),
    }
    counts = {name: value[0] for name, value in metrics.items() if isinstance(value, tuple)}
    assert counts.pop("kie4o.wait.duration[slot]") in (1, 2)  # a timer may fire just before a pause ends
    model = "generate_content,kie_ai,gpt4o-image"
    assert counts == {
        "kie4o.task.duration[succeeded]": 2,
        "kie4o.task.duration[failed]": 1,
        f"gen_ai.client.operation.duration[{model}]": 2,
        f"gen_ai.client.operation.duration[ContentPolicyError,{model}]": 1,
        f"gen_ai.client.operation.duration[UnprocessableEntityError,{model}]": 1,
        f"gen_ai.client.operation.duration[SubmissionUnknownError,{model}]": 1,
        "kie4o.wait.duration[place]": 4,
    }


async def test_gauges_show_the_state_of_the_client(kie: Emulator) -> None:
    """Of the one with the highest value; and nothing of one that is gone."""
    recorder = Recorder()
    kie.duration = 60.0
    limit = RateLimit(4, per=60.0)
    async with (
        recorder.instrument(client_of(kie.url, rate_limit=limit, max_in_flight=8)) as client,
        recorder.instrument(client_of(kie.url, rate_limit=limit, max_in_flight=8)),
    ):
        calls = [asyncio.create_task(client.generate(f"{number}")) for number in range(2)]
        await until(lambda: client._runtime.poller.waiting == 2)
        metrics = recorder.metrics()
        assert metrics["kie4o.places.use"] == 0.25
        assert metrics["kie4o.window.use"] == 0.5
        assert metrics["kie4o.calls[generate]"] == 2
        for call in calls:
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError, KieError):
                await call


@pytest.mark.once
async def test_the_table_of_metrics_is_that_of_the_code(kie: Emulator) -> None:
    """Each has a row, and each row one."""
    recorder = Recorder()
    await run_all_outcomes(kie, recorder)
    names = {name.partition("[")[0] for name in recorder.metrics()}
    rows = table("metric", "kind", "unit").rows
    assert {re.sub("`", "", row[0]) for row in rows} == names
