"""What a person sees meanwhile: progress, and notes on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TextIO

from ..wire.decoding import shown


def note(words: str) -> None:
    print(f"kie4o: {shown(words, 1000)}", file=sys.stderr, flush=True)


class Board:
    """What is going on: a line per request that moves on a terminal, plain lines elsewhere."""

    def __init__(self, labels: Sequence[str], stream: TextIO) -> None:
        from rich import progress as rich
        from rich.console import Console

        console = Console(file=stream)
        self.progress = rich.Progress(
            rich.SpinnerColumn("line"),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(16),
            rich.TextColumn("{task.fields[state]}", markup=False),
            rich.TimeElapsedColumn(),
            console=console,
            disable=not console.is_interactive,
        )
        self._rows = [self.progress.add_task(label, total=None, state="") for label in labels]
        self._all = self.progress.add_task("in all", total=len(labels), state="", visible=len(labels) > 1)

    def say(self, row: int, state: str, *, ended: bool = False) -> None:
        task = self.progress.tasks[row]
        if self.progress.disable and task.fields["state"] != state:
            line = f"{task.elapsed:6.1f} s  {task.description}: {state}"
            print(line, file=self.progress.console.file, flush=True)
        one = 1 if ended else None
        self.progress.update(self._rows[row], state=state, total=one, completed=one)
        self.progress.update(self._all, advance=one)
