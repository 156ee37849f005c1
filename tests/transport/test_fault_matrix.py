"""Every fault of a server, in every call, on every kind of connection, at once and after a refusal.

For the paid call: the verdict, the error, and how many complete POSTs have arrived. For the free ones: the
right result although the fault came once, or one error of ours. For all: nothing is left open.
"""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import pytest
from canary import CANARY_KEY
from clients import QUICK
from clocks import run_scaled
from faults import Connection, FaultServer, http, open_sockets
from keeping import opened
from proving import DEEP, tried

from kie4o import AsyncKieClient, KieError, RateLimit
from kie4o.emulator import pictures
from kie4o.submission import submissions
from kie4o.submission.verdict import Judgement, Verdict

TASK_ID = "5fd1000000000000000000000000a1ea"
TIMEOUT = 0.4
PNG = pictures.BLANK
pytestmark = pytest.mark.usefixtures("any_certificate")


# -- the server ------------------------------------------------------------------------------------


def envelope(data: object, code: int = 200) -> bytes:
    return json.dumps({"code": code, "msg": "as asked", "data": data, "success": code == 200}).encode()


def refusal(code: int) -> bytes:
    return http(envelope(None, code))


def kept(answer: bytes) -> bytes:
    return answer.replace(b"Connection: close\r\n", b"")


class Kie(FaultServer):
    """Answers all calls. To the call that is tried it first sends `before`, then the fault, then answers it.

    `asked` counts the complete requests of that call.
    """

    def __init__(self, call: Call, fault: Happen, before: list[bytes], *, tls: bool) -> None:
        super().__init__(self._answers, tls=tls)
        self._call = call
        self._fault = fault
        self._before = before
        self.asked = 0

    def good(self, head: bytes) -> bytes:
        record = {"taskId": TASK_ID, "successFlag": 1, "response": {"resultUrls": [f"{self.url}/a.png"]}}
        file = {"downloadUrl": f"{self.url}/a.png", "fileName": "a.png", "filePath": "kie4o", "fileSize": 3}
        answers: dict[bytes, object] = {
            b"/gpt4o-image/generate": {"taskId": TASK_ID},
            b"/record-info": record,
            b"/download-url": f"{self.url}/a.png?signed",
            b"/chat/credit": 100,
            b"/file-stream-upload": file | {"mimeType": "image/png", "uploadedAt": "2026-11-26T10:00:00Z"},
        }
        for path, data in answers.items():
            if path in head.split(b"\r\n")[0]:
                return kept(http(envelope(data)))
        return kept(http(PNG))

    async def _answers(self, connection: Connection) -> None:
        while True:
            await connection.request()
            head = self.heads[-1]
            if self._call.path not in head.split(b"\r\n")[0]:
                await connection.send(self.good(head))
                continue
            self.asked += 1
            if self.asked <= len(self._before):
                await connection.send(kept(self._before[self.asked - 1]))
            elif self.asked == len(self._before) + 1:
                return await self._fault(connection, self.good(head))
            else:
                await connection.send(self.good(head))


# -- faults ----------------------------------------------------------------------------------------

Happen = Callable[[Connection, bytes], Awaitable[None]]
OK = "ok"  # the call has its result
Outcome = tuple[str, int]  # `OK`, or the name of the error; how often the request arrived


def sends(change: Callable[[bytes], bytes], *, reset: bool = False, stalls: bool = False) -> Happen:
    """Send what `change` makes of the good answer; then close, reset, or say nothing more."""

    async def happen(connection: Connection, good: bytes) -> None:
        if data := change(good):
            await connection.send(data)
        if stalls:
            await asyncio.sleep(3600)
        if reset:
            connection.reset()

    return happen


def page(status: str, body: bytes = b"<html>no</html>", *headers: str) -> Happen:
    return sends(lambda good: http(body, status, *headers))


def raw(status: str, *headers: str) -> Happen:
    """A head without the usual fields, and five bytes after it."""
    return sends(lambda good: "\r\n".join([f"HTTP/1.1 {status}", *headers, "", "hello"]).encode())


def code(number: int) -> Happen:
    return sends(lambda good: refusal(number))


def nothing(good: bytes) -> bytes:
    return b""


def head(good: bytes) -> bytes:
    return good[: good.index(b"\r\n\r\n") + 4]


def half(good: bytes) -> bytes:
    """The head, and half of the body."""
    return good[: (len(head(good)) + len(good)) // 2]


async def trickles(connection: Connection, good: bytes) -> None:
    step = 1 + len(good) // 7
    for at in range(0, len(good), step):
        await connection.send(good[at : at + step])
        await asyncio.sleep(0.01)


FAULTS: dict[str, Happen] = {
    "closed": sends(nothing),
    "reset": sends(nothing, reset=True),
    "silent": sends(nothing, stalls=True),
    "cut in the head": sends(lambda good: head(good)[:-10]),
    "reset in the head": sends(lambda good: head(good)[:-10], reset=True),
    "silent in the head": sends(lambda good: head(good)[:-10], stalls=True),
    "cut after the head": sends(head),
    "reset after the head": sends(head, reset=True),
    "cut in the body": sends(half),
    "reset in the body": sends(half, reset=True),
    "silent in the body": sends(half, stalls=True),
    "cut at the last byte": sends(lambda good: good[:-1]),
    "silent at the last byte": sends(lambda good: good[:-1], stalls=True),
    "trickling": trickles,
    "twice": sends(lambda good: good + good),
    "garbage": sends(lambda good: b"\x00\x01 nonsense\r\n\r\n"),
    "two lengths": sends(
        lambda good: b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello"
    ),
    "a cut chunk": sends(lambda good: b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{"co'),
    "101": sends(
        lambda good: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    ),
    "204": sends(lambda good: b"HTTP/1.1 204 No Content\r\n\r\n"),
    "empty": page("200 OK", b""),
    "HTML": page("200 OK"),
    "a list": page("200 OK", b"[]"),
    "no code": page("200 OK", b'{"status": 1}'),
    "no data": page("200 OK", envelope(None)),
    "broken gzip": page("200 OK", gzip.compress(envelope({}))[:-9], "Content-Encoding: gzip"),
    "too much": page("200 OK", b'{"code":200,"msg":"' + b"x" * (5 << 20) + b'"}'),
    "elsewhere": page("302 Found", b"", "Location: /a.png"),
    "HTTP 403": page("403 No"),
    "HTTP 408": page("408 Late"),
    "HTTP 500": page("500 No"),
    "HTTP 502": page("502 Bad"),
    "HTTP 503": page("503 Busy", b"", "Retry-After: 1"),
    "code 401": code(401),
    "code 402": code(402),
    "code 422": code(422),
    "code 429": code(429),
    "code 500": code(500),
    "code 505": code(505),
}


# -- calls -----------------------------------------------------------------------------------------


async def submit(client: AsyncKieClient) -> object:
    return (await client.submit("x")).id


async def wait(client: AsyncKieClient) -> object:
    return len((await client.wait(TASK_ID, timeout=20)).urls)


async def download_url(client: AsyncKieClient) -> object:
    return (await client.download_url(TASK_ID, "https://example.com/a.png"))[-6:]


async def credits(client: AsyncKieClient) -> object:
    return int(await client.credits())


async def upload(client: AsyncKieClient) -> object:
    return (await client.upload(b"abc", name="a.png")).name


async def fetch(client: AsyncKieClient) -> object:
    return (await client.fetch(TASK_ID))[0].data


# -- what each call makes of each fault, written by hand -----------------------------------------------

REFUSALS = {
    "HTTP 403": "PermissionDeniedError",
    "code 401": "AuthenticationError",
    "code 402": "InsufficientCreditsError",
    "code 422": "UnprocessableEntityError",
    "code 505": "FeatureDisabledError",
}
WHOLE = {"trickling", "twice"}
WITH_AN_ID = {*WHOLE, "cut at the last byte", "silent at the last byte"}
NO_IMAGE = {"101", "204", "no data", "broken gzip", "too much", *(name for name in FAULTS if "code " in name)}


def of_the_paid_call(fault: str) -> Outcome:
    """Sent again only if Kie says that it counts too many; an id that has arrived is a task."""
    if fault == "code 429":
        return OK, 2
    return (OK if fault in WITH_AN_ID else REFUSALS.get(fault, "SubmissionUnknownError")), 1


def of_a_free_call(fault: str) -> Outcome:
    """Made again, unless Kie refuses it."""
    return (REFUSALS[fault], 1) if fault in REFUSALS else (OK, 1 if fault in WHOLE else 2)


def of_a_wait(fault: str) -> Outcome:
    """A poll that fails says nothing about the task."""
    return OK, 1 if fault in WHOLE else 2


def of_an_image(fault: str) -> Outcome:
    """What may be there in a moment is asked for again; what is no image is not. A redirect is followed."""
    return ("DownloadError", 1) if fault in NO_IMAGE - {"no code"} else (OK, 1 if fault in WHOLE else 2)


@attrs.frozen
class Call:
    path: bytes  # in the first line of its request
    ask: Callable[[AsyncKieClient], Awaitable[object]]
    result: object
    expected: Callable[[str], Outcome]
    busy: bytes = http(envelope(None, 429))  # a refusal after which the call is made again
    kinds: tuple[str, ...] = ("fresh", "ahead", "reused", "TLS")


CALLS = {
    "submit": Call(b"/gpt4o-image/generate", submit, TASK_ID, of_the_paid_call),
    "wait": Call(b"/record-info", wait, 1, of_a_wait),
    "download_url": Call(b"/download-url", download_url, "signed", of_a_free_call),
    "credits": Call(b"/chat/credit", credits, 100, of_a_free_call),
    "upload": Call(b"/file-stream-upload", upload, "a.png", of_a_free_call),
    # Images are fetched with a session of their own, which trusts no certificate of a test.
    "fetch": Call(
        b"/a.png", fetch, PNG, of_an_image, http(b"", "503 Busy"), kinds=("fresh", "ahead", "reused")
    ),
}


async def cell(call: Call, fault: str, kind: str, attempt: int) -> Outcome:
    """What the call came to, and how many complete requests arrived."""
    tried()
    async with Kie(call, FAULTS[fault], [call.busy] * (attempt - 1), tls=kind == "TLS") as kie:
        how: dict[str, Any] = {"timeout": TIMEOUT, "rate_limit": RateLimit(20, per=0.3), "poll": QUICK}
        async with AsyncKieClient(CANARY_KEY, base_url=kie.url, **how) as client:
            if kind == "reused":
                await (credits if call.ask is not credits else wait)(client)
            if kind == "ahead":
                client._runtime.transport.prepare(1)
                await opened(client._runtime.transport)
            try:
                found = await call.ask(client)
            except KieError as error:
                return type(error).__name__, kie.asked
            return OK if found == call.result else f"wrong: {found!r}", kie.asked


async def check(call: Call, fault: str, kinds: Sequence[str], attempts: Sequence[int]) -> None:
    outcome, requests = call.expected(fault)
    before = open_sockets()
    for kind in kinds:
        for attempt in attempts:
            found = await cell(call, fault, kind, attempt)
            assert found == (outcome, requests + attempt - 1), (kind, attempt)
    for _ in range(10):  # what was closed in the last turn
        await asyncio.sleep(0.01)
    assert open_sockets() == before


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", ["submit", "wait"])
def test_a_fault_at_the_first_attempt(call: str, fault: str) -> None:
    """The calls on which a task depends, on a new connection."""
    run_scaled(check(CALLS[call], fault, ["fresh"], [1]), 20)


@pytest.mark.sweep
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_on_every_kind_of_connection_and_attempt(call: str, fault: str) -> None:
    """39 faults in 6 calls: 1,794 cells. By default half of them, by every other kind."""
    kinds = CALLS[call].kinds
    first = ([*FAULTS].index(fault) + [*CALLS].index(call)) % 2
    run_scaled(check(CALLS[call], fault, kinds if DEEP else kinds[first::2], [1, 2]), 20)


@pytest.mark.parametrize("fault", ["closed", "silent", "HTTP 502", "code 500"])
def test_control_a_submit_that_is_sent_again_is_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control: what sends a request again after an unknown outcome pays twice."""
    again = Judgement(Verdict.NOT_SENT, message="as it seems")
    real = submissions.judge

    def naive(**attempt: Any) -> Judgement:
        found = real(**attempt)
        return again if found.verdict is Verdict.UNKNOWN else found

    monkeypatch.setattr(submissions, "judge", naive)
    with pytest.raises(AssertionError, match="fresh"):
        run_scaled(check(CALLS["submit"], fault, ["fresh"], [1]), 20)
