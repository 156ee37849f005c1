"""The log of kie4o on a terminal: why nothing happens for a while, and with `--verbose` every line.

The lines are those of docs/logging.md. A pause is said while it lasts; what it says names no calls of Python.
"""

from __future__ import annotations

import logging
import re
import time

from ..wire.decoding import shown
from .messages import LONGEST
from .terminal import Terminal

_SHORTEST = 1.0  # seconds; a shorter pause is not worth a line
_CODES = {"429": "Kie refused a request for too many calls", "455": "Kie is under maintenance"}
_WORDS = {"Kie refused one for too many calls": _CODES["429"]}
_CODES |= {"430": _CODES["429"], "550": "Kie's queue is full"}
_PAUSES = tuple(
    re.compile(pattern)
    for pattern in (
        r"a submit is sent again in (?P<seconds>[\d.]+) s \(\d+ of \d+\): (?P<reason>.*)",
        r"submits pause for (?P<seconds>[\d.]+) s: (?P<reason>.*)",
        r"task \S+ is polled again in (?P<seconds>[\d.]+) s: (?P<reason>.*)",
        r"a free call is made again in (?P<seconds>[\d.]+) s: (?P<reason>.*)",
        r"(?P<reason>another client or process has the store .* open).* up to (?P<seconds>[\d.]+) s.*",
    )
)


class LogLines(logging.Handler):
    """Shows the records of the logger `kie4o`."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        line = record.getMessage()
        if self._terminal.verbose:
            at = time.strftime("%H:%M:%S", time.localtime(record.created))
            self._terminal.error(f"{at} {record.levelname} {shown(line, LONGEST)}")
        found = pause_of(line)
        if found is not None:
            self._terminal.pause(*found)


def pause_of(line: str) -> tuple[str, float] | None:
    """Why nothing happens, and for how many seconds; None if the line is about something else."""
    match = next(filter(None, (pattern.fullmatch(line) for pattern in _PAUSES)), None)
    if match is None or float(match["seconds"]) < _SHORTEST:
        return None
    reason = shown(match["reason"], 200)
    code, _, _ = reason.partition(" ")
    reason = f"{_CODES[code]} ({code})" if code in _CODES else _WORDS.get(reason, reason)
    return reason, float(match["seconds"])
