"""The outcome of a task: whether its details are final, and its images or its error. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..details import TaskDetails, TaskState
from ..errors import ContentPolicyError, DownloadError, InputImageError, TaskFailedError
from ..models import ImageResult, Source
from ..wire.decoding import shown

# The errorCode of Kie's record-info page. Other codes are a plain `TaskFailedError`.
FAILURE_OF_CODE: Mapping[int, type[TaskFailedError]] = MappingProxyType(
    {400: ContentPolicyError, 451: InputImageError}
)


def result_of(details: TaskDetails, source: Source, n_variants: int | None = None) -> ImageResult:
    """The images of a finished task. Raises `TaskFailedError` if it failed."""
    if details.state is not TaskState.FAILED:
        return ImageResult(
            details.task_id, urls=details.urls, details=details, source=source, n_variants=n_variants
        )
    kind = FAILURE_OF_CODE.get(details.error_code or 0, TaskFailedError)
    code = "" if details.error_code is None else f" with code {details.error_code}"
    message = f"task {details.task_id} failed{code}: {shown(details.error_message or 'no reason given')}"
    raise kind(message, task_id=details.task_id, error_code=details.error_code, details=details)


_NO_IMAGES: Mapping[TaskState, str] = MappingProxyType(
    {
        TaskState.RUNNING: "it is still running; wait for it first",
        TaskState.SUCCEEDED: "its record lists none yet; try again later",
        TaskState.FAILED: "it failed",
        TaskState.MISSING: "Kie does not know it; check the id and the account",
    }
)


def images_of(details: TaskDetails) -> ImageResult:
    """The images that one status check shows. Raises `DownloadError` if there are none."""
    if details.state is TaskState.SUCCEEDED and details.urls:
        return result_of(details, "poll")
    message = f"task {details.task_id} has no images: {_NO_IMAGES[details.state]}"
    raise DownloadError(message, task_id=details.task_id)


def is_final(details: TaskDetails) -> bool:
    """Whether these are the last details. A success without images is not final: the record lags."""
    return details.state is TaskState.FAILED or (details.state is TaskState.SUCCEEDED and bool(details.urls))
