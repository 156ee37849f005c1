"""What Kie posts to a callback URL: read it, check its signature, sign one for a test.

Pure, and importable without aiohttp, so that any receiver in any framework can use it. From any
bytes and any headers only `CallbackError` arises. Source: Kie's pages "GPT-4o image callbacks"
and "webhook verification".

The signature covers the task id and the timestamp, nothing else. A verified callback therefore
proves that Kie spoke of this task around that time, not that its URLs are genuine: treat it as a
hint, and let `client.deliver` confirm it with a look at the task.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..details import TaskDetails, TaskState
from ..errors import ConfigurationError, InvalidSignatureError, MalformedCallbackError
from ..models import Callback
from ..wire import decoding

TIMESTAMP_HEADER = "X-Webhook-Timestamp"
SIGNATURE_HEADER = "X-Webhook-Signature"
MAX_BODY = 64 * 1024  # bytes; a real callback has well under one KiB
TOLERANCE = 300.0  # seconds, as Standard Webhooks and Stripe do; Kie names no figure

_TIMESTAMP = re.compile(r"[0-9]{1,11}", re.ASCII)
_STATE_OF_CODE = {200: TaskState.SUCCEEDED, None: TaskState.RUNNING}  # every other one is a failure
_REFUSED = "the callback's signature does not fit: is the key the webhookHmacKey of kie.ai/settings?"


def parse_callback(
    body: bytes | bytearray | memoryview | str | Mapping[str, Any],
    headers: Mapping[str, Any] | Iterable[tuple[Any, Any]] | None = None,
    *,
    ref: str | None = None,
    key: str | bytes | Sequence[str | bytes] | None = None,
    tolerance: float = TOLERANCE,
    now: float | None = None,
) -> Callback:
    """A `Callback` from a request's raw body and headers.

    With a `key` (or several, while you rotate them) the signature is required and must be at most
    `tolerance` seconds from `now` (wall clock), in both directions. `ref` is what the callback
    URL carried. Raises `MalformedCallbackError` or `InvalidSignatureError`.
    """
    keys = _keys(key)
    if type(tolerance) not in (int, float) or not tolerance > 0:
        raise ConfigurationError(f"tolerance={tolerance!r} would refuse every callback")
    message = _message(body)
    task_id = _only_task_id(message)
    if keys:
        _check_signature(task_id, headers, keys, tolerance, time.time() if now is None else now)
    data = message.get("data")
    data = data if isinstance(data, Mapping) else {}
    code = decoding.whole_number(message.get("code"))
    words = message.get("msg")
    words = decoding.shown(words) if isinstance(words, str) else ""
    urls = decoding.image_urls(data.get("info")) or decoding.image_urls(dict(data))
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
            state=_STATE_OF_CODE.get(code, TaskState.FAILED),
            urls=urls if succeeded else (),
            error_code=None if succeeded else code,
            error_message=None if succeeded else words,
            raw=dict(data),
        ),
    )


def sign_callback(task_id: str, *, key: str | bytes, timestamp: int | float | str) -> dict[str, str]:
    """The two headers that Kie sends with a callback about `task_id`; for your tests."""
    text = timestamp if isinstance(timestamp, str) else str(int(timestamp))
    return {TIMESTAMP_HEADER: text, SIGNATURE_HEADER: _signature(task_id, text, _key_bytes(key)).decode()}


def _signature(task_id: str, timestamp: str, key: bytes) -> bytes:
    digest = hmac.new(key, f"{task_id}.{timestamp}".encode(), hashlib.sha256).digest()
    return base64.b64encode(digest)


def _key_bytes(key: str | bytes) -> bytes:
    return key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")


def _keys(key: str | bytes | Sequence[str | bytes] | None) -> list[bytes]:
    if key is None:
        return []
    several = [key] if isinstance(key, (str, bytes)) or not isinstance(key, Iterable) else list(key)
    if not all(isinstance(one, (str, bytes)) for one in several):
        raise ConfigurationError("a webhook key must be text, or a list of texts while you rotate them")
    keys = [_key_bytes(one) for one in several]
    if not keys or not all(one.strip() for one in keys):
        raise InvalidSignatureError("a webhook key is blank: pass key=None to accept unsigned callbacks")
    return keys


def _message(body: object) -> Mapping[str, Any]:
    if isinstance(body, Mapping):
        return body
    if not isinstance(body, (bytes, bytearray, memoryview, str)):
        raise MalformedCallbackError("pass the raw request body: bytes, text, or the decoded object")
    if len(body) > MAX_BODY:
        raise MalformedCallbackError(f"a callback of more than {MAX_BODY} bytes is not Kie's")
    try:
        message = decoding.json_value(body)
    except ValueError:
        message = None
    if not isinstance(message, Mapping):
        raise MalformedCallbackError("the body is not a JSON object")
    return message


def _only_task_id(message: Mapping[str, Any]) -> str:
    """The one task id of the message; Kie's pages show it in four places."""
    data = message.get("data")
    homes = [data, message] if isinstance(data, Mapping) else [message]
    named = [home.get(name) for home in homes for name in ("taskId", "task_id")]
    named = [value for value in named if value is not None]
    found = {decoding.task_id(value) for value in named}
    task_id = found.pop() if len(found) == 1 else None
    if task_id is None:
        raise MalformedCallbackError("the body names no task id, or more than one")
    return task_id


def _check_signature(
    task_id: str, headers: object, keys: Sequence[bytes], tolerance: float, now: float
) -> None:
    pairs = _pairs(headers)
    timestamp, signature = _header(pairs, TIMESTAMP_HEADER), _header(pairs, SIGNATURE_HEADER)
    if timestamp is None or signature is None:
        raise InvalidSignatureError("the callback is not signed (once each: the two X-Webhook headers)")
    if not _TIMESTAMP.fullmatch(timestamp) or abs(now - int(timestamp)) > tolerance:
        raise InvalidSignatureError("the callback's timestamp is unreadable or too far from now")
    given = signature.encode("utf-8", "surrogatepass")
    fits = False
    for key in keys:  # all of them, so that the time taken does not tell which one fits
        fits |= hmac.compare_digest(_signature(task_id, timestamp, key), given)
    if not fits:
        raise InvalidSignatureError(_REFUSED)


def _pairs(headers: object) -> list[tuple[str, str]]:
    """Names in lower case and values, of any mapping or iterable of pairs."""
    if isinstance(headers, Mapping):
        headers = headers.items()
    if not isinstance(headers, Iterable) or isinstance(headers, (str, bytes)):
        return []
    pairs = [pair for pair in headers if isinstance(pair, (tuple, list)) and len(pair) == 2]
    return [(_header_text(name).lower(), _header_text(value)) for name, value in pairs]


def _header(pairs: list[tuple[str, str]], name: str) -> str | None:
    """The one value of a header; None if it is missing or repeated."""
    values = [value for key, value in pairs if key == name.lower()]
    return values[0].strip() if len(values) == 1 else None


def _header_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return _header_text(value[0])
    return value if isinstance(value, str) else ""
