"""The paid call against servers that misbehave: the right verdict, and never a second payment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from canary import CANARY_KEY
from clients import until
from clocks import run_scaled
from faults import (
    GOOD_BODY,
    TASK_ID,
    Connection,
    FaultServer,
    answer,
    good_body,
    hang_up_in_handshake,
    http,
    in_a_thread,
    raw,
    reset_at_once,
    resetting_unread,
    silent,
    stall,
    unused_port,
)
from serving import LoopbackServer

import kie4o
from kie4o import AsyncKieClient, KieError, RateLimit
from kie4o.emulator import Emulator
from kie4o.settings import Secret, resolve
from kie4o.stores.memory import MemoryStore
from kie4o.stores.store import EntryState
from kie4o.submission.verdict import Judgement, Verdict, judge
from kie4o.transport import transport
from kie4o.transport.paid_body import PaidAttempt, PaidBody

TLS = Path(__file__).parents[1] / "fixtures" / "tls"
HTML = b"<html><body>Bad gateway</body></html>"


def client_of(url: str, **more) -> AsyncKieClient:
    settings = {"api_key": CANARY_KEY, "base_url": url, "timeout": 0.5} | more
    return AsyncKieClient(**settings)


async def verdict_of(url: str, **more) -> BaseException | str:
    """What one submit comes to: the task id, or the error."""
    async with client_of(url, **more) as client:
        try:
            return (await client.submit("x")).id
        except kie4o.KieError as error:
            assert error.__cause__ is None
            assert error.__context__ is None
            return error


# -- the request left, and what came of it is not known -----------------------------------------------

CUT_HEAD = http(GOOD_BODY)[:30]
CUT_BODY = http(GOOD_BODY)[:-30]
UNKNOWN = {
    "closed after the request": raw(b""),
    "reset after the request": raw(b"", reset=True),
    "never answered": stall,
    "cut in the head": raw(CUT_HEAD),
    "cut in the head, reset": raw(CUT_HEAD, reset=True),
    "cut in the body before the id": raw(http(GOOD_BODY)[: -len(GOOD_BODY) + 20]),
    "empty 200": answer(b""),
    "HTML 200": answer(HTML),
    "JSON without code": answer(b'{"timestamp": 1, "status": 200}'),
    "JSON list": answer(b"[]"),
    "200 without data": answer(b'{"code":200,"msg":"success","data":null}'),
    "200 with id null": answer(b'{"code":200,"data":{"taskId":null}}'),
    "200 with id 5": answer(b'{"code":200,"data":{"taskId":5}}'),
    "NaN": answer(b'{"code":200,"data":{"taskId":NaN}}'),
    "huge": answer(b'{"code":200,"msg":"' + b"x" * (1024 * 1024 + 1) + b'"}'),
    "garbage": raw(b"\x00\x01\x02 nonsense\r\n\r\n"),
    "status 99": raw(b"HTTP/1.1 99 What\r\nContent-Length: 0\r\n\r\n"),
    "101": raw(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"),
    "204": raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "two lengths": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"),
    "length and chunked": raw(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    **{f"HTTP {status}": answer(HTML, f"{status} X") for status in (408, 500, 501, 502, 503, 504, 520, 524)},
    **{
        f"code {code}": answer(json.dumps({"code": code, "msg": "no", "data": None}).encode())
        for code in (408, 500, 501, 531, 777, -1)
    },
}


@pytest.mark.parametrize("name", UNKNOWN)
async def test_unknown_is_paid_at_most_once_and_never_sent_again(name: str) -> None:
    """Whatever goes wrong after the headers, the POST is sent once, and the error carries the ref."""
    heard: list[Any] = []
    async with FaultServer(UNKNOWN[name]) as server:
        error = await verdict_of(server.url, on_event=heard.append)
    assert isinstance(error, kie4o.SubmissionUnknownError)
    assert error.ref is not None
    assert re.fullmatch("[A-Za-z0-9_-]{24}", error.ref)  # 144 random bits
    assert server.posts == 1
    assert [type(each) for each in heard].count(kie4o.events.Unknown) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_redirects_are_never_followed(status: int, elsewhere: bool) -> None:
    """A redirect of the paid POST is not followed, to no origin: the server may have acted."""
    async with FaultServer(answer()) as other:
        target = f"Location: {other.url}/again" if elsewhere else "Location: /again"
        async with FaultServer(answer(b"", f"{status} Moved", target), answer()) as server:
            error = await verdict_of(server.url)
    assert isinstance(error, kie4o.SubmissionUnknownError)
    assert (server.posts, server.connections, other.connections) == (1, 1, 0)


async def test_a_reset_after_the_first_byte_is_unknown_not_resent() -> None:
    """Once anything of the request has arrived, all of it may have been read."""

    async def reset_early(connection: Connection) -> None:
        await connection.reader.readexactly(1)
        connection.reset()

    async with FaultServer(reset_early) as server:
        error = await verdict_of(server.url)
    assert isinstance(error, kie4o.SubmissionUnknownError)
    assert (server.posts, server.connections) == (0, 1)


async def test_reset_before_anything_is_read_is_unknown_not_resent() -> None:
    """A reset of a connection that the request was written to proves nothing: it may have been read."""
    with resetting_unread() as (url, seen):
        error = await verdict_of(url)
    assert isinstance(error, kie4o.SubmissionUnknownError)
    assert len(seen) == 1


async def test_reset_before_the_request_is_written_costs_nothing() -> None:
    """Seen in time, it proves that nothing was sent: the request goes out on another connection."""

    class Patient(aiohttp.TCPConnector):
        """Hands out its first connection only once the server has reset it."""

        first = True

        async def connect(self, *arguments: Any, **more: Any) -> aiohttp.connector.Connection:
            connection = await super().connect(*arguments, **more)
            first, self.first = self.first, False
            if first:
                await until(lambda: not connection.protocol.is_connected())
            return connection

    async with FaultServer(reset_at_once, answer()) as server:
        async with aiohttp.ClientSession(connector=Patient()) as session:
            assert await verdict_of(server.url, session=session) == TASK_ID
    assert (server.posts, server.connections) == (1, 2)


async def test_control_aiohttp_follows_307_and_pays_twice() -> None:
    """Control: a plain aiohttp session sends the POST again on a 307; this server sees it."""
    async with FaultServer(answer(b"", "307 Moved", "Location: /again"), answer()) as server:
        async with aiohttp.ClientSession() as session, session.post(server.url, data=b"{}") as response:
            await response.read()
    assert server.posts == 2


# -- accepted ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_id_that_arrived_is_never_lost(reset: bool, chunked: bool) -> None:
    """Cut at every byte of a good answer: accepted from the byte on that completes the id."""
    if chunked:
        whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (
            len(GOOD_BODY),
            GOOD_BODY,
        )
    else:
        whole = http(GOOD_BODY)
    complete = whole.index(TASK_ID.encode()) + len(TASK_ID) + 1
    for cut in range(whole.index(b"\r\n\r\n") + 4, len(whole)):
        async with FaultServer(raw(whole[:cut], reset=reset)) as server:
            outcome = await verdict_of(server.url)
        assert server.posts == 1
        if cut < complete:
            assert isinstance(outcome, kie4o.SubmissionUnknownError), cut
        elif not reset:  # with RST the kernel may drop what was not read yet
            assert outcome == TASK_ID, cut


@pytest.mark.parametrize("code", [200, 429, 500, 505])
async def test_a_body_with_an_id_is_accepted_whatever_its_code(code: int) -> None:
    """Even an error code does not hide a task id: it is paid, so it is kept, and no other submit waits."""
    body = json.dumps({"code": code, "msg": "x", "data": {"taskId": TASK_ID}}).encode()
    async with FaultServer(answer(body, "500 Error" if code == 505 else "200 OK")) as server:
        async with client_of(server.url) as client:
            assert (await client.submit("x")).id == TASK_ID
            assert (await client.state()).next_slot == 0
    assert server.posts == 1


async def test_every_field_reaches_the_wire_under_its_name() -> None:
    """All parameters of the generate page arrive under Kie's names; the callback URL carries a ref."""
    request = kie4o.ImageRequest(
        "hi",
        size="3:2",
        files_url=["https://a.example/1.png"],
        n_variants=4,
        mask_url="https://a.example/m.png",
        callback_url="https://me.example/hook?x=1",
        is_enhance=True,
        upload_cn=True,
        enable_fallback=True,
        fallback_model="GPT_IMAGE_1",
    )
    async with FaultServer(answer()) as server, client_of(server.url) as client:
        await client.submit(request)
    body = json.loads(server.bodies[0])
    callback_url = body.pop("callBackUrl")
    assert callback_url.startswith("https://me.example/hook?x=1&kie4o_ref=")
    assert len(callback_url.rpartition("=")[2]) >= 22  # 128 bits in base64
    assert body == {
        "prompt": "hi",
        "size": "3:2",
        "filesUrl": ["https://a.example/1.png"],
        "nVariants": 4,
        "maskUrl": "https://a.example/m.png",
        "isEnhance": True,
        "uploadCn": True,
        "enableFallback": True,
        "fallbackModel": "GPT_IMAGE_1",
    }
    head = server.heads[0].decode().lower()
    assert "user-agent: kie4o/" in head
    assert f"authorization: bearer {CANARY_KEY}" in head
    assert "content-type: application/json" in head


# -- refused ----------------------------------------------------------------------------------------

REFUSALS = {
    400: kie4o.BadRequestError,
    401: kie4o.AuthenticationError,
    402: kie4o.InsufficientCreditsError,
    403: kie4o.PermissionDeniedError,
    404: kie4o.NotFoundError,
    405: kie4o.APIStatusError,
    409: kie4o.APIStatusError,
    413: kie4o.APIStatusError,
    422: kie4o.UnprocessableEntityError,
    433: kie4o.KeyLimitError,
    451: kie4o.ImageUnavailableError,
    505: kie4o.FeatureDisabledError,
}


@pytest.mark.parametrize("code", REFUSALS)
@pytest.mark.parametrize("in_200", [True, False])
async def test_refusals_are_typed_and_not_sent_again(code: int, in_200: bool) -> None:
    """Each refusing code, in an HTTP 200 or as HTTP status, is its error at once and is not resent."""
    body = json.dumps({"code": code, "msg": "no", "data": None}).encode()
    async with FaultServer(answer(body, "200 OK" if in_200 else f"{code} No")) as server:
        error = await verdict_of(server.url)
    assert type(error) is REFUSALS[code]
    assert (error.code, error.message, error.http_status) == (code, "no", 200 if in_200 else code)
    assert not error.retryable
    assert server.posts == 1


async def test_cloudflares_refusal_is_not_ambiguous() -> None:
    """`error code: 1010` under HTTP 403 is a refusal: nothing reached Kie."""
    async with FaultServer(answer(b"error code: 1010", "403 Forbidden")) as server:
        assert isinstance(await verdict_of(server.url), kie4o.PermissionDeniedError)


# -- sent again, within bounds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "posts", "least", "most", "kind"),
    [
        (429, 6, 50, 60, kie4o.RateLimitError),
        (430, 6, 50, 60, kie4o.RateLimitError),
        (455, 4, 180, 190, kie4o.MaintenanceError),
        (550, 5, 450, 460, kie4o.QueueFullError),
    ],
)
@pytest.mark.parametrize("in_200", [True, False])
def test_resends_are_bounded(code, posts, least, most, kind, in_200) -> None:
    """What was refused for now is sent again as often and after such pauses as the table says."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        body = json.dumps({"code": code, "msg": "later", "data": None}).encode()
        async with FaultServer(answer(body, "200 OK" if in_200 else f"{code} Later")) as server:
            async with client_of(server.url, timeout=1000) as client:
                start = loop.time()
                with pytest.raises(kind) as caught:
                    await client.submit("x")
                assert least <= loop.time() - start <= most
        assert caught.value.retryable
        assert server.posts == posts

    run_scaled(run(), 20)  # ten seconds of slack are half of one


def test_refused_for_now_then_accepted_is_paid_once() -> None:
    """After a 429 the same request goes through, and exactly one task exists."""

    async def run() -> None:
        async with Emulator(duration=1, speed=1, credits=6) as kie:
            kie.plan("x", answer=429)
            kie.plan("x", answer=550)
            kie.plan("x")
            async with client_of(kie.url, timeout=1000) as client:
                task = await client.submit("x")
            assert list(kie.tasks) == [task.id]
            assert (len(kie.submits), kie.paid) == (3, 1)

    run_scaled(run(), 200)


def test_retry_after_is_honoured_within_reason() -> None:
    """A Retry-After lengthens the pause, but an absurd one does not hang the caller."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        later = answer(b'{"code":429,"msg":"later"}', "429 Later", "Retry-After: 86400")
        async with FaultServer(later, answer()) as server:
            async with client_of(server.url, timeout=1000, rate_limit=RateLimit(20, per=10)) as client:
                start = loop.time()
                await client.submit("x")
                assert 29 <= loop.time() - start <= 45
        assert server.posts == 2

    run_scaled(run(), 100)


# -- not sent ---------------------------------------------------------------------------------------


def test_refused_connection_is_tried_again_and_costs_nothing() -> None:
    """Nobody listens: three attempts, then `APIConnectionError`; no slot is spent."""

    async def run() -> None:
        store = MemoryStore()
        async with client_of(f"http://127.0.0.1:{unused_port()}", store=store, timeout=100) as client:
            for _ in range(25):  # more than a window would admit
                with pytest.raises(kie4o.APIConnectionError, match="nothing was charged"):
                    await client.submit("x")
            assert [entry async for entry in store.unfinished()] == []

    run_scaled(run(), 50)


def test_server_that_comes_up_in_time_gets_exactly_one_post() -> None:
    """A request that never left is sent again: once the server is there it gets one POST."""

    async def run() -> None:
        async with FaultServer(hang_up_in_handshake, answer()) as server:
            # plain sockets on the server, TLS from the client: the handshake breaks
            url = server.url.replace("http:", "https:")
            async with client_of(url, timeout=100) as client:
                with pytest.raises(kie4o.APIConnectionError) as caught:
                    await client.submit("x")
            assert (server.connections, server.posts) == (3, 0)
            assert caught.value.retryable

    run_scaled(run(), 50)


async def test_what_would_fail_again_is_not_repeated() -> None:
    """A certificate that is not trusted is not trusted a second later either."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    connections = 0

    def accept(*_: Any) -> asyncio.Protocol:
        nonlocal connections
        connections += 1
        return asyncio.Protocol()

    server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0, ssl=context)
    async with server:
        host, port = server.sockets[0].getsockname()
        error = await verdict_of(f"https://{host}:{port}")
    assert isinstance(error, kie4o.APIConnectionError)
    assert (error.retryable, connections) == (False, 1)


async def test_timeout_before_the_headers_is_not_sent() -> None:
    """A handshake that stalls is a time-out before the request left: `APITimeoutError`."""
    async with FaultServer(silent) as server:
        async with client_of(server.url.replace("http:", "https:"), timeout=0.05) as client:
            with pytest.raises(kie4o.APITimeoutError, match="was not sent"):
                await client.submit("x")
    assert server.posts == 0


class Paper:
    """Takes what is written, as aiohttp's writer does; it is its own protocol."""

    should_close = False

    def __init__(self) -> None:
        self.written = b""
        self.protocol = self

    def is_connected(self) -> bool:
        return True

    async def write(self, chunk: bytes) -> None:
        self.written += chunk


async def test_an_answer_that_came_while_the_loop_was_blocked_is_read() -> None:
    """Or while the process was stopped: the time is up, and the answer is there."""
    with in_a_thread(GOOD_BODY) as (url, arrived):
        async with AsyncKieClient(CANARY_KEY, base_url=url, timeout=0.5) as client:
            running = asyncio.create_task(client.submit("x"))
            while not arrived.is_set():
                await asyncio.sleep(0.001)
            time.sleep(0.7)
            assert (await running).id == TASK_ID


async def test_a_closed_session_is_reported_at_once() -> None:
    """Every call says so, without a retry."""
    session = aiohttp.ClientSession()
    await session.close()
    async with AsyncKieClient(CANARY_KEY, base_url="http://127.0.0.1:9", session=session) as client:
        for call in (client.submit("x"), client.credits()):
            with pytest.raises(KieError, match="the aiohttp session that was passed to the client is closed"):
                await call


@pytest.mark.parametrize("way", ["write", "write_with_length", "decode", "as_bytes"])
@pytest.mark.parametrize("withdrawn", [False, True])
async def test_reading_the_paid_body_counts_as_sending(way: str, withdrawn: bool) -> None:
    """Every public way to the bytes of a payload marks the attempt as sent, in case aiohttp starts to
    use another one. After a withdrawal none of them gives the bytes."""
    attempt, paper = PaidAttempt(), Paper()
    body = PaidBody(b"{}", attempt)
    assert body.size == 2
    assert not attempt.sent
    assert not withdrawn or attempt.withdraw()
    arguments = {"write": (paper,), "write_with_length": (paper, 2)}.get(way, ())

    async def take() -> bytes | str:
        taken = getattr(body, way)(*arguments)
        taken = await taken if asyncio.iscoroutine(taken) else taken
        return paper.written or taken

    if withdrawn:
        with pytest.raises(asyncio.CancelledError):
            await take()
    else:
        assert await take() in (b"{}", "{}")
    assert attempt.sent is not withdrawn
    assert attempt.withdraw() is withdrawn


async def pay(url: str, attempt: PaidAttempt) -> Judgement:
    """One attempt over a transport of its own, and what it came to."""
    settings = resolve(
        api_key=Secret(CANARY_KEY), base_url=url, upload_url=None, webhook_key=None, environment={}
    )
    sender = transport.Transport(settings, timeout=5.0)
    await sender.pay(b'{"prompt":"x"}', attempt)
    await sender.aclose()
    return judge(sent=attempt.sent, status=attempt.status, body=attempt.body, fault=attempt.fault)


async def test_an_attempt_that_was_withdrawn_ends_at_once() -> None:
    """Even if its task is not cancelled: the server receives nothing of the body."""
    attempt = PaidAttempt()
    attempt.withdraw()
    async with FaultServer(answer()) as server:
        judgement = await asyncio.wait_for(pay(server.url, attempt), 2.0)
        assert judgement.verdict is Verdict.NOT_SENT
        assert judgement.message
        assert server.posts == 0


async def speaks_out_of_turn(connection: Connection) -> None:
    """Answers the first submit, then says 429 to nobody; later submits are paid for like the first."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        for number in range(10):
            await connection.request()
            body = b'{"code":200,"data":{"taskId":"%032d"}}' % (10 * connection.server.connections + number)
            await connection.send(http(body).replace(b"Connection: close\r\n", b""))
            if not number:
                await asyncio.sleep(0.02)
                await connection.send(
                    http(b'{"code":429,"msg":"slow"}').replace(b"Connection: close\r\n", b"")
                )


async def test_an_answer_to_nobody_decides_no_submit() -> None:
    """A server's stray 429 on a connection that was kept is not taken for the answer of the next
    submit, which would be sent again and paid twice."""
    async with FaultServer(speaks_out_of_turn) as server:
        async with client_of(server.url, timeout=5, rate_limit=RateLimit(20, per=0.2)) as client:
            ids = set()
            for number in range(3):
                ids.add((await client.submit(f"{number}")).id)
                await asyncio.sleep(0.1)
        assert (server.posts, len(ids)) == (3, 3)


async def test_untrusted_certificate_is_not_tried_again() -> None:
    """Time does not mend a certificate: one attempt, a clear sentence, nothing sent."""
    async with FaultServer(answer(), tls=True) as server:
        error = await verdict_of(server.url)
    assert isinstance(error, kie4o.APIConnectionError)
    assert "certificate" in str(error)
    assert (server.connections, server.posts) == (0, 0) or server.posts == 0


# -- keys -------------------------------------------------------------------------------------------


async def test_two_callers_of_one_key_share_one_post() -> None:
    """The same key at the same moment is one POST and one task for both."""
    async with Emulator(latency=0.05, duration=0.1) as kie, client_of(kie.url, timeout=5) as client:
        first, second = await asyncio.gather(client.submit("x", key="a"), client.submit("x", key="a"))
        assert first.id == second.id
        assert len(kie.submits) == 1
        result = await client.generate("x", key="a")
        again = await client.generate("x", key="a")
        assert result == again
        assert again.source == "store"
        assert len(kie.submits) == 1


async def test_same_key_other_request_is_a_conflict() -> None:
    """A key stands for one request: another one under it is refused before it is sent."""
    async with Emulator() as kie, client_of(kie.url, timeout=5) as client:
        await client.submit("x", key="a")
        with pytest.raises(kie4o.KeyConflictError) as caught:
            await client.submit("y", key="a")
        assert caught.value.key == "a"
        assert len(kie.submits) == 1


async def test_unknown_key_is_held() -> None:
    """After an unknown outcome the same key is not sent again."""
    async with FaultServer(raw(b"")) as server, client_of(server.url) as client:
        for _ in range(3):
            with pytest.raises(kie4o.SubmissionUnknownError) as caught:
                await client.submit("x", key="a")
            assert caught.value.key == "a"
        assert server.posts == 1


async def test_refused_key_may_be_used_again() -> None:
    """A refusal settles nothing: the same key with the same request is sent again."""
    async with Emulator(duration=0.1) as kie, client_of(kie.url, timeout=5) as client:
        kie.plan("x", answer=402)
        with pytest.raises(kie4o.InsufficientCreditsError) as caught:
            await client.submit("x", key="a")
        assert caught.value.key == "a"
        await client.submit("x", key="a")
        assert (len(kie.submits), kie.paid) == (2, 1)


# -- closing ----------------------------------------------------------------------------------------


async def test_closing_waits_for_answers_that_are_due() -> None:
    """A submit that has left is finished and recorded by `aclose`; its id is known afterwards."""
    store = MemoryStore()
    async with Emulator(latency=0.2) as kie:
        client = client_of(kie.url, timeout=5, store=store)
        submit = asyncio.create_task(client.submit("x"))
        while not len(kie.submits):
            await asyncio.sleep(0.01)
        submit.cancel()
        await client.aclose()
        known = [entry.task_id async for entry in store.unfinished()]
        assert known == list(kie.tasks)
        assert len(known) == 1


async def test_closing_calls_off_what_has_not_left() -> None:
    """A submit that waits for its slot is called off with an error that says that nothing was paid."""
    store = MemoryStore()
    async with Emulator() as kie:
        client = client_of(kie.url, timeout=5, store=store, rate_limit=RateLimit(1, per=60))
        await client.submit("x")
        waiting = asyncio.create_task(client.submit("y"))
        await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(kie4o.KieError, match="nothing was charged"):
            await waiting
        assert len(kie.submits) == 1
        assert [entry.state async for entry in store.unfinished()] == [EntryState.SUBMITTED]
        with pytest.raises(kie4o.KieError, match="closed"):
            await client.submit("z")


# -- connections that are used again ----------------------------------------------------------------


class Keeping(LoopbackServer):
    """A server that keeps connections open, for `idle` seconds at most after each answer. Then it closes
    them, or, with `deaf`, reads what comes and drops it: the moment at which both sides decide, made long.
    """

    def __init__(self, *, idle: float = 3600.0, deaf: bool = False) -> None:
        self.idle = idle
        self.deaf = deaf
        self.connections = self.tasks = self.swallowed = 0

    @property
    def posts(self) -> int:
        return self.tasks + self.swallowed

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(TimeoutError):
            await self._read(reader)
            while True:
                self.tasks += 1
                body = json.dumps({"code": 200, "data": {"taskId": f"{self.tasks:032x}"}}).encode()
                writer.write(http(body).replace(b"Connection: close\r\n", b""))
                answered = asyncio.get_running_loop().time()
                await asyncio.wait_for(self._read(reader), None if self.deaf else self.idle)
                if asyncio.get_running_loop().time() - answered > self.idle:
                    self.swallowed += 1
                    break

    async def _read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))


async def test_submits_in_close_succession_use_one_connection() -> None:
    """What was just used is used again: one handshake for five submits."""
    async with Keeping() as server, client_of(server.url, timeout=5) as client:
        ids = {(await client.submit("x")).id for _ in range(5)}
        assert (len(ids), server.tasks, server.connections) == (5, 5, 1)


async def test_an_old_connection_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After more than `_KEPT_PAID` seconds a submit has a new connection, since the server may be about
    to close the old one."""
    monkeypatch.setattr(transport, "_KEPT_PAID", 0.1)
    async with Keeping() as server, client_of(server.url, timeout=5) as client:
        await client.submit("x")
        await asyncio.sleep(0.15)
        await client.submit("x")
        await client.submit("x")
        assert (server.tasks, server.connections) == (3, 2)


async def gaps_around(server: Keeping) -> list[BaseException | str]:
    """Five submits each of twelve clients, most of them as long after the last as the server waits."""

    async def several(number: int) -> list[BaseException | str]:
        outcomes: list[BaseException | str] = []
        async with client_of(server.url, timeout=5) as client:
            for turn in range(5):
                try:
                    outcomes.append((await client.submit("x")).id)
                except kie4o.KieError as error:
                    outcomes.append(error)
                near = server.idle - 0.03 + 0.005 * number
                await asyncio.sleep(0.02 if turn == number % 4 else near)
        return outcomes

    parts = await asyncio.gather(*(several(number) for number in range(12)))
    return [outcome for part in parts for outcome in part]


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_server_that_closes_idle_connections_swallows_no_submit(
    monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    """Connections are given up long before the server does: 60 submits at gaps around its patience are
    60 POSTs and 60 tasks, though connections are used again."""
    monkeypatch.setattr(transport, "_KEPT_PAID", 0.1)
    async with Keeping(idle=0.5, deaf=deaf) as server:
        outcomes = await gaps_around(server)
        assert [outcome for outcome in outcomes if not isinstance(outcome, str)] == []
        assert len(set(outcomes)) == 60
        assert (server.posts, server.tasks) == (60, 60)
        assert server.connections < 60


async def test_control_a_connection_that_is_kept_too_long_swallows_submits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Control: kept for longer than the server's patience, connections swallow submits; each is unknown,
    and none is sent twice."""
    monkeypatch.setattr(transport, "_KEPT_PAID", 10.0)
    async with Keeping(idle=0.25, deaf=True) as server:
        outcomes = await gaps_around(server)
        lost = [outcome for outcome in outcomes if not isinstance(outcome, str)]
        assert lost
        assert all(isinstance(error, kie4o.SubmissionUnknownError) for error in lost)
        assert (server.posts, server.swallowed) == (60, len(lost))


def test_a_refused_submit_without_a_caller_is_not_resent() -> None:
    """If its caller leaves, or the client closes, while the POST is under way, a refusal is final."""

    async def run(*, close: bool) -> int:
        later = answer(b'{"code":429,"msg":"later"}')

        async def slow(connection: Connection) -> None:
            await connection.request()
            await asyncio.sleep(5)
            await connection.send(http(b'{"code":429,"msg":"later"}'))

        async with FaultServer(slow, later) as server:
            client = AsyncKieClient(CANARY_KEY, base_url=server.url, timeout=100)
            submit = asyncio.create_task(client.submit("x"))
            while not server.posts:
                await asyncio.sleep(0.1)
            if not close:
                submit.cancel()
                await asyncio.sleep(60)
            await client.aclose()
            outcome = (await asyncio.gather(submit, return_exceptions=True))[0]
            assert isinstance(outcome, kie4o.RateLimitError if close else asyncio.CancelledError)
            return server.posts

    assert run_scaled(run(close=False), 50) == 1
    assert run_scaled(run(close=True), 50) == 1


def test_after_a_429_every_submit_waits_for_a_window() -> None:
    """A submit that waits for the slot of the refused one waits for the whole window too."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        times: list[float] = []

        async def note(connection: Connection) -> None:
            await connection.request()
            times.append(loop.time())
            body = b'{"code":429,"msg":"later"}' if len(times) == 1 else good_body(len(times))
            await connection.send(http(body))

        async with FaultServer(note) as server:
            limit = RateLimit(1, per=10.0)
            async with AsyncKieClient(
                CANARY_KEY, base_url=server.url, timeout=100, rate_limit=limit
            ) as client:
                await asyncio.gather(client.submit("a"), client.submit("b"))
        assert times[1] - times[0] >= 10.0

    run_scaled(run(), 20)
