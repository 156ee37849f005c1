"""What a callback says, when it is sent and how it is signed.

Values only: `caller` posts them. A real callback is one row of the table of contents; the other rows
are what anybody who knows a callback URL may post to it.
"""

import base64
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any

import attrs
from attrs.validators import ge, in_, instance_of, le

USER_AGENT = "kie4o-emulator"
SPACING = (5.0, 10.0, 20.0)  # emulated seconds before each repeat: Kie says three, and not how far apart
NOT_THE_KEY = b"not the key of this account"

WHEN = ("end", "early", "together", "never")
AT_ONCE = ("early", "together")  # the task is over before its submit is answered


@attrs.frozen
class Claim:
    """What a callback tells of a task: a code, a reason, and images unless it failed."""

    code: int | None
    message: str | None
    urls: tuple[str, ...] | None = None

    def body(self, task_id: str) -> dict[str, Any]:
        info = None if self.urls is None else {"result_urls": list(self.urls)}
        return {"code": self.code, "msg": self.message, "data": {"taskId": task_id, "info": info}}


@attrs.frozen(kw_only=True)
class Content:
    """One row of `CONTENTS`."""

    claim: Claim | None = None  # in place of the true one
    stranger: bool = False  # about a task id that Kie never gave
    forged: bool = False  # signed by somebody without the key
    replays: int = 0  # how often it comes again as it was, to the byte


FOREIGN = Claim(200, "success", ("https://evil.example/x.png",))
FAILURE = Claim(500, "GPT 4O failed to edit the picture")
CONTENTS = {
    "true": Content(),
    "altered": Content(claim=FOREIGN),
    "false failure": Content(claim=FAILURE),
    "forged": Content(claim=FOREIGN, forged=True),
    "replayed": Content(replays=3),
    "unknown task": Content(claim=FOREIGN, stranger=True),
}


@attrs.frozen
class Call:
    """How a task calls back: `when`, with how many `copies` at once, `delay` emulated seconds later.

    "early" is before the submit is answered, "together" at that moment; the task has then ended. What is
    not answered with 200 is sent again, at most `repeats` times. `content` is a row of `CONTENTS`.
    """

    when: str = attrs.field(default="end", validator=in_(WHEN))
    copies: int = attrs.field(default=1, kw_only=True, validator=[instance_of(int), ge(1)])
    content: str = attrs.field(default="true", kw_only=True, validator=in_(CONTENTS))
    delay: float = attrs.field(default=0.0, kw_only=True, validator=ge(0))
    repeats: int = attrs.field(
        default=len(SPACING), kw_only=True, validator=[instance_of(int), ge(0), le(len(SPACING))]
    )
    signed: bool = attrs.field(default=True, kw_only=True)


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
    if isinstance(call, Call):
        return call
    if call not in CALLS:
        raise ValueError(f"callback={call!r}: a Call, or one of {', '.join(CALLS)}")
    return CALLS[call]


@attrs.frozen
class Letter:
    """One callback, ready to be posted."""

    task_id: str
    url: str
    body: bytes
    headers: Mapping[str, str]


@attrs.frozen(kw_only=True)
class CallRecord:
    """One attempt at a callback. `task_id` is the task that it was sent for, whatever `body` says."""

    task_id: str
    url: str
    body: bytes
    headers: Mapping[str, str] = attrs.field(repr=False)
    attempt: int  # 1, and up to 3 repeats; a replay has the number of what it repeats
    at: float  # emulated seconds, when it went out
    sent: bool = True  # False: not on this machine, so nobody was asked
    status: int | None = None  # HTTP, of the answer
    error: str | None = None  # why there is no answer

    @property
    def message(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


def sign(task_id: str, *, key: str | bytes, timestamp: int) -> dict[str, str]:
    """The headers of a signed callback: base64 of HMAC-SHA256 over the id, a dot and the time."""
    secret = key if isinstance(key, bytes) else key.encode()
    digest = hmac.digest(secret, f"{task_id}.{timestamp}".encode(), "sha256")
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": base64.b64encode(digest).decode()}


def write(
    truth: Claim,
    call: Call,
    *,
    task_id: str,
    url: str,
    key: str | bytes | None,
    timestamp: int,
) -> Letter:
    """The callback about a task, as `call` wants it; without a `key` Kie does not sign."""
    content = CONTENTS[call.content]
    about = secrets.token_hex(16) if content.stranger else task_id
    body = json.dumps((content.claim or truth).body(about)).encode()
    signer = NOT_THE_KEY if content.forged else key
    headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
    if call.signed and signer:
        headers |= sign(about, key=signer, timestamp=timestamp)
    return Letter(task_id, url, body, headers)
