"""What each fault does on the wire, seen through a raw socket. Every case has its control: the same request
without the fault, for which the same check fails."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import HTTPMessage, parse_headers
from io import BytesIO
from typing import Any

import attrs
import pytest
from clocks import KIND
from faulty import row_of, rows

from kie4o.emulator import Emulator
from kie4o.emulator.effects import EFFECTS, KINDS

pytestmark = pytest.mark.skipif(KIND != "asyncio", reason="virtual time needs a loop of asyncio")

API = "/api/v1/gpt4o-image"
LAKE = {"prompt": "A calm lake", "size": "1:1"}
OPEN = 600.0  # seconds without a byte after which a connection counts as open for ever


@attrs.frozen(kw_only=True)
class Exchange:
    """What came back on a connection, until it ended or nothing more came."""

    data: bytes = b""
    end: str = "open"  # "closed", "reset", "refused" or "open"
    times: list[float] = attrs.field(factory=list)  # of each piece, since the request

    @property
    def status(self) -> str:
        """The second word of the status line."""
        return self.data.split(b" ", 2)[1].decode() if self.data else ""

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def headers(self) -> HTTPMessage:
        return parse_headers(BytesIO(self.data.partition(b"\r\n")[2]))

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def record(self) -> dict[str, Any]:
        return dict(self.json["data"] or {})


async def exchange(kie: Emulator, request: bytes) -> Exchange:
    data, times, end = b"", [], "closed"
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", kie.port)
    except ConnectionRefusedError:
        return Exchange(end="refused")
    start = kie.now()
    writer.write(request)
    try:
        while True:
            async with asyncio.timeout(OPEN):
                piece = await reader.read(2**20)
            if not piece:
                break
            data += piece
            times.append(kie.now() - start)
    except ConnectionResetError:
        end = "reset"
    except TimeoutError:
        end = "open"
    writer.transport.abort()
    return Exchange(data=data, end=end, times=times)


def request_of(kie: Emulator, kind: str) -> bytes:
    """A request of this kind; for one about a task, the task is created without a request."""

    def post(path: str, body: dict[str, Any]) -> bytes:
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: kie\r\nAuthorization: Bearer k\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        return head.encode() + content

    def get(path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\nHost: kie\r\nAuthorization: Bearer k\r\n\r\n".encode()

    if kind == "submit":
        return post(f"{API}/generate", LAKE)
    if kind == "credits":
        return get("/api/v1/chat/credit")
    if kind == "upload":
        content = base64.b64encode(b"file").decode()
        return post("/api/file-base64-upload", {"base64Data": content, "uploadPath": "a"})
    task = kie.create_task(dict(LAKE), kie.now())[1]
    assert task is not None
    (path,) = task.files(kie.now())
    if kind == "look":
        return get(f"{API}/record-info?taskId={task.id}")
    if kind == "link":
        return post(f"{API}/download-url", {"taskId": task.id, "url": kie.url + path})
    return get(path)


Check = Callable[[Exchange, Exchange], bool]  # of what came, and of what comes without the fault


def says(status: int, text: bytes) -> Check:
    return lambda seen, true: seen.status == str(status) and text in seen.body


def record(check: Callable[[dict[str, Any]], bool]) -> Check:
    return lambda seen, true: seen.status == "200" and check(seen.record)


def response(check: Callable[[Any], bool]) -> Check:
    return lambda seen, true: check(seen.record["response"])


def image(status: int, check: Callable[[bytes, bytes], bool]) -> Check:
    return lambda seen, true: seen.status == str(status) and check(seen.body, true.body)


def raw(check: Callable[[bytes], bool], end: str = "closed") -> Check:
    return lambda seen, true: check(seen.data) and seen.end == end


def length_of(data: bytes) -> int:
    return int(data.partition(b"Content-Length: ")[2].split(b"\r\n")[0])


def body_of(data: bytes) -> bytes:
    return data.partition(b"\r\n\r\n")[2]


def lines_of(data: bytes) -> list[bytes]:
    """The lines of the headers."""
    return data.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]


OK_YES = ("200", "yes")
# By kind of request: the options of a fault, and what is then true of the wire and otherwise not.
ANY: list[tuple[dict[str, Any], Check]] = [
    ({"page": "bad_gateway"}, says(502, b"<h1>502 Bad Gateway</h1>")),
    ({"page": "unavailable"}, says(503, b"Service Temporarily Unavailable")),
    ({"page": "gateway_timeout"}, says(504, b"504 Gateway Time-out")),
    ({"page": "too_large"}, says(413, b"Request Entity Too Large")),
    ({"page": "cloudflare_1010"}, says(403, b"error code: 1010")),
    ({"page": "cloudflare_challenge"}, says(403, b"Just a moment")),
    ({"page": "cloudflare_520"}, says(520, b"Error code 520")),
    ({"page": "cloudflare_522"}, says(522, b"Error code 522")),
    ({"page": "cloudflare_524"}, says(524, b"Error code 524")),
    ({"page": "login"}, says(200, b"<html>")),
    ({"page": "spring"}, says(404, b'"error":"Not Found"')),
    ({"page": "empty"}, lambda seen, true: seen.status == "200" and seen.body == b""),
    ({"page": "half_json"}, lambda seen, true: seen.body == b'{"code":200,"msg":"suc'),
    ({"page": "not_an_object"}, lambda seen, true: seen.body == b"[]"),
    ({"page": "deep_json"}, lambda seen, true: seen.body == b"[" * 100_000),
    ({"page": "empty", "http_status": 500}, lambda seen, true: seen.status == "500"),
    ({"body": '{"code": 599}'}, says(200, b'{"code": 599}')),
    ({"body": b"\xff\xfe", "http_status": 201}, says(201, b"\xff\xfe")),
    ({"body": " <p>", "http_status": 200}, lambda seen, true: "text/html" in seen.headers["Content-Type"]),
    ({"http_status": 503}, lambda seen, true: (seen.status, seen.body) == ("503", b"")),
    ({"redirect": "/there"}, lambda seen, true: (seen.status, seen.headers["Location"]) == ("302", "/there")),
    (
        {"redirect": "self", "http_status": 307},
        lambda seen, true: seen.status == "307" and seen.headers["Location"].startswith("/"),
    ),
    ({"headers": {"X-Odd": "yes"}}, lambda seen, true: (seen.status, seen.headers["X-Odd"]) == OK_YES),
    ({"reset": "before"}, lambda seen, true: (seen.data, seen.end) == (b"", "reset")),
    ({"reset": "after"}, lambda seen, true: (seen.data, seen.end) == (b"", "reset")),
    ({"cut": 0}, lambda seen, true: (seen.data, seen.end) == (b"", "closed")),
    ({"cut": 30}, lambda seen, true: (len(seen.data), seen.end) == (30, "closed")),
    ({"cut": -1}, lambda seen, true: length_of(seen.data) == len(seen.body) + 1),
    ({"stall": 5}, lambda seen, true: seen.times[0] == 5 and length_of(seen.data) == len(seen.body)),
    ({"stall": "forever"}, lambda seen, true: (seen.data, seen.end) == (b"", "open")),
    ({"stall": "forever", "at": 25}, lambda seen, true: (len(seen.data), seen.end) == (25, "open")),
    ({"stall": 5, "at": 25}, lambda seen, true: seen.times[0] == 0 and seen.times[-1] == 5),
    (
        {"drip": 10},
        lambda seen, true: len(seen.times) >= 10 and abs(seen.times[-1] - 10) < 1e-6 and seen.end == "closed",
    ),
    ({"open_ended": True}, raw(lambda data: not re.search(b"Content-Length|chunked", data), "open")),
    ({"framing": "too_long"}, raw(lambda data: length_of(data) == len(body_of(data)) + 10)),
    ({"framing": "too_short"}, raw(lambda data: length_of(data) == len(body_of(data)) - 10)),
    ({"framing": "two_lengths"}, raw(lambda data: data.count(b"Content-Length: ") == 2)),
    (
        {"framing": "length_and_chunks"},
        raw(lambda data: b"Content-Length: " in data and b"Transfer-Encoding: chunked" in data),
    ),
    ({"framing": "bad_chunk"}, raw(lambda data: b"\r\n\r\nzz\r\n" in data)),
    (
        {"framing": "no_last_chunk"},
        raw(lambda data: b"chunked" in data and not data.endswith(b"0\r\n\r\n") and data.endswith(b"\r\n")),
    ),
    ({"framing": "bad_status_line"}, raw(lambda data: data.startswith(b"HTTP/1.1 x200"))),
    ({"framing": "bad_header"}, raw(lambda data: any(b":" not in line for line in lines_of(data)))),
    ({"framing": "huge_header"}, raw(lambda data: len(data.partition(b"\r\n\r\n")[0]) > 2**20)),
    ({"framing": "not_gzip"}, raw(lambda data: b"-Encoding: gzip" in data and body_of(data)[0] != 0x1F)),
    ({"framing": "until_close"}, raw(lambda data: data.startswith(b"HTTP/1.0 200 ") and b"gth" not in data)),
    ({"framing": "unsolicited"}, raw(lambda data: data.count(b"HTTP/1.1 200") == 2, "open")),
    ({"refuse": 5}, lambda seen, true: seen.end == "refused"),
    ({"by": lambda arrival: {"http_status": 418}}, lambda seen, true: seen.status == "418"),
]  # fmt: skip  # a row is a line
CODES: list[tuple[dict[str, Any], Check]] = [
    ({"code": 455}, lambda seen, true: seen.status == "200" and seen.json["code"] == 455),
    ({"code": 429, "http_status": 200}, lambda seen, true: seen.status == "200" and seen.json["code"] == 429),
    ({"code": 429}, lambda seen, true: seen.status == "429" and seen.json["code"] == 429),
    ({"code": 500, "message": "odd"}, lambda seen, true: seen.json["msg"] == "odd"),
    ({"code": 505, "data": {"taskId": "x"}}, lambda seen, true: seen.json["data"] == {"taskId": "x"}),
    (
        {"code": 455, "http_status": 503, "retry_after": 7},
        lambda seen, true: seen.headers["Retry-After"] == "7",
    ),
    ({"code": 455, "retry_after": 1.5}, lambda seen, true: seen.headers["Retry-After"] == "1.5"),
    ({"code": 455, "retry_after": -1}, lambda seen, true: seen.headers["Retry-After"] == "-1"),
    ({"code": 455, "retry_after": "soon"}, lambda seen, true: seen.headers["Retry-After"] == "soon"),
    ({"code": 455, "retry_after": ""}, lambda seen, true: seen.headers["Retry-After"] == ""),
    ({"code": 455, "headers": {"Set-Cookie": "a=b"}}, lambda seen, true: seen.headers["Set-Cookie"] == "a=b"),
]
LOOKS: list[tuple[dict[str, Any], Check]] = [
    ({"record": "lag"}, record(lambda r: r["completeTime"] > 0 == r["successFlag"])),
    ({"record": "stale_flag"}, record(lambda r: (r["successFlag"], r["status"]) == (0, "SUCCESS"))),
    ({"record": "stale_status"}, record(lambda r: (r["successFlag"], r["status"]) == (1, "GENERATING"))),
    ({"record": "flag_4"}, record(lambda r: r["successFlag"] == 4)),
    ({"record": "vanish"}, lambda seen, true: (seen.json["code"], seen.json["data"]) == (422, None)),
    ({"record": "null"}, lambda seen, true: (seen.json["code"], seen.json["data"]) == (200, None)),
    ({"record": "other_task"}, lambda seen, true: seen.record["taskId"] == "0" * 32),
    ({"record": "no_response"}, lambda seen, true: seen.record["response"] is None),
    ({"record": "no_urls"}, lambda seen, true: seen.record["response"] == {"resultUrls": []}),
    ({"record": "result_urls"}, response(lambda r: len(r["result_urls"]) == 1)),
    ({"record": "json_text"}, response(lambda r: len(json.loads(r)["resultUrls"]) == 1)),
    ({"record": "json_list_text"}, response(lambda r: len(json.loads(r)[0]) > 40)),
    ({"record": "list"}, response(lambda r: isinstance(r, list) and len(r) == 1)),
    ({"record": "no_status"}, record(lambda r: "status" not in r)),
    ({"record": "unknown_status"}, record(lambda r: r["status"] == "ARCHIVED")),
    ({"record": "lower_case"}, record(lambda r: r["status"] == "success")),
    ({"record": "empty_error"}, record(lambda r: (r["errorCode"], r["errorMessage"]) == ("", ""))),
    ({"record": "dict_error"}, record(lambda r: isinstance(r["errorMessage"], dict))),
    ({"record": "old_error_code"}, record(lambda r: (r["errorCode"], r["status"]) == (400, "SUCCESS"))),
    ({"record": "text_numbers"}, record(lambda r: (r["successFlag"], type(r["createTime"])) == ("1", str))),
    ({"record": "text_times"}, record(lambda r: r["createTime"][4] == "-")),
    ({"record": "odd_progress"}, record(lambda r: r["progress"] == "48%")),
    ({"record": "more_fields"}, record(lambda r: "queue" in r)),
    ({"record": "fewer_fields"}, record(lambda r: sorted(r) == ["response", "successFlag", "taskId"])),
]  # fmt: skip  # a row is a line
PICTURES: list[tuple[dict[str, Any], Check]] = [
    ({"image": "missing"}, image(404, lambda body, true: body == b"")),
    ({"image": "expired"}, image(404, lambda body, true: body == b"")),
    ({"image": "cut"}, image(200, lambda body, true: body == true[: len(true) // 2])),
    ({"image": "trailing"}, image(200, lambda body, true: body.startswith(true) and len(body) > len(true))),
    ({"image": "broken"}, image(200, lambda body, true: len(body) == len(true) and body != true)),
    ({"image": "html"}, image(200, lambda body, true: body.startswith(b"<html>"))),
    ({"image": "empty"}, image(200, lambda body, true: body == b"")),
    ({"image": "other_type"}, lambda seen, true: seen.headers["Content-Type"] == "application/octet-stream"),
]
CASES = [
    *((kind, *case) for kind in KINDS for case in ANY),
    *((kind, *case) for kind in KINDS[:-1] for case in CODES),
    *(("look", *case) for case in LOOKS),
    *(("image", *case) for case in PICTURES),
]
# These need a signed link, which is not the request of this sweep.
ELSEWHERE = {"image=expired_link": "test_a_signed_link_that_has_expired"}


def name_of(case: tuple[str, dict[str, Any], Check]) -> str:
    kind, options, _ = case
    return f"{kind}-" + "-".join(
        f"{name}={'f' if callable(value) else value}" for name, value in options.items()
    )


def test_every_row_is_seen_on_the_wire() -> None:
    """A new effect or variant fails here until it has a case; each is tried with all of its kinds."""
    tried = {(kind, row_of(options)) for kind, options, _ in CASES}
    wanted = {(kind, row) for row in rows() for kind in EFFECTS[row.partition("=")[0]].kinds}
    left_out = {(kind, row) for kind, row in wanted if row in ELSEWHERE}
    assert tried == wanted - left_out
    assert all(test in globals() for test in ELSEWHERE.values())


@pytest.mark.once
@pytest.mark.parametrize("case", CASES, ids=name_of)
async def test_on_the_wire(case: tuple[str, dict[str, Any], Check]) -> None:
    """The fault is seen by the one request that it is for; the one after it gets the true answer."""
    kind, options, check = case
    async with Emulator(duration=0.0, pictures=False, seed=1, limit=100) as kie:
        true = await exchange(kie, request_of(kie, kind))
        assert true.status == "200"
        assert true.end == "open"
        kie.fault(kind, **options)  # type: ignore[arg-type]  # from a table
        assert kie.unused() or "refuse" in options  # which fires at once
        assert check(await exchange(kie, request_of(kie, kind)), true)
        assert kie.unused() == []
        if "refuse" in options:
            await asyncio.sleep(5.0)
        control = await exchange(kie, request_of(kie, kind))
        assert control.status == "200"
        assert not fails_safely(check, control, true)


def fails_safely(check: Check, seen: Exchange, true: Exchange) -> bool:
    """The check of an answer that may lack what the check reads."""
    try:
        return check(seen, true)
    except (KeyError, ValueError, AttributeError, TypeError, IndexError):
        return False


CHARGED: dict[str, tuple[dict[str, Any], bool]] = {
    "code": ({"code": 500}, False),
    "code, charged": ({"code": 500, "charged": True}, True),
    "page": ({"page": "bad_gateway"}, False),
    "page, charged": ({"page": "bad_gateway", "charged": True}, True),
    "body": ({"body": "{}"}, False),
    "http_status": ({"http_status": 502}, False),
    "redirect": ({"redirect": "/there"}, False),
    "headers": ({"headers": {"X-Odd": "yes"}}, True),
    "reset before": ({"reset": "before"}, False),
    "reset after": ({"reset": "after"}, True),
    "reset after, not charged": ({"reset": "after", "charged": False}, False),
    "cut": ({"cut": 0}, True),
    "cut, not charged": ({"cut": 0, "charged": False}, False),
    "stall": ({"stall": "forever"}, True),
    "drip": ({"drip": 1.0}, True),
    "framing": ({"framing": "two_lengths"}, True),
    "open_ended": ({"open_ended": True}, True),
    "refuse": ({"refuse": 1.0}, False),
    "by": ({"by": lambda arrival: {"code": 500}}, False),
}


@pytest.mark.parametrize("name", CHARGED)
async def test_what_a_submit_costs(name: str) -> None:
    """A submit is charged as the table says, once, and one that was not read does not count as a submit."""
    options, charged = CHARGED[name]
    async with Emulator(duration=0.0) as kie:
        kie.fault("submit", **options)  # type: ignore[arg-type]  # from a table
        await exchange(kie, request_of(kie, "submit"))
        assert (kie.paid, kie.credits) == ((1, 994.0) if charged else (0, 1000.0))
        assert len(kie.submits) == (0 if "before" in name or name == "refuse" else 1)
        if EFFECTS[name.split(",")[0].split()[0]].charged is not None and "," not in name:
            assert EFFECTS[name].charged is charged


def test_every_effect_of_a_submit_has_a_price() -> None:
    """A new effect for submits fails here until its price is tested."""
    effects = {name for name, effect in EFFECTS.items() if "submit" in effect.kinds}
    assert {name.split(",")[0].split()[0] for name in CHARGED} == effects


@pytest.mark.parametrize(("form", "seconds"), [("date+30", 30), ("date-5.5", -5.5)])
async def test_retry_after_as_a_date(form: str, seconds: float) -> None:
    """The date is that many seconds from now, on the clock of the emulator."""
    async with Emulator() as kie:
        kie.fault("submit", code=429, retry_after=form)
        seen = await exchange(kie, request_of(kie, "submit"))
        date = parsedate_to_datetime(seen.headers["Retry-After"])
        now = kie.epoch + kie.now() - OPEN  # the exchange ends when nothing more comes
        assert abs(date.timestamp() - now - seconds) <= 1


async def test_a_signed_link_that_has_expired() -> None:
    """`expired_link` is for signed links, and leaves the URL of the result alone."""
    async with Emulator(duration=0.0, pictures=False) as kie:
        link = (await exchange_quickly(kie, request_of(kie, "link"))).json["data"].removeprefix(kie.url)
        get = f"GET {link} HTTP/1.1\r\nHost: kie\r\n\r\n".encode()
        assert (await exchange_quickly(kie, get)).status == "200"
        kie.fault("image", image="expired_link")
        assert (await exchange_quickly(kie, request_of(kie, "image"))).status == "200"
        assert (await exchange_quickly(kie, get)).status == "403"
        assert (await exchange_quickly(kie, get)).status == "200"
        assert kie.unused() == []


async def exchange_quickly(kie: Emulator, request: bytes) -> Exchange:
    """An exchange after which the connection closes, so that no time passes."""
    head, _, rest = request.partition(b"\r\n")
    return await exchange(kie, b"\r\n".join((head, b"Connection: close", rest)))


async def test_an_unread_body_is_reset_while_it_is_sent() -> None:
    """`reset="before"` does not wait for the body."""
    async with Emulator() as kie:
        kie.fault("submit", reset="before")
        request = request_of(kie, "submit")
        seen = await exchange(kie, request[: request.index(b"\r\n\r\n") + 4])
        assert (seen.end, len(kie.submits), kie.paid) == ("reset", 0, 0)
        seen = await exchange(kie, request[: request.index(b"\r\n\r\n") + 4])
        assert (seen.end, seen.data) == ("open", b"")  # the control: it waits for the body


async def test_connections_are_refused_for_a_time() -> None:
    """From the moment it is planned, or after the answer to the last request before it; the port stays."""
    async with Emulator(duration=0.0) as kie:
        port, start = kie.port, kie.now()
        kie.fault("look", refuse=5.0, after=2)
        for _ in range(2):
            seen = await exchange_quickly(kie, request_of(kie, "look"))
            assert (seen.status, seen.headers["Connection"]) == ("200", "close")
        assert kie.unused() == []
        for kind in KINDS:
            assert (await exchange_quickly(kie, request_of(kie, kind))).end == "refused"
        await asyncio.sleep(start + 4.99 - kie.now())
        assert (await exchange_quickly(kie, request_of(kie, "credits"))).end == "refused"
        await asyncio.sleep(start + 5.01 - kie.now())
        assert (await exchange_quickly(kie, request_of(kie, "credits"))).status == "200"
        assert kie.port == port


async def test_idle_connections_close_when_connections_are_refused() -> None:
    """A connection that was kept open is closed, so that no request slips through."""
    async with Emulator() as kie:
        reader, writer = await asyncio.open_connection("127.0.0.1", kie.port)
        writer.write(request_of(kie, "credits"))
        assert (await reader.read(2**20)).startswith(b"HTTP/1.1 200")
        kie.fault("submit", refuse=5.0)
        async with asyncio.timeout(1.0):
            assert await reader.read() == b""
        writer.close()


async def test_refusing_when_it_starts_and_when_it_closes() -> None:
    """A fault that was planned before the start counts from there; closing early leaves nothing behind."""
    kie = Emulator()
    kie.fault("submit", refuse=5.0)
    for expected in (True, False):
        async with kie:
            seen = await exchange_quickly(kie, request_of(kie, "credits"))
            assert (seen.end == "refused") is expected
    before = asyncio.all_tasks()
    async with kie:
        kie.fault("submit", refuse=5.0)
    assert asyncio.all_tasks() <= before


async def test_held_connections_end_with_the_emulator() -> None:
    """Whatever a fault keeps open is closed when the emulator closes, and no task is left."""
    before = asyncio.all_tasks()
    async with Emulator(duration=0.0) as kie:
        kie.fault("credits", stall="forever", times="always")
        for _ in range(3):
            assert (await exchange(kie, request_of(kie, "credits"))).end == "open"
        reader, writer = await asyncio.open_connection("127.0.0.1", kie.port)
        writer.write(request_of(kie, "credits"))
        await asyncio.sleep(1.0)
    assert await reader.read() == b""
    writer.close()
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()


@pytest.mark.parametrize("answer", ["code", "page", "image"])
async def test_the_connection_is_kept_after_an_answer(answer: str) -> None:
    """What only says something else is an ordinary answer: the next request uses the same connection."""
    options: dict[str, Any] = {"code": {"code": 455}, "page": {"page": "bad_gateway"}}.get(
        answer, {"image": "cut"}
    )
    kind: Any = "image" if answer == "image" else "credits"
    async with Emulator(duration=0.0, pictures=False) as kie:
        kie.fault(kind, **options)
        request = request_of(kie, kind)
        seen = await exchange(kie, request + request)
        assert seen.end == "open"
        assert seen.data.count(b"HTTP/1.1 ") == 2
