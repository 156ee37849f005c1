"""What a person sees while a command waits: a line per request on a terminal, plain lines elsewhere.

It is drawn when something has changed and once a second for the times, never more often.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Self

import attrs

from ..wire.decoding import shown
from .terminal import Terminal, pause_line

if TYPE_CHECKING:
    from rich.live import Live

_ROWS = 10  # of requests that are shown; the count and a pause follow
_TICK = 0.25  # seconds


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
        self._live: Live | None = None  # None where nothing can be drawn
        self._paused = ("", 0.0)  # why, and until when
        self._ticker: asyncio.Task[None] | None = None
        self._drawn: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        if not self._terminal.quiet:
            self._live = _live()
            if self._live is not None:
                self._live.start()
                self._terminal.progress = self
                self._ticker = asyncio.create_task(self._tick(), name="kie4o board")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._terminal.progress = None
        if self._ticker is not None:
            self._ticker.cancel()
        if self._live is not None:
            self._live.stop()

    def show(self, row: int, state: str, *, done: bool = False) -> None:
        """Show the state of a request; with `done` its line goes."""
        each = self._rows[row]
        if self._live is None and each.state != state:
            self._terminal.progress_line(f"{time.monotonic() - each.began:6.1f} s  {each.label}: {state}")
        each.state, each.done = state, done

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Nothing is drawn inside of it, so that something else can be written."""
        if self._live is None:
            yield
            return
        self._live.stop()
        try:
            yield
        finally:
            self._drawn = ()
            self._live.start()
            self._draw()

    def pause(self, text: str, seconds: float) -> None:
        """Show why nothing happens, and how long it lasts."""
        self._paused = (text, time.monotonic() + seconds)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            self._draw()

    def _draw(self) -> None:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        lines = (*self._lines(now), self._pause_line(now))
        if lines != self._drawn and self._live is not None:
            self._drawn = lines
            rows = Text("\n".join(lines[:-1]), no_wrap=True, overflow="ellipsis")
            pause = [Text(lines[-1])] if lines[-1] else []  # a narrow terminal has it on two lines
            self._live.update(Group(rows, *pause), refresh=True)

    def _lines(self, now: float) -> Iterator[str]:
        active = [row for row in self._rows if not row.done]
        yield from (row.line(now) for row in active[:_ROWS])
        if len(self._rows) > 1:
            yield f"{len(self._rows) - len(active)} of {len(self._rows)} done"

    def _pause_line(self, now: float) -> str:
        text, until = self._paused
        return pause_line(text, until - now) if until > now else ""


def _live() -> Live | None:
    """Where to draw, if stderr is a terminal that can."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True, highlight=False)
    if not console.is_interactive:
        return None
    return Live(
        console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
    )
