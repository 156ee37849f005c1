"""What one look means for the wait for its task: that it goes on, or how it ends, and what that teaches."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..details import TaskDetails, TaskState
from ..errors import (
    APIConnectionError,
    APIStatusError,
    AuthenticationError,
    InsufficientCreditsError,
    KeyLimitError,
    KieError,
    NoImagesError,
    PermissionDeniedError,
    TaskNotFoundError,
    worth_repeating,
)
from .learning import Pace
from .outcome import is_final
from .watches import NONE_REFUSED, Outcome, Watch

GRACE = 90.0  # seconds during which a task that Kie does not know may still appear
EMPTY_LOOKS = 5  # looks at a success without images before it is taken as final: the record lags
REFUSALS = 3  # refused looks in a row that end a wait,
REFUSED_FOR = 10.0  # if so many seconds are between the first and the last of them
# States other than RUNNING in which a task can be when its wait times out.
_UNUSUAL: Mapping[TaskState, str] = MappingProxyType(
    {
        TaskState.MISSING: "Kie does not know it yet",
        TaskState.SUCCEEDED: "it has succeeded, but its images are not listed yet",
    }
)
_ABOUT_ACCESS = (AuthenticationError, InsufficientCreditsError, KeyLimitError, PermissionDeniedError)


def weigh(watch: Watch, found: Outcome, now: float) -> Outcome | None:
    """The outcome with which the wait ends, or None if it goes on. What was found is noted on the watch."""
    if isinstance(found, TaskDetails):
        watch.errors = 0
        if found.state is TaskState.RUNNING:  # as most looks find it
            watch.finding, watch.refusals = None, NONE_REFUSED
            return None
        watch.finding = _UNUSUAL.get(found.state)
        return _weigh_details(watch, found, now)
    watch.errors += 1
    if isinstance(found, KieError) and found.task_id is None:
        found.task_id = watch.task_id
    ends = _ends_wait(watch, found, now)
    # Only its text: the traceback of the error would keep the answer in memory.
    watch.finding = f"the last status check failed ({found})"
    return found if ends else None


def _weigh_details(watch: Watch, details: TaskDetails, now: float) -> Outcome | None:
    task_id = watch.task_id
    if details.state is not TaskState.MISSING:
        watch.refusals = NONE_REFUSED
    elif _refused_again(watch, now) and now - (watch.last_running_at or watch.submitted_at) > GRACE:
        message = f"Kie does not know task {task_id}: its id is wrong, it belongs to another account, "
        message += "or it is more than 14 days old"
        return TaskNotFoundError(message, task_id=task_id)
    if details.state is TaskState.SUCCEEDED and not details.urls:
        watch.empty_looks += 1
        if watch.empty_looks >= EMPTY_LOOKS:
            message = f"task {task_id} succeeded, but its record lists no images yet; "
            message += "it is paid, so wait for it again later"
            return NoImagesError(message, task_id=task_id, details=details)
    return details if is_final(details) else None


def _ends_wait(watch: Watch, error: Exception, now: float) -> bool:
    """Whether a failed look ends the wait. A refusal by Kie or a proxy, or a wrong certificate, is about the
    look: a paid task outlives one or two."""
    if worth_repeating(error):
        watch.refusals = NONE_REFUSED
        return False
    if not isinstance(
        error, (APIStatusError, APIConnectionError)
    ):  # the client is closed, or `look` is wrong
        return True
    ends = _refused_again(watch, now)
    resume = f"the task is still running: wait for it again with client.wait({watch.task_id!r})"
    if isinstance(error, APIStatusError):
        remedy = f"{type(error).remedy} " if isinstance(error, _ABOUT_ACCESS) else ""
        error.remedy = f"{remedy}Only the status check was refused; {resume}"
    elif ends:
        error.args = (f"{error}. Only the status checks failed; {resume}",)
    return ends


def _refused_again(watch: Watch, now: float) -> bool:
    """Count a look that was refused, or that did not find the task; whether they suffice to end the wait."""
    count, first = watch.refusals
    watch.refusals = count, first = count + 1, first if count else now
    return count >= REFUSALS and now - first >= REFUSED_FOR


def teach(pace: Pace, watch: Watch, outcome: Outcome, now: float) -> None:
    """Tell the pace when this task finished, unless it ended without final details."""
    if not isinstance(outcome, TaskDetails):
        return
    duration = None
    if outcome.created_at is not None and outcome.completed_at is not None:
        duration = (outcome.completed_at - outcome.created_at).total_seconds()
    pace.learn(
        watch.sighting(now),
        submitted_at=watch.submitted_at,
        duration=duration,
        forecasts=watch.forecasts,
    )
