"""Every failure kie4o can hand you, as one tree; nothing of aiohttp, cattrs or sqlite3 escapes.

    KieError
    ├─ ConfigurationError (ValueError)      the client cannot be built like this
    ├─ InvalidRequestError (ValueError)     refused before sending
    ├─ APIConnectionError                   nothing usable arrived; nothing was paid
    │  └─ APITimeoutError (TimeoutError)
    ├─ UnexpectedResponseError              an answer that cannot be read
    ├─ APIStatusError                       Kie said no
    │  ├─ BadRequestError · AuthenticationError · InsufficientCreditsError · PermissionDeniedError
    │  ├─ NotFoundError · UnprocessableEntityError · RateLimitError · KeyLimitError
    │  └─ MaintenanceError · InternalServerError · FeatureDisabledError · QueueFullError
    ├─ SubmissionUnknownError               perhaps paid, never sent again
    ├─ TaskError
    │  ├─ TaskFailedError
    │  │  └─ ContentPolicyError · InputImageError
    │  ├─ NoImagesError · TaskNotFoundError
    │  └─ TaskTimeoutError (TimeoutError)
    ├─ CallbackError
    │  └─ MalformedCallbackError · InvalidSignatureError
    ├─ DownloadError
    └─ StoreError
       └─ StoreLockedError · KeyConflictError

Only data lives here: a sentence, and the facts that a program may act on. Facts are plain
attributes and every one is optional, so that each error pickles as it is. Errors never hold an
API key, and they are raised outside `except` blocks so that no foreign exception that might
hold one hangs in their `__context__`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .details import TaskDetails


def worth_repeating(error: Exception) -> bool:
    """Whether a failed read says something about the read only, not about what was asked for."""
    if isinstance(error, APIStatusError):
        return error.retryable
    return isinstance(error, (APIConnectionError, UnexpectedResponseError))


class KieError(Exception):
    """Root of every error raised by kie4o.

    `task_id`, `ref` and `key` are filled in as soon as they are known: whatever goes wrong after
    a submit, the paid task can be taken up again with `client.task(error.task_id)`.
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


class ConfigurationError(KieError, ValueError):
    """The client cannot be built or used like this: a setting has to change."""


class InvalidRequestError(KieError, ValueError):
    """Refused before any network use; the sentence names the field, the value and what is allowed."""


class APIConnectionError(KieError):
    """Nothing usable arrived, and nothing was paid: the call may be made again."""


class APITimeoutError(APIConnectionError, TimeoutError):
    """No answer within `timeout` seconds; for a submit, the request had not left yet."""


class UnexpectedResponseError(KieError):
    """An answer that cannot be read: `path` to the wrong value, HTTP status, a short excerpt."""

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
    """Kie answered, and said no. `code` comes from the body if there is one, else from HTTP.

    `retryable` says whether the same call may succeed later; `retry_after` is what the server
    asked for, in seconds.
    """

    message: str = ""
    code: int | None = None
    http_status: int | None = None
    retryable: bool = False
    retry_after: float | None = None
    remedy: str = "Read `message`; it is Kie's own."

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
        who = "Kie refused" if self.code is None else f"Kie answered {self.code}"
        reason = self.message.rstrip(".") or "no reason given"
        return f"{who}: {reason}. {self.remedy}"


class BadRequestError(APIStatusError):
    """400: the body or a field of it has the wrong form."""

    remedy = "Change the request; sending it again as it is cannot work."


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""

    remedy = "Check KIE_API_KEY (keys are made at kie.ai/api-key)."


class InsufficientCreditsError(APIStatusError):
    """402: the balance is too low."""

    remedy = "Top up at kie.ai, then submit again; `await client.credits()` tells the balance."


class PermissionDeniedError(APIStatusError):
    """403: the client itself was turned away, for example by an IP allow-list or by Cloudflare."""

    remedy = "Check the key's IP allow-list and any proxy in between."


class NotFoundError(APIStatusError):
    """404: no such resource."""

    remedy = "Check the base URL and the id."


class UnprocessableEntityError(APIStatusError):
    """422: a parameter has a value that Kie does not take."""

    remedy = "Change the request; sending it again as it is cannot work."


class RateLimitError(APIStatusError):
    """429, 430: too many calls. kie4o has already waited and tried again before you see this."""

    retryable = True
    remedy = "Something else uses this account too: lower rate_limit or wait."


class KeyLimitError(APIStatusError):
    """433: the hourly, daily or total cap that was set on this key is used up."""

    remedy = "Raise the cap of this key at kie.ai/api-key, or use another key."


class MaintenanceError(APIStatusError):
    """455: Kie is under maintenance."""

    retryable = True
    remedy = "Try again in some minutes; nothing was paid."


class InternalServerError(APIStatusError):
    """500, 501 and every other 5xx of a call that costs nothing."""

    retryable = True
    remedy = "Try again later."


class FeatureDisabledError(APIStatusError):
    """505: Kie has switched this feature off."""

    remedy = "Ask Kie's support whether the feature comes back."


class QueueFullError(APIStatusError):
    """550: Kie's queue is full and the task was rejected."""

    retryable = True
    remedy = "Try again in some minutes; nothing was paid."


class SubmissionUnknownError(KieError):
    """The request left, and what came of it is not known: perhaps paid, therefore never sent again.

    Look at kie.ai/logs, or wait for the callback: `ref` is in its URL.
    """


class TaskError(KieError):
    """Something about one task; `task_id` says which."""


class TaskFailedError(TaskError):
    """Kie ended the task without images. The same request under a new submit costs again."""

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
    """errorCode 400: prompt or input image are against the content policy, or the image is unfit."""


class InputImageError(TaskFailedError):
    """errorCode 451: an input image could not be downloaded."""


class NoImagesError(TaskError):
    """Kie says success but shows no images. The task is paid: look again later, do not pay again."""


class TaskNotFoundError(TaskError):
    """Kie does not know this task: a wrong id, another account's, or older than 14 days."""


class TaskTimeoutError(TaskError, TimeoutError):
    """The wait is over, the task lives on: `await client.wait(error.task_id)` takes it up again."""


class CallbackError(KieError):
    """A callback that is not accepted."""


class MalformedCallbackError(CallbackError):
    """The bytes are not a callback of Kie's."""


class InvalidSignatureError(CallbackError):
    """The signature is missing, wrong, or too far from now."""


class DownloadError(KieError):
    """An image could not be fetched or is not one; `task_id` is the paid task it belongs to."""


class StoreError(KieError):
    """The store cannot be read or written; without it nothing is submitted."""


class StoreLockedError(StoreError):
    """Another process has this store open."""


class KeyConflictError(StoreError):
    """This idempotency key was used before with another request."""


# From the code lists of Kie's pages. A code that is missing here is an InternalServerError from 500
# on, else a plain APIStatusError.
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
        455: MaintenanceError,
        505: FeatureDisabledError,
        550: QueueFullError,
    }
)


# -- sentences: one helper per shape, so that none stands twice -------------------------------


def invalid(name: str, value: object, expected: str) -> InvalidRequestError:
    """An argument of a call that cannot be used; `expected` completes "expected ..."."""
    return InvalidRequestError(f"invalid {name}={value!r}: expected {expected}")


def invalid_setting(name: str, value: object, expected: str) -> ConfigurationError:
    """The same for a setting of the client."""
    return ConfigurationError(f"invalid {name}={value!r}: expected {expected}")


def client_closed(*, task_id: str | None = None) -> KieError:
    """For every call after `aclose()`."""
    return KieError("the client is closed; create a new AsyncKieClient", task_id=task_id)


def key_conflict(key: str) -> KeyConflictError:
    """The key belongs to another request."""
    return KeyConflictError(
        f"key {key!r} was already used for another request; use a new key for a new request", key=key
    )


def reason_of(error: BaseException) -> str:
    """Why an operating system call failed, in the system's own words if it has any."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
