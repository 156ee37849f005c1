"""What Kie posts to a callback URL: parse it, verify its signature, sign one for a test.

Pure, and importable without aiohttp, so that a receiver in any framework can use it. Any bytes and any
headers raise `CallbackError` and nothing else. Source: Kie's pages "GPT-4o image callbacks" and "webhook
verification".

The signature covers the task id and the time stamp, nothing else. A verified callback proves that Kie
reported on this task at about that time, not that its URLs are genuine. Treat it as a hint and pass it to
`client.deliver`, which polls the task.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from .. import clock
from ..details import TaskDetails, TaskState
from ..errors import ConfigurationError, InvalidSignatureError, MalformedCallbackError, invalid_setting
from ..models import Callback
from ..wire import decoding, finding

TIMESTAMP_HEADER = "X-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Webhook-Signature"
MAX_BODY = 64 * 1024  # bytes; a real callback is well under one KiB
TOLERANCE = 300.0  # seconds, as in Standard Webhooks and at Stripe; Kie gives no figure. A client has 1 h.

_TIMESTAMP = re.compile(r"[0-9]{1,11}", re.ASCII)
# Callbacks page. Any other code is no more than a reason to poll.
_STATE_OF_CODE: dict[int | None, TaskState] = {
    200: TaskState.SUCCEEDED,
    400: TaskState.FAILED,
    451: TaskState.FAILED,
    500: TaskState.FAILED,
}


class SupportsItems(Protocol):
    """Headers as a mapping of any kind, also one that is no `Mapping`, such as `email.message.Message`."""

    def items(self) -> Iterable[tuple[Any, Any]]: ...


Headers = SupportsItems | Iterable[tuple[Any, Any]]
CallbackBody = bytes | bytearray | memoryview | str | Mapping[str, Any]


def parse_callback(
    body: CallbackBody,
    headers: Headers | None = None,
    *,
    ref: str | None = None,
    key: str | bytes | Sequence[str | bytes] | None = None,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> Callback:
    """Parse a callback, and verify its signature if there is a key.

    Args:
        body: The raw body of the request, or the object it was decoded to.
        headers: Its headers: a mapping of any web framework or of the standard library, a WSGI environ, or
            pairs.
        ref: What the callback URL carried at ``{ref}`` or in its query.
        key: The webhookHmacKey of kie.ai/settings, or several while keys are rotated. None accepts unsigned
            callbacks.
        tolerance: Seconds by which the time stamp may differ from `now`, in both directions.
        now: Unix time; the default is the current time.

    Raises:
        MalformedCallbackError: The body is not a callback.
        InvalidSignatureError: The signature is missing or wrong, or its time stamp is too far from `now`.
    """
    keys = [] if key is None else _keys(key)
    if type(tolerance) not in (int, float) or not tolerance > 0:
        raise invalid_setting("tolerance", tolerance, "a positive number of seconds")
    message = _message(body)
    task_id = _only_task_id(message)
    if keys:
        _check_signature(task_id, headers, keys, tolerance, clock.unix_time() if now is None else now)
    data = message.get("data")
    data = data if isinstance(data, Mapping) else {}
    code = decoding.whole_number(message.get("code"))
    words = message.get("msg")
    words = decoding.shown(words) if isinstance(words, str) else ""
    urls = finding.image_urls(message.get("data"))
    succeeded = code == 200
    return Callback(
        task_id,
        code=code,
        message=words,
        urls=urls if succeeded else (),
        ref=ref,
        verified=bool(keys),
        details=TaskDetails(
            task_id,
            state=_STATE_OF_CODE.get(code, TaskState.RUNNING),
            urls=urls if succeeded else (),
            error_code=None if succeeded else code,
            error_message=None if succeeded else words,
            raw=dict(data),
        ),
    )


def sign_callback(task_id: str, *, key: str | bytes, timestamp: int | float | str) -> dict[str, str]:
    """The two headers that Kie sends with a callback, for tests.

    Args:
        task_id: The task that the callback is about.
        key: The webhook key.
        timestamp: Unix time.
    """
    text = timestamp if isinstance(timestamp, str) else str(int(timestamp))
    return {TIMESTAMP_HEADER: text, SIGNATURE_HEADER: _signature(task_id, text, _key_bytes(key)).decode()}


def _signature(task_id: str, timestamp: str, key: bytes) -> bytes:
    digest = hmac.digest(key, f"{task_id}.{timestamp}".encode(), "sha256")
    return base64.b64encode(digest)


def _key_bytes(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")


def _keys(key: str | bytes | Sequence[str | bytes]) -> list[bytes]:
    several = [key] if isinstance(key, (str, bytes)) or not isinstance(key, Iterable) else list(key)
    if not all(isinstance(one, (str, bytes)) for one in several):
        raise ConfigurationError("invalid key: expected a webhook key, or a list of them")
    keys = [_key_bytes(one) for one in several]
    if not keys or not all(one.strip() for one in keys):
        raise InvalidSignatureError("the webhook key is blank; pass key=None to accept unsigned callbacks")
    return keys


def _message(body: object) -> Mapping[str, Any]:
    if isinstance(body, Mapping):
        return body
    if not isinstance(body, (bytes, bytearray, memoryview, str)):
        raise MalformedCallbackError(f"expected the raw body of a request, got {type(body).__name__}")
    if not body:
        raise MalformedCallbackError("the body is empty; if a middleware reads it, pass on what it has read")
    if len(body) > MAX_BODY:
        raise MalformedCallbackError(f"the body is larger than {MAX_BODY} bytes, so it is not a callback")
    try:
        message = decoding.json_value(body)
    except ValueError:
        message = None
    if not isinstance(message, Mapping):
        raise MalformedCallbackError("the body is not a JSON object")
    return message


def _only_task_id(message: Mapping[str, Any]) -> str:
    """The only task id of the message. Kie's pages show it under two names, in `data` and beside it."""
    found = finding.named_ids(message)
    if len(found) != 1:
        raise MalformedCallbackError("the body has no task id, or more than one")
    return found.pop()


def _check_signature(
    task_id: str, headers: object, keys: Sequence[bytes], tolerance: float, now: float
) -> None:
    pairs = header_pairs(headers)
    timestamp, signature = _only(pairs, TIMESTAMP_HEADER), _only(pairs, SIGNATURE_HEADER)
    if not _TIMESTAMP.fullmatch(timestamp) or abs(now - int(timestamp)) > tolerance:
        raise InvalidSignatureError(
            "the callback's time stamp is invalid or too far from now; check the clock of this machine"
        )
    given = signature.encode("utf-8", "surrogatepass")
    matches = False
    for key in keys:  # all of them, so that the time does not tell which one matches
        matches |= hmac.compare_digest(_signature(task_id, timestamp, key), given)
    if not matches:
        raise InvalidSignatureError(
            "the callback's signature is wrong; check that the key is the webhookHmacKey of kie.ai/settings"
        )


class HeaderPairs(list[tuple[str, str]]):
    """What `header_pairs` has read, and need not read again."""


def header_pairs(headers: object, only: frozenset[str] | None = None) -> HeaderPairs:
    """Names, in lower case and with hyphens, and values, of all headers or `only` of some; an environ's names
    lose their `HTTP_`.

    Raises `InvalidSignatureError` for what cannot be the headers of a request.
    """
    if isinstance(headers, HeaderPairs):
        return headers
    try:
        items = getattr(headers, "items", None)
        given: Any = items() if callable(items) else headers
        found = [None] if isinstance(given, (str, bytes)) else list(given)
    except Exception:  # not iterable, or a class in place of its instance
        found = [None]
    pairs = HeaderPairs()
    for pair in found:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidSignatureError(
                "the headers cannot be read: expected those of the request, as a mapping or as pairs, "
                f"got {type(headers).__name__}"
            )
        name = _header_text(pair[0]).lower().replace("_", "-").removeprefix("http-")
        if only is None or name in only:
            values = pair[1] if isinstance(pair[1], (list, tuple)) else (pair[1],)
            pairs += [(name, _header_text(value)) for value in values]
    return pairs


def _only(pairs: list[tuple[str, str]], name: str) -> str:
    """The value of a header that has to be there once."""
    values = [value for key, value in pairs if key == name.lower()]
    if not values:
        raise InvalidSignatureError(f"the callback is not signed: it has no header {name}")
    if len(values) > 1:
        raise InvalidSignatureError(f"the callback's header {name} is repeated, so neither value is trusted")
    return values[0].strip()


def _header_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""
