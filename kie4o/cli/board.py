"""What a person sees while a command runs: progress, and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Self, TextIO

from ..wire.decoding import shown


def note(message: str) -> None:
    """Print a message as one line on stderr."""
    print(f"kie4o: {shown(message, 1000)}", file=sys.stderr, flush=True)


class Board:
    """The state of each request: a progress bar per request on a terminal, plain lines elsewhere.

    rich is imported here, since it is optional and commands without progress do not need it.
    """

    def __init__(self, labels: Sequence[str], stream: TextIO) -> None:
        from rich import progress as rich
        from rich.console import Console

        console = Console(file=stream)
        self._progress = rich.Progress(
            rich.SpinnerColumn("line"),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(16),
            rich.TextColumn("{task.fields[state]}", markup=False),
            rich.TimeElapsedColumn(),
            console=console,
            disable=not console.is_interactive,
        )
        self._rows = [self._progress.add_task(label, total=None, state="") for label in labels]
        self._total = self._progress.add_task("total", total=len(labels), state="", visible=len(labels) > 1)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def show(self, row: int, state: str, *, done: bool = False) -> None:
        """Show the state of a request; `done` completes its bar."""
        task = self._progress.tasks[row]
        if self._progress.disable and task.fields["state"] != state:
            line = f"{task.elapsed:6.1f} s  {task.description}: {state}"
            print(line, file=self._progress.console.file, flush=True)
        self._progress.update(self._rows[row], state=state)
        if done:
            self._progress.update(self._rows[row], total=1, completed=1)
            self._progress.advance(self._total)
