"""What travels between us and Kie: endpoint rows, the envelope, and the tables of verdicts and
states. Pure: (status, bytes) in, a value or exactly one error out.

Requests become bytes that can be printed (`body_of`), answers become values (`Envelope`,
`TaskDetails`, `Judgement`). Sections named here are those of Kie's
documentation: generate, record-info, download-url, common API, file upload.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import attrs

from . import decoding
from .errors import ERROR_OF_CODE, APIStatusError, InternalServerError, UnexpectedResponseError
from .models import ImageRequest, TaskDetails, TaskState, UploadedFile

if TYPE_CHECKING:
    from decimal import Decimal

_T = TypeVar("_T")

# -- endpoints ---------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Endpoint:
    """One row: how to call it. `uploads` says that it lives on the upload host."""

    method: str
    path: str
    uploads: bool = False


SUBMIT = Endpoint("POST", "/api/v1/gpt4o-image/generate")
DETAILS = Endpoint("GET", "/api/v1/gpt4o-image/record-info")
DOWNLOAD_URL = Endpoint("POST", "/api/v1/gpt4o-image/download-url")
CREDITS = Endpoint("GET", "/api/v1/chat/credit")
UPLOAD_STREAM = Endpoint("POST", "/api/file-stream-upload", uploads=True)
UPLOAD_BASE64 = Endpoint("POST", "/api/file-base64-upload", uploads=True)
UPLOAD_FROM_URL = Endpoint("POST", "/api/file-url-upload", uploads=True)

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_URL_SAFE = "!#$%&'()*+,/:;=?@[]~"  # a file name may have brought spaces into an upload's URL
_CALLBACK_URL = "callBackUrl"  # the one name that is not plain camelCase


def body_of(request: ImageRequest, *, callback_url: str | None = None) -> bytes:
    """The JSON body of a submit. A field left at its default is not sent, except `size`.

    `callback_url` stands in for the request's own (it carries the ref).
    """
    fields: dict[str, object] = {}
    for name, kies_name, default in _FIELDS:
        value = getattr(request, name)
        if value != default or name == "size":
            fields[kies_name] = value
    if callback_url is not None:
        fields[_CALLBACK_URL] = callback_url
    return json_body(fields)


def with_ref(callback_url: str, ref: str) -> str:
    """The callback URL of one submit: the ref stands at `{ref}`, or else as a query parameter."""
    if "{ref}" in callback_url:
        return callback_url.replace("{ref}", ref)
    address, hash_, fragment = callback_url.partition("#")
    return f"{address}{'&' if '?' in address else '?'}ref={ref}{hash_}{fragment}"


def is_task_id(value: object) -> bool:
    """Whether Kie can have given this id."""
    return decoding.task_id(value) is not None


def json_body(fields: Mapping[str, object]) -> bytes:
    return _ENCODER.encode(fields).encode()


def _kies_name(name: str) -> str:
    if name == "callback_url":
        return _CALLBACK_URL
    first, *others = name.split("_")
    return first + "".join(map(str.capitalize, others))


_FIELDS = [(field.name, _kies_name(field.name), field.default) for field in attrs.fields(ImageRequest)]


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


# -- the paid call -----------------------------------------------------------------------------


class Verdict(enum.Enum):
    """What a submit attempt came to."""

    NOT_SENT = "not sent"
    REFUSED = "refused"
    ACCEPTED = "accepted"
    UNKNOWN = "unknown"


@attrs.frozen
class Judgement:
    """The verdict on one attempt, with what it rests on."""

    verdict: Verdict
    task_id: str | None = None
    code: int | None = None
    message: str = ""


# Codes that say for certain that nothing was started and nothing is charged (Kie's code
# lists). Everything that is not here, and every 5xx of a proxy, may have been paid.
REFUSING_CODES = frozenset({400, 401, 402, 403, 404, 405, 409, 413, 422, 429, 430, 433, 451, 455, 505, 550})
_AMBIGUOUS_4XX = 408  # upstream timed out: it may have worked


def judge(*, sent: bool, status: int | None = None, body: bytes = b"", fault: str = "") -> Judgement:
    """The verdict on one attempt of the paid call.

    `sent` is the latch: whether the request's body can have begun to leave. `status` is None if no
    answer came; `body` is whatever of it arrived, also of one that broke off.
    """
    if not sent:
        return Judgement(Verdict.NOT_SENT, message=fault)
    envelope = envelope_of(body)
    task_id = envelope.task_id if envelope is not None else decoding.salvaged_task_id(body)
    if task_id is not None:
        return Judgement(Verdict.ACCEPTED, task_id=task_id, code=envelope.code if envelope else None)
    if envelope is not None:
        verdict = Verdict.REFUSED if envelope.code in REFUSING_CODES else Verdict.UNKNOWN
        return Judgement(verdict, code=envelope.code, message=envelope.message)
    message = fault or decoding.shown(body) or "an empty answer"
    refused = status is not None and not fault and 400 <= status < 500 and status != _AMBIGUOUS_4XX
    return Judgement(Verdict.REFUSED if refused else Verdict.UNKNOWN, code=status, message=message)


# -- the state of a task (Kie's record-info page) ----------------------------------

STATE_OF_STATUS: Mapping[str, TaskState] = MappingProxyType(
    {
        "GENERATING": TaskState.RUNNING,
        "SUCCESS": TaskState.SUCCEEDED,
        "CREATE_TASK_FAILED": TaskState.FAILED,
        "GENERATE_FAILED": TaskState.FAILED,
    }
)
STATE_OF_FLAG: Mapping[int, TaskState] = MappingProxyType(
    {0: TaskState.RUNNING, 1: TaskState.SUCCEEDED, 2: TaskState.FAILED, 3: TaskState.FAILED}
)
STATE_OF_CONFLICT: Mapping[tuple[str, int], TaskState] = MappingProxyType(
    {("GENERATING", 2): TaskState.FAILED, ("GENERATING", 3): TaskState.FAILED}
)
MISSING_CODES = frozenset({404, 422})  # of a read whose only parameter is the task id


def state_of(status: str | None, flag: int | None) -> TaskState:
    """The state from Kie's word and flag: the word wins but for the conflicts; never guessed."""
    word = (status or "").strip().upper()
    if flag is not None and (word, flag) in STATE_OF_CONFLICT:
        return STATE_OF_CONFLICT[word, flag]
    if word in STATE_OF_STATUS:
        return STATE_OF_STATUS[word]
    return STATE_OF_FLAG.get(flag, TaskState.RUNNING) if flag is not None else TaskState.RUNNING


# What nearly every look brings: Kie's words for running or success, and no error. It is read without
# the detour over `Record`, since reading is what a look costs beside the network.
_NO_ERROR = {"errorCode": None, "errorMessage": None}
_USUAL: Mapping[str, tuple[TaskState, Mapping[str, object]]] = MappingProxyType(
    {
        "GENERATING": (
            TaskState.RUNNING,
            {"successFlag": 0, "response": None, "completeTime": None, **_NO_ERROR},
        ),
        "SUCCESS": (TaskState.SUCCEEDED, {"successFlag": 1, **_NO_ERROR}),
    }
)


def _usual_state(data: object, task_id: str) -> TaskState | None:
    """The state, if all but the images, the times and the progress is as usual."""
    if not isinstance(data, dict) or data.get("taskId") != task_id:
        return None
    status, flag = data.get("status"), data.get("successFlag")
    if type(status) is not str or type(flag) is not int:  # False and 0.0 are equal to 0
        return None
    usual = _USUAL.get(status)
    return usual[0] if usual is not None and usual[1].items() <= data.items() else None


def details_of(task_id: str, status: int, body: bytes, retry_after: float | None = None) -> TaskDetails:
    """One look at a task. Raises `APIStatusError` or `UnexpectedResponseError` for a failed read,
    which says nothing about the task."""
    envelope = envelope_of(body)
    data: Any = envelope.data if envelope is not None and envelope.code == 200 else None
    state = _usual_state(data, task_id)
    if state is not None:
        return TaskDetails(
            task_id,
            state=state,
            status=data["status"],
            urls=decoding.image_urls(data.get("response")),
            progress=decoding.fraction(data.get("progress")),
            created_at=decoding.moment(data.get("createTime")),
            completed_at=decoding.moment(data.get("completeTime")),
            raw=data,
        )
    if envelope is not None and data is None and (envelope.code == 200 or envelope.code in MISSING_CODES):
        return TaskDetails(
            task_id,
            state=TaskState.MISSING,
            error_code=envelope.code if envelope.code != 200 else None,
            error_message=envelope.message,
        )
    if data is None:
        data = data_of(status, body, retry_after)
    from .structuring import Record  # not before the first answer: its classes take time to make

    record = _structured(data, Record, status, body)
    if record.taskId is not None and record.taskId != task_id:
        raise unreadable(status, body, "data.taskId (another task than the one asked for)")
    return TaskDetails(
        task_id,
        state=state_of(record.status, record.successFlag),
        status=record.status,
        urls=record.response,
        progress=record.progress,
        error_code=record.errorCode,
        error_message=record.errorMessage or None,
        created_at=record.createTime,
        completed_at=record.completeTime,
        raw=data,
    )


# -- the other answers -------------------------------------------------------------------------


def link_of(status: int, body: bytes, retry_after: float | None = None) -> str:
    """A signed link (download-url). The reference sends text; a quickstart reads `downloadUrl`."""
    data = data_of(status, body, retry_after)
    link = data.get("downloadUrl") if isinstance(data, dict) else data
    if not isinstance(link, str) or not decoding.is_web_url(link):
        raise unreadable(status, body, "data")
    return link


def credits_of(status: int, body: bytes, retry_after: float | None = None) -> Decimal:
    """The balance (common API); whole by the documents, fractional on the wire."""
    from decimal import Decimal, InvalidOperation  # not before somebody asks for the balance

    data = data_of(status, body, retry_after)
    amount = None
    if not isinstance(data, bool) and isinstance(data, (int, float, str)):
        try:
            amount = Decimal(str(data))
        except InvalidOperation:
            amount = None
    if amount is None or not amount.is_finite():
        raise unreadable(status, body, "data")
    return amount


def uploaded_of(status: int, body: bytes, retry_after: float | None = None) -> UploadedFile:
    """A stored file (file upload). Use `downloadUrl`: other names are in a quickstart only."""
    data = data_of(status, body, retry_after)
    from .structuring import Stored

    stored = _structured(data, Stored, status, body)
    url = stored.downloadUrl.encode(errors="replace").decode()
    url = quote(url, safe=_URL_SAFE)
    if not decoding.is_web_url(url):
        raise unreadable(status, body, "data.downloadUrl")
    return UploadedFile(
        url,
        name=stored.fileName,
        path=stored.filePath,
        size=stored.fileSize,
        mime_type=stored.mimeType,
        uploaded_at=stored.uploadedAt,
    )


def _structured(data: object, kind: Callable[..., _T], status: int, body: bytes) -> _T:
    from .structuring import WrongShape, structured

    try:
        return structured(data, kind)
    except WrongShape as error:
        path = str(error)
    raise unreadable(status, body, path)
