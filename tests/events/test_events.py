"""Events: what they are made of, who is told of them, and that they tell everything."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import logging
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import get_args

import attrs
import pytest
from canary import CANARY_KEY
from clients import LOST, client_of, until
from clocks import run_scaled, run_virtual
from paths import PACKAGE

import kie4o
from kie4o import RateLimit, events
from kie4o.emulator import Emulator, Fault
from kie4o.events import Event
from kie4o.events.reporter import Reporter

SECRET = "A dragon over the harbour of a town that has no name"


def kinds(kind: type[Event] = Event) -> Iterator[type[Event]]:
    """Those that no other kind is based on."""
    for each in kind.__subclasses__():
        yield from kinds(each)
    if not kind.__subclasses__():
        yield kind


KINDS = sorted(kinds(), key=lambda kind: kind.__name__)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
SAMPLES = {
    "seconds": 1.25,
    "credits": Decimal(6),
    "state": "submitted",
    "what": "slot",
    "stray": False,
    "verified": True,
    "earlier": False,
    "progress": 0.5,
} | dict.fromkeys(("attempt", "most", "others", "index", "images", "code", "status", "done", "total"), 2)


def sample(kind: type[Event], **more: object) -> Event:
    values = {name: SAMPLES.get(name, name) for name in kind.fields}
    if kind is events.StoreWarned:
        values["what"] = "full"
    return kind(**values | more)


# -- values ------------------------------------------------------------------------------------------------


@every_kind
def test_an_event_is_a_value(kind: type[Event]) -> None:
    """Equal by its attributes, immutable, hashable, pickled; its line is one of its texts."""
    event = sample(kind)
    assert event == sample(kind) == pickle.loads(pickle.dumps(event))
    assert hash(event) == hash(sample(kind))
    name = next(iter(kind.fields))
    assert event != sample(kind, **{name: "another"})
    assert repr(event).startswith(f"{kind.__name__}({name}=")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        setattr(event, name, "another")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        delattr(event, name)
    assert any(matches(text, str(event)) for text in kind.texts)


def matches(text: str, line: str) -> bool:
    parts = re.split(r"%\(\w+\)[.\d]*[a-z]", text)
    return re.fullmatch(".*".join(map(re.escape, parts)), line) is not None


@every_kind
def test_an_event_has_exactly_its_attributes(kind: type[Event]) -> None:
    with pytest.raises(TypeError, match=kind.__name__):
        sample(kind, colour="red")
    required = {name: value for name, value in vars(sample(kind)).items() if kind.fields[name] is ...}
    assert set(vars(kind(**required))) == set(kind.fields)
    for name in required:
        with pytest.raises(TypeError, match=name):
            kind(**{each: value for each, value in required.items() if each != name})


@every_kind
def test_every_text_of_an_event_can_be_its_line(kind: type[Event]) -> None:
    """With other values where it has several texts: control of the test above."""
    others = {
        "seconds": [None, 2.0],
        "task_id": [None, "t"],
        "cause": [None, "c"],
        "error": [None, "e"],
        "others": [0, 3],
        "stray": [False, True],
        "state": ["submitted", "planned", "unknown"],
        "what": list(get_args(events.StoreTrouble)),
    }
    seen = set()
    for name, values in others.items():
        for value in values if name in kind.fields else ():
            try:
                line = str(sample(kind, **{name: value}))
            except (TypeError, KeyError):  # no number where the line has one, no such trouble
                continue
            seen |= {text for text in kind.texts if matches(text, line)}
    assert seen | {text for text in kind.texts if matches(text, str(sample(kind)))} == set(kind.texts)


def test_every_kind_is_reported_somewhere() -> None:
    """And documented in the list of the package."""
    assert {kind.__name__ for kind in KINDS} | {"Event", "OfSubmit"} <= set(events.__all__)
    used: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if "events" not in path.relative_to(PACKAGE).parts or path.name == "calling.py":
            tree = ast.parse(path.read_text("utf-8"))
            calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
            used |= {ast.unparse(each).rpartition(".")[2] for each in calls}
    assert {kind.__name__ for kind in KINDS} - used == set()


# -- hooks -------------------------------------------------------------------------------------------------


async def coroutine(event: Event) -> None:
    """It would never be awaited."""


@pytest.mark.parametrize(
    "hook", ["print", 3, [], [print, None], coroutine, {}, {"a": print}, {events.Finished: 3}]
)
def test_a_hook_that_is_no_function_is_refused(hook: object) -> None:
    with pytest.raises(kie4o.ConfigurationError, match="on_event"):
        kie4o.AsyncKieClient("key", on_event=hook)  # type: ignore[arg-type]  # which is what it tests


async def test_several_hooks_are_told_the_same(kie: Emulator) -> None:
    """In the same order, and what is in the log is the line of an event."""
    kie.duration = 0.4
    first: list[Event] = []
    second: list[Event] = []
    async with client_of(kie.url, on_event=[first.append, second.append]) as client:
        await client.generate("x")
    assert first == second
    assert {events.Submitted, events.Saved, events.Polled, events.Finished} <= {type(each) for each in first}


async def test_a_hook_of_some_kinds_hears_of_these_only(
    kie: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else is made for it. A kind that others are based on stands for all of them."""
    caplog.set_level(logging.WARNING, "kie4o")
    kie.duration = 0.4
    ended: list[Event] = []
    of_submits: list[Event] = []
    async with client_of(
        kie.url, on_event={events.Finished: ended.append, events.OfSubmit: of_submits.append}
    ) as client:
        await client.generate("x")
        reporter = client._runtime.reporter
    assert [type(each) for each in ended] == [events.Finished]
    assert {events.SubmitStarted, events.Submitted, events.Saved} <= {type(each) for each in of_submits}
    assert all(isinstance(each, events.OfSubmit) for each in of_submits)
    assert reporter.wants(events.Finished)
    assert not reporter.wants(events.Polled)
    assert not reporter.wants(events.CallStarted)


async def test_a_hook_that_raises_harms_nothing(kie: Emulator, caplog: pytest.LogCaptureFixture) -> None:
    """It is called again, the others are called too, and only its first failure is logged."""
    kie.duration = 0.4
    called: list[Event] = []
    heard: list[Event] = []

    def broken(event: Event) -> None:
        called.append(event)
        raise ValueError("the metrics are broken")

    async with client_of(kie.url, on_event=[broken, heard.append]) as client:
        assert (await client.generate("x")).urls
    assert called == heard
    assert len(called) > 3
    [record] = [record for record in caplog.records if "on_event" in record.message]
    assert record.levelno == logging.ERROR
    assert "the metrics are broken" in str(record.exc_info)


def test_a_hook_that_blocks_is_called_no_more(caplog: pytest.LogCaptureFixture) -> None:
    """After three calls that took too long; those between that did not change nothing."""
    now, called = 0.0, 0
    took = iter([0.1, 0.3, 0.1, 0.3, 0.1, 0.3])

    def slow(event: Event) -> None:
        nonlocal now, called
        now, called = now + next(took), called + 1

    heard: list[Event] = []
    reporter = Reporter([(slow, (Event,)), (heard.append, (Event,))], time=lambda: now)
    for number in range(20):
        reporter(events.BatchStopped(cause=f"{number}"))
    assert called == 6
    assert len(heard) == 20
    assert [record.message for record in caplog.records if "on_event" in record.message] == [
        f"on_event: {slow!r} blocks the event loop; it is not called any more"
    ]


# -- what is told ------------------------------------------------------------------------------------------


def test_the_events_of_a_run_have_no_prompt_url_or_key(caplog: pytest.LogCaptureFixture) -> None:
    """Refusals, lost answers, failed tasks; and no line is logged that is not that of an event."""
    caplog.set_level(logging.DEBUG, "kie4o")
    heard: list[Event] = []
    prompts = [f"{SECRET} {number}" for number in range(7)]

    async def run() -> None:
        async with Emulator(duration=5.0, limit=1000) as kie:
            kie.plan(prompts[0], answer=429)
            kie.plan(prompts[0])
            kie.plan(prompts[1], answer=Fault("submit", body=f"<p>{SECRET}</p>", http_status=500))
            kie.plan(prompts[2], outcome="policy")
            kie.plan(prompts[3], answer=Fault("submit", cut=0, charged=False))
            kie.plan(prompts[4], answer=LOST)
            limit = RateLimit(20, per=3.0)
            async with client_of(kie.url, rate_limit=limit, on_event=heard.append) as client:
                async for _ in client.generate_many(prompts):
                    pass

    run_scaled(run(), 40)
    everything = "\n".join(map(repr, heard))
    assert SECRET[:20] not in everything
    assert "://" not in everything
    assert CANARY_KEY not in everything
    told = Counter((kind.level, text) for kind in map(type, heard) for text in kind.texts)
    for record in caplog.records:
        assert record.name != "kie4o" or (record.levelno, record.msg) in told
    assert {events.Refused, events.Resent, events.Unknown, events.Paused, events.Waited} <= set(
        map(type, heard)
    )


@pytest.mark.parametrize("callback_url", [None, "https://example.com/kie"])
def test_a_wait_for_a_task_of_an_earlier_call_says_so(callback_url: str | None) -> None:
    """With its key. The call that has submitted it does not, though with a callback it asks the store."""
    heard: list[Event] = []

    async def run() -> str:
        async with (
            Emulator(duration=0.0) as kie,
            client_of(kie.url, on_event=heard.append, callback_url=callback_url) as client,
        ):
            result = await client.generate("x", key="order-1")
            assert [event for event in heard if isinstance(event, events.Recalled)] == []
            await client.wait(result.task_id)
            return result.task_id

    task_id = run_scaled(run(), 40)
    told = [(event.key, event.task_id) for event in heard if isinstance(event, events.Recalled)]
    assert told == [("order-1", task_id)]


def test_who_waits_for_a_place_or_a_slot_says_for_how_long() -> None:
    """Nobody else does: the first submit has both at once."""
    heard: list[events.Waited] = []

    def hear(event: Event) -> None:
        if isinstance(event, events.Waited):
            heard.append(event)

    async def run() -> None:
        async with Emulator(latency=4.0) as kie:
            async with client_of(
                kie.url, max_in_flight=1, rate_limit=RateLimit(1, per=6.0), on_event=hear
            ) as client:
                first = asyncio.create_task(client.submit("x"))
                await asyncio.sleep(1.0)
                await client.submit("y")
                await first

    run_scaled(run(), 40)
    assert [event.what for event in heard] == ["place", "slot"]
    assert [event.seconds for event in heard] == pytest.approx([3.0, 6.0], abs=2.0)


def test_a_short_wait_for_a_slot_is_told_too() -> None:
    """Half a second; below a millisecond there was none."""
    heard: list[float] = []

    def hear(event: Event) -> None:
        if isinstance(event, events.Waited):
            heard.append(event.seconds)

    async def run() -> None:
        async with Emulator() as kie:
            async with client_of(kie.url, rate_limit=RateLimit(1, per=0.4), on_event=hear) as client:
                await asyncio.gather(client.submit("x"), client.submit("y"))

    run_virtual(run())
    assert len(heard) == 1
    assert 0.3 < heard[0] < 1.0


async def test_a_batch_can_be_summed_up_from_its_events(kie: Emulator, tmp_path: Path) -> None:
    """What was done, failed, found finished, and what it cost; in two runs on one store."""
    kie.duration = 0.4
    for number in range(10):
        kie.plan(f"{number}", **({"outcome": "policy"} if number % 5 == 0 else {}))
    store = tmp_path / "run.db"
    for earlier in (False, True):
        heard: list[Event] = []
        async with client_of(kie.url, store, on_event=heard.append) as client:
            completions = [done async for done in client.generate_many([f"{number}" for number in range(10)])]
            spent = await client.spent()
        done = [event for event in heard if isinstance(event, events.Completed)]
        assert [(event.index, event.key, event.task_id) for event in done] == [
            (each.index, each.key, each.task_id) for each in completions
        ]
        assert Counter(event.outcome for event in done) == {"succeeded": 8, "ContentPolicyError": 2}
        assert {event.earlier for event in done} == {earlier}
        assert sum(event.images for event in done) == sum(
            len(each.unwrap()) for each in completions if each.ok
        )
        paid = [event for event in heard if isinstance(event, events.Submitted)]
        assert sum(event.credits or 0 for event in paid) == (0 if earlier else spent.credits)


# -- the theory of a submit: each of its transitions has an event ------------------------------------------


def of_submit(heard: list[Event]) -> list[tuple[str, str]]:
    """What happened to submits, in order: kind and, for what was saved, the state."""
    return [
        (type(event).__name__, event.state if isinstance(event, events.Saved) else "")
        for event in heard
        if isinstance(event, events.OfSubmit)
    ]


INTENT, SAVED = ("Saved", "intent"), "Saved"
STARTED, ENDED = ("SubmitStarted", ""), ("SubmitEnded", "")
TRANSITIONS = {
    "accepted": (None, [INTENT, (SAVED, "submitted"), ("Submitted", "")]),
    "refused": (422, [INTENT, ("Refused", ""), (SAVED, "planned")]),
    "refused, sent again": (
        429,
        [
            INTENT,
            ("Refused", ""),
            (SAVED, "planned"),
            ("Resent", ""),
            INTENT,
            (SAVED, "submitted"),
            ("Submitted", ""),
        ],
    ),
    "unknown": (LOST, [INTENT, ("Unknown", ""), (SAVED, "unknown")]),
}


@pytest.mark.parametrize(("answer", "expected"), TRANSITIONS.values(), ids=TRANSITIONS)
async def test_each_verdict_has_its_events(
    answer: object, expected: list[tuple[str, str]], kie: Emulator
) -> None:
    if answer is not None:
        kie.next(answer=answer)  # type: ignore[arg-type]  # an answer of each kind
    heard: list[Event] = []
    async with client_of(kie.url, on_event=heard.append, rate_limit=RateLimit(20, per=0.2)) as client:
        with contextlib.suppress(kie4o.KieError):
            await client.submit("x", key="order-1")
    told = [each for each in of_submit(heard) if each[0] not in ("Unfinished", "NeverSaved")]
    assert told == [STARTED, *expected, ENDED]
    accepted = [event.task_id for event in heard if isinstance(event, events.Submitted)]
    [over] = [event for event in heard if isinstance(event, events.SubmitEnded)]
    assert (over.task_id, over.error is None) == (accepted[0] if accepted else None, bool(accepted))
    assert [event.code for event in heard if isinstance(event, events.Refused)] in ([], [answer])
    assert {event.attempt for event in heard if isinstance(event, events.Resent)} <= {1}
    assert all(0 <= event.seconds < 60 for event in heard if isinstance(event, events.Submitted))
    assert len({event.ref_hash for event in heard if isinstance(event, events.OfSubmit)}) == 1


async def test_a_key_that_was_submitted_before_says_so(kie: Emulator) -> None:
    """With the task that the call goes on with, or without one."""
    heard: list[Event] = []
    async with client_of(kie.url, on_event=heard.append) as client:
        kie.plan("y", answer=LOST)
        for _ in range(2):
            for prompt in "xy":
                with contextlib.suppress(kie4o.SubmissionUnknownError):
                    await client.submit(prompt, key=prompt)
    [lost] = [task.id for task in kie.tasks.values() if task.request["prompt"] == "y"]
    known = [task_id for task_id in kie.tasks if task_id != lost]
    told = [(event.key, event.task_id) for event in heard if isinstance(event, events.Recalled)]
    assert told == [("x", *known), ("y", None)]
    assert len(kie.submits) == 2


async def test_the_trace_of_the_caller_goes_into_the_store(kie: Emulator) -> None:
    """With the entry, for what finishes its task."""

    class Traces:
        def current(self) -> str | None:
            return "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

        def enter(self, task_id: str) -> None: ...

        def leave(self, number: int) -> None: ...

    async with client_of(kie.url) as client:
        assert client._options.reporter.add((lambda event: None, (Event,)), tracing=Traces())
        await client.submit("x", key="order-1")
        entry = await client.find("order-1")
        assert entry is not None
        assert entry.trace == Traces().current()


async def test_a_submit_that_is_called_off_says_so(kie: Emulator) -> None:
    """Before its slot: nothing was sent."""
    heard: list[Event] = []
    async with client_of(kie.url, on_event=heard.append, rate_limit=RateLimit(1, per=60.0)) as client:
        await client.submit("x")
        task = asyncio.ensure_future(client.submit("y", key="order-1"))
        await until(lambda: client._runtime.limiter.waiting)
        task.cancel()
        await until(lambda: any(isinstance(event, events.CalledOff) for event in heard))
    [called_off] = [event for event in heard if isinstance(event, events.CalledOff)]
    assert called_off.key == "order-1"
    assert len(kie.submits) == 1


async def test_what_names_a_submit_in_the_log_is_in_no_event(
    kie: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    """The ref and the start of the prompt: of a submit that nobody waits for, and of a batch that stops."""
    kie.duration = 0.4
    heard: list[Event] = []
    prompts = [f"{SECRET} {number}" for number in range(6)]
    for prompt in prompts:
        kie.plan(prompt, answer=LOST)
    async with client_of(kie.url, on_event=heard.append) as client:
        with pytest.raises(kie4o.SubmissionUnknownError) as caught:
            await client.submit(prompts[0], key="order-1")
        call = asyncio.create_task(client.submit(prompts[0], key="order-1"))
        await asyncio.sleep(0)
        call.cancel()
        await until(lambda: any(isinstance(event, events.Orphaned) for event in heard))
        with pytest.raises(kie4o.SubmissionUnknownError) as stopped:
            async for _ in client.generate_many(prompts):
                pass
    assert caught.value.ref in caplog.text
    assert any(isinstance(event, events.BatchStopped) for event in heard)
    everything = "\n".join(map(repr, heard))
    assert SECRET[:20] not in everything
    assert caught.value.ref not in everything
    assert stopped.value.ref not in everything


async def test_a_request_that_cannot_be_sent_says_so(kie: Emulator) -> None:
    """And why, each time that it is tried."""
    heard: list[Event] = []
    async with client_of("http://127.0.0.1:9", on_event=heard.append) as client:
        with pytest.raises(kie4o.APIConnectionError):
            await client.submit("x")
    told = of_submit(heard)
    assert ("NotSent", "") in told
    assert ("Submitted", "") not in told
