"""What is known about one task at one moment."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs

EXPIRY = 14 * 86400.0  # seconds that Kie keeps a task and its images (record-info page)


class TaskState(enum.Enum):
    """The state of a task as kie4o reads it; Kie's own word is `TaskDetails.status`."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    MISSING = "missing"

    @property
    def ended(self) -> bool:
        """Whether the task has succeeded or failed."""
        return self in (TaskState.SUCCEEDED, TaskState.FAILED)


@attrs.frozen(kw_only=True)
class TaskDetails:
    """The status of a task: what one poll found, or what a callback said. Source: Kie's record-info page.

    Attributes:
        task_id: The id of the task.
        state: A `TaskState`.
        status: Kie's own word, such as ``"GENERATING"``; None if Kie sent none.
        urls: The images so far; they are kept for 14 days.
        progress: 0.0 to 1.0, or None. It often stays at 0.0 until the end.
        error_code: Kie's code of a failure.
        error_message: Kie's own words about a failure.
        created_at: When Kie created the task, as an aware UTC datetime.
        completed_at: When it ended, as an aware UTC datetime.
        raw: The `data` of Kie's response, as it arrived.
    """

    task_id: str = attrs.field(kw_only=False)
    state: TaskState
    status: str | None = None
    urls: tuple[str, ...] = ()
    progress: float | None = None
    error_code: int | None = None
    error_message: str | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    raw: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False)

    @property
    def params(self) -> Mapping[str, Any]:
        """The request as Kie stored it, decoded from `paramJson`; {} if it cannot be decoded."""
        try:
            params = json.loads(self.raw.get("paramJson") or "{}")
        except (ValueError, TypeError, RecursionError):
            return {}
        return params if isinstance(params, dict) else {}
