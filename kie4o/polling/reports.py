"""What is logged about waits: how a task ended, and looks that fail."""

from __future__ import annotations

import logging

from ..details import TaskDetails
from ..models import Source
from ..wire.words import cause_of
from .watches import NEVER, NOW, OneLook, Watch

logger: logging.Logger = logging.getLogger("kie4o")

_LOG_EVERY = 1.0  # seconds between log lines about looks that fail: in an outage those of all tasks do


class Failures:
    """The looks that failed: one line for the pause after one of them, or for those of many tasks."""

    def __init__(self) -> None:
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
        cause = cause_of(error)
        if others:
            cause = f"{cause} (and {others} failed polls before it)"
        logger.info("task %s is polled again in %.1f s: %s", watch.task_id, delay, cause)


def log_end_of(watch: Watch, details: TaskDetails, now: float) -> None:
    """Unless a caller has only checked the status, perhaps of a task that finished long ago."""
    if watch.source == "poll" and all(isinstance(waiter, OneLook) for waiter in watch.waiters):
        return
    known = watch.last_running_at is not None
    log_end(details, watch.source, now - watch.submitted_at if known else None)


def log_end(details: TaskDetails, source: Source, seconds: float | None = None) -> None:
    """One line for a task that has finished; `seconds` since the submit, or else those that Kie says."""
    if seconds is None and details.created_at is not None and details.completed_at is not None:
        seconds = (details.completed_at - details.created_at).total_seconds()
    after = "" if seconds is None else f" after {seconds:.1f} s"
    logger.info("task %s %s%s, found by %s", details.task_id, details.state.value, after, source)
