"""What travels between us and Kie: endpoint rows, the envelope, and the tables of verdicts and
states. Pure: (status, bytes) in, a value or exactly one error out.

Requests become bytes that can be printed (`body_of`), answers become values (`Envelope`,
`TaskDetails`, `Judgement`). Sections named here are those of Kie's
documentation: generate, record-info, download-url, common API, file upload.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from ..details import TaskDetails, TaskState
from . import decoding
from .envelope import data_of, envelope_of, structured_data, unreadable

_T = TypeVar("_T")


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
    from .structuring import RecordInfo

    record = structured_data(data, RecordInfo, status, body)
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
