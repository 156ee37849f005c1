"""Appends to `results.jsonl`, a whole line in one write: the file is valid whenever the process dies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from ...gallery.records import FILE_NAME, Record, line, read

_LINES = ".kie4o.lines"


class Results:
    """The results of a folder: `with Results(folder) as results: results.add(record)`.

    Opening it removes a last line that was cut off.

    Attributes:
        path: The file.
        records: What was there, the last record of each key.
    """

    def __init__(self, folder: Path) -> None:
        self.path: Path = folder / FILE_NAME
        self._lines = folder / _LINES
        self._file = -1
        self.records: Sequence[Record] = ()

    def __enter__(self) -> Self:
        self._file = os.open(
            self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
        )
        try:
            _mend(self.path)
            self.records = read(self.path)
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def were_edited(self, order: str) -> bool:
        """Whether the lines have another order than in the last run. Then a file without a record, which a
        killed run has left, may be the image of another line than that of its number."""
        try:
            return self._lines.read_bytes() != order.encode()
        except FileNotFoundError:
            return False

    def remember_lines(self, order: str) -> None:
        """Keep the order of this run, once the names that depend on that of the last one are recorded."""
        self._lines.write_bytes(order.encode())

    def add(self, record: Record) -> None:
        """Append a record. Raises `OSError`; then nothing of it is left, if that is possible."""
        data = line(record).encode()
        written = os.write(self._file, data)
        if written < len(data):  # the disk is full
            os.truncate(self.path, self.path.stat().st_size - written)
            raise OSError(f"'{self.path}': {written} of {len(data)} bytes were written")


def facts_of(record: Record) -> Mapping[str, object]:
    """A record as a program gets it."""
    facts: dict[str, object] = json.loads(line(record))
    return facts


def _mend(path: Path) -> None:
    """End the last line, or remove it if it was cut off."""
    with path.open("r+b") as file:
        data = file.read()
        last = data[data.rfind(b"\n") + 1 :]
        if not last:
            return
        try:
            json.loads(last)
        except ValueError:
            file.truncate(len(data) - len(last))
        else:
            file.write(b"\n")
