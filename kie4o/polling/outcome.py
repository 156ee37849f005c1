"""The outcome of a task: whether its details are final, and its images or its error. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..details import TaskDetails, TaskState
from ..errors import ContentPolicyError, DownloadError, InputImageError, TaskFailedError
from ..models import ImageResult, Source
from ..wire.decoding import shown
from ..wire.words import say_input_image, say_policy


def failure_kind(code: int | None, message: str) -> type[TaskFailedError]:
    """The class for an errorCode and an errorMessage (record-info page), whose 400 has several meanings."""
    if code == 451:
        return InputImageError
    if say_policy(message):
        return ContentPolicyError
    return InputImageError if code == 400 and say_input_image(message) else TaskFailedError


def result_of(details: TaskDetails, source: Source, n_variants: int | None = None) -> ImageResult:
    """The images of a finished task. Raises `TaskFailedError` if it failed."""
    if details.state is not TaskState.FAILED:
        return ImageResult(
            details.task_id, urls=details.urls, details=details, source=source, n_variants=n_variants
        )
    kind = failure_kind(details.error_code, details.error_message or "")
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
    raise DownloadError(message, task_id=details.task_id, details=details)


def is_final(details: TaskDetails) -> bool:
    """Whether these are the last details. A success without images is not final: the record lags."""
    return details.state.ended and (bool(details.urls) or details.state is TaskState.FAILED)
