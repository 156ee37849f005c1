"""What a batch says while it runs: drawn on a terminal, a plain line now and then elsewhere, or events."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import attrs

from ..drawing import Drawing
from ..terminal import Terminal, pause_line
from .lines import listed
from .progress import Progress
from .results import facts_of

if TYPE_CHECKING:
    from ...gallery.records import Record
    from .plan import Item

_CAUSES = 20  # of failures that are said; nobody reads more
# What is different in the same failure of two requests.
_PARTICULARS = re.compile(r"https?://\S+|\b[0-9a-f]{32}\b|\bsubmit with ref .*")
_NUMBERS = re.compile(r" \(\d+\)|\d+")  # codes too: the same pause is said with and without one


@attrs.define(eq=False)
class Reporter:
    """Reports the progress of a batch: `async with reporter.shown():`."""

    terminal: Terminal
    progress: Progress
    every: float  # seconds between two plain lines
    _drawing: Drawing | None = attrs.field(default=None, init=False)
    _causes: dict[str, list[int]] = attrs.field(factory=dict, init=False)  # the lines that each has affected
    _quiet_until: dict[str, float] = attrs.field(factory=dict, init=False)  # by the words of a pause

    @contextlib.asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Progress is shown inside of it."""
        drawing = Drawing(lambda width: self.progress.lines(time.monotonic(), width))
        self.progress.begin(time.monotonic())
        self.terminal.progress = self
        lines = asyncio.create_task(self._lines(), name="kie4o progress")
        try:
            if drawing.able and not self.terminal.quiet:
                async with drawing as self._drawing:
                    yield
            else:
                yield
        finally:
            self._drawing = self.terminal.progress = None
            lines.cancel()

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is drawn inside of it."""
        return contextlib.nullcontext() if self._drawing is None else self._drawing.hidden()

    def pause(self, text: str, seconds: float) -> None:
        """Show why nothing happens. Elsewhere than on a terminal it is said, but not over and over."""
        now = time.monotonic()
        self.progress.pause(text, seconds, now)
        kind = _NUMBERS.sub("", text)
        if now < self._quiet_until.get(kind, now):
            return
        self._quiet_until[kind] = now + max(seconds, self.every)
        self.event("pause", reason=text, seconds=seconds)
        if self._drawing is None:
            self.terminal.note(pause_line(text, seconds))

    def stopping(self) -> None:
        """Nothing more is submitted, because of Ctrl-C."""
        progress, again = self.progress, self.terminal.again()
        progress.stop("stopping: nothing more is submitted; Ctrl-C again stops at once")
        count = max(0, progress.running) + progress.saving
        self.terminal.error(f"{progress.stopping}. Waiting for {count} under way; to go on: {again}")
        self.event("stopping", under_way=count, command=again)

    def ended(self, item: Item, record: Record) -> None:
        """A request has its outcome."""
        progress = self.progress
        if record.state == "done" and record.error is None:
            progress.done += 1
        elif record.state == "unknown":
            progress.unknown += 1
        else:
            progress.failed += 1
        if not record.replayed or item.state in ("to submit", "under way"):  # or it had ended before
            progress.ended(time.monotonic(), len(record.files))
        self.event("item", **facts_of(record))
        if record.error is not None:
            self._failed(item.line.number, record.error)

    def event(self, event: str, /, **facts: Any) -> None:
        """Tell a program something."""
        if self.terminal.json:
            self.terminal.show("", event=event, **facts)

    def repeated(self) -> None:
        """Say which lines have failed like one that was said."""
        for first, *others in self._causes.values():
            if others:
                self.terminal.note(f"{listed(sorted(others))}: the same as line {first}")

    def said_of(self, text: str) -> int | None:
        """The line of which it was said; None if no notes are printed."""
        lines = self._causes.get(_cause(text))
        return None if lines is None or self.terminal.json or self.terminal.quiet else lines[0]

    def _failed(self, line: int, text: str) -> None:
        """Say a cause once, as it happens."""
        self.progress.failure = f"line {line}: {text}"
        cause = _cause(text)
        if cause in self._causes:
            self._causes[cause].append(line)
        elif len(self._causes) < _CAUSES:
            self._causes[cause] = [line]
            self.terminal.note(self.progress.failure)

    async def _lines(self) -> None:
        """A plain line now and then."""
        while True:
            await asyncio.sleep(self.every)
            now = time.monotonic()
            self.event("progress", **self.progress.facts(now))
            if self._drawing is None:
                self.terminal.progress_line(self.progress.line(now))


def _cause(text: str) -> str:
    """Equal for failures that differ in nothing but their request."""
    return _PARTICULARS.sub("", text)
