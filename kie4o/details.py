"""What is known of one task: its state and one look at it."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import attrs


class TaskState(enum.Enum):
    """What we make of a task; Kie's own word is `TaskDetails.status`."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    MISSING = "missing"

    @property
    def ended(self) -> bool:
        return self in (TaskState.SUCCEEDED, TaskState.FAILED)


# -- what comes back ---------------------------------------------------------------------------


@attrs.frozen
class TaskDetails:
    """One look at a task, or what a callback said about it. Source: Kie's record-info page.

    `state` is our decision, `status` Kie's own word (None where Kie sends none). `progress` is
    0.0 to 1.0 or None, and often stays at 0.0 until the end. Times are aware UTC datetimes.
    `raw` is the answer's `data` as it came.
    """

    task_id: str
    state: TaskState = attrs.field(kw_only=True)
    status: str | None = attrs.field(default=None, kw_only=True)
    urls: tuple[str, ...] = attrs.field(default=(), kw_only=True)
    progress: float | None = attrs.field(default=None, kw_only=True)
    error_code: int | None = attrs.field(default=None, kw_only=True)
    error_message: str | None = attrs.field(default=None, kw_only=True)
    created_at: datetime | None = attrs.field(default=None, kw_only=True)
    completed_at: datetime | None = attrs.field(default=None, kw_only=True)
    raw: Mapping[str, Any] = attrs.field(factory=dict, kw_only=True, eq=False, repr=False)

    @property
    def params(self) -> Mapping[str, Any]:
        """What Kie stored of the request, decoded from its `paramJson`; {} if it cannot be read."""
        try:
            params = json.loads(self.raw.get("paramJson") or "{}")
        except (ValueError, TypeError, RecursionError):
            return {}
        return params if isinstance(params, dict) else {}
