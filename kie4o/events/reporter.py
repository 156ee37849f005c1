"""Who is told of events: the log, and the hooks of a client.

A hook is called at once, in the task to which the event happens. It must not harm that: what it raises is
logged once, and one that blocks the event loop too often is not called any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from .base import Event

logger: logging.Logger = logging.getLogger("kie4o")

Hook = Callable[[Event], object]
Kinds = tuple[type[Event], ...]
OnEvent = Hook | Iterable[Hook] | Mapping[type[Event], Hook]

_BLOCKING = 0.25  # seconds that a call of a hook must not take
_MOST = 3  # such calls; one may be due to the machine


class Tracing(Protocol):
    """Knows the trace contexts of calls."""

    def current(self) -> str | None:
        """That of the caller, as a W3C traceparent."""
        ...

    def enter(self, task_id: str) -> None:
        """Make that of a call which waits for this task current, in the task of a poll."""

    def leave(self, number: int) -> None:
        """Make that of this call current no more, in the task of its caller."""


class Reporter:
    """Tells the log, and the hooks if there are any.

    Attributes:
        wanted: The kinds of events that anyone is told of, or that tell of a failure, as of the last
            `refresh`.
    """

    def __init__(
        self, hooks: Iterable[tuple[Hook, Kinds]] = (), *, time: Callable[[], float] = time.monotonic
    ) -> None:
        self._hooks = [_Hook(hook, kinds, time) for hook, kinds in hooks]
        self._hooks_of: dict[type[Event], list[_Hook]] = {}  # that want events of a kind
        self._time = time
        self._tracing: Tracing | None = None
        self._failures: dict[str, tuple[float, str]] = {}  # the last of each kind of call: when, and why
        self._level = -1  # of the log, by which `wanted` is made
        self.wanted: frozenset[type[Event]] = frozenset()
        self.refresh()

    def refresh(self) -> None:
        """Look at the level of the log again, when a call of the client begins and when a wait does.

        A task might tell of sixteen events. To ask `logging` about each of them takes 1 % of its CPU time.
        """
        level = logger.getEffectiveLevel()
        if level != self._level:
            self._level = level
            self.wanted = frozenset(
                kind for kind in _kinds(Event) if kind.failed or kind.level >= level or self._wanting(kind)
            )

    def wants(self, kind: type[Event]) -> bool:
        """Whether events of this kind are wanted now."""
        self.refresh()
        return kind in self.wanted

    def _wanting(self, kind: type[Event]) -> list[_Hook]:
        if kind not in self._hooks_of:
            self._hooks_of[kind] = [hook for hook in self._hooks if issubclass(kind, hook.kinds)]
        return self._hooks_of[kind]

    def logs(self, kind: type[Event]) -> bool:
        """Whether events of this kind are logged, so that they need a subject."""
        return logger.isEnabledFor(kind.level)

    def failures(self) -> list[tuple[str, str, float]]:
        """The last failure of each kind of call, the latest first: the kind, the cause, how long ago."""
        now, found = self._time(), list(self._failures.items())
        return sorted(((call, cause, now - at) for call, (at, cause) in found), key=lambda each: each[2])

    def __call__(self, event: Event, subject: str = "") -> None:
        """Tell of an event. `subject` is for `Event.line`."""
        if event.failed:
            self._failures[event.failed] = self._time(), vars(event)["cause"] or str(event)
        if logger.isEnabledFor(event.level):
            logger.log(event.level, *event.line(subject), stacklevel=2)
        if self._hooks:
            for hook in self._wanting(type(event)):
                hook.call(event)

    def add(self, *hooks: tuple[Hook, Kinds], tracing: Tracing) -> bool:
        """Add hooks, and who knows the trace contexts. False, and nothing is added, if another knows them
        already."""
        if self._tracing is not None:
            return False
        self._tracing = tracing
        self._hooks += [_Hook(hook, kinds, self._time) for hook, kinds in hooks]
        self._hooks_of.clear()
        self._level = -1
        self.refresh()
        return True

    def trace(self) -> str | None:
        """The trace context of the caller as a W3C traceparent, if anyone knows one."""
        if self._tracing is not None:
            with contextlib.suppress(Exception):  # the hook that comes with it says why
                return self._tracing.current()
        return None

    def enter(self, task_id: str) -> None:
        """A poll of this task begins, in a task of its own."""
        if self._tracing is not None:
            with contextlib.suppress(Exception):
                self._tracing.enter(task_id)

    def leave(self, number: int) -> None:
        """A call is over, also for a hook that is not called any more."""
        if self._tracing is not None:
            with contextlib.suppress(Exception):
                self._tracing.leave(number)


def _kinds(base: type[Event]) -> Iterator[type[Event]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


class _Hook:
    """A hook, the kinds of events that it wants, and how it behaves."""

    def __init__(self, call: Hook, kinds: Kinds, time: Callable[[], float]) -> None:
        self.kinds = kinds
        self._call = call
        self._time = time
        self._failed = False
        self._blocked = 0  # calls that took too long

    def call(self, event: Event) -> None:
        if self._blocked >= _MOST:
            return
        began = self._time()
        try:
            self._call(event)
        except (Exception, asyncio.CancelledError):
            if not self._failed:
                self._failed = True
                logger.exception("on_event: %r has failed; further failures are not logged", self._call)
        if self._time() - began > _BLOCKING:
            self._blocked += 1
            if self._blocked == _MOST:
                logger.error("on_event: %r blocks the event loop; it is not called any more", self._call)


LOG = Reporter()  # no hooks
