"""What a task came to: whether there is more to wait for, and its images or its failure. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..details import TaskDetails, TaskState
from ..errors import ContentPolicyError, DownloadError, InputImageError, TaskFailedError
from ..models import ImageResult, Source
from ..wire.decoding import shown

FAILURE_OF_CODE: Mapping[int, type[TaskFailedError]] = MappingProxyType(
    {400: ContentPolicyError, 451: InputImageError}
)


def result_of(details: TaskDetails, source: Source, n_variants: int | None = None) -> ImageResult:
    """The images of a task that has ended, or its failure raised."""
    if details.state is not TaskState.FAILED:
        return ImageResult(
            details.task_id, urls=details.urls, details=details, source=source, n_variants=n_variants
        )
    kind = FAILURE_OF_CODE.get(details.error_code or 0, TaskFailedError)
    code = "" if details.error_code is None else f" with code {details.error_code}"
    sentence = f"task {details.task_id} failed{code}: {shown(details.error_message or 'no reason given')}"
    raise kind(sentence, task_id=details.task_id, error_code=details.error_code, details=details)


_NO_IMAGES: Mapping[TaskState, str] = MappingProxyType(
    {
        TaskState.RUNNING: "it is running: wait for it first",
        TaskState.SUCCEEDED: "its record shows none yet: look again later",
        TaskState.FAILED: "it failed",
        TaskState.MISSING: "Kie does not know it: check the id and the account",
    }
)


def images_of(details: TaskDetails) -> ImageResult:
    """The images that one look shows. Raises `DownloadError` if there are none."""
    if details.state is TaskState.SUCCEEDED and details.urls:
        return result_of(details, "poll")
    sentence = f"task {details.task_id} has no images: {_NO_IMAGES[details.state]}"
    raise DownloadError(sentence, task_id=details.task_id)


def is_final(details: TaskDetails) -> bool:
    """A success without images is not: the record lags behind."""
    return details.state is TaskState.FAILED or (details.state is TaskState.SUCCEEDED and bool(details.urls))
