"""What a person sees while a command waits: a line per request on a terminal, plain lines elsewhere.

It is drawn when something has changed and once a second for the times, never more often.
"""

from __future__ import annotations

import contextlib
import textwrap
import time
from collections.abc import Sequence
from typing import Self

import attrs

from ..wire.decoding import shown
from .drawing import Drawing
from .terminal import Terminal, pause_line

_ROWS = 10  # of requests that are shown; the count and a pause follow


@attrs.define
class _Row:
    label: str
    state: str = ""
    done: bool = False
    began: float = attrs.field(factory=time.monotonic)

    def line(self, now: float) -> str:
        return f"{now - self.began:4.0f} s  {self.state:<10}  {self.label}"


class Board:
    """The state of each request: `async with Board(labels, terminal) as board: board.show(0, "running")`."""

    def __init__(self, labels: Sequence[str], terminal: Terminal) -> None:
        self._rows = [_Row(shown(label, 60)) for label in labels]
        self._terminal = terminal
        self._paused = ("", 0.0)  # why, and until when
        drawing = None if terminal.quiet else Drawing(self._lines)
        self._drawing = drawing if drawing is not None and drawing.able else None

    async def __aenter__(self) -> Self:
        if self._drawing is not None:
            await self._drawing.__aenter__()
            self._terminal.progress = self
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._terminal.progress = None
        if self._drawing is not None:
            await self._drawing.__aexit__(*exc)

    def show(self, row: int, state: str, *, done: bool = False) -> None:
        """Show the state of a request; with `done` its line goes."""
        each = self._rows[row]
        if self._drawing is None and each.state != state:
            self._terminal.progress_line(f"{time.monotonic() - each.began:6.1f} s  {each.label}: {state}")
        each.state, each.done = state, done

    def hidden(self) -> contextlib.AbstractContextManager[None]:
        """Nothing is drawn inside of it, so that something else can be written."""
        return contextlib.nullcontext() if self._drawing is None else self._drawing.hidden()

    def pause(self, text: str, seconds: float) -> None:
        """Show why nothing happens, and how long it lasts."""
        self._paused = (text, time.monotonic() + seconds)

    def _lines(self, width: int) -> list[str]:
        now, (text, until) = time.monotonic(), self._paused
        active = [row for row in self._rows if not row.done]
        lines = [row.line(now) for row in active[:_ROWS]]
        if len(self._rows) > 1:
            lines.append(f"{len(self._rows) - len(active)} of {len(self._rows)} done")
        return lines + (textwrap.wrap(pause_line(text, until - now), width) if until > now else [])
