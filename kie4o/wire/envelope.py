"""The envelope of every answer, and the errors that it can hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs

from ..errors import ERROR_OF_CODE, APIStatusError, InternalServerError, UnexpectedResponseError
from . import decoding

_T = TypeVar("_T")


# -- the envelope ------------------------------------------------------------------------------


@attrs.frozen
class Envelope:
    """`{"code", "msg", "data"}` of an answer; every endpoint speaks so, mostly under HTTP 200."""

    code: int
    root: Mapping[str, Any] = attrs.field(repr=False)

    @property
    def message(self) -> str:
        message = self.root.get("msg")
        return decoding.shown(message) if isinstance(message, str) else ""

    @property
    def data(self) -> Any:
        return self.root.get("data")

    @property
    def task_id(self) -> str | None:
        """In `data`, or at the root as some pages of Kie's have it."""
        for home in (self.data, self.root):
            for name in ("taskId", "task_id"):
                if isinstance(home, dict) and (task_id := decoding.task_id(home.get(name))):
                    return task_id
        return None


def envelope_of(body: bytes) -> Envelope | None:
    """The envelope, or None if the body has none; the Content-Type is not asked."""
    try:
        answer = decoding.json_value(body)
    except ValueError:
        return None
    code = decoding.whole_number(answer.get("code")) if isinstance(answer, dict) else None
    return None if code is None else Envelope(code, answer)


_MAYBE_LATER = frozenset({408, 451})  # no class of their own: upstream was slow, an image out of reach


def data_of(status: int, body: bytes, retry_after: float | None = None) -> Any:
    """The `data` of an answer to a call that costs nothing, or exactly one error."""
    envelope = envelope_of(body)
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
    """The error of a code, by the table."""
    kind = ERROR_OF_CODE.get(code, InternalServerError if 500 <= code < 600 else APIStatusError)
    error = kind(message, code=code, http_status=http_status, retry_after=retry_after)
    error.retryable = kind.retryable or code in _MAYBE_LATER
    return error


def unreadable(status: int, body: bytes, path: str | None = None) -> UnexpectedResponseError:
    where = f" at {path}" if path else ""
    excerpt = decoding.shown(body)
    return UnexpectedResponseError(
        f"an answer with HTTP status {status} that cannot be read{where}: {excerpt!r}",
        path=path,
        http_status=status,
        excerpt=excerpt,
    )


def retry_after_of(header: str | None) -> float | None:
    """Seconds of a Retry-After header; a date or anything else is ignored."""
    seconds = decoding.whole_number(header)
    return float(seconds) if seconds is not None and seconds >= 0 else None


def structured_data(data: object, kind: Callable[..., _T], status: int, body: bytes) -> _T:
    from .structuring import WrongShape, structured

    try:
        return structured(data, kind)
    except WrongShape as error:
        path = str(error)
    raise unreadable(status, body, path)
