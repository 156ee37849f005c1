"""What becomes of calls, submits and tasks as spans."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from canary import CANARY_KEY
from clients import LOST, client_of, until
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from paths import IMPORT_ROOT
from portable import environment
from spans import Recorder, tree

import kie4o
import kie4o.otel
from kie4o import AsyncKieClient, Entry, ImageRequest, RateLimit, events
from kie4o.emulator import Emulator
from kie4o.otel.spans import Spans
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import EntryState

PROMPT = "A dragon over the harbour of a town that has no name"


@pytest.fixture(autouse=True)
def nothing_is_left() -> Any:
    """No span is current after a test, and OpenTelemetry has logged nothing."""
    yield
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.fixture
def recorder(caplog: pytest.LogCaptureFixture) -> Any:
    one = Recorder()
    yield one
    assert one.open == 0
    assert [each.message for each in caplog.records if each.name.startswith("opentelemetry")] == []


def client_with(recorder: Recorder, kie: Emulator, store: Any = None, **more: Any) -> AsyncKieClient:
    return recorder.instrument(client_of(kie.url, store, **more))


# -- calls -------------------------------------------------------------------------------------------------


async def test_a_generate_is_a_tree(kie: Emulator, recorder: Recorder, tmp_path: Path) -> None:
    """With its submit, its polls and its download; in a span of the application, which is current again."""
    kie.duration = 1.5
    async with client_with(recorder, kie) as client:
        with recorder.span("GET /draw"):
            outer = trace.get_current_span()
            result = await client.generate("x", key="order-1")
            assert trace.get_current_span() is outer
            await client.download(result, tmp_path)
            assert trace.get_current_span() is outer
    assert tree(recorder.spans(), ["kie4o.polled"]) == (
        "GET /draw\n└─ kie4o.generate                kie4o.polled\n   ├─ kie4o.submit\n   └─ kie4o.download\n"
    )
    generate = recorder.the("kie4o.generate")
    assert generate.attributes == {
        "gen_ai.operation.name": "generate_content",
        "gen_ai.provider.name": "kie_ai",
        "gen_ai.request.model": "gpt4o-image",
        "gen_ai.output.type": "image",
        "gen_ai.response.id": result.task_id,
        "kie4o.key": "order-1",
    }
    assert generate.details[-1] == {
        "gen_ai.response.id": result.task_id,
        "kie4o.state": "succeeded",
        "kie4o.progress": 1.0,
    }
    submit = recorder.the("kie4o.submit")
    assert submit.attributes["kie4o.credits"] == 6.0
    assert submit.attributes["gen_ai.response.id"] == result.task_id


async def test_http_requests_are_below_the_calls_that_make_them(
    kie: Emulator, recorder: Recorder, tmp_path: Path
) -> None:
    """An instrumentation of HTTP asks which span is current, as this hook does after each exchange."""
    current: dict[str, str] = {}

    def look(event: events.Event) -> None:
        if isinstance(event, events.Exchanged):
            name = getattr(trace.get_current_span(), "name", "")
            current[event.where.partition("?")[0].rpartition("/")[2]] = name

    async with client_with(recorder, kie, on_event=look) as client:
        with recorder.span("GET /draw"):
            await client.download(await client.generate("x"), tmp_path)
            await client.credits()
    assert current == {
        "generate": "kie4o.submit",
        "record-info": "kie4o.generate",
        "127.0.0.1": "kie4o.download",
        "credit": "GET /draw",
    }


async def test_the_request_of_a_poll_is_below_the_call_that_waits(kie: Emulator, recorder: Recorder) -> None:
    """Though one timer starts the polls of all."""
    below: dict[str, set[int]] = {}

    def look(event: events.Event) -> None:
        if isinstance(event, events.Polled):
            current = trace.get_current_span().get_span_context().span_id
            below.setdefault(event.task_id, set()).add(current)

    kie.duration = 3.0
    async with client_with(recorder, kie, on_event=look) as client:
        await asyncio.gather(*(client.generate(f"{number}") for number in range(5)))
    spans = recorder.spans("kie4o.generate")
    assert below == {span.attributes["gen_ai.response.id"]: {span.id} for span in spans}
    assert len(below) == 5


async def test_a_bare_submit_and_its_wait_are_one_tree(kie: Emulator, recorder: Recorder) -> None:
    """Without a span of the application the wait is below the submit."""
    async with client_with(recorder, kie) as client:
        await (await client.submit("x"))
    assert tree(recorder.spans()) == "kie4o.submit\n└─ kie4o.wait\n"


async def test_what_another_trace_does_with_a_task_is_linked(
    kie: Emulator, recorder: Recorder, tmp_path: Path
) -> None:
    """A request draws, a later one waits and downloads."""
    async with client_with(recorder, kie) as client:
        with recorder.span("POST /draw"):
            result = await client.generate("x")
        with recorder.span("GET /image"):
            await client.wait(result.task_id)
            await client.download(result, tmp_path)
            assert await client.fetch(result)
    assert tree(recorder.spans()) == (
        "POST /draw\n"
        "└─ kie4o.generate\n"
        "   └─ kie4o.submit\n"
        "GET /image\n"
        "├─ kie4o.wait                    linked to kie4o.generate\n"
        "├─ kie4o.download                linked to kie4o.generate\n"
        "└─ kie4o.fetch                   linked to kie4o.generate\n"
    )


async def test_uploads_are_spans(kie: Emulator, recorder: Recorder) -> None:
    async with client_with(recorder, kie) as client:
        await client.upload(b"\x89PNG\r\n\x1a\n", name="a.png")
        with pytest.raises(kie4o.InvalidRequestError):
            await client.upload(b"", name="a.png")
    assert [span.error for span in recorder.spans("kie4o.upload")] == [None, "InvalidRequestError"]


async def test_each_item_of_a_batch_is_a_generate(kie: Emulator, recorder: Recorder) -> None:
    """With the key of its own, below the span that was current."""
    kie.plan("b", outcome="policy")
    async with client_with(recorder, kie) as client:
        with recorder.span("batch"):
            async for _ in client.generate_many({"1": "a", "2": "b", "3": "c"}):
                pass
    spans = recorder.spans("kie4o.generate")
    assert {span.attributes["kie4o.key"]: span.error for span in spans} == {
        "1": None,
        "2": "ContentPolicyError",
        "3": None,
    }
    assert {span.parent for span in spans} == {recorder.the("batch").id}


# -- submits -----------------------------------------------------------------------------------------------


async def test_a_refused_submit_says_why(kie: Emulator, recorder: Recorder) -> None:
    kie.next(answer=402)
    async with client_with(recorder, kie) as client:
        with pytest.raises(kie4o.InsufficientCreditsError):
            await client.generate("x")
    submit = recorder.the("kie4o.submit")
    assert submit.error == recorder.the("kie4o.generate").error == "InsufficientCreditsError"
    assert submit.attributes["kie4o.code"] == 402
    assert submit.events == ["kie4o.refused"]


async def test_a_submit_that_is_sent_again_is_one_span(kie: Emulator, recorder: Recorder) -> None:
    """Its waits and its attempts are events."""
    kie.next(answer=429)
    async with client_with(recorder, kie, rate_limit=RateLimit(20, per=2.0)) as client:
        await client.generate("x")
    submit = recorder.the("kie4o.submit")
    assert submit.error is None
    assert [name for name in submit.events if name != "kie4o.paused"] == [
        "kie4o.refused",
        "kie4o.resent",
        "kie4o.waited",
    ]
    assert "kie4o.paused" in submit.events


async def test_an_unknown_outcome_is_an_error(kie: Emulator, recorder: Recorder) -> None:
    kie.next(answer=LOST)
    async with client_with(recorder, kie) as client:
        with pytest.raises(kie4o.SubmissionUnknownError):
            await client.submit("x")
    assert recorder.the("kie4o.submit").error == "SubmissionUnknownError"


async def test_a_request_that_cannot_be_sent_is_an_error(recorder: Recorder) -> None:
    async with recorder.instrument(client_of("http://127.0.0.1:9")) as client:
        with pytest.raises(kie4o.APIConnectionError):
            await client.generate("x")
    submit = recorder.the("kie4o.submit")
    assert submit.error == "APIConnectionError"
    assert "kie4o.not_sent" in submit.events


async def test_two_callers_of_a_key_are_two_generates_and_one_submit(
    kie: Emulator, recorder: Recorder
) -> None:
    """The second is linked to the submit; the polls are events of both."""
    kie.duration = 1.5
    async with client_with(recorder, kie) as client:
        await asyncio.gather(*(client.generate("x", key="order-1") for _ in range(2)))
    first, second = recorder.spans("kie4o.generate")
    assert recorder.the("kie4o.submit").parent == first.id
    assert (first.links, second.links) == ([], [recorder.the("kie4o.submit").id])
    assert first.events == second.events
    assert "kie4o.polled" in first.events


async def test_a_key_that_is_known_is_linked_to_what_was_submitted(
    kie: Emulator, recorder: Recorder, tmp_path: Path
) -> None:
    """By an earlier client on the same file; also if the task has ended since."""
    kie.duration = 1.5
    for _ in range(3):
        async with client_with(recorder, kie, tmp_path / "run.db") as client:
            await client.generate("x", key="order-1")
    first, second, third = recorder.spans("kie4o.generate")
    assert len({first.trace, second.trace, third.trace}) == 3
    assert second.links == third.links == [first.id]


async def test_two_callers_of_a_key_that_is_known_see_the_polls(
    kie: Emulator, recorder: Recorder, tmp_path: Path
) -> None:
    """Of a task that an earlier client has submitted and that is still running."""
    kie.duration = 3.0
    async with client_with(recorder, kie, tmp_path / "run.db") as client:
        await client.submit("x", key="order-1")
    async with client_with(recorder, kie, tmp_path / "run.db") as later:
        await asyncio.gather(*(later.generate("x", key="order-1") for _ in range(2)))
    polls = [span.events.count("kie4o.polled") for span in recorder.spans("kie4o.generate")]
    assert polls[0] == polls[1] > 0


async def test_a_wait_by_id_in_a_later_client_is_linked(
    kie: Emulator, recorder: Recorder, tmp_path: Path
) -> None:
    async with client_with(recorder, kie, tmp_path / "run.db") as client:
        task = await client.submit("x")
    async with client_with(recorder, kie, tmp_path / "run.db") as later:
        await later.wait(task.id)
    assert recorder.the("kie4o.wait").links == [recorder.the("kie4o.submit").id]


# -- ends --------------------------------------------------------------------------------------------------


async def test_a_cancelled_call_ends_before_its_submit(kie: Emulator, recorder: Recorder) -> None:
    """The request was sent: the submit goes on to its answer."""
    kie.latency = 3.0
    async with client_with(recorder, kie) as client:
        call = asyncio.create_task(client.generate("x"))
        await until(lambda: kie.submits)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
        assert recorder.the("kie4o.generate").error == "CancelledError"
        assert recorder.open == 1
    assert recorder.the("kie4o.submit").error is None


async def test_a_call_that_is_cancelled_before_it_begins_is_no_span(
    kie: Emulator, recorder: Recorder
) -> None:
    async with client_with(recorder, kie) as client:
        call = asyncio.create_task(client.generate("x"))
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    assert recorder.spans() == []


async def test_a_submit_that_is_called_off_is_an_error(kie: Emulator, recorder: Recorder) -> None:
    """While it waits for a slot; the one before it has the only one."""
    async with client_with(recorder, kie, rate_limit=RateLimit(1, per=60.0)) as client:
        await client.submit("x")
        call = asyncio.create_task(client.generate("y"))
        await until(lambda: client._runtime.limiter.waiting)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    submit = recorder.spans("kie4o.submit")[1]
    assert submit.events[-1:] == ["kie4o.called_off"]
    assert submit.error == "KieError"


async def test_a_timeout_is_an_error(kie: Emulator, recorder: Recorder) -> None:
    kie.duration = 60.0
    async with client_with(recorder, kie) as client:
        with pytest.raises(kie4o.TaskTimeoutError) as caught:
            await client.generate("x", timeout=0.5)
    generate = recorder.the("kie4o.generate")
    assert generate.error == "TaskTimeoutError"
    assert generate.attributes["gen_ai.response.id"] == caught.value.task_id


async def test_closing_ends_all_spans(kie: Emulator, recorder: Recorder) -> None:
    """Of waits, of submits, and of those that wait for a place or a slot."""
    kie.duration = 60.0
    limit = RateLimit(2, per=60.0)
    async with client_with(recorder, kie, rate_limit=limit, max_in_flight=3) as client:
        calls = [asyncio.create_task(client.generate(f"{number}")) for number in range(5)]
        await until(lambda: client._runtime.poller.waiting == 2 and client._runtime.limiter.waiting)
        assert recorder.open == 5 + 1  # the calls, and the submit that waits for a slot
    assert all(
        isinstance(each, kie4o.KieError) for each in await asyncio.gather(*calls, return_exceptions=True)
    )
    assert recorder.open == 0


# -- callbacks ---------------------------------------------------------------------------------------------


def callback_of(task_id: str) -> tuple[list[tuple[str, str]], bytes]:
    body = json.dumps({"code": 200, "data": {"taskId": task_id}}).encode()
    return [("content-type", "application/json")], body


async def test_a_callback_is_an_event_of_the_call_that_waits(kie: Emulator, recorder: Recorder) -> None:
    """The request that brings it is linked to that call; a later one has a span of its own."""
    kie.duration = 3.0
    url = "https://shop.example/kie/{ref}"
    kie.next(callback="never")
    async with client_with(recorder, kie, callback_url=url) as client:
        call = asyncio.create_task(client.generate("x"))
        await until(lambda: kie.tasks and client._runtime.poller.waiting)
        [task_id] = kie.tasks
        kie.end(task_id)
        ref = str(kie.tasks[task_id].request["callBackUrl"]).rpartition("/")[2]
        for name in ("first", "second"):
            with recorder.span(name):
                assert await client.receiver(allow_unsigned=True).receive(*callback_of(task_id), ref) == 200
            await call
    generate = recorder.the("kie4o.generate")
    assert "kie4o.callback_received" in generate.events
    assert recorder.the("first").links == recorder.the("second").links == [generate.id]
    callback = recorder.the("kie4o.callback")
    assert callback.parent == generate.id
    assert callback.links == [recorder.the("second").id]


async def test_a_callback_of_no_trace_is_below_the_request_that_brings_it(
    kie: Emulator, recorder: Recorder, tmp_path: Path
) -> None:
    """Its task was submitted without traces."""
    kie.duration = 3.0
    path, url = tmp_path / "run.db", "https://shop.example/kie/{ref}"
    kie.next(callback="never")
    async with client_of(kie.url, path, callback_url=url) as client:
        task = await client.submit("x")
    kie.end(task.id)
    ref = str(kie.tasks[task.id].request["callBackUrl"]).rpartition("/")[2]
    async with client_with(recorder, kie, path, callback_url=url) as later:
        with recorder.span("POST"):
            assert await later.receiver(allow_unsigned=True).receive(*callback_of(task.id), ref) == 200
    assert tree(recorder.spans()) == "POST\n└─ kie4o.callback\n"


# -- the next process on a file ----------------------------------------------------------------------------


TREE = """\
kie4o.generate        one        error: SubmissionUnknownError, kie4o.answer_awaited
├─ kie4o.submit       one        error: SubmissionUnknownError
├─ kie4o.callback     two
└─ kie4o.wait         two        kie4o.polled
"""


async def test_what_a_process_leaves_in_its_file_is_in_its_tree(kie: Emulator, tmp_path: Path) -> None:
    """Its client is closed while the callback is awaited. The next one receives it and waits for the task."""
    kie.duration = 5.0
    kie.next(answer=LOST, callback="never")
    one, two, path = Recorder("one"), Recorder("two"), tmp_path / "run.db"
    callback_url = "https://shop.example/kie/{ref}"  # which the test calls
    async with client_of(kie.url, path, callback_url=callback_url) as client:
        one.instrument(client)
        call = asyncio.create_task(client.generate("a harbour", key="order-1"))
        await until(lambda: client._runtime.delivery.pending)
    with pytest.raises(kie4o.KieError):
        await call
    [task_id] = kie.tasks
    async with client_of(kie.url, path, callback_url=callback_url) as later:
        two.instrument(later)
        headers = [("content-type", "application/json")]
        body = json.dumps({"code": 200, "data": {"taskId": task_id}}).encode()
        ref = str(kie.tasks[task_id].request["callBackUrl"]).rpartition("/")[2]
        assert await later.receiver(allow_unsigned=True).receive(headers, body, ref) == 200
        while (entry := await later.find("order-1")) is None or entry.task_id is None:
            await asyncio.sleep(0.01)
        assert [done.ok async for done in later.resume()] == [True]
    assert one.open == two.open == 0
    drawn = tree([*one.spans(), *two.spans()], ["kie4o.answer_awaited", "kie4o.polled"])
    assert drawn == TREE, drawn


# -- what must not happen ----------------------------------------------------------------------------------


async def test_spans_have_no_prompt_url_or_key(kie: Emulator, recorder: Recorder, tmp_path: Path) -> None:
    """Refusals, lost answers, failed tasks, downloads."""
    prompts = [f"{PROMPT} {number}" for number in range(4)]
    kie.plan(prompts[0], answer=422)
    kie.plan(prompts[1], answer=LOST)
    kie.plan(prompts[2], outcome="policy")
    async with client_with(recorder, kie) as client:
        async for done in client.generate_many(prompts):
            if done.ok:
                await client.download(done.unwrap(), tmp_path)
    everything = json.dumps([attrs.asdict(span) for span in recorder.spans()])
    assert len(recorder.spans()) > 8
    assert PROMPT[:20] not in everything
    assert "://" not in everything
    assert CANARY_KEY not in everything


class _Down(SpanExporter):
    """Nobody listens."""

    def export(self, spans: Any) -> Any:
        raise ConnectionRefusedError("the collector is down")


class _Broken(SpanProcessor):
    """A mistake of the application's."""

    def on_end(self, span: Any) -> None:
        raise ValueError("a broken processor")


@pytest.mark.parametrize("processor", [SimpleSpanProcessor(_Down()), _Broken()], ids=["down", "broken"])
async def test_a_broken_exporter_changes_nothing(
    processor: SpanProcessor, kie: Emulator, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(processor)
    async with client_of(kie.url) as client:
        kie4o.otel.instrument(client, tracer_provider=tracers)
        result = await client.generate("x")
        assert await client.download(result, tmp_path)
        assert trace.get_current_span() is trace.INVALID_SPAN
    said = [record for record in caplog.records if record.name == "kie4o" and record.levelno > logging.INFO]
    assert len(said) == (1 if isinstance(processor, _Broken) else 0)


class _Slow(SpanProcessor):
    """Takes too long, by a clock that only it moves."""

    now = 0.0

    def on_end(self, span: Any) -> None:
        self.now += 1.0


async def test_a_slow_exporter_leaves_no_span_current(kie: Emulator) -> None:
    """It is not told of the end of the call in which it was slow for the third time."""
    slow = _Slow()
    tracers = TracerProvider(shutdown_on_exit=False)
    tracers.add_span_processor(slow)
    async with client_of(kie.url) as client:
        client._options.reporter._time = lambda: slow.now
        kie4o.otel.instrument(client, tracer_provider=tracers)
        await client.generate("x")
        await client.generate("y")
        assert slow.now == 3.0
        assert trace.get_current_span() is trace.INVALID_SPAN
        assert (await client.generate("z")).urls
        assert slow.now == 3.0
        spans = client._options.reporter._tracing
        assert isinstance(spans, Spans)
        assert (spans._calls, spans._spans, spans._waiting) == ({}, {}, {})


async def test_without_the_sdk_nothing_happens(kie: Emulator) -> None:
    """The API alone makes spans that are nowhere."""
    store = MemoryStore()
    async with client_of(kie.url, store) as client:
        kie4o.otel.instrument(client)
        await client.generate("x", key="k")
    entry = await store.find(key="k")
    assert entry is not None
    assert entry.trace is None


async def test_a_trace_that_is_not_sampled_is_kept_as_such(kie: Emulator) -> None:
    """What follows is not sampled either."""
    store = MemoryStore()
    async with client_of(kie.url, store) as client:
        kie4o.otel.instrument(
            client, tracer_provider=TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
        )
        await client.generate("x", key="k")
    entry = await store.find(key="k")
    assert entry is not None
    assert entry.trace is not None
    assert int(entry.trace[-2:], 16) & trace.TraceFlags.SAMPLED == 0


@pytest.mark.parametrize("kept", ["", "nonsense", "00-0-0-01", f"00-{'0' * 32}-{'0' * 16}-01"])
async def test_a_trace_that_is_none_is_ignored(kept: str, kie: Emulator, recorder: Recorder) -> None:
    """A store may have anything."""
    store = MemoryStore()
    async with client_with(recorder, kie, store) as client:
        task = await client.submit("x")
        entry = await store.find(task_id=task.id)
        assert entry is not None
        await store.save(entry.traced(kept))
        await client.wait(task.id)
        assert [done.ok async for done in client.resume()] == []
    assert len(recorder.spans()) == 2


async def test_a_client_is_instrumented_once(kie: Emulator, recorder: Recorder) -> None:
    async with client_with(recorder, kie) as client:
        recorder.instrument(client)
        await client.generate("x")
    assert len(recorder.spans()) == 2


async def test_other_clients_are_not_instrumented(kie: Emulator, recorder: Recorder) -> None:
    """Not even those that have no hooks, as this one had none."""
    recorder.instrument(client_of(kie.url))
    async with client_of(kie.url) as client:
        await client.generate("x")
    assert recorder.spans() == []


def test_an_entry_keeps_its_trace() -> None:
    """In each state that it becomes, and when its key is submitted again."""
    entry = Entry("k", request=ImageRequest("x"), ref="r").traced("a trace")
    assert entry.become(EntryState.INTENT).superseded().trace == "a trace"


@pytest.mark.once
def test_opentelemetry_is_imported_by_nothing_else() -> None:
    code = "import sys, kie4o, kie4o.client, kie4o.webhooks, kie4o.events\n"
    code += "kie4o.AsyncKieClient('key'); assert 'opentelemetry' not in sys.modules"
    subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=str(IMPORT_ROOT)), check=True, timeout=60
    )
