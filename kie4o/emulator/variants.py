"""The named variants of faults: pages in place of an envelope, odd records, odd images and broken framing.

Everything here is pure. Each table is from a name to what it means and a function of the true answer, so that
a new variant is one row. `faults` says for which requests they are, `delivery` sends them.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

import attrs

from .tasks import Answer

_HTML = "text/html; charset=UTF-8"
_JSON = "application/json"
_STRANGER = "0" * 32


def _gateway(title: str, server: str) -> bytes:
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    return f"{page}<hr><center>{server}</center>\r\n</body>\r\n</html>\r\n".encode()


def _cloudflare(status: int, title: str) -> bytes:
    heading = f"{title} <span>Error code {status}</span>"
    return (
        f"<!DOCTYPE html>\n<html lang='en-US'>\n<head><title>api.kie.ai | {status}: {title}</title></head>\n"
        f"<body><div id='cf-wrapper'><h1>{heading}</h1></div></body>\n</html>\n"
    ).encode()


@attrs.frozen
class Page:
    """An answer without an envelope."""

    does: str
    status: int
    body: bytes
    content_type: str = _HTML
    headers: Mapping[str, str] = attrs.field(factory=dict)


_CHALLENGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body></body></html>"
_EDGE = {"Server": "cloudflare", "CF-RAY": "8f0000000000a1b2-FRA"}

PAGES = {
    "bad_gateway": Page("502, HTML of nginx", 502, _gateway("502 Bad Gateway", "nginx")),
    "unavailable": Page("503, HTML of nginx", 503, _gateway("503 Service Temporarily Unavailable", "nginx")),
    "gateway_timeout": Page("504, HTML of nginx", 504, _gateway("504 Gateway Time-out", "nginx")),
    "too_large": Page("413, HTML of nginx", 413, _gateway("413 Request Entity Too Large", "nginx")),
    "cloudflare_1010": Page(
        "403, the text with which Cloudflare refuses a User-Agent",
        403,
        b"error code: 1010",
        "text/plain; charset=UTF-8",
        _EDGE,
    ),
    "cloudflare_challenge": Page("403, a challenge for browsers", 403, _CHALLENGE, _HTML, _EDGE),
    "cloudflare_520": Page(
        "520, Cloudflare cannot read Kie's answer",
        520,
        _cloudflare(520, "Web server is returning an unknown error"),
        _HTML,
        _EDGE,
    ),
    "cloudflare_522": Page(
        "522, Cloudflare cannot reach Kie", 522, _cloudflare(522, "Connection timed out"), _HTML, _EDGE
    ),
    "cloudflare_524": Page(
        "524, Kie did not answer Cloudflare in time",
        524,
        _cloudflare(524, "A timeout occurred"),
        _HTML,
        _EDGE,
    ),
    "login": Page("200, HTML such as that of a captive portal", 200, _gateway("Sign in", "portal")),
    "spring": Page(
        "404, JSON of the framework without `code`",
        404,
        b'{"timestamp":"2026-08-06T12:00:00.000+00:00","status":404,"error":"Not Found","path":"/"}',
        _JSON,
    ),
    "empty": Page("200, no bytes at all", 200, b"", _JSON),
    "half_json": Page("200, JSON that breaks off, in a whole answer", 200, b'{"code":200,"msg":"suc', _JSON),
    "not_an_object": Page("200, a JSON list", 200, b"[]", _JSON),
    "deep_json": Page("200, 100,000 nested JSON lists", 200, b"[" * 100_000, _JSON),
}


# -- records ---------------------------------------------------------------------------------------


@attrs.frozen
class Record:
    """A change of what record-info answers; `needs` is the state of the task that it takes."""

    does: str
    change: Callable[[dict[str, Any]], Answer]
    needs: str = "any"


STATES: dict[str, Callable[[dict[str, Any]], bool]] = {
    "any": lambda data: True,
    "ended": lambda data: bool(data["successFlag"]),
    "images": lambda data: bool((data["response"] or {}).get("resultUrls")),
}


def _with(**changes: Any) -> Callable[[dict[str, Any]], Answer]:
    return lambda data: Answer(200, data=data | changes)


def _without(*names: str) -> Callable[[dict[str, Any]], Answer]:
    return lambda data: Answer(200, data={name: data[name] for name in data if name not in names})


def _response(form: Callable[[list[str]], Any]) -> Callable[[dict[str, Any]], Answer]:
    return lambda data: Answer(200, data=data | {"response": form(data["response"]["resultUrls"])})


def _numbers_as_text(data: dict[str, Any]) -> Answer:
    return Answer(
        200, data={name: str(value) if type(value) is int else value for name, value in data.items()}
    )


def _times_as_text(data: dict[str, Any]) -> Answer:
    times = {name: data[name] for name in ("createTime", "completeTime") if data[name] is not None}
    texts = {
        name: f"{datetime.fromtimestamp(at / 1000, UTC):%Y-%m-%d %H:%M:%S}" for name, at in times.items()
    }
    return Answer(200, data=data | texts)


RECORDS = {
    "lag": Record(
        "`completeTime` is set, and the rest still says GENERATING",
        _with(status="GENERATING", successFlag=0, response=None, progress="0.00"),
        "ended",
    ),
    "stale_flag": Record("SUCCESS with images, and `successFlag` still 0", _with(successFlag=0), "images"),
    "stale_status": Record(
        "the flag of the end, and `status` still GENERATING", _with(status="GENERATING"), "ended"
    ),
    "flag_4": Record("`successFlag` 4 with SUCCESS and images", _with(successFlag=4), "images"),
    "vanish": Record("422: the record does not exist", lambda data: Answer(422, "The record does not exist")),
    "null": Record("code 200 with `data` null", lambda data: Answer(200)),
    "other_task": Record("the record of another task", _with(taskId=_STRANGER)),
    "no_response": Record("SUCCESS, and `response` still null", _with(response=None), "images"),
    "no_urls": Record(
        "SUCCESS, and `resultUrls` still empty", _response(lambda urls: {"resultUrls": []}), "images"
    ),
    "result_urls": Record(
        "the spelling `result_urls`", _response(lambda urls: {"result_urls": urls}), "images"
    ),
    "json_text": Record(
        "`response` as JSON text", _response(lambda urls: json.dumps({"resultUrls": urls})), "images"
    ),
    "json_list_text": Record("`response` as JSON text of a list", _response(json.dumps), "images"),
    "list": Record("`response` as a list", _response(lambda urls: urls), "images"),
    "no_status": Record("no `status`", _without("status")),
    "unknown_status": Record("a `status` that Kie does not document", _with(status="ARCHIVED")),
    "lower_case": Record(
        "`status` in lower case", lambda data: Answer(200, data=data | {"status": data["status"].lower()})
    ),
    "empty_error": Record('`errorCode` and `errorMessage` are ""', _with(errorCode="", errorMessage="")),
    "dict_error": Record(
        "`errorMessage` is an object", _with(errorCode=None, errorMessage={"en": "none", "code": [0]})
    ),
    "old_error_code": Record("`errorCode` 400 on a success", _with(errorCode=400, errorMessage=""), "images"),
    "text_numbers": Record("numbers as text", _numbers_as_text),
    "text_times": Record("times as `YYYY-MM-DD HH:MM:SS`", _times_as_text),
    "odd_progress": Record("`progress` is 48%", _with(progress="48%")),
    "more_fields": Record(
        "fields that Kie does not document", _with(queue={"place": 3}, model="gpt-image-1")
    ),
    "fewer_fields": Record(
        "only `taskId`, `successFlag` and `response`",
        lambda data: Answer(200, data={name: data[name] for name in ("taskId", "successFlag", "response")}),
    ),
}


# -- images ----------------------------------------------------------------------------------------


@attrs.frozen
class Image:
    """A change of an image that is served. `signed` limits it to signed links, or to those of the result."""

    does: str
    change: Callable[[bytes], bytes] = lambda body: body
    status: int = 200
    content_type: str = "image/png"
    signed: bool | None = None


def _broken(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes(byte ^ 0xFF for byte in body[middle : middle + 4]) + body[middle + 4 :]


IMAGES = {
    "missing": Image("404, as long as it is not there yet", lambda body: b"", 404, "text/plain"),
    "expired": Image("404 for the URL of the result", lambda body: b"", 404, "text/plain", signed=False),
    "expired_link": Image("403 for a signed link", lambda body: b"", 403, "text/plain", signed=True),
    "cut": Image("the first half of the image, in a whole answer", lambda body: body[: len(body) // 2]),
    "trailing": Image("the image, and bytes after its end", lambda body: body + b"\0" * 8 + b"trailing"),
    "broken": Image("four wrong bytes in the middle", _broken),
    "html": Image(
        "an HTML page with status 200", lambda body: _gateway("Please wait", "cdn"), content_type=_HTML
    ),
    "empty": Image("no bytes, with status 200", lambda body: b""),
    "other_type": Image("the image as application/octet-stream", content_type="application/octet-stream"),
}


# -- framing ---------------------------------------------------------------------------------------


@attrs.frozen
class Message:
    """An HTTP answer, before it is bytes."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...]  # without those of the framing
    body: bytes

    def head(self, *framing: str, version: str = "1.1") -> bytes:
        """The status line and the headers, with these lines of framing."""
        lines = [f"{name}: {value}" for name, value in self.headers]
        text = "\r\n".join([f"HTTP/{version} {self.status} {self.reason}", *lines, *framing, "", ""])
        return text.encode("utf-8", "surrogateescape")

    def whole(self, *framing: str, length: int | None = None, connection: str = "close") -> bytes:
        """The bytes of the answer. `length` replaces the true one."""
        count = len(self.body) if length is None else length
        return self.head(*framing, f"Content-Length: {count}", f"Connection: {connection}") + self.body


def _chunked(message: Message, chunks: bytes, *framing: str) -> bytes:
    return message.head("Transfer-Encoding: chunked", *framing, "Connection: close") + chunks


def _chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


def _stray(message: Message) -> bytes:
    """An answer to no request: a refusal that would be read as the next answer."""
    stray = Message(200, "OK", (("Content-Type", _JSON),), b'{"code":433,"msg":"stray","data":null}')
    return stray.whole(connection="keep-alive")


@attrs.frozen
class Framing:
    """A way to write an answer as bytes; with `follows` they come after the usual answer."""

    does: str
    write: Callable[[Message], bytes]
    follows: bool = False


FRAMINGS = {
    "too_long": Framing(
        "`Content-Length` is 10 more than what comes", lambda m: m.whole(length=len(m.body) + 10)
    ),
    "too_short": Framing(
        "`Content-Length` is 10 less than what comes", lambda m: m.whole(length=max(0, len(m.body) - 10))
    ),
    "two_lengths": Framing(
        "two different `Content-Length`", lambda m: m.whole(f"Content-Length: {len(m.body) + 10}")
    ),
    "length_and_chunks": Framing(
        "`Content-Length` beside chunks",
        lambda m: _chunked(m, _chunk(m.body) + b"0\r\n\r\n", f"Content-Length: {len(m.body)}"),
    ),
    "bad_chunk": Framing(
        "the size of a chunk is no number", lambda m: _chunked(m, b"zz\r\n" + m.body + b"\r\n")
    ),
    "no_last_chunk": Framing("chunks without the last, empty one", lambda m: _chunked(m, _chunk(m.body))),
    "bad_status_line": Framing(
        "the status is no number", lambda m: m.whole().replace(b"HTTP/1.1 ", b"HTTP/1.1 x", 1)
    ),
    "bad_header": Framing("a header line without a colon", lambda m: m.whole("this is no header")),
    "huge_header": Framing("a header of a megabyte", lambda m: m.whole("X-Huge: " + "x" * 2**20)),
    "not_gzip": Framing("`Content-Encoding: gzip`, and no gzip", lambda m: m.whole("Content-Encoding: gzip")),
    "until_close": Framing(
        "HTTP/1.0 without a length: it ends with the connection", lambda m: m.head(version="1.0") + m.body
    ),
    "unsolicited": Framing("a second answer follows the usual one, for no request", _stray, follows=True),
}


def retry_after(value: float | str, moment: float) -> str:
    """The text of a Retry-After header. "date+30" is the HTTP date 30 s after `moment`, a unix time."""
    text = str(value)
    if text.startswith(("date+", "date-")):
        return format_datetime(datetime.fromtimestamp(moment + float(text[4:]), UTC), usegmt=True)
    return text
