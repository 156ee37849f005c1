"""The answer about one task, and the tables that decide its state.

Kie says how a task is doing twice, in a word and in a number, and the two may differ. How they are
weighed is in these tables and nowhere else. Source: Kie's record-info page.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..details import TaskDetails, TaskState
from . import finding
from .decoding import shown
from .envelope import data_in, envelope_of, status_error, unreadable
from .structuring import RecordInfo, structured

# `status` (record-info page)
STATE_OF_STATUS: Mapping[str, TaskState] = MappingProxyType(
    {
        "GENERATING": TaskState.RUNNING,
        "SUCCESS": TaskState.SUCCEEDED,
        "CREATE_TASK_FAILED": TaskState.FAILED,
        "GENERATE_FAILED": TaskState.FAILED,
    }
)
# `successFlag` (record-info page; its quickstart leaves out 3)
STATE_OF_FLAG: Mapping[int, TaskState] = MappingProxyType(
    {0: TaskState.RUNNING, 1: TaskState.SUCCEEDED, 2: TaskState.FAILED, 3: TaskState.FAILED}
)
# A flag of failure wins over a status that still says GENERATING, since records lag behind.
STATE_OF_CONFLICT: Mapping[tuple[str, int | None], TaskState] = MappingProxyType(
    {("GENERATING", 2): TaskState.FAILED, ("GENERATING", 3): TaskState.FAILED}
)
# Codes of an unknown task (record-info page); the task id is the only parameter of a read.
MISSING_CODES = frozenset({404, 422})


def state_of(status: str | None, flag: int | None, urls: tuple[str, ...] = ()) -> TaskState:
    """The state of a task. An unknown status or flag means that it is still running; without either, its
    images decide.
    """
    word = (status or "").strip().upper()
    if (word, flag) in STATE_OF_CONFLICT:
        return STATE_OF_CONFLICT[word, flag]
    if word in STATE_OF_STATUS:
        return STATE_OF_STATUS[word]
    if flag is not None:
        return STATE_OF_FLAG.get(flag, TaskState.RUNNING)
    return TaskState.SUCCEEDED if urls and not word else TaskState.RUNNING


def details_of(task_id: str, status: int, body: bytes, retry_after: float | None = None) -> TaskDetails:
    """The details of a task.

    Raises `APIStatusError` or `UnexpectedResponseError` for a read that failed, which says nothing
    about the task.
    """
    envelope = envelope_of(body)
    if envelope is not None and (
        envelope.code in MISSING_CODES or (envelope.code == 200 and envelope.data is None)
    ):
        return TaskDetails(
            task_id,
            state=TaskState.MISSING,
            error_code=envelope.code if envelope.code != 200 else None,
            error_message=envelope.message,
        )
    if envelope is None and status >= 400:
        page = status_error(status, shown(body), http_status=status, retry_after=retry_after)
        page.retryable = True  # of a proxy: it says nothing about the task
        raise page
    data = data_in(envelope, status, body, retry_after)
    record = structured(data, RecordInfo, status, body)
    if record.taskId is not None and record.taskId != task_id:
        raise unreadable(status, body, "data.taskId (another task than the one asked for)")
    urls = record.response or finding.image_urls(data)
    return TaskDetails(
        task_id,
        state=state_of(record.status, record.successFlag, urls),
        status=record.status,
        urls=urls,
        progress=record.progress,
        error_code=record.errorCode,
        error_message=record.errorMessage or None,
        created_at=record.createTime,
        completed_at=record.completeTime,
        raw=data,
    )
