"""How far a batch is: a few lines for a terminal, one for a log. Pure, whatever the number of requests."""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import attrs

from ...wire.decoding import shown
from ..terminal import pause_line

MOST = 12  # lines
WINDOW = 120.0  # seconds that images a minute and the time left are measured over
_BAR = 20  # characters
_SEPARATOR = " · "


@attrs.define(kw_only=True)
class Progress:
    """The counts of a batch. Times are those of one monotonic clock.

    Attributes:
        title: What is run.
        total: Requests of this run and of earlier ones; a `--limit` leaves out the rest.
        done: Those whose images are saved.
        failed: Those that failed.
        unknown: Those with an unknown outcome.
        running: Those with a task that has not ended. It is negative if one has ended before it was counted.
        saving: Those whose images are being saved.
        credits: What this run has submitted.
        stopping: What to say of a stop: nothing more is submitted.
        failure: The last failure.
    """

    title: str
    total: int
    done: int = 0
    failed: int = 0
    unknown: int = 0
    running: int = 0
    saving: int = 0
    credits: Decimal = Decimal(0)
    stopping: str = ""
    failure: str = ""
    _ended: deque[tuple[float, int]] = attrs.field(
        factory=deque, init=False
    )  # when, and with how many images
    _began: float | None = attrs.field(default=None, init=False)
    _paused: tuple[str, float, float] | None = attrs.field(default=None, init=False)  # why, until when, since

    @property
    def waiting(self) -> int:
        """Requests that are not submitted."""
        return max(0, self.left - max(0, self.running) - self.saving)

    @property
    def left(self) -> int:
        """Requests that have no outcome yet."""
        return max(0, self.total - self.done - self.failed - self.unknown)

    def begin(self, now: float) -> None:
        """The first request is about to be submitted."""
        self._began = now

    def ended(self, now: float, images: int) -> None:
        """A request of this run has its outcome."""
        self._ended.append((now, images))

    def pause(self, text: str, seconds: float, now: float) -> bool:
        """Nothing happens for that long. Whether it is news: the same pause may be reported by many tasks."""
        text = " ".join(text.split())
        news = self._paused is None or self._paused[0] != text or self._paused[1] < now
        self._paused = (text, now + seconds, now)
        return news

    def stop(self, text: str) -> None:
        """Nothing more is submitted: the pause was one before the next submit, and the pace ends."""
        self.stopping, self._paused = text, None

    def resumed(self, since: float) -> None:
        """Something was submitted: a pause that began before is over, however long it was to last."""
        if self._paused is not None and self._paused[2] < since:
            self._paused = None

    # -- what is shown ---------------------------------------------------------------------------------

    def lines(self, now: float, width: int) -> list[str]:
        """For a terminal of that width."""
        lines = [shown(self.title, width), self._bar()]
        lines += _joined([*self._counts(), *self._pace(now)], width)
        pause = self._pause(now)
        for text, most in ((pause, 3), (self.stopping, 2), (self.failure, 1)):
            lines += textwrap.wrap(text, width, max_lines=most, placeholder="…")
        return [line[:width] for line in lines[:MOST]]

    def line(self, now: float) -> str:
        """For a log."""
        parts = [f"{self.total - self.left:,} of {self.total:,}", *self._counts(), *self._pace(now)]
        return _SEPARATOR.join([*parts, *filter(None, [self._pause(now)])])

    def facts(self, now: float) -> dict[str, Any]:
        """For a program."""
        minutes, left = self._images_per_minute(now), self._seconds_left(now)
        return {
            "total": self.total,
            "waiting": self.waiting,
            "running": max(0, self.running),
            "done": self.done,
            "failed": self.failed,
            "unknown": self.unknown,
            "credits": float(self.credits),
            "images_per_minute": None if minutes is None else round(minutes, 1),
            "seconds_left": None if left is None else round(left),
        }

    def _bar(self) -> str:
        share = 1.0 if not self.total else (self.total - self.left) / self.total
        full = int(share * _BAR)
        bar = "━" * full + "─" * (_BAR - full)
        return f"{bar} {int(share * 100):3} %  {self.total - self.left:,}/{self.total:,}"

    def _counts(self) -> Iterator[str]:
        yield f"{self.waiting:,} {'not submitted' if self.stopping else 'waiting'}"
        yield f"{max(0, self.running):,} running"
        if self.saving:
            yield f"{self.saving:,} saving"
        yield f"{self.done:,} done"
        yield f"{self.failed:,} failed"
        yield f"{self.unknown:,} unknown"

    def _pace(self, now: float) -> Iterator[str]:
        yield f"{self.credits:,f} credits"
        if (minutes := self._images_per_minute(now)) is not None:
            yield f"{minutes:.0f} images/min"
        if (left := self._seconds_left(now)) is not None:
            yield f"{_duration(left)} left"

    def _pause(self, now: float) -> str:
        if self._paused is None or self._paused[1] <= now:
            return ""
        return pause_line(self._paused[0], self._paused[1] - now)

    def _recent(self, now: float) -> tuple[int, int, float] | None:
        """How many requests and images have ended lately, and in how many seconds; None if that tells nothing
        about the rest."""
        while self._ended and self._ended[0][0] < now - WINDOW:
            self._ended.popleft()
        if self._began is None or not self._ended or self.stopping:
            return None
        seconds = min(WINDOW, now - self._began)
        return len(self._ended), sum(images for _, images in self._ended), max(1.0, seconds)

    def _images_per_minute(self, now: float) -> float | None:
        recent = self._recent(now)
        return None if recent is None else recent[1] / recent[2] * 60

    def _seconds_left(self, now: float) -> float | None:
        recent = self._recent(now)
        return None if recent is None or not self.left else self.left / recent[0] * recent[2]


def _joined(parts: Sequence[str], width: int) -> list[str]:
    """The parts in as few lines of that width as they need."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_SEPARATOR) + len(part) <= width:
            lines[-1] += _SEPARATOR + part
        else:
            lines.append(part)
    return lines


def _duration(seconds: float) -> str:
    """In the largest unit that tells something: 50 s, 12 min, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
