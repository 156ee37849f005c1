"""What is reported about waits: how a task ended, and looks that fail."""

from __future__ import annotations

from ..details import TaskDetails
from ..events import Finished, Polled, PollFailed
from ..events.reporter import Reporter
from ..models import Source
from ..wire.words import cause_of
from .watches import NEVER, NOW, OneLook, Watch

_LOG_EVERY = 1.0  # seconds between log lines about looks that fail: in an outage those of all tasks do


class Failures:
    """The looks that failed: one line for the pause after one of them, or for those of many tasks."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._unlogged = 0  # looks since the last line
        self._logged_at = NOW

    def log(self, watch: Watch, error: Exception, now: float) -> None:
        """The next look of the watch is planned already."""
        if watch.due not in (NOW, NEVER) and watch.due > watch.deadline:
            return  # the wait ends before
        if all(waiter.done() for waiter in watch.waiters):
            return  # only a status check, which raises the error
        if now < self._logged_at + _LOG_EVERY:
            self._unlogged += 1
            return
        others, self._unlogged, self._logged_at = self._unlogged, 0, now
        delay = watch.due - now if NOW < watch.due < NEVER else 0.0
        self._reporter(PollFailed(task_id=watch.task_id, cause=cause_of(error), seconds=delay, others=others))


def polled(watch: Watch, details: TaskDetails) -> Polled:
    """For a poll that has shown this."""
    return Polled(task_id=watch.task_id, state=details.state.value, progress=details.progress)


def report_end_of(reporter: Reporter, watch: Watch, details: TaskDetails, now: float) -> None:
    """Unless a caller has only checked the status, perhaps of a task that finished long ago."""
    if watch.source == "poll" and all(isinstance(waiter, OneLook) for waiter in watch.waiters):
        return
    known = watch.last_running_at is not None
    report_end(reporter, details, watch.source, now - watch.submitted_at if known else None)


def report_end(
    reporter: Reporter, details: TaskDetails, source: Source, seconds: float | None = None
) -> None:
    """A task has finished, `seconds` since the submit, or else those that Kie says."""
    if not reporter.wants(Finished):
        return
    if seconds is None and details.created_at is not None and details.completed_at is not None:
        seconds = (details.completed_at - details.created_at).total_seconds()
    reporter(Finished(task_id=details.task_id, state=details.state.value, source=source, seconds=seconds))
