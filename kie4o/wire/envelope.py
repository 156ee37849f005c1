"""The envelope around every answer, and the errors that it can hold.

Every endpoint answers `{"code", "msg", "data"}`, mostly with HTTP status 200, so the code inside
decides. Without an envelope the HTTP status does. `data_of` gives what a free call asked for or
raises exactly one error; the paid call has its own table (`submission.verdict`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from ..errors import (
    ERROR_OF_CODE,
    APIStatusError,
    InsufficientCreditsError,
    InternalServerError,
    UnexpectedResponseError,
)
from . import decoding, finding, words

# Codes that a free call is repeated after although their class is not worth it (generate and download-url
# pages): an upstream server was slow, an image could not be fetched.
_RETRYABLE_CODES = frozenset({408, 451})


@attrs.frozen(kw_only=True)
class Envelope:
    """A JSON object with a numeric `code`; `root` is the whole object."""

    code: int
    root: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def message(self) -> str:
        """Kie's words, safe to show; "" if there are none."""
        message = self.root.get("msg")
        return decoding.shown(message) if isinstance(message, str) else ""

    @property
    def data(self) -> Any:
        return self.root.get("data")

    @property
    def task_id(self) -> str | None:
        """The task id. What refuses has one only under its own name: it may speak of another task."""
        return finding.task_id(self.root, anywhere=self.code == 200)


def envelope_of(body: bytes) -> Envelope | None:
    """The envelope, or None if the body has none, whatever its Content-Type says."""
    try:
        answer = decoding.json_value(body)
    except ValueError:
        return None
    code = decoding.whole_number(answer.get("code")) if isinstance(answer, dict) else None
    return None if code is None else Envelope(code=code, root=answer)


def data_of(status: int, body: bytes, retry_after: float | None = None) -> Any:
    """The `data` of an answer to a free call.

    Raises `APIStatusError` if Kie refused, `UnexpectedResponseError` if the answer cannot be read.
    """
    return data_in(envelope_of(body), status, body, retry_after)


def data_in(envelope: Envelope | None, status: int, body: bytes, retry_after: float | None = None) -> Any:
    """The same for an answer whose envelope is known."""
    if envelope is None:
        if status >= 400:
            raise status_error(status, decoding.shown(body), http_status=status, retry_after=retry_after)
        raise unreadable(status, body)
    if envelope.code != 200:
        raise status_error(envelope.code, envelope.message, http_status=status, retry_after=retry_after)
    return envelope.data


def status_error(
    code: int, message: str, *, http_status: int | None = None, retry_after: float | None = None
) -> APIStatusError:
    """The error for a code, by the table `ERROR_OF_CODE`, unless Kie's words say more."""
    kind = ERROR_OF_CODE.get(code, InternalServerError if 500 <= code < 600 else APIStatusError)
    if words.say_credits_are_insufficient(message):
        kind = InsufficientCreditsError
    error = kind(message, code=code, http_status=http_status, retry_after=retry_after)
    error.retryable = kind.retryable or (code in _RETRYABLE_CODES and kind is not InsufficientCreditsError)
    return error


def unreadable(status: int, body: bytes, path: str | None = None) -> UnexpectedResponseError:
    """The error for an answer of another form than documented; `path` leads to what is wrong."""
    where = f" at {path}" if path else ""
    excerpt = decoding.shown(body)
    return UnexpectedResponseError(
        f"cannot read the answer with HTTP status {status}{where}: {excerpt!r}; try again, and report it if "
        "it persists",
        path=path,
        http_status=status,
        excerpt=excerpt,
    )


def retry_after_of(header: str | None) -> float | None:
    """The seconds of a Retry-After header. A date or anything else is ignored."""
    seconds = decoding.whole_number(header)
    return float(seconds) if seconds is not None and seconds >= 0 else None
