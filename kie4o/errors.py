"""Every error that kie4o raises, as one tree. No exception of aiohttp, cattrs or sqlite3 escapes.

    KieError
    ├─ ConfigurationError (ValueError)      a setting of the client is invalid
    ├─ InvalidRequestError (ValueError)     refused before sending
    ├─ APIConnectionError                   no usable response; nothing was charged
    │  └─ APITimeoutError (TimeoutError)
    ├─ UnexpectedResponseError              a response that cannot be read
    ├─ APIStatusError                       Kie refused
    │  ├─ BadRequestError · AuthenticationError · InsufficientCreditsError · PermissionDeniedError
    │  ├─ NotFoundError · UnprocessableEntityError · RateLimitError · KeyLimitError
    │  ├─ ImageUnavailableError · MaintenanceError · InternalServerError · FeatureDisabledError
    │  └─ QueueFullError
    ├─ SubmissionUnknownError               perhaps charged, never sent again
    ├─ TaskError
    │  ├─ TaskFailedError
    │  │  └─ ContentPolicyError · InputImageError
    │  ├─ NoImagesError · TaskNotFoundError
    │  └─ TaskTimeoutError (TimeoutError)
    ├─ CreditLimitError                     the next request of a batch would pass its limit
    ├─ CallbackError
    │  └─ MalformedCallbackError · InvalidSignatureError
    ├─ DownloadError
    └─ StoreError
       └─ StoreLockedError · KeyConflictError

An error holds a sentence and the facts that a program may act on. Every fact is an optional plain
attribute, so that errors can be pickled. Errors never hold an API key. They are raised outside `except`
blocks, since a foreign exception in their `__context__` might hold one.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from decimal import Decimal

    from .details import TaskDetails


def worth_repeating(error: Exception) -> bool:
    """Whether a failed call may succeed if it is repeated: the failure says nothing about its subject."""
    if isinstance(error, (APIStatusError, APIConnectionError)):
        return error.retryable
    return isinstance(error, UnexpectedResponseError)


class KieError(Exception):
    """Base class of every error that kie4o raises.

    Attributes:
        task_id: The paid task, if there is one: `client.wait(error.task_id)` resumes it.
        ref: The ref of the submit, as in its callback URL.
        key: The idempotency key of the submit.
    """

    task_id: str | None = None
    ref: str | None = None
    key: str | None = None

    def __init__(
        self, message: str = "", *, task_id: str | None = None, ref: str | None = None, key: str | None = None
    ) -> None:
        super().__init__(message)
        if task_id is not None:
            self.task_id = task_id
        if ref is not None:
            self.ref = ref
        if key is not None:
            self.key = key

    def __copy__(self) -> Self:
        """Without a call of the constructor, which may be that of a caller's own subclass."""
        again = type(self).__new__(type(self))
        again.args = self.args
        vars(again).update(vars(self))
        return again


class ConfigurationError(KieError, ValueError):
    """A setting of the client is invalid; the message names it and what is expected."""


class InvalidRequestError(KieError, ValueError):
    """An argument is invalid; nothing was submitted. The message names it, its value and what is expected."""


class APIConnectionError(KieError):
    """No usable response. Without a `task_id` nothing was charged, and it is safe to retry; a task with this
    `task_id` is paid, and only its polls have failed: wait for it again.

    Attributes:
        cause: The class and the words of the exception behind it, such as one of aiohttp or of the connector
            of a `session`; without the key, headers, and what is private in URLs.
        retryable: Whether the same call may succeed later; not if a certificate or a proxy has to be changed.
    """

    cause: str | None = None
    retryable: bool = True


class APITimeoutError(APIConnectionError, TimeoutError):
    """No response within `timeout` seconds. In the case of a submit, the request was not sent."""


class UnexpectedResponseError(KieError):
    """A response that cannot be read.

    Attributes:
        path: Where the wrong value is, such as ``"data.status"``.
        http_status: The HTTP status.
        excerpt: The start of the response.
    """

    path: str | None = None
    http_status: int | None = None
    excerpt: str = ""

    def __init__(
        self, message: str = "", *, path: str | None = None, http_status: int | None = None, excerpt: str = ""
    ) -> None:
        super().__init__(message)
        self.path = path
        self.http_status = http_status
        self.excerpt = excerpt


class APIStatusError(KieError):
    """Kie refused the call. Without a `task_id` nothing was charged; a task with this `task_id` is paid, and
    only its polls were refused: wait for it again.

    Attributes:
        message: Kie's own words.
        code: The code in the body, or else the HTTP status.
        http_status: The HTTP status.
        retryable: Whether the same call may succeed later.
        retry_after: Seconds to wait, if the server asked for a delay.
        remedy: What to do about it.
    """

    message: str = ""
    code: int | None = None
    http_status: int | None = None
    retryable: bool = False
    retry_after: float | None = None
    remedy: str = "See the message, which is Kie's own."

    def __init__(
        self,
        message: str = "",
        *,
        code: int | None = None,
        http_status: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.http_status = http_status
        self.retry_after = retry_after

    def __str__(self) -> str:
        who = "Kie refused" if self.code is None else f"Kie returned {self.code}"
        reason = self.message.rstrip(".") or "no reason given"
        return f"{who}: {reason}. {self.remedy}"


_CHANGE_REQUEST = "Change the request; sending it again unchanged will fail."
_RETRY_LATER = "Try again in a few minutes; nothing was charged."


class BadRequestError(APIStatusError):
    """400: the body or one of its fields is malformed."""

    remedy = _CHANGE_REQUEST


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""

    remedy = "Check KIE_API_KEY; keys are created at kie.ai/api-key."


class InsufficientCreditsError(APIStatusError):
    """402, or any code whose message says so: the balance is too low."""

    remedy = "Top up at kie.ai; client.credits() returns the balance."


class PermissionDeniedError(APIStatusError):
    """403: the client was rejected, for example by an IP allow-list or by Cloudflare."""

    remedy = "Check the key's IP allow-list and any proxy."


class NotFoundError(APIStatusError):
    """404: no such resource."""

    remedy = "Check the base URL and the id."


class UnprocessableEntityError(APIStatusError):
    """422: Kie does not accept the value of a parameter."""

    remedy = _CHANGE_REQUEST


class RateLimitError(APIStatusError):
    """429, 430: too many calls. kie4o has already waited and retried."""

    retryable = True
    remedy = "Something else uses this account; lower rate_limit or wait."


class KeyLimitError(APIStatusError):
    """433: the hourly, daily or total limit that was set for this key is used up."""

    remedy = "Raise the limit of this key at kie.ai/api-key, or use another key."


class ImageUnavailableError(APIStatusError):
    """451: Kie could not fetch an image that the call names."""

    remedy = "Make its URL public, or upload it with client.upload()."


class MaintenanceError(APIStatusError):
    """455: Kie is under maintenance."""

    retryable = True
    remedy = _RETRY_LATER


class InternalServerError(APIStatusError):
    """500, 501 and any other 5xx of a call that costs nothing."""

    retryable = True
    remedy = "Try again later."


class FeatureDisabledError(APIStatusError):
    """505: Kie has disabled this feature."""

    remedy = "Ask Kie's support."


class QueueFullError(APIStatusError):
    """550: Kie's queue is full and the task was rejected."""

    retryable = True
    remedy = _RETRY_LATER


class SubmissionUnknownError(KieError):
    """The request was sent but its outcome is unknown. It may have been charged, so it is never sent again.

    No answer came, or one that does not say what became of the request. The same holds for an answer with the
    id of a task that this client already knew: it is a late answer to an earlier request on the connection.
    Most often the server closes a connection at the moment at which the request is sent over it.

    The message says when it was sent and what it asked for. Check kie.ai/logs and call `client.settle`, or
    wait for the callback, whose URL holds the `ref`. A call that waits for the callback while `client.settle`
    says that nothing was charged ends with this error too; its message says so.

    Attributes:
        retryable: False: a second submit may be charged as well.
    """

    retryable: bool = False


class TaskError(KieError):
    """A failure of one task; `task_id` says which."""

    # Never "" in an error that kie4o raises; a default, so that it is a str whatever created the error.
    task_id: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]  # an error of a task has its id


class TaskFailedError(TaskError):
    """Kie ended the task without images. Submitting the request again costs credits again.

    Attributes:
        error_code: Kie's code.
        details: The final `TaskDetails`.
    """

    error_code: int | None = None
    details: TaskDetails | None = None

    def __init__(
        self,
        message: str = "",
        *,
        task_id: str | None = None,
        error_code: int | None = None,
        details: TaskDetails | None = None,
    ) -> None:
        super().__init__(message, task_id=task_id)
        self.error_code = error_code
        self.details = details


class ContentPolicyError(TaskFailedError):
    """Kie says that the prompt or an input image violates the content policy."""


class InputImageError(TaskFailedError):
    """An input image could not be downloaded (errorCode 451), is too large or of another format."""


class NoImagesError(TaskError):
    """The task succeeded but its record shows no images. It is paid: wait for it again later.

    Attributes:
        details: The last `TaskDetails`, with Kie's own record in `raw`.
    """

    details: TaskDetails | None = None

    def __init__(
        self, message: str = "", *, task_id: str | None = None, details: TaskDetails | None = None
    ) -> None:
        super().__init__(message, task_id=task_id)
        self.details = details


class TaskNotFoundError(TaskError):
    """Kie does not know the task: a wrong id, another account, or older than 14 days."""


class TaskTimeoutError(TaskError, TimeoutError):
    """The wait timed out. The task is still running: `await client.wait(error.task_id)` resumes it."""


class CreditLimitError(KieError):
    """The next request of a batch would cost more than `max_credits` leaves. It was not submitted.

    Run the same batch again to continue: what is finished or paid costs nothing, and each run has the whole
    limit.

    Attributes:
        spent: The credits of what this run has submitted.
        limit: The `max_credits`.
        price: The credits of the request that did not fit.
    """

    spent: Decimal | None = None
    limit: Decimal | None = None
    price: Decimal | None = None


class CallbackError(KieError):
    """A callback was rejected."""


class MalformedCallbackError(CallbackError):
    """The body is not one of Kie's callbacks."""


class InvalidSignatureError(CallbackError):
    """The signature is missing or wrong, or its time stamp is too far from now."""


class DownloadError(KieError):
    """An image could not be downloaded or saved. Its task, `task_id`, is paid; download it again.

    Attributes:
        details: The `TaskDetails` that show no image, if that is why: their `state` says whether the task is
            still running, has failed or is unknown to Kie.
    """

    details: TaskDetails | None = None

    def __init__(
        self, message: str = "", *, task_id: str | None = None, details: TaskDetails | None = None
    ) -> None:
        super().__init__(message, task_id=task_id)
        self.details = details


class StoreError(KieError):
    """The store cannot be read or written. Nothing is submitted without it."""


class StoreLockedError(StoreError):
    """Another process has this store open."""


class KeyConflictError(StoreError):
    """The idempotency key was already used for another request."""


# Kie's codes (generate, record-info, download-url, credits and file upload pages). Any other code is an
# InternalServerError from 500 to 599, and otherwise a plain APIStatusError.
ERROR_OF_CODE: Mapping[int, type[APIStatusError]] = MappingProxyType(
    {
        400: BadRequestError,
        401: AuthenticationError,
        402: InsufficientCreditsError,
        403: PermissionDeniedError,
        404: NotFoundError,
        422: UnprocessableEntityError,
        429: RateLimitError,
        430: RateLimitError,
        433: KeyLimitError,
        451: ImageUnavailableError,
        455: MaintenanceError,
        505: FeatureDisabledError,
        550: QueueFullError,
    }
)


# -- wording: one helper per shape of message ---------------------------------------------------

_SHOWN = 200  # characters of a value in a message


def invalid(name: str, value: object, expected: str) -> InvalidRequestError:
    """An argument of a call that cannot be used; `expected` completes "expected ..."."""
    return InvalidRequestError(f"invalid {name}={_shown(value)}: expected {expected}")


def invalid_setting(name: str, value: object, expected: str) -> ConfigurationError:
    """The same for a setting of the client."""
    return ConfigurationError(f"invalid {name}={_shown(value)}: expected {expected}")


def _shown(value: object) -> str:
    """A value in a message; a data: URL or the bytes of an image would fill the screen."""
    try:
        text = repr(value)
    except Exception:  # of an object of the caller, or an integer of 5,000 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-9:]}"


def client_closed(*, task_id: str | None = None) -> KieError:
    """For every call after `aclose()`."""
    return KieError("the client is closed; `async with client` opens it again", task_id=task_id)


def key_conflict(key: str) -> KeyConflictError:
    """The key belongs to another request."""
    return KeyConflictError(
        f"key {key!r} was already used for another request; use a new key for a new request", key=key
    )


def reason_of(error: BaseException) -> str:
    """Why an operating system call failed, in the system's own words if it has any."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
