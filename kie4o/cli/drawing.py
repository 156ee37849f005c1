"""Draws a few lines over and over below everything else on a terminal, and only when they have changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

TICK = 0.25  # seconds between two looks for changes


class Drawing:
    """`async with Drawing(lines)`: what `lines(width)` returns is on stderr, until the block is left.

    Attributes:
        able: Whether stderr is a terminal that can be drawn on.
    """

    def __init__(self, lines: Callable[[int], Sequence[str]], console: Console | None = None) -> None:
        from rich.console import Console

        self._lines = lines
        self._console = Console(stderr=True, highlight=False) if console is None else console
        self.able: bool = self._console.is_interactive
        self._live: Live | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._drawn: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        self._start()
        self._ticker = asyncio.create_task(self._tick(), name="kie4o drawing")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        if self._live is not None:
            self._live.stop()
            self._live = None

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
            self._start()
            self.draw()

    def draw(self) -> None:
        """Draw the lines, if they have changed."""
        from rich.text import Text

        lines = tuple(self._lines(self._console.width))
        if lines != self._drawn and self._live is not None:
            self._drawn = lines
            self._live.update(Text("\n".join(lines), no_wrap=True, overflow="ellipsis"), refresh=True)

    def _start(self) -> None:
        """Draw below what is on the screen now. One that was stopped would erase lines above it first."""
        from rich.live import Live

        self._drawn = ()
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._live.start()

    async def _tick(self) -> None:
        while True:
            self.draw()
            await asyncio.sleep(TICK)
