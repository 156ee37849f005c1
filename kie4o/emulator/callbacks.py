"""Callbacks as values: when a task calls back, what the callback says, and how it is signed.

`sender` posts them. Kie itself sends one row of `CONTENTS`, "true"; the other rows are what anyone who
knows a callback URL could post to it. Durations are emulated seconds.
"""

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

import attrs

from .values import COUNT, NOT_NEGATIVE, TRUE_OR_FALSE, invalid, one_of, whole

USER_AGENT = "kie4o-emulator"
REPEAT_DELAYS = (5.0, 10.0, 20.0)  # page "callbacks": three repeats; their spacing is not documented
OTHER_KEY = b"not the key of this account"

WHEN = ("end", "early", "together", "never")
AT_ONCE = ("early", "together")  # the task ends before its submit is answered


@attrs.frozen
class Report:
    """What a callback reports about a task: a code, a message, and the image URLs unless it failed."""

    code: int | None
    message: str | None
    urls: tuple[str, ...] | None = None

    def body(self, task_id: str) -> dict[str, Any]:
        """The JSON body, as on page "callbacks"."""
        info = None if self.urls is None else {"result_urls": list(self.urls)}
        return {"code": self.code, "msg": self.message, "data": {"taskId": task_id, "info": info}}


@attrs.frozen(kw_only=True)
class Content:
    """One row of `CONTENTS`."""

    report: Report | None = None  # replaces the true one
    unknown_task: bool = False  # names a task id that Kie never issued
    forged: bool = False  # signed with another key
    replays: int = 0  # identical copies that follow the first delivery


FOREIGN = Report(200, "success", ("https://evil.example/x.png",))
FAILURE = Report(500, "GPT 4O failed to edit the picture")
CONTENTS = {
    "true": Content(),
    "altered": Content(report=FOREIGN),
    "false failure": Content(report=FAILURE),
    "forged": Content(report=FOREIGN, forged=True),
    "replayed": Content(replays=3),
    "unknown task": Content(report=FOREIGN, unknown_task=True),
}


@attrs.frozen(kw_only=True)
class Call:
    """How a task calls back.

    Args:
        when: "end": when the task ends. "early": before its submit is answered. "together": at the moment
            its submit is answered. "never": not at all. With "early" and "together" the task ends at once,
            whatever its duration.
        copies: How many callbacks are sent at the same time.
        content: What the callback says. "true": what Kie sends. "altered": a success with foreign image
            URLs and a valid signature, which does not cover them. "false failure": a failure with a valid
            signature. "forged": foreign image URLs, signed with another key. "replayed": the true callback
            and, once it is answered with 200, three identical copies. "unknown task": a success of a task
            id that Kie never issued.
        delay: Emulated seconds between `when` and the callback.
        repeats: How many times, 0 to 3, a callback that is not answered with HTTP 200 is sent again.
        signed: False leaves the signature out even if the emulator has a `webhook_key`.

    Raises:
        ValueError: A value is not one of those above.
    """

    when: str = attrs.field(default="end", validator=one_of(WHEN), kw_only=False)
    copies: int = attrs.field(default=1, validator=COUNT)
    content: str = attrs.field(default="true", validator=one_of(CONTENTS))
    delay: float = attrs.field(default=0.0, validator=NOT_NEGATIVE)
    repeats: int = attrs.field(default=len(REPEAT_DELAYS), validator=whole(0, len(REPEAT_DELAYS)))
    signed: bool = attrs.field(default=True, validator=TRUE_OR_FALSE)


CALLS = {
    "end": Call(),
    "never": Call("never"),
    "twice": Call(copies=2),
    "late": Call(delay=30.0),
    "early": Call("early"),
    "together": Call("together"),
    **{content: Call(content=content) for content in CONTENTS},
}


def as_call(call: str | Call) -> Call:
    """The `Call` itself, or the one of this name."""
    if isinstance(call, Call):
        return call
    if call not in CALLS:
        raise invalid("callback", call, f"a Call, or one of {', '.join(CALLS)}")
    return CALLS[call]


@attrs.frozen
class CallbackRequest:
    """The HTTP request that delivers one callback, ready to be posted."""

    task_id: str
    url: str
    body: bytes
    headers: Mapping[str, str]


@attrs.frozen(kw_only=True)
class CallRecord:
    """One attempt to deliver a callback.

    Attributes:
        task_id: The task that called back, whatever the body says.
        url: Where the callback was posted.
        body: The bytes that were posted; `message` is the same, decoded.
        headers: The headers that were posted, a signature included.
        attempt: 1 for the first attempt, 2 to 4 for repeats; a replay has the number of its original.
        at: When it was posted, in emulated seconds on the clock of `Emulator.now()`.
        sent: False if the URL is not on this machine; nothing was posted then.
        status: HTTP status of the answer, or None without an answer.
        error: Why there is no answer, or None.
    """

    task_id: str
    url: str
    body: bytes
    headers: Mapping[str, str] = attrs.field(repr=False)
    attempt: int
    at: float
    sent: bool = True
    status: int | None = None
    error: str | None = None

    @property
    def message(self) -> Any:
        """The body, decoded from JSON."""
        return json.loads(self.body)


def sign(task_id: str, *, key: str | bytes, timestamp: int) -> dict[str, str]:
    """The headers of a signed callback: base64 of HMAC-SHA256 over the id, a dot and the unix time.

    Source: page "webhook verification".
    """
    secret = key if isinstance(key, bytes) else key.encode()
    digest = hmac.digest(secret, f"{task_id}.{timestamp}".encode(), "sha256")
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": base64.b64encode(digest).decode()}


def build_callback(
    report: Report,
    call: Call,
    *,
    task_id: str,
    url: str,
    key: str | bytes | None,
    timestamp: int,
) -> CallbackRequest:
    """The request for a task's callback. `report` is the true one, which `call.content` may replace.

    Without a `key` Kie sends no signature.
    """
    content = CONTENTS[call.content]
    named = secrets.token_hex(16) if content.unknown_task else task_id
    body = json.dumps((content.report or report).body(named)).encode()
    signing_key = OTHER_KEY if content.forged else key
    headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
    if call.signed and signing_key:
        headers |= sign(named, key=signing_key, timestamp=timestamp)
    return CallbackRequest(task_id, url, body, headers)
