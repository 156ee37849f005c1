"""The log of kie4o on a terminal, with `--verbose`: the lines of docs/logging.md."""

from __future__ import annotations

import logging
import time

from ..wire.decoding import shown
from .messages import LONGEST
from .terminal import Terminal


class LogLines(logging.Handler):
    """Shows the records of the logger `kie4o`."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        self._terminal.error(f"{at} {record.levelname} {shown(record.getMessage(), LONGEST)}")
