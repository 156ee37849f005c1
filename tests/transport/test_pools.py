"""Which connection a paid POST gets, and which it never gets: by its age, and by what has arrived."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from clients import client_of, until
from clocks import run_scaled
from faults import http
from keeping import (
    KINDS,
    Keeping,
    Kind,
    accepted,
    held,
    id_for,
    kept,
    look,
    opened,
    pay,
    prepared,
    running,
    transport_to,
)

from kie4o import ImageTask, SubmissionUnknownError, clock, events
from kie4o.polling.poller import TaskPoller
from kie4o.submission.verdict import Verdict
from kie4o.transport import paid_body, pools
from kie4o.transport.paid_body import PaidBody
from kie4o.transport.pools import can_choose, younger
from kie4o.wire.requests import UPLOAD_FROM_URL

USED = [kind for kind in KINDS if kind != "new"]
OLD = 2.3  # seconds


# -- which one ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", USED)
async def test_a_post_uses_what_there_is(kind: Kind) -> None:
    """What was opened ahead, or is proven in either pool: it opens no connection of its own."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        await prepared(transport, kind)
        _, judgement = await pay(transport, "x")
        assert judgement.task_id == id_for("x")
        assert server.connections == 1
        await transport.aclose()


async def test_what_was_opened_ahead_comes_first() -> None:
    """It would be closed if it were not used; what is proven may be used by others."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        await look(transport)
        transport.prepare(2)
        await opened(transport)
        assert server.connections == 2  # one is proven
        await pay(transport, "x")
        assert server.carried == [("x", 1)]
        await pay(transport, "y")
        assert server.connections == 2
        await transport.aclose()


async def test_a_new_connection_joins_the_pool_of_the_reads() -> None:
    """A read after the POST uses it, and so proves it for the next POST."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        for number in range(3):
            await pay(transport, f"{number}")
            await look(transport)
        assert server.connections == 1
        await transport.aclose()


async def test_a_full_pool_of_the_reads_delays_no_post() -> None:
    """Then its connection is opened in the other pool."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        transport.connections = 2
        server.go.clear()
        reads = [asyncio.create_task(look(transport)) for _ in range(3)]
        await until(lambda: len(server.heads) == 2)
        post = asyncio.create_task(pay(transport, "x"))
        await until(lambda: server.posts == 1)
        server.go.set()
        assert (await post)[1].task_id == id_for("x")
        await asyncio.gather(*reads)
        await transport.aclose()


async def test_waiting_for_a_pool_that_is_full_counts_as_no_opening() -> None:
    """The POST gets the connection of the one before, and nothing is opened earlier because of that."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        transport.connections = 1
        server.go.clear()
        read = asyncio.create_task(look(transport))
        await until(lambda: len(server.heads) == 1)
        posts = [asyncio.create_task(pay(transport, prompt)) for prompt in ("x", "y")]
        await until(lambda: server.posts == 1)
        lead = transport.lead()
        await asyncio.sleep(2 * lead)
        server.go.set()
        assert [judgement.task_id for _, judgement in await asyncio.gather(*posts)] == [
            id_for("x"),
            id_for("y"),
        ]
        assert server.carried == [("x", 1), ("y", 1)]
        assert transport.lead() == lead
        await read
        await transport.aclose()


# -- the age -----------------------------------------------------------------------------------------


def outcome_after(kind: Kind, pass_time: Callable[[], Awaitable[object]]) -> tuple[bool, Verdict]:
    """Whether the submit used an old connection, and what it came to, after the server has forgotten all
    connections and time has passed."""

    async def run() -> tuple[bool, Verdict]:
        async with Keeping() as server:
            transport = transport_to(server.url, timeout=0.5)
            await prepared(transport, kind)
            server.silent_until, before = len(server.links), server.connections
            await pass_time()
            _, judgement = await pay(transport, "x")
            await transport.aclose()
            return server.connections == before, judgement.verdict

    return run_scaled(run(), 10)


async def sleep(seconds: float = OLD) -> None:
    await asyncio.sleep(seconds)


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, float], Callable[[], Awaitable[None]]]:
    """Sets one of the clocks that run beside the loop's."""
    originals = {name: getattr(clock, name) for name in ("unix_time", "uptime")}

    def jumping(name: str, seconds: float) -> Callable[[], Awaitable[None]]:
        async def set_clock() -> None:
            monkeypatch.setattr(clock, name, lambda: originals[name]() + seconds)

        return set_clock

    return jumping


@pytest.mark.parametrize("kind", USED)
def test_no_post_uses_a_connection_that_is_old_by_the_clock_of_the_loop(kind: Kind) -> None:
    """A router may have forgotten it."""
    assert outcome_after(kind, sleep) == (False, Verdict.ACCEPTED)


@pytest.mark.parametrize("seconds", [OLD, 3600, -0.5])
@pytest.mark.parametrize("name", ["unix_time", "uptime"])
@pytest.mark.parametrize("kind", USED)
def test_no_post_uses_a_connection_that_is_old_by_another_clock(
    kind: Kind, name: str, seconds: float, jump: Any
) -> None:
    """The machine slept meanwhile; or nothing is known, since the clock was set back."""
    assert outcome_after(kind, jump(name, seconds)) == (False, Verdict.ACCEPTED)


@pytest.mark.parametrize("kind", USED)
def test_control_without_an_age_every_post_is_swallowed(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the outcome of each is unknown."""
    monkeypatch.setattr(pools, "younger", lambda *_: True)
    monkeypatch.setattr("kie4o.transport.ahead.Ahead._expire", lambda self: None)
    assert outcome_after(kind, sleep) == (True, Verdict.UNKNOWN)


@pytest.mark.parametrize("kind", USED)
def test_control_by_the_clock_of_the_loop_alone_a_sleep_swallows_the_post(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, jump: Any
) -> None:
    """Control: without the wall clock, what is from before the sleep counts as young."""
    monkeypatch.setattr(pools, "younger", lambda since, now, seconds: now[0] - since[0] < seconds)
    assert outcome_after(kind, jump("unix_time", 3600)) == (True, Verdict.UNKNOWN)


@pytest.mark.parametrize("kind", USED)
def test_what_is_young_is_used(kind: Kind) -> None:
    """A server that forgets young connections in silence leaves the outcome unknown, as the docs say."""
    assert outcome_after(kind, lambda: sleep(1.0)) == (True, Verdict.UNKNOWN)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ((11.9, 101.9, 1001.9), True),
        ((12.0, 100.0, 1000.0), False),
        ((10.0, 102.0, 1000.0), False),
        ((10.0, 100.0, 1002.0), False),
        ((10.0, 99.9, 1000.0), False),
    ],
)
def test_each_clock_alone_makes_a_connection_old(now: pools.Moment, expected: bool) -> None:
    """The loop's, the wall clock and the uptime; the wall clock also if it went back."""
    assert younger((10.0, 100.0, 1000.0), now, 2.0) is expected


# -- what arrives that nobody asked for --------------------------------------------------------------

UNASKED = {
    "answer": accepted("f" * 32),
    "408": http(b"", "408 Request Timeout"),
    "garbage": b"\x00\x01\r\n\r\n",
}


@pytest.mark.parametrize("what", UNASKED)
@pytest.mark.parametrize("kind", USED)
async def test_what_arrived_before_a_connection_is_taken_is_no_answer(kind: Kind, what: str) -> None:
    """The POST has another connection, and the answer to it is its own."""
    async with Keeping() as server:
        transport = transport_to(server.url)
        await prepared(transport, kind)
        await server.links[0].send(UNASKED[what])
        for _ in range(5):
            await asyncio.sleep(0)
        _, judgement = await pay(transport, "x")
        assert (judgement.verdict, judgement.task_id) == (Verdict.ACCEPTED, id_for("x"))
        assert server.connections == 2
        assert server.prompts.count("x") == 1
        await transport.aclose()


@pytest.mark.parametrize("kind", USED)
async def test_control_without_a_look_at_it_the_connection_is_taken(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: the POST gets it, and only the body finds out, so that nothing is sent."""
    monkeypatch.setattr(pools, "is_clean", lambda protocol: protocol.is_connected())
    async with Keeping() as server:
        transport = transport_to(server.url)
        await prepared(transport, kind)
        await server.links[0].send(UNASKED["answer"])
        for _ in range(5):
            await asyncio.sleep(0)
        assert (await pay(transport, "x"))[1].verdict is Verdict.NOT_SENT
        await transport.aclose()


async def test_what_arrived_is_not_forgotten_while_the_connection_is_open() -> None:
    """Although a call to the host of the uploads opens another one meanwhile, in the same pool."""
    async with Keeping() as server, Keeping() as uploads:
        transport = transport_to(server.url, upload_url=uploads.url)
        await prepared(transport, "proven")
        await server.links[0].send(UNASKED["answer"])
        for _ in range(5):
            await asyncio.sleep(0)
        await transport.read(UPLOAD_FROM_URL, lambda *_: None, body=b'{"prompt":"a picture"}')
        assert (await pay(transport, "x"))[1].verdict is Verdict.ACCEPTED
        await transport.aclose()


async def paid_while_something_arrives(tls: bool) -> tuple[Verdict, str | None]:
    """What a submit came to if an answer to something else arrives after its connection was taken, and before
    it is written."""
    async with Keeping(tls=tls) as server:
        transport = transport_to(server.url)
        await prepared(transport, "ahead")
        posting = asyncio.create_task(pay(transport, "x"))
        while held(transport):
            await asyncio.sleep(0)
        assert not server.posts
        answer = UNASKED["answer"]
        server.go.clear()
        await server.links[0].send(answer[:-9])
        for _ in range(50):
            await asyncio.sleep(0)
        await server.links[0].send(answer[-9:])
        _, judgement = await posting
        await transport.aclose()
        return judgement.verdict, judgement.task_id


@pytest.mark.usefixtures("any_certificate")
@pytest.mark.parametrize("tls", [False, True])
async def test_what_arrives_before_the_write_stops_it(tls: bool) -> None:
    """The body looks once more, directly before it counts as sent."""
    assert await paid_while_something_arrives(tls) == (Verdict.NOT_SENT, None)


@pytest.mark.usefixtures("any_certificate")
@pytest.mark.parametrize("tls", [False, True])
async def test_control_a_body_that_does_not_look_has_a_wrong_answer(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: what arrived before the write is taken for the answer."""

    async def blind(self: PaidBody, writer: Any) -> None:
        for _ in range(paid_body._TURNS):
            await asyncio.sleep(0)
        await writer.write(self._take())

    monkeypatch.setattr(PaidBody, "write", blind)
    assert await paid_while_something_arrives(tls) == (Verdict.ACCEPTED, "f" * 32)


class Confused(Keeping):
    """Answers the submit of "x" as if it were an earlier request, before it answers it."""

    earlier = ""  # the id in that answer

    def answer(self, head: bytes, body: bytes) -> bytes:
        own = super().answer(head, body)
        is_x = head.startswith(b"POST ") and json.loads(body)["prompt"] == "x"
        return running(self.earlier) + own if is_x else own


async def submitted_among_confusion(how: str, **more: Any) -> ImageTask:
    """Submit "x", whose answer has the id of a task that was looked at, waited for, or submitted before."""
    async with Confused() as server, client_of(server.url, **more) as client:
        server.earlier = "e" * 32
        waiting = asyncio.create_task(client.wait(server.earlier)) if how == "waited for" else None
        if how == "looked at":
            await client.details(server.earlier)
        elif how == "submitted":
            server.earlier = (await client.submit("earlier")).id
        else:
            await until(lambda: server.heads)
        try:
            return await client.submit("x")
        finally:
            assert server.prompts.count("x") == 1
            if waiting is not None:
                waiting.cancel()


@pytest.mark.parametrize("how", ["looked at", "waited for", "submitted"])
async def test_an_id_that_is_known_is_no_acceptance(how: str) -> None:
    """The outcome is unknown, and the error says why."""
    with pytest.raises(SubmissionUnknownError, match="the answer was not its own: task"):
        await submitted_among_confusion(how)


@pytest.mark.parametrize("how", ["looked at", "waited for"])
async def test_control_without_the_rule_the_id_is_wrong(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: the submit has the task of another request."""
    monkeypatch.setattr(TaskPoller, "knew", lambda *_: False)
    assert (await submitted_among_confusion(how)).id == "e" * 32


async def test_the_store_knows_an_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the poller has forgotten it, the store refuses it, and one submit was accepted."""
    monkeypatch.setattr(TaskPoller, "knew", lambda *_: False)
    heard: list[events.Event] = []
    with pytest.raises(SubmissionUnknownError, match="the answer was not its own: "):
        await submitted_among_confusion("submitted", on_event=heard.append)
    assert len([event for event in heard if isinstance(event, events.Submitted)]) == 1


class Unasked(Keeping):
    """Sends an answer that nobody asked for as the submit of "x" arrives, and then that to the submit."""

    unasked = b""

    def answer(self, head: bytes, body: bytes) -> bytes:
        is_x = head.startswith(b"POST ") and json.loads(body)["prompt"] == "x"
        return (self.unasked if is_x else b"") + super().answer(head, body)


async def paid_among_refusals(kind: Kind, status: str, body: bytes) -> tuple[Verdict, int]:
    """What a submit came to if a refusal arrives after its write, and how often it was received."""
    async with Unasked() as server:
        server.unasked = kept(body, status)
        transport = transport_to(server.url)
        await prepared(transport, kind)
        _, judgement = await pay(transport, "x")
        await transport.aclose()
        return judgement.verdict, server.prompts.count("x")


@pytest.mark.parametrize("body", [b"", b'{"code":408,"msg":"timeout"}'], ids=["no body", "Kie's JSON"])
@pytest.mark.parametrize("kind", KINDS)
async def test_the_refusal_that_servers_send_unasked_refuses_nothing(kind: Kind, body: bytes) -> None:
    """A 408, which a server may send before it closes an idle connection (RFC 9110, 15.5.9)."""
    assert await paid_among_refusals(kind, "408 Request Timeout", body) == (Verdict.UNKNOWN, 1)


async def test_control_any_other_refusal_counts() -> None:
    """Control, and the limit of what can be known: HTTP/1.1 does not say which request an answer is to."""
    body = b'{"code":429,"msg":"too many"}'
    assert await paid_among_refusals("kept", "429 Too Many Requests", body) == (Verdict.REFUSED, 1)


async def test_a_look_at_the_task_before_its_own_answer_makes_it_no_other() -> None:
    """A callback may arrive before the answer to the submit, and be looked into at once."""
    async with Keeping() as server, client_of(server.url) as client:
        server.go.clear()
        submit = asyncio.create_task(client.submit("x"))
        await until(lambda: server.prompts == ["x"])
        early = asyncio.create_task(client.details(id_for("x")))
        await until(lambda: len(server.heads) == 2)
        server.go.set()
        assert (await submit).id == (await early).task_id == id_for("x")


# -- aiohttp -----------------------------------------------------------------------------------------


def test_aiohttp_asks_connectors_as_pools_expect() -> None:
    """`connect` is no documented extension point. With other parameters it is not overridden."""

    async def newer(self: object, request: object, *, traces: object) -> None: ...

    assert can_choose(aiohttp.TCPConnector.connect)
    assert not can_choose(newer)


async def test_with_another_aiohttp_every_post_opens_its_own_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is known of the age of a connection then. Reads keep theirs."""
    monkeypatch.setattr("kie4o.transport.transport.can_choose", lambda: False)
    async with Keeping() as server:
        transport = transport_to(server.url)
        transport.prepare(5)
        for number in range(3):
            await pay(transport, f"{number}")
            await look(transport)
        assert server.carried == [("0", 0), ("1", 2), ("2", 3)]
        assert server.connections == 4
        await transport.aclose()
